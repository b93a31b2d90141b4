//! Tests of trust anchors.
//! Which certificate is an authority, and which is trusted only for itself?

use rcgen::ExtendedKeyUsagePurpose::{Any, ClientAuth, CodeSigning, ServerAuth};
use rcgen::KeyUsagePurpose::{CrlSign, DigitalSignature, KeyCertSign};
use rcgen::{CertificateParams, IsCa, KeyPair};

use super::*;
use crate::config::Severity;
use crate::policy::fixture::at;
use crate::policy::fixture::pki::{Authority, extension, named};

/// Returns whether the certificate is an authority, and the answer of `add`.
fn added(der: &[u8], purpose: Purpose) -> (bool, Result<Option<String>, String>) {
    let (mut store, mut anchors) = (RootCertStore::empty(), Anchors::default());
    let answer = anchors.add(der, purpose, &mut store);
    let expected = match &answer {
        Ok(_) if is_ca(der, purpose) => [1, 1, 0],
        Ok(_) => [0, 0, 1],
        Err(_) => [0, 0, 0],
    };
    assert_eq!([store.len(), anchors.terms().len(), anchors.directly_trusted().len()], expected, "{answer:?}");
    (is_ca(der, purpose), answer)
}

fn judge(purpose: Purpose, change: impl FnOnce(&mut CertificateParams)) -> (bool, Result<Option<String>, String>) {
    added(&Authority::root_with("root", change).der, purpose)
}

/// Returns the answer for a certificate that is trusted only for itself.
fn itself(meaning: &str) -> (bool, Result<Option<String>, String>) {
    let consequence =
        "only the certificate itself is trusted, for its own names; certificates that it issued are refused";
    (false, Ok(Some(format!("{meaning}: {consequence}"))))
}

const NOT_CA: &str = "is not an authority (basicConstraints: CA:FALSE)";
const UNSTATED: &str = "does not state that it is an authority (no basicConstraints)";
const NO_CERT_SIGN: &str = "may not sign certificates (keyUsage without keyCertSign)";

#[test]
fn certificate_is_an_authority_only_if_it_says_so() {
    for purpose in [Purpose::Servers, Purpose::Clients] {
        assert_eq!(judge(purpose, |_| {}), (true, Ok(None)));
        assert_eq!(judge(purpose, |params| params.key_usages = vec![]), (true, Ok(None)));
        assert_eq!(judge(purpose, |params| params.is_ca = IsCa::ExplicitNoCa), itself(NOT_CA));
        assert_eq!(judge(purpose, |params| params.is_ca = IsCa::NoCa), itself(UNSTATED));
        let without_sign = |params: &mut CertificateParams| params.key_usages = vec![CrlSign, DigitalSignature];
        assert_eq!(judge(purpose, without_sign), itself(NO_CERT_SIGN));
        // An unreadable certificate counts as an authority, which `add` refuses.
        let refused = Err("it cannot be read as a certificate (RFC 5280 §4.1)".to_owned());
        assert_eq!(added(b"odd", purpose), (true, refused));
    }
}

#[test]
fn authority_is_one_for_the_purposes_of_its_extended_key_usage() {
    let servers = "may not issue certificates for this purpose (extended key usage without serverAuth)";
    let clients = "may not issue certificates for this purpose (extended key usage without clientAuth)";
    let lacks = |meaning: &str, auth: &str| {
        Err(format!("it {meaning}. Its extended key usage lacks {auth}: it cannot be trusted directly, either"))
    };
    for (purposes, of_servers, of_clients) in [
        (vec![], (true, Ok(None)), (true, Ok(None))),
        (vec![ServerAuth, ClientAuth], (true, Ok(None)), (true, Ok(None))),
        (vec![Any], (true, Ok(None)), (true, Ok(None))),
        (vec![ServerAuth], (true, Ok(None)), (false, lacks(clients, "clientAuth"))),
        (vec![ClientAuth], (false, lacks(servers, "serverAuth")), (true, Ok(None))),
        (vec![CodeSigning], (false, lacks(servers, "serverAuth")), (false, lacks(clients, "clientAuth"))),
    ] {
        let judge = |purpose| judge(purpose, |params| params.extended_key_usages = purposes.clone());
        assert_eq!(judge(Purpose::Servers), of_servers, "{purposes:?}");
        assert_eq!(judge(Purpose::Clients), of_clients, "{purposes:?}");
    }
    // A certificate that is no authority must serve the purpose itself.
    let own = |purpose, purposes: &[rcgen::ExtendedKeyUsagePurpose]| {
        judge(purpose, |params| {
            params.is_ca = IsCa::ExplicitNoCa;
            params.extended_key_usages = purposes.to_vec();
        })
    };
    assert_eq!(own(Purpose::Servers, &[ServerAuth]), itself(NOT_CA));
    assert_eq!(own(Purpose::Clients, &[ClientAuth]), itself(NOT_CA));
    assert_eq!(own(Purpose::Servers, &[ClientAuth]), (false, lacks(NOT_CA, "serverAuth")));
    assert_eq!(own(Purpose::Clients, &[ServerAuth]), (false, lacks(NOT_CA, "clientAuth")));
}

