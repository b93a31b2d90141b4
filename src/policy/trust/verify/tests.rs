//! Tests of the verification of a target's chain.
//! Which chain proves the name, and which of several errors is reported?

use std::slice;

use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use rcgen::{CertificateParams, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData};

use super::super::tests::{at, pem_file, trust};
use super::*;
use crate::policy::fixture::pki::{Authority, DAY, NOW, RsaKey, date, replaced, unix};

fn rejection(trust: &Trust, leaf: &[u8], others: &[CertificateDer<'_>]) -> Option<CertificateRejection> {
    let name = ServerName::try_from("hooks.acme.example").unwrap();
    trust.verify(&CertificateDer::from_slice(leaf), others, &name, unix(NOW)).err()
}

fn verdict(trust: &Trust, leaf: &[u8], others: &[CertificateDer<'_>]) -> Result<(), VerifyError> {
    rejection(trust, leaf, others).map_or(Ok(()), |refused| Err(refused.error))
}

fn plain(roots: &[&[u8]]) -> Trust {
    trust(roots, |_| {})
}

#[test]
fn chain_proves_the_name_with_a_path_to_a_root() {
    let (root, other) = (Authority::root("root"), Authority::root("other"));
    let middle = root.intermediate("middle");
    let (leaf, below) = (root.leaf(|_| {}), middle.leaf(|_| {}));
    assert_eq!(verdict(&plain(&[&root.der]), &leaf, &[]), Ok(()));
    assert_eq!(verdict(&plain(&[&root.der]), &below, slice::from_ref(&middle.der)), Ok(()));
    assert_eq!(verdict(&plain(&[&root.der]), &below, &[]), Err(VerifyError::UnknownIssuer));
    let complete = trust(&[&root.der], |written| {
        written.intermediates = vec![pem_file("middle.pem", &[&middle.der])];
    });
    assert_eq!(verdict(&complete, &below, &[]), Ok(()), "a configured intermediate");
    assert_eq!(verdict(&plain(&[&other.der]), &leaf, &[]), Err(VerifyError::UnknownIssuer));
    let renamed = root.leaf(|params| params.subject_alt_names.clear());
    assert_eq!(verdict(&plain(&[&root.der]), &renamed, &[]), Err(VerifyError::NoSubjectAltName));
    assert_eq!(verdict(&plain(&[&root.der]), b"odd", &[]), Err(VerifyError::Malformed));
}

#[test]
fn chain_keeps_the_rules_of_its_policy() {
    let root = Authority::root("root");
    let plain = plain(&[&root.der]);
    let weak = root.leaf_of(&RsaKey::of_bits(1024), |_| {});
    assert_eq!(verdict(&plain, &weak, &[]), Err(VerifyError::WeakKey));
    let mute = root.intermediate_with("mute", |params| params.key_usages = vec![KeyUsagePurpose::CrlSign]);
    assert_eq!(verdict(&plain, &mute.leaf(|_| {}), slice::from_ref(&mute.der)), Err(VerifyError::WrongUsage));
    let strict = trust(&[&root.der], |written| written.strict = Some(at(true)));
    assert_eq!(verdict(&strict, &root.leaf(|_| {}), &[]), Err(VerifyError::WrongUsage), "no extended key usage");
    let server = root.leaf(|params| params.extended_key_usages = vec![ServerAuth]);
    assert_eq!(verdict(&strict, &server, &[]), Err(VerifyError::ValidityTooLong));
    assert_eq!(verdict(&plain, &server, &[]), Ok(()));
}

#[test]
fn revocation_counts_as_the_policy_says() {
    let root = Authority::root("root");
    let leaf = root.leaf(|_| {});
    let judge = |list: &[u8], policy| {
        let trust = trust(&[&root.der], |written| {
            (written.crls, written.crl_policy) = (vec![pem_file("ca.crl", &[list])], Some(at(policy)));
        });
        verdict(&trust, &leaf, &[])
    };
    let stale = root.list(|list| list.next_update = Some(NOW - 1));
    let of_another = Authority::root("other").list(|_| {});
    for (list, required, lenient) in [
        (root.list(|_| {}), Ok(()), Ok(())),
        (root.revokes(7), Err(VerifyError::Revoked), Err(VerifyError::Revoked)),
        (stale, Err(VerifyError::RevocationStale), Ok(())),
        (of_another, Err(VerifyError::RevocationUnknown), Ok(())),
    ] {
        assert_eq!(judge(&list, CrlPolicy::Require), required);
        assert_eq!(judge(&list, CrlPolicy::Lenient), lenient);
    }
}

#[test]
fn pin_is_that_of_a_leaf_an_intermediate_or_a_root() {
    let root = Authority::root("root");
    let middle = root.intermediate("middle");
    let key = KeyPair::generate().unwrap();
    let leaf = middle.leaf_of(&key, |_| {});
    let pins = [
        key.subject_public_key_info(),
        middle.issuer.key().subject_public_key_info(),
        root.issuer.key().subject_public_key_info(),
    ]
    .map(|key| sha256(&key));
    let judge = |pins: &[[u8; 32]], trusted: &[&[u8]]| {
        let trust = trust(trusted, |written| written.pins = pins.iter().copied().map(at).collect());
        verdict(&trust, &leaf, slice::from_ref(&middle.der))
    };
    for pinned in pins {
        assert_eq!(judge(&[pinned, [9; 32]], &[&root.der]), Ok(()));
    }
    assert_eq!(judge(&[], &[&root.der]), Ok(()));
    assert_eq!(judge(&[[8; 32], [9; 32]], &[&root.der]), Err(VerifyError::PinMismatch));
    // A directly trusted certificate has its own key only.
    let direct: &[&[u8]] = &[&leaf];
    assert_eq!(judge(&[], direct), Ok(()));
    assert_eq!(judge(&[pins[0], [9; 32]], direct), Ok(()));
    assert_eq!(judge(&[pins[1], [9; 32]], direct), Err(VerifyError::PinMismatch));
}

#[test]
fn directly_trusted_certificate_is_judged_by_its_own_dates_and_uses() {
    let other = Authority::root("other");
    let judge = |change: &dyn Fn(&mut CertificateParams)| {
        let leaf = Authority::root("root").leaf(|params| change(params));
        verdict(&plain(&[&other.der, &leaf]), &leaf, &[])
    };
    let judge_dates = |from: i64, until: i64| {
        judge(&|params| (params.not_before, params.not_after) = (date(NOW + from), date(NOW + until)))
    };
    assert_eq!(judge_dates(-DAY, DAY), Ok(()));
    assert_eq!(judge_dates(-DAY, 0), Ok(()), "the last second is valid");
    assert_eq!(judge_dates(-DAY, -1), Err(VerifyError::Expired));
    assert_eq!(judge_dates(0, DAY), Ok(()), "the first second is valid");
    assert_eq!(judge_dates(1, DAY), Err(VerifyError::NotYetValid));
    assert_eq!(judge(&|params| params.extended_key_usages = vec![ServerAuth]), Ok(()));
    let client = other.leaf(|params| params.extended_key_usages = vec![ClientAuth]);
    let judged = plain(&[&other.der]).verify_directly_trusted(&client, unix(NOW));
    assert_eq!(judged, Err(VerifyError::WrongUsage), "no target's");
    // Its key and, under `strict`, its other contents keep the rules as well.
    let weak = other.leaf_of(&RsaKey::of_bits(1024), |_| {});
    assert_eq!(verdict(&plain(&[&weak]), &weak, &[]), Err(VerifyError::WeakKey));
    let leaf = Authority::root("root").leaf(|_| {});
    let strict = trust(&[&leaf], |written| written.strict = Some(at(true)));
    assert_eq!(verdict(&strict, &leaf, &[]), Err(VerifyError::WrongUsage));
}

#[test]
fn directly_trusted_certificate_needs_no_path_unless_it_is_revoked() {
    let (root, other) = (Authority::root("root"), Authority::root("other"));
    let leaf = root.leaf(|_| {});
    assert_eq!(verdict(&plain(&[&other.der, &leaf]), &leaf, &[]), Ok(()));
    assert_eq!(verdict(&plain(&[&other.der, &leaf]), &root.leaf(|_| {}), &[]), Err(VerifyError::UnknownIssuer));
    let with_list =
        |list: Vec<u8>| trust(&[&root.der, &leaf], |written| written.crls = vec![pem_file("ca.crl", &[&list])]);
    assert_eq!(verdict(&with_list(root.revokes(7)), &leaf, &[]), Err(VerifyError::Revoked));
    assert_eq!(verdict(&with_list(other.list(|_| {})), &leaf, &[]), Ok(()), "an unknown status is no revocation");
    let own = Authority::root_with("own", |params| {
        params.subject_alt_names = vec![rcgen::SanType::DnsName("hooks.acme.example".try_into().unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
    });
    assert_eq!(verdict(&plain(&[&own.der]), &own.der, &[]), Ok(()));
}

#[test]
fn self_signed_certificate_is_reported_as_such_unless_it_is_a_root() {
    let [own, namesake] = [(), ()].map(|()| Authority::root_with("own", |params| params.is_ca = IsCa::NoCa));
    let root = Authority::root("root");
    assert_eq!(verdict(&plain(&[&root.der]), &own.der, &[]), Err(VerifyError::SelfSigned));
    // A root has both its name and its key. Neither alone makes it one.
    let authority = Authority::root("own");
    assert_eq!(verdict(&plain(&[&authority.der]), &namesake.der, &[]), Err(VerifyError::SelfSigned), "the name");
    let mut renamed = crate::policy::fixture::pki::named("renamed");
    renamed.is_ca = IsCa::NoCa;
    let renamed = renamed.self_signed(authority.issuer.key()).unwrap().der().clone();
    assert_eq!(verdict(&plain(&[&authority.der]), &renamed, &[]), Err(VerifyError::SelfSigned), "the key");
    assert_eq!(verdict(&plain(&[&authority.der]), &authority.der, &[]), Err(VerifyError::CaAsLeaf), "a root");
}

#[test]
fn signature_of_an_unsupported_algorithm_is_told_from_a_weak_one() {
    let root = Authority::root("root");
    let (sha256, sha224) = ([0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 2], [0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 1]);
    let leaf = root.leaf(|_| {});
    let unsupported = replaced(&leaf, &sha256, &sha224);
    assert_eq!(verdict(&plain(&[&root.der]), &unsupported, &[]), Err(VerifyError::UnsupportedAlgorithm));
    let key = KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let mut params = crate::policy::fixture::pki::named("rsa");
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap().der().clone();
    let authority = Authority { der: authority, issuer: rcgen::Issuer::new(params, key) };
    let leaf = authority.leaf(|_| {});
    let trusted = plain(&[&authority.der]);
    assert_eq!(verdict(&trusted, &leaf, &[]), Ok(()));
    // 1.2.840.113549.1.1.11 is SHA-256. MD2 is 2, MD5 is 4, SHA-1 is 5, and SHA-224 is 14.
    let rsa_with = |hash: u8| [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, hash];
    let with_rsa = |hash: u8| replaced(&leaf, &rsa_with(11), &rsa_with(hash));
    for (hash, expected) in [
        (2, VerifyError::WeakSignature),
        (4, VerifyError::WeakSignature),
        (5, VerifyError::WeakSignature),
        (14, VerifyError::UnsupportedAlgorithm),
    ] {
        assert_eq!(verdict(&trusted, &with_rsa(hash), &[]), Err(expected), "{hash}");
    }
}

#[test]
fn rejection_names_the_missing_issuer_only_if_the_issuer_is_unknown() {
    let (root, other) = (Authority::root("root"), Authority::root("other"));
    let unknown = rejection(&plain(&[&other.der]), &root.leaf(|_| {}), &[]).unwrap();
    assert_eq!(unknown.error, VerifyError::UnknownIssuer);
    let issuer = unknown.issuer.as_deref().unwrap();
    assert!(issuer.starts_with("the server did not send the certificate of the issuer \"CN=root\". "), "{issuer}");
    let text = unknown.to_string();
    assert_eq!(text, format!("the certificate's issuer is not trusted: {issuer}"));
    let expired = root.leaf(|params| params.not_after = date(NOW - 1));
    let expired = rejection(&plain(&[&root.der]), &expired, &[]).unwrap();
    assert_eq!(expired, VerifyError::Expired.into());
    assert_eq!(expired.to_string(), "a certificate of the chain has expired");
}

#[test]
fn next_change_is_after_now() {
    let root = Authority::root("root");
    let trust = plain(&[&root.der]);
    let change = |from: i64, until: i64| {
        let leaf = root.leaf(|params| (params.not_before, params.not_after) = (date(NOW + from), date(NOW + until)));
        trust.next_change(&leaf, &[], unix(NOW)).map(|next| i64::try_from(next.as_secs()).unwrap_or(i64::MAX) - NOW)
    };
    assert_eq!(change(-1, 9), Some(10));
    assert_eq!(change(0, 9), Some(10), "a change of this second has happened");
    assert_eq!(change(1, 9), Some(1));
    assert_eq!(change(-9, 0), Some(1), "notAfter is the last valid second");
    assert_eq!(change(-9, -1), Some(i64::MAX - NOW), "the end was now");
}
