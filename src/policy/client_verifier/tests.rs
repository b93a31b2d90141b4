//! Tests of the verification of client certificates.
//! Which chain does a listener accept, and which error does it report?

use std::path::PathBuf;
use std::slice;

use rcgen::ExtendedKeyUsagePurpose::{Any, ClientAuth, ServerAuth};
use rcgen::KeyUsagePurpose::{CrlSign, KeyCertSign};
use rcgen::{CertificateParams, IsCa};
use rustls::crypto::aws_lc_rs;

use super::*;
use crate::config::PemFile;
use crate::policy::fixture::at;
use crate::policy::fixture::pki::{Authority, DAY, NOW, date, entry, unix};

fn verifier(trusted: &[&CertificateDer<'_>], lists: &[Vec<u8>]) -> ClientCertificateVerifier {
    let (mut roots, mut anchors) = (RootCertStore::empty(), Anchors::default());
    for der in trusted {
        anchors.add(der, Purpose::Clients, &mut roots).unwrap();
    }
    let mut problems = Vec::new();
    let file = PemFile { path: PathBuf::from("clients.crl"), parts: lists.to_vec() };
    let crls = revocation::compile(&[at(3, file)], &mut problems);
    assert!(problems.is_empty());
    let hints = roots.subjects();
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    ClientCertificateVerifier { roots, anchors, crls, algorithms, hints }
}

fn judge(
    trusted: &[&CertificateDer<'_>],
    lists: &[Vec<u8>],
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
) -> Result<(), CertificateError> {
    let verifier = verifier(trusted, lists);
    let result = verifier.verify(leaf, others, unix(NOW));
    // The handshake has the same verdict.
    let handshake = verifier.verify_client_cert(leaf, others, unix(NOW)).map(|_| ());
    assert_eq!(handshake, result.clone().map_err(rustls::Error::InvalidCertificate));
    result
}

fn client(params: &mut CertificateParams) {
    params.extended_key_usages = vec![ClientAuth];
}

#[test]
fn client_chain_leads_to_a_trusted_authority() {
    let (root, other) = (Authority::root("root"), Authority::root("other"));
    let middle = root.intermediate("middle");
    let (direct, below) = (root.leaf(client), middle.leaf(client));
    assert_eq!(judge(&[&root.der], &[], &direct, &[]), Ok(()));
    assert_eq!(judge(&[&other.der, &root.der], &[], &direct, &[]), Ok(()));
    assert_eq!(judge(&[&root.der], &[], &below, slice::from_ref(&middle.der)), Ok(()));
    assert_eq!(judge(&[&root.der], &[], &below, &[]), Err(CertificateError::UnknownIssuer));
    assert_eq!(judge(&[&other.der], &[], &direct, &[]), Err(CertificateError::UnknownIssuer));
    assert!(verifier(&[&root.der], &[]).verify(&vec![0].into(), &[], unix(NOW)).is_err());
    let server = root.leaf(|params| params.extended_key_usages = vec![ServerAuth]);
    assert_eq!(judge(&[&root.der], &[], &server, &[]), Err(CertificateError::InvalidPurpose));
}

#[test]
fn client_chain_has_authorities_whose_keys_may_sign_certificates() {
    let root = Authority::root("root");
    for (usages, expected) in
        [(vec![], Ok(())), (vec![KeyCertSign], Ok(())), (vec![CrlSign], Err(CertificateError::InvalidPurpose))]
    {
        let middle = root.intermediate_with("middle", |params| params.key_usages = usages.clone());
        let verdict = judge(&[&root.der], &[], &middle.leaf(client), slice::from_ref(&middle.der));
        assert_eq!(verdict, expected, "{usages:?}");
    }
}

#[test]
fn client_chain_is_covered_by_revocation_lists_if_any_are_configured() {
    let root = Authority::root("root");
    let leaf = root.leaf(client);
    let judge = |lists: &[Vec<u8>]| judge(&[&root.der], lists, &leaf, &[]);
    assert_eq!(judge(&[]), Ok(()));
    assert_eq!(judge(&[root.list(|_| {})]), Ok(()));
    assert_eq!(judge(&[root.revokes(8)]), Ok(()));
    assert_eq!(judge(&[root.revokes(7)]), Err(CertificateError::Revoked));
    let other = Authority::root("other").list(|_| {});
    assert_eq!(judge(&[other]), Err(CertificateError::UnknownRevocationStatus));
    // An outdated list still counts.
    let outdated = |serial: u8| {
        root.list(|list| {
            list.next_update = Some(NOW - 1);
            list.entries = vec![entry(&[serial], &[])];
        })
    };
    assert_eq!(judge(&[outdated(7)]), Err(CertificateError::Revoked));
    assert_eq!(judge(&[outdated(8)]), Ok(()));
}

#[test]
fn directly_trusted_client_needs_no_issuer() {
    let (root, other) = (Authority::root("root"), Authority::root("other"));
    let leaf = root.leaf(client);
    assert_eq!(judge(&[&other.der], &[], &leaf, &[]), Err(CertificateError::UnknownIssuer));
    assert_eq!(judge(&[&other.der, &leaf], &[], &leaf, &[]), Ok(()));
    // Another certificate of the same issuer is not trusted.
    assert_eq!(judge(&[&leaf], &[], &root.leaf(client), &[]), Err(CertificateError::UnknownIssuer));
    // A revocation overrides direct trust.
    assert_eq!(judge(&[&root.der, &leaf], &[root.revokes(7)], &leaf, &[]), Err(CertificateError::Revoked));
    assert_eq!(judge(&[&root.der, &leaf], &[other.list(|_| {})], &leaf, &[]), Ok(()), "an unknown status does not");
}

#[test]
fn directly_trusted_client_is_valid_within_its_own_dates() {
    let judge = |from: i64, until: i64| {
        let leaf = Authority::root("root").leaf(|params| {
            client(params);
            (params.not_before, params.not_after) = (date(NOW + from), date(NOW + until));
        });
        let others = Authority::root("other");
        judge(&[&others.der, &leaf], &[], &leaf, &[])
    };
    assert_eq!(judge(-DAY, DAY), Ok(()));
    assert_eq!(judge(-DAY, 1), Ok(()));
    assert_eq!(judge(-DAY, 0), Ok(()), "the last second is valid");
    assert_eq!(judge(-DAY, -1), Err(CertificateError::Expired));
    assert_eq!(judge(-1, DAY), Ok(()));
    assert_eq!(judge(0, DAY), Ok(()), "the first second is valid");
    assert_eq!(judge(1, DAY), Err(CertificateError::NotValidYet));
}

#[test]
fn directly_trusted_client_may_be_used_by_clients() {
    let leaf = |purposes: &[rcgen::ExtendedKeyUsagePurpose]| {
        Authority::root("root").leaf(|params| {
            params.is_ca = IsCa::ExplicitNoCa;
            params.extended_key_usages = purposes.to_vec();
        })
    };
    for purposes in [&[][..], &[ClientAuth], &[Any], &[ServerAuth, ClientAuth]] {
        let leaf = leaf(purposes);
        assert_eq!(judge(&[&leaf], &[], &leaf, &[]), Ok(()), "{purposes:?}");
    }
    // `Anchors::add` accepts no such certificate, and the verifier does not rely on it.
    let server = leaf(&[ServerAuth]);
    let verdict = verifier(&[], &[]).verify_directly_trusted(&server, unix(NOW));
    assert_eq!(verdict, Err(CertificateError::InvalidPurpose));
    let unreadable = verifier(&[], &[]).verify_directly_trusted(&vec![0].into(), unix(NOW));
    assert_eq!(unreadable, Err(CertificateError::BadEncoding));
}

#[test]
fn client_certificate_is_requested_with_the_names_of_the_authorities_and_is_optional() {
    let root = Authority::root("root");
    let verifier = verifier(&[&root.der], &[]);
    assert!(verifier.offer_client_auth());
    assert!(!verifier.client_auth_mandatory());
    let parsed = signed_der::parse_certificate(&root.der).unwrap();
    let hints: Vec<&[u8]> = verifier.root_hint_subjects().iter().map(AsRef::as_ref).collect();
    assert_eq!(hints, [parsed.subject().as_raw()]);
    let schemes = verifier.supported_verify_schemes();
    for scheme in [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256, SignatureScheme::ED25519] {
        assert!(schemes.contains(&scheme), "{scheme:?}");
    }
    assert_eq!(format!("{verifier:?}"), "ClientVerifier { .. }");
}
