//! Certificates in `roots` that are no complete authorities, and configured intermediates.
//! Is each configured certificate trusted only for its own purpose?

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose as Purpose, IsCa, KeyUsagePurpose as Usage};

use super::generator::{Authority, Case, Der, NAME, case, date, leaf_params, self_signed};

/// Returns a server certificate whose key issues other certificates.
fn owner(change: impl FnOnce(&mut CertificateParams)) -> Authority {
    Authority::root_with("owner", |params| {
        let leaf = leaf_params(&[NAME]);
        params.is_ca = IsCa::ExplicitNoCa;
        params.distinguished_name = leaf.distinguished_name;
        (params.subject_alt_names, params.key_usages) = (leaf.subject_alt_names, leaf.key_usages);
        (params.extended_key_usages, params.custom_extensions) = (leaf.extended_key_usages, leaf.custom_extensions);
        (params.not_before, params.not_after) = (leaf.not_before, leaf.not_after);
        change(params);
    })
}

pub fn cases() -> Vec<Case> {
    const ALONE: &str =
        "RFC 5280 §4.2.1.9: without cA its key verifies no certificate; the operator's word is for itself";
    let own = owner(|_| {});
    let no_constraints = owner(|params| params.is_ca = IsCa::NoCa);
    let expired = owner(|params| params.not_after = date("2026-11-30T00:00:00Z"));
    let no_sign_itself = owner(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    let no_sign = Authority::root_with("no sign", |params| params.key_usages = vec![Usage::CrlSign]);
    let servers = Authority::root_with("servers", |params| params.extended_key_usages = vec![Purpose::ServerAuth]);
    let any = Authority::root_with("any", |params| params.extended_key_usages = vec![Purpose::Any]);
    let root = Authority::root("root");
    let issued = root.leaf();
    let unknown = "unknown_issuer";
    let itself = |one: &Authority| vec![one.der.clone()];
    let mut cases = vec![
        case("CA:FALSE in roots, sent itself", ALONE, &[&own], itself(&own)),
        case("CA:FALSE in roots, for another name", ALONE, &[&own], itself(&own))
            .target("other.example")
            .refused("name_mismatch"),
        case("CA:FALSE in roots, a certificate by its owner", ALONE, &[&own], vec![own.leaf_for(&["other.example"])])
            .target("other.example")
            .refused(unknown),
        case("CA:FALSE in roots, an authority by its owner", ALONE, &[&own], {
            let below = own.issue_ca("below");
            vec![below.leaf(), below.der, own.der.clone()]
        })
        .refused("wrong_usage"),
        case("CA:FALSE in roots, with its issuer's other leaves", ALONE, &[], vec![root.leaf()])
            .root(issued.clone())
            .refused(unknown),
        case("another issuer's leaf in roots, sent itself", ALONE, &[], vec![issued.clone()]).root(issued.clone()),
        case("CA:FALSE in roots, expired", ALONE, &[&expired], itself(&expired)).refused("expired"),
        case("keyCertSign missing in roots, sent itself", ALONE, &[&no_sign_itself], itself(&no_sign_itself))
            .refused_if_strict("ca_as_leaf"),
        case("a leaf in roots, revoked by its issuer in roots", "RFC 5280 §6.3.3", &[&root], vec![issued.clone()])
            .also_root(issued.clone())
            .lists(vec![root.list(&[7])])
            .refused("revoked"),
        case("no basicConstraints in roots, sent itself", ALONE, &[&no_constraints], itself(&no_constraints)),
        case(
            "no basicConstraints in roots, a leaf by its owner",
            ALONE,
            &[&no_constraints],
            vec![no_constraints.leaf()],
        )
        .refused(unknown),
        case("a root without keyCertSign", "RFC 5280 §4.2.1.3", &[&no_sign], vec![no_sign.leaf()]).refused(unknown),
        case("a root for servers", "RFC 5280 §4.2.1.12", &[&servers], vec![servers.leaf()]),
        case("a root for any purpose", "RFC 5280 §4.2.1.12", &[&any], vec![any.leaf()]),
    ];
    cases.extend(not_sent(&root));
    cases
}

/// `intermediates`: for path building only.
fn not_sent(root: &Authority) -> Vec<Case> {
    const RULE: &str = "RFC 5280 §6.1: where a path's certificates come from does not count";
    let (issuer, untrusted_root) = (root.issue_ca("issuer"), Authority::root("stranger"));
    let deep = issuer.issue_ca("deep");
    let short = root.issue_ca_with("short", |params| params.not_after = date("2026-11-30T00:00:00Z"));
    let below = |one: &Authority| -> Vec<Der> { vec![one.leaf()] };
    vec![
        case("the issuer configured, not sent", RULE, &[root], below(&issuer)).intermediates(vec![issuer.der.clone()]),
        case("the upper of two configured, not sent", RULE, &[root], vec![deep.leaf(), deep.der.clone()])
            .intermediates(vec![issuer.der.clone()]),
        case("configured as an intermediate only", "intermediates are no roots", &[root], below(&untrusted_root))
            .intermediates(vec![untrusted_root.der.clone()])
            .refused("unknown_issuer"),
        case("a configured intermediate that has expired", RULE, &[root], below(&short))
            .intermediates(vec![short.der.clone()])
            .refused("expired"),
        case("a configured intermediate that is revoked", "RFC 5280 §6.3.3", &[root], below(&issuer))
            .intermediates(vec![issuer.der.clone()])
            .lists(vec![issuer.list(&[]), root.list(&[9])])
            .refused("revoked"),
        case("self-signed, beside an intermediate", RULE, &[root], vec![self_signed(|_| {})])
            .intermediates(vec![issuer.der])
            .refused("self_signed"),
    ]
}
