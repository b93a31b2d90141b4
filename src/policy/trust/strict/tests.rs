//! Tests of the rules beyond webpki's.
//! Is each rule applied exactly at its bound?

use std::net::IpAddr;
use std::slice;

use rcgen::ExtendedKeyUsagePurpose::{
    Any, ClientAuth, CodeSigning, EmailProtection, OcspSigning, ServerAuth, TimeStamping,
};
use rcgen::KeyUsagePurpose::{CrlSign, DigitalSignature, KeyCertSign, KeyEncipherment};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, PublicKeyData, SanType};

use super::*;
use crate::policy::fixture::pki::{Authority, NOW, OID, RsaKey, SEQUENCE, date, der, extension, replaced};

/// 2.23.140.1.2.1: only the domain was validated.
const DOMAIN_VALIDATED: [u8; 6] = [0x67, 0x81, 0x0C, 1, 2, 1];

const BASIC_CONSTRAINTS: u64 = 19;
const KEY_USAGE: u64 = 15;
const CERTIFICATE_POLICIES: u64 = 32;

/// keyUsage with keyCertSign.
const SIGNS_CERTIFICATES: [u8; 4] = [0x03, 0x02, 0x02, 0x04];
/// basicConstraints with CA:TRUE.
const IS_AUTHORITY: [u8; 5] = [0x30, 0x03, 0x01, 0x01, 0xFF];

fn policies(ids: &[&[u8]]) -> rcgen::CustomExtension {
    let ids: Vec<_> = ids.iter().map(|id| der(SEQUENCE, &[&der(OID, &[id])])).collect();
    extension(CERTIFICATE_POLICIES, false, der(SEQUENCE, &[&ids.concat()]))
}

/// Changes a certificate to one that a public authority may issue.
fn make_public(params: &mut CertificateParams) {
    (params.not_before, params.not_after) = (date(NOW), date(NOW + 100 * DAY));
    params.extended_key_usages = vec![ServerAuth];
    params.key_usages = vec![DigitalSignature];
    params.custom_extensions = vec![policies(&[&DOMAIN_VALIDATED])];
}

fn public_leaf(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    public_leaf_of(&KeyPair::generate().unwrap(), change)
}

fn public_leaf_of(key: &impl PublicKeyData, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let made = Authority::root("root").leaf_of(key, |params| {
        make_public(params);
        change(params);
    });
    made.to_vec()
}

/// Returns the verdict about a leaf that differs in one respect from a good one.
fn judge(change: impl FnOnce(&mut CertificateParams)) -> Result<(), VerifyError> {
    check_web_pki(&public_leaf(change), &[])
}

fn judge_authority(change: impl FnOnce(&mut CertificateParams)) -> Result<(), VerifyError> {
    check_web_pki(&public_leaf(|_| {}), &[&Authority::root_with("authority", change).der])
}

