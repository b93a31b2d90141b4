//! Tests of the explanation of a chain that leads to no root.
//! Which error is reported, and what does the target's operator read?

use std::slice;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::super::tests::trust;
use super::*;
use crate::policy::fixture::pki::{Authority, RsaKey, named};

fn authority(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

/// Returns an authority whose key verifies no ECDSA signature.
fn edwards(name: &str, issuer: &str) -> CertificateDer<'static> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    authority(name).signed_by(&key, &Issuer::new(authority(issuer), &key)).unwrap().der().clone()
}

fn with_key_id(params: &mut CertificateParams) {
    params.use_authority_key_identifier_extension = true;
}

#[test]
fn a_chain_that_is_a_cycle_has_each_certificate_once() {
    let key = KeyPair::generate().unwrap();
    let issued = |name: &str, issuer: &str| {
        named(name).signed_by(&key, &Issuer::new(named(issuer), &key)).unwrap().der().clone()
    };
    let (leaf, others) = (issued("leaf", "one"), [issued("one", "two"), issued("two", "one")]);
    let names: Vec<_> = walk_chain(&leaf, &others).iter().map(|found| found.subject().to_string()).collect();
    assert_eq!(names, ["CN=leaf", "CN=one", "CN=two"]);
}

#[test]
fn a_chain_is_examined_up_to_its_eighth_certificate() {
    let key = KeyPair::generate().unwrap();
    let issued = |number: usize| {
        let issuer = Issuer::new(named(&(number + 1).to_string()), &key);
        named(&number.to_string()).signed_by(&key, &issuer).unwrap().der().clone()
    };
    let others: Vec<_> = (1..12).rev().map(issued).collect();
    let names: Vec<_> = walk_chain(&issued(0), &others).iter().map(|found| found.subject().to_string()).collect();
    assert_eq!(names, ["CN=0", "CN=1", "CN=2", "CN=3", "CN=4", "CN=5", "CN=6", "CN=7"]);
    assert_eq!(walk_chain(&issued(0), &others[6..]).len(), 6, "a chain that ends earlier");
}

#[test]
fn signature_is_bad_only_if_the_certificate_identifies_the_key() {
    let (root, namesake) = (Authority::root("root"), Authority::root("root"));
    let trust = trust(&[&root.der], |_| {});
    let tampered = |leaf: CertificateDer<'_>| {
        let mut leaf = leaf.to_vec();
        *leaf.last_mut().unwrap() ^= 1;
        leaf
    };
    assert_eq!(trust.signature_error(&tampered(root.leaf(with_key_id)), &[]), VerifyError::BadSignature);
    assert_eq!(trust.signature_error(&tampered(root.leaf(|_| {})), &[]), VerifyError::UnknownIssuer);
    // Another authority has the name.
    assert_eq!(trust.signature_error(&namesake.leaf(with_key_id), &[]), VerifyError::UnknownIssuer);
    assert_eq!(trust.signature_error(&namesake.leaf(|_| {}), &[]), VerifyError::UnknownIssuer);
    // A certificate that the target sent identifies its key likewise.
    let middle = root.intermediate("middle");
    let leaf = tampered(middle.leaf(with_key_id));
    assert_eq!(trust.signature_error(&leaf, slice::from_ref(&middle.der)), VerifyError::BadSignature);
    let namesake = root.intermediate("middle");
    assert_eq!(trust.signature_error(&leaf, slice::from_ref(&namesake.der)), VerifyError::UnknownIssuer);
    // The key that signed is among those of its name.
    let leaf = middle.leaf(with_key_id);
    assert_eq!(trust.signature_error(&leaf, &[namesake.der, middle.der]), VerifyError::UnknownIssuer);
    assert_eq!(trust.signature_error(b"odd", &[]), VerifyError::UnknownIssuer);
}

