//! The usages of certificates: servers, clients, and signing of other certificates.
//! Does each certificate of a chain allow the usage?

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose as Purpose, IsCa, KeyUsagePurpose as Usage};

use super::generator::{Authority, Case, Der, case, extension};

pub fn cases() -> Vec<Case> {
    let root = Authority::root("root");
    let r = &[&root];
    let leaf = |change: &dyn Fn(&mut CertificateParams)| vec![root.leaf_with(|params| change(params))];
    let below = |change: &dyn Fn(&mut CertificateParams)| -> Vec<Der> {
        let issuer = root.issue_ca_with("issuer", |params| change(params));
        vec![issuer.leaf(), issuer.der]
    };
    let for_what = |purposes: &'static [Purpose]| {
        move |params: &mut CertificateParams| {
            params.extended_key_usages = purposes.to_vec();
        }
    };
    let keys = |usages: &'static [Usage]| move |params: &mut CertificateParams| params.key_usages = usages.to_vec();
    let eku = "RFC 5280 §4.2.1.12";
    let br_eku = "BR §7.1.2.7.10: serverAuth must be there";
    let wrong = "wrong_usage";
    let no_purpose = |params: &mut CertificateParams| {
        params.extended_key_usages.clear();
        params.custom_extensions.push(extension(37, false, &[0x30, 0]));
    };
    let not_an_authority = |params: &mut CertificateParams| {
        params.is_ca = IsCa::NoCa;
        params.key_usages = vec![Usage::DigitalSignature];
    };
    let denied = |params: &mut CertificateParams| {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![Usage::KeyCertSign];
    };
    let an_authority = |params: &mut CertificateParams| {
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages.push(Usage::KeyCertSign);
    };
    let root_as_leaf = Authority::root_with("root as a server", |params| {
        params.subject_alt_names = vec![rcgen::SanType::DnsName("hooks.acme.example".try_into().unwrap())];
    });
    vec![
        case("for servers and clients", eku, r, leaf(&for_what(&[Purpose::ClientAuth, Purpose::ServerAuth]))),
        case("for no purpose in particular", br_eku, r, leaf(&for_what(&[]))).refused_if_strict(wrong),
        case("for clients", eku, r, leaf(&for_what(&[Purpose::ClientAuth]))).refused(wrong),
        case("for signing code", eku, r, leaf(&for_what(&[Purpose::CodeSigning]))).refused(wrong),
        case(
            "for any purpose",
            "RFC 5280 §4.2.1.12: may be rejected; BR §7.1.2.7.10",
            r,
            leaf(&for_what(&[Purpose::Any])),
        )
        .refused(wrong),
        case("with a list of purposes that is empty", "RFC 5280 §4.2.1.12: at least one", r, leaf(&no_purpose))
            .refused(wrong),
        case("an issuer for servers", eku, r, below(&for_what(&[Purpose::ServerAuth]))),
        case(
            "an issuer for clients",
            "BR §7.1.2.10.6; of every issuer in the path",
            r,
            below(&for_what(&[Purpose::ClientAuth])),
        )
        .refused(wrong),
        case(
            "a key for signatures and encryption",
            "RFC 5280 §4.2.1.3",
            r,
            leaf(&keys(&[Usage::DigitalSignature, Usage::KeyEncipherment])),
        ),
        case("a key for anything", "RFC 5280 §4.2.1.3: absent, no restriction", r, leaf(&keys(&[]))),
        case(
            "a key for encryption only",
            "RFC 8446 §4.4.2.2: digitalSignature where keyUsage is",
            r,
            leaf(&keys(&[Usage::KeyEncipherment])),
        )
        .refused_if_strict(wrong),
        case(
            "an issuer whose key is for anything",
            "RFC 5280 §6.1.4 (n): only where keyUsage is; BR §7.1.2.10.7: it is",
            r,
            below(&keys(&[])),
        )
        .refused_if_strict("not_baseline"),
        case(
            "an issuer whose key may not sign certificates",
            "RFC 5280 §6.1.4 (n)",
            r,
            below(&keys(&[Usage::DigitalSignature, Usage::CrlSign])),
        )
        .refused(wrong),
        case("issued by a leaf", "RFC 5280 §6.1.4 (k)", r, below(&not_an_authority)).refused(wrong),
        case("issued with keyCertSign, but by no authority", "RFC 5280 §6.1.4 (k)", r, below(&denied)).refused(wrong),
        case("an authority as a server", "BR §7.1.2.7.8: cA must be FALSE", r, leaf(&an_authority))
            .refused("ca_as_leaf"),
        case(
            "the root itself as a server",
            "BR §6.1.7: a root signs no handshakes",
            &[&root_as_leaf],
            vec![root_as_leaf.der.clone()],
        )
        .refused("ca_as_leaf"),
    ]
}