#[test]
fn public_certificate_keeps_the_rules_without_its_optional_extensions() {
    assert_eq!(judge(|_| {}), Ok(()));
    assert_eq!(judge(|params| params.key_usages = vec![]), Ok(()), "keyUsage is optional");
    assert_eq!(judge(|params| params.is_ca = IsCa::ExplicitNoCa), Ok(()), "basicConstraints is optional");
    assert_eq!(
        judge(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        Err(VerifyError::CaAsLeaf),
        "an authority is no server"
    );
    assert_eq!(check_web_pki(b"odd", &[]), Err(VerifyError::Malformed));
    assert_eq!(check_web_pki(&public_leaf(|_| {}), &[b"odd"]), Err(VerifyError::Malformed));
}

#[test]
fn public_certificate_is_for_servers_only() {
    let judge =
        |purposes: &[rcgen::ExtendedKeyUsagePurpose]| judge(|params| params.extended_key_usages = purposes.to_vec());
    assert_eq!(judge(&[ServerAuth]), Ok(()));
    assert_eq!(judge(&[ServerAuth, ClientAuth]), Ok(()));
    for forbidden in [Any, CodeSigning, EmailProtection, TimeStamping, OcspSigning] {
        assert_eq!(judge(&[ServerAuth, forbidden.clone()]), Err(VerifyError::WrongUsage), "{forbidden:?}");
    }
    for without_servers in [&[][..], &[ClientAuth], &[CodeSigning], &[Any]] {
        assert_eq!(judge(without_servers), Err(VerifyError::WrongUsage), "{without_servers:?}");
    }
}

#[test]
fn public_certificate_has_a_key_for_signatures_and_no_key_of_an_authority() {
    let judge = |usages: &[rcgen::KeyUsagePurpose]| judge(|params| params.key_usages = usages.to_vec());
    assert_eq!(judge(&[DigitalSignature]), Ok(()));
    assert_eq!(judge(&[DigitalSignature, KeyEncipherment]), Ok(()));
    for usages in [
        &[KeyEncipherment][..],
        &[DigitalSignature, KeyCertSign],
        &[DigitalSignature, CrlSign],
        &[DigitalSignature, KeyCertSign, CrlSign],
        &[KeyCertSign],
        &[CrlSign],
    ] {
        assert_eq!(judge(usages), Err(VerifyError::WrongUsage), "{usages:?}");
    }
}

#[test]
fn public_certificate_is_valid_for_no_more_days_than_its_issue_date_permits() {
    for (issued, days) in [
        (1_773_532_799, 398),
        (1_773_532_800, 200),
        (1_805_068_799, 200),
        (1_805_068_800, 100),
        (1_868_227_199, 100),
        (1_868_227_200, 47),
    ] {
        assert_eq!(max_validity_days(issued), days, "{issued}");
        // Both ends belong to the period, so that it has one second more than the difference.
        let judge_seconds = |seconds: i64| {
            judge(|params| (params.not_before, params.not_after) = (date(issued), date(issued + seconds - 1)))
        };
        assert_eq!(judge_seconds(days * 86_400), Ok(()), "{issued}");
        assert_eq!(judge_seconds(days * 86_400 + 1), Err(VerifyError::ValidityTooLong), "{issued}");
    }
}

#[test]
fn public_certificate_names_a_reserved_policy() {
    let judge = |ids: &[&[u8]]| judge(|params| params.custom_extensions = vec![policies(ids)]);
    for reserved in [&[0x67, 0x81, 0x0C, 1, 1][..], &DOMAIN_VALIDATED, &[0x67, 0x81, 0x0C, 1, 2, 2]] {
        assert_eq!(judge(&[reserved]), Ok(()), "{reserved:?}");
    }
    let own: &[u8] = &[0x2A, 3, 4];
    assert_eq!(judge(&[own, &[0x67, 0x81, 0x0C, 1, 2, 3]]), Ok(()), "one of several policies");
    assert_eq!(judge(&[own]), Err(VerifyError::NotBaseline), "a policy of the authority's own");
    let without = self::judge(|params| params.custom_extensions = vec![]);
    assert_eq!(without, Err(VerifyError::NotBaseline), "no policies");
}

#[test]
fn public_certificate_has_a_positive_serial_number_of_at_most_20_octets() {
    let with_serial = |serial: &[u8]| public_leaf(|params| params.serial_number = Some(serial.to_vec().into()));
    let judge = |serial: &[u8]| check_web_pki(&with_serial(serial), &[]);
    assert_eq!(judge(&[1]), Ok(()));
    assert_eq!(judge(&[0x7F; 19]), Ok(()));
    assert_eq!(judge(&[0x7F; 20]), Ok(()));
    assert_eq!(judge(&[0xFF; 20]), Ok(()), "the zero before the sign bit does not count");
    assert_eq!(judge(&[0x7F; 21]), Err(VerifyError::NotBaseline));
    assert_eq!(judge(&[0xFF; 21]), Err(VerifyError::NotBaseline));
    assert_eq!(judge(&[0]), Err(VerifyError::NotBaseline));
    let negative = replaced(&with_serial(&[0x5A; 9]), &[0x5A; 9], &[0x81; 9]);
    assert_eq!(check_web_pki(&negative, &[]), Err(VerifyError::NotBaseline));
}

#[test]
fn public_name_has_several_labels_and_at_most_a_leading_wildcard() {
    for name in ["acme.example", "a-b.1.example", "xn--bcher-kva.example", "*.acme.example"] {
        assert!(is_public_name(name), "{name}");
    }
    for name in [
        "",
        ".",
        "localhost",
        "*.localhost",
        "*",
        "a_b.example",
        "a b.example",
        "acme..example",
        ".acme.example",
        "acme.example.",
        "*.*.example",
        "a.*.example",
        "a*.acme.example",
    ] {
        assert!(!is_public_name(name), "{name}");
    }
}

#[test]
fn public_certificate_has_public_names_only_and_its_common_name_is_one_of_them() {
    let judge = |names: &[SanType], common: &[&str]| {
        let leaf = public_leaf(|params| {
            params.subject_alt_names = names.to_vec();
            common.iter().for_each(|name| params.distinguished_name.push(DnType::CommonName, *name));
        });
        check_web_pki_names(&leaf)
    };
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let ip = |ip: &str| SanType::IpAddress(ip.parse::<IpAddr>().unwrap());
    let mail = SanType::Rfc822Name("ops@acme.example".try_into().unwrap());
    let hooks = dns("hooks.acme.example");
    let both = [hooks.clone(), ip("93.184.216.34")];
    for (names, common) in [
        (&[][..], &[][..]),
        (slice::from_ref(&hooks), &[]),
        (&[dns("*.acme.example")], &[]),
        (&[ip("93.184.216.34")], &[]),
        (&[ip("2606:2800:220:1::1")], &[]),
        (&both, &["HOOKS.acme.example"]),
        (&both, &["93.184.216.34"]),
        (&[ip("2606:2800:220:1::1")], &["2606:2800:220:1:0:0:0:1"]),
    ] {
        assert_eq!(judge(names, common), Ok(()), "{names:?} {common:?}");
    }
    for (names, common) in [
        (&[dns("intranet")][..], &[][..]),
        (&[hooks.clone(), dns("intranet")], &[]),
        (&[dns("intranet")], &["intranet"]),
        (&[ip("10.0.0.1")], &[]),
        (&[hooks.clone(), ip("127.0.0.1")], &[]),
        (&[hooks.clone(), mail.clone()], &[]),
        (slice::from_ref(&mail), &["ops@acme.example"]),
        (&both, &["other.acme.example"]),
        (&both, &["93.184.216.35"]),
        (&both, &["Acme"]),
    ] {
        assert_eq!(judge(names, common), Err(VerifyError::NotBaseline), "{names:?} {common:?}");
    }
    assert_eq!(check_web_pki_names(b"odd"), Err(VerifyError::Malformed));
}

#[test]
fn public_key_is_rsa_of_whole_bytes_with_an_odd_exponent_or_on_a_nist_curve() {
    let judge = |key: &RsaKey| check_web_pki(&public_leaf_of(key, |_| {}), &[]);
    for bits in [2048, 2056, 3072, 4096] {
        assert_eq!(judge(&RsaKey::of_bits(bits)), Ok(()), "{bits}");
    }
    for bits in [2047, 2049, 2055, 2057] {
        assert_eq!(judge(&RsaKey::of_bits(bits)), Err(VerifyError::NotBaseline), "{bits}");
    }
    let with_exponent = |exponent: &[u8]| judge(&RsaKey::new(&[&[0][..], &[0xFF; 256]].concat(), exponent));
    for good in [&[3][..], &[5], &[0x11], &[1, 0, 1]] {
        assert_eq!(with_exponent(good), Ok(()), "{good:?}");
    }
    for bad in [&[0][..], &[1], &[2], &[4], &[1, 0, 0], &[1; 9]] {
        assert_eq!(with_exponent(bad), Err(VerifyError::NotBaseline), "{bad:?}");
    }
    for curve in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ECDSA_P521_SHA512] {
        let leaf = public_leaf_of(&KeyPair::generate_for(curve).unwrap(), |_| {});
        assert_eq!(check_web_pki(&leaf, &[]), Ok(()), "{curve:?}");
    }
    let edwards = public_leaf_of(&KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(), |_| {});
    assert_eq!(check_web_pki(&edwards, &[]), Err(VerifyError::UnsupportedAlgorithm));
    // The rule holds for the authorities of the path as well.
    let authority = Authority::root("root").leaf_of(&RsaKey::of_bits(2049), |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyCertSign];
    });
    assert_eq!(check_web_pki(&public_leaf(|_| {}), &[&authority]), Err(VerifyError::NotBaseline));
}