#[test]
fn key_is_weak_only_if_no_other_issuer_of_the_name_made_the_signature() {
    let (root, middle) = (Authority::root("root"), Authority::root("root").intermediate("middle"));
    let weak = root.leaf_of(&RsaKey::of_bits(1024), |params| *params = authority("middle"));
    let of_no_use = trust(&[&Authority::root("other").der], |_| {});
    let error = |leaf: &[u8], others: &[CertificateDer<'_>]| of_no_use.signature_error(leaf, others);
    let leaf = middle.leaf(|_| {});
    assert_eq!(error(&leaf, slice::from_ref(&weak)), VerifyError::WeakKey);
    assert_eq!(error(&leaf, &[middle.der.clone(), weak.clone()]), VerifyError::UnknownIssuer);
    assert_eq!(error(&leaf, &[weak.clone(), middle.der]), VerifyError::UnknownIssuer);
    // A certificate of another name says nothing about the signature.
    assert_eq!(error(&root.leaf(|_| {}), slice::from_ref(&weak)), VerifyError::UnknownIssuer);
    let weakly_rooted = trust(&[&weak], |_| {});
    assert_eq!(weakly_rooted.signature_error(&leaf, &[]), VerifyError::WeakKey, "a root");
}

#[test]
fn algorithm_is_unsupported_only_if_no_issuer_of_the_name_supports_it() {
    let root = Authority::root("root");
    let (odd, other) = (edwards("root", "root"), Authority::root("root"));
    let leaf = root.leaf(|_| {});
    let error = |roots: &[&[u8]]| trust(roots, |_| {}).signature_error(&leaf, &[]);
    assert_eq!(error(&[&odd]), VerifyError::UnsupportedAlgorithm);
    assert_eq!(error(&[&odd, &other.der]), VerifyError::UnknownIssuer);
    assert_eq!(error(&[&Authority::root("unrelated").der]), VerifyError::UnknownIssuer, "no issuer");
}

#[test]
fn explanation_verifies_a_hundred_signatures_in_all() {
    let odd = edwards("root", "root");
    let leaf = Authority::root("root").leaf(|_| {});
    let of_roots = |count: usize| trust(&vec![&odd[..]; count], |_| {});
    assert_eq!(of_roots(100).signature_error(&leaf, &[]), VerifyError::UnsupportedAlgorithm);
    assert_eq!(of_roots(101).signature_error(&leaf, &[]), VerifyError::UnknownIssuer, "one is left");
    // Those of one certificate count for the next one.
    let leaf = Authority::root("root").intermediate("middle").leaf(|_| {});
    let others = vec![edwards("middle", "root"); 60];
    assert_eq!(of_roots(40).signature_error(&leaf, &others), VerifyError::UnsupportedAlgorithm);
    assert_eq!(of_roots(41).signature_error(&leaf, &others), VerifyError::UnknownIssuer, "one is left");
}

#[test]
fn missing_issuer_is_described_by_where_the_chain_breaks() {
    let (root, other) = (Authority::root("root"), Authority::root("other"));
    let middle = root.intermediate("middle");
    let (leaf, sent) = (middle.leaf(|_| {}), [middle.der.clone()]);
    let describe = |roots: &[&[u8]], leaf: &[u8], others: &[CertificateDer<'_>]| {
        trust(roots, |_| {}).describe_missing_issuer(leaf, others)
    };
    let not_sent = |issuer: &str| {
        Some(format!(
            "the server did not send the certificate of the issuer \"{issuer}\". If the issuer is an intermediate \
             authority, configure the server to send its full chain; if the issuer is a root, the route does not \
             trust it"
        ))
    };
    assert_eq!(describe(&[&other.der], &leaf, &[]), not_sent("CN=middle"));
    assert_eq!(describe(&[&other.der], &leaf, &sent), not_sent("CN=root"));
    let untrusted = "the chain that the server sent ends at \"CN=root\", which is not a trusted authority".to_owned();
    assert_eq!(describe(&[&other.der], &leaf, &[middle.der.clone(), root.der.clone()]), Some(untrusted));
    let another_key =
        "the route trusts an authority called \"CN=root\", but another key signed the certificate".to_owned();
    let namesake = Authority::root("root");
    assert_eq!(describe(&[&other.der, &namesake.der], &leaf, &sent), Some(another_key));
    assert_eq!(describe(&[&other.der], b"odd", &[]), None);
}

#[test]
fn name_in_an_explanation_is_quoted_and_of_limited_length() {
    assert_eq!(quote_name("CN=root"), "\"CN=root\"");
    assert_eq!(quote_name("CN=a\"b\n"), r#""CN=a\"b\n""#);
    for (length, kept) in [(199, 199), (200, 200), (201, 200)] {
        assert_eq!(quote_name(&"é".repeat(length)), format!("\"{}\"", "é".repeat(kept)));
    }
}

#[test]
fn certificate_is_self_signed_by_its_own_name_and_key() {
    let (own, namesake) = (Authority::root("own"), Authority::root("own"));
    let trust = trust(&[&Authority::root("root").der], |_| {});
    assert!(is_self_signed(&trust, &own.der));
    let by_namesake = named("own").signed_by(&KeyPair::generate().unwrap(), &namesake.issuer).unwrap();
    assert!(!is_self_signed(&trust, by_namesake.der()), "the name only");
    let renamed = named("renamed").signed_by(own.issuer.key(), &own.issuer).unwrap();
    assert!(!is_self_signed(&trust, renamed.der()), "the key only");
    assert!(!is_self_signed(&trust, &own.leaf(|_| {})), "neither");
    assert!(!is_self_signed(&trust, b"odd"));
}