#[test]
fn certificate_serves_the_purposes_of_its_extended_key_usage() {
    for (purposes, expected) in [
        (vec![], [true, true]),
        (vec![ServerAuth], [true, false]),
        (vec![ClientAuth], [false, true]),
        (vec![ServerAuth, ClientAuth], [true, true]),
        // webpki accepts it for no server.
        (vec![Any], [false, true]),
        (vec![CodeSigning], [false, false]),
    ] {
        let leaf = Authority::root("root").leaf(|params| params.extended_key_usages = purposes.clone());
        let parsed = signed_der::parse_certificate(&leaf).unwrap();
        let served = [Purpose::Servers, Purpose::Clients].map(|purpose| serves(&parsed, purpose));
        assert_eq!(served, expected, "{purposes:?}");
    }
}

#[test]
fn certificate_with_an_extension_that_cannot_be_read_is_refused() {
    for (id, what) in [(19, "basicConstraints"), (15, "keyUsage"), (37, "extended key usage")] {
        let root = Authority::root_with("root", |params| {
            (params.key_usages, params.extended_key_usages) = (vec![KeyCertSign], vec![ServerAuth]);
            params.custom_extensions = vec![extension(id, false, vec![5, 0])];
        });
        let refused = Err(format!("its {what} cannot be read or occurs twice"));
        assert_eq!(added(&root.der, Purpose::Servers), (true, refused));
    }
}

#[test]
fn anchor_is_found_by_its_name_and_key_together() {
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let root = |name: &str, key: &KeyPair| {
        let mut params = named(name);
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(name.as_bytes().to_vec());
        params.self_signed(key).unwrap().der().clone()
    };
    let mut anchors = Anchors::default();
    for der in [root("a", &key), root("b", &other)] {
        assert_eq!(anchors.add(&der, Purpose::Servers, &mut RootCertStore::empty()), Ok(None));
    }
    let find = |der: &CertificateDer<'_>| {
        let found = anchors.info(&webpki::anchor_from_trusted_cert(der).unwrap())?;
        found.key_id.clone().map(|id| String::from_utf8(id).unwrap())
    };
    assert_eq!(find(&root("a", &key)).as_deref(), Some("a"));
    assert_eq!(find(&root("b", &other)).as_deref(), Some("b"));
    assert_eq!(find(&root("a", &other)), None, "the key of b");
    assert_eq!(find(&root("b", &key)), None, "the key of a");
    assert_eq!(find(&root("c", &KeyPair::generate().unwrap())), None);
}

#[test]
fn unusual_anchor_is_reported_at_its_place() {
    let place = at(7, ()).span;
    let report = |der: &[u8], purpose| {
        let (mut store, mut problems) = (RootCertStore::empty(), Vec::new());
        Anchors::default().add_at(der, purpose, &mut store, ("certificate 2 of a.pem", place), &mut problems);
        assert!(problems.iter().all(|problem| problem.span == Some(place) && problem.help.is_some()));
        problems.into_iter().map(|problem| (problem.severity, problem.message)).collect::<Vec<_>>()
    };
    assert_eq!(report(&Authority::root("root").der, Purpose::Servers), []);
    let own = Authority::root_with("own", |params| params.is_ca = IsCa::ExplicitNoCa).der;
    let message = format!(
        "certificate 2 of a.pem (CN=own) {NOT_CA}: only the certificate itself is trusted, for its own names; \
         certificates that it issued are refused"
    );
    assert_eq!(report(&own, Purpose::Servers), [(Severity::Warning, message)]);
    for (purpose, role) in [(Purpose::Servers, "a root"), (Purpose::Clients, "an authority")] {
        let [(severity, message)] = &report(b"odd", purpose)[..] else { panic!("one problem") };
        assert_eq!(*severity, Severity::Problem);
        let reason = "it cannot be read as a certificate (RFC 5280 §4.1)";
        assert_eq!(*message, format!("certificate 2 of a.pem is not usable as {role}: {reason}"));
    }
}