#[test]
fn public_authority_has_critical_constraints_and_usages() {
    assert_eq!(judge_authority(|_| {}), Ok(()));
    let usage = |critical| extension(KEY_USAGE, critical, SIGNS_CERTIFICATES.to_vec());
    let constraints = |critical| extension(BASIC_CONSTRAINTS, critical, IS_AUTHORITY.to_vec());
    let judge = |extensions: Vec<rcgen::CustomExtension>| {
        judge_authority(|params| {
            (params.is_ca, params.key_usages, params.custom_extensions) = (IsCa::NoCa, vec![], extensions);
        })
    };
    assert_eq!(judge(vec![constraints(true), usage(true)]), Ok(()));
    for extensions in [
        vec![],
        vec![constraints(true)],
        vec![usage(true)],
        vec![constraints(false), usage(true)],
        vec![constraints(true), usage(false)],
        vec![constraints(false), usage(false)],
    ] {
        assert_eq!(judge(extensions.clone()), Err(VerifyError::NotBaseline), "{extensions:?}");
    }
}

#[test]
fn public_authority_may_issue_for_servers_but_not_for_any_purpose() {
    let judge = |purposes: &[rcgen::ExtendedKeyUsagePurpose]| {
        judge_authority(|params| params.extended_key_usages = purposes.to_vec())
    };
    for purposes in [&[][..], &[ServerAuth], &[ServerAuth, ClientAuth]] {
        assert_eq!(judge(purposes), Ok(()), "{purposes:?}");
    }
    for purposes in [&[ClientAuth][..], &[Any], &[ServerAuth, Any], &[ClientAuth, Any]] {
        assert_eq!(judge(purposes), Err(VerifyError::WrongUsage), "{purposes:?}");
    }
}

#[test]
fn chain_has_keys_of_sufficient_size_and_supported_types() {
    let leaf_of = |key: &RsaKey| public_leaf_of(key, |_| {});
    let good = public_leaf(|_| {});
    for bits in [2048, 2049, 4096] {
        assert_eq!(check_chain(&leaf_of(&RsaKey::of_bits(bits)), &[]), Ok(()), "{bits}");
        assert!(!is_weak_key(&RsaKey::of_bits(bits).subject_public_key_info()), "{bits}");
    }
    // A modulus whose first bit is set and has no zero before it is negative.
    for (key, what) in [
        (RsaKey::of_bits(2047), "2047 bits"),
        (RsaKey::of_bits(1024), "1024 bits"),
        (RsaKey::new(&[0xFF; 256], &[3]), "negative"),
    ] {
        assert_eq!(check_chain(&leaf_of(&key), &[]), Err(VerifyError::WeakKey), "{what}");
        assert_eq!(check_chain(&good, &[&leaf_of(&key)]), Err(VerifyError::WeakKey), "{what}");
        assert!(is_weak_key(&key.subject_public_key_info()), "{what}");
    }
    let edwards = public_leaf_of(&KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap(), |_| {});
    assert_eq!(check_chain(&edwards, &[]), Ok(()));
    assert_eq!(check_chain(&good, &[]), Ok(()));
    // P-192 instead of P-256, and Ed448 instead of Ed25519.
    let (p256, p192) = ([0x2A, 0x86, 0x48, 0xCE, 0x3D, 3, 1, 7], [0x2A, 0x86, 0x48, 0xCE, 0x3D, 3, 1, 1]);
    for unsupported in [replaced(&good, &p256, &p192), replaced(&edwards, &[0x2B, 0x65, 0x70], &[0x2B, 0x65, 0x71])] {
        assert_eq!(check_chain(&unsupported, &[]), Err(VerifyError::UnsupportedAlgorithm));
    }
    assert_eq!(check_chain(b"odd", &[]), Err(VerifyError::Malformed));
    assert_eq!(check_chain(&good, &[b"odd"]), Err(VerifyError::Malformed));
}

#[test]
fn chain_has_authorities_whose_keys_may_sign_certificates() {
    let leaf = public_leaf(|_| {});
    let judge = |usages: &[rcgen::KeyUsagePurpose]| {
        let authority = Authority::root_with("authority", |params| params.key_usages = usages.to_vec());
        check_chain(&leaf, &[&authority.der])
    };
    assert_eq!(judge(&[]), Ok(()));
    assert_eq!(judge(&[KeyCertSign]), Ok(()));
    assert_eq!(judge(&[CrlSign, DigitalSignature]), Err(VerifyError::WrongUsage));
}
