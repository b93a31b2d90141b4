//! Tests of compiled trust policies and their fingerprints.
//! Does each invalid root get its problem, and does every relevant setting change the fingerprint?

use std::path::PathBuf;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa, KeyIdMethod,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::UnixTime;

use super::compile::{compile_roots, compile_trust, mozilla_roots, warn_unverified};
use super::*;
use crate::config::{self, Located, PemFile, Roots, Severity, SourceSpan};

const HERE: SourceSpan = SourceSpan { file: 0, start: 3, end: 9 };

pub(super) fn at<T>(value: T) -> Located<T> {
    Located { value, span: HERE }
}

fn root(name: &str) -> Vec<u8> {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

pub(super) fn file(certificates: &[&[u8]]) -> Roots {
    Roots::File(PathBuf::from("roots.pem"), certificates.iter().map(|der| der.to_vec()).collect())
}

pub(super) fn written(roots: Vec<Roots>, verify: VerifyMode) -> Located<config::Trust> {
    at(config::Trust {
        roots: roots.into_iter().map(at).collect(),
        verify: at(verify),
        ..crate::policy::fixture::trust()
    })
}

/// Returns a policy that trusts these certificates, and whatever else `change` says.
pub(super) fn trust(roots: &[&[u8]], change: impl FnOnce(&mut config::Trust)) -> Trust {
    let mut written = written(vec![file(roots)], VerifyMode::Full);
    change(&mut written.value);
    compile_trust(&TrustName::new("t"), &written, &aws_lc_rs::default_provider(), &mut Vec::new())
}

/// Returns a PEM file with these parts.
pub(super) fn pem_file(path: &str, parts: &[&[u8]]) -> Located<PemFile> {
    at(PemFile { path: PathBuf::from(path), parts: parts.iter().map(|der| der.to_vec()).collect() })
}

/// Returns the problems of one trust policy as (severity, message).
fn problems(roots: Vec<Roots>, verify: VerifyMode) -> Vec<(Severity, String)> {
    let mut problems = Vec::new();
    let trust = written(roots, verify);
    let name = TrustName::new("t");
    compile_roots(&name, &trust, &mut problems);
    if verify == VerifyMode::None {
        warn_unverified(&name, &trust, &mut problems);
    }
    assert!(problems.iter().all(|problem| problem.span == Some(HERE) && problem.help.is_some()));
    problems.into_iter().map(|problem| (problem.severity, problem.message)).collect()
}

#[test]
fn trust_roots_report_each_problem() {
    let good = root("good");
    let messages = |roots, verify| problems(roots, verify).into_iter().map(|(_, message)| message).collect::<Vec<_>>();
    assert_eq!(messages(vec![Roots::Mozilla], VerifyMode::Full), [""; 0]);
    assert_eq!(messages(vec![file(&[&good])], VerifyMode::Full), [""; 0]);
    assert_eq!(messages(vec![Roots::System(vec![good.clone(), b"odd".to_vec()])], VerifyMode::Full), [""; 0]);
    assert_eq!(
        messages(vec![Roots::System(vec![b"odd".to_vec()])], VerifyMode::Full),
        ["the system's store holds no usable root certificate"]
    );
    assert_eq!(messages(vec![file(&[])], VerifyMode::Full), ["roots.pem holds no certificate"]);
    assert_eq!(messages(vec![], VerifyMode::Full), ["trust t has no roots: outgate could verify no target"]);
    let two = messages(vec![file(&[b"odd", &good, b"odd"])], VerifyMode::Full);
    assert_eq!(two.len(), 2, "every problem is reported");
    assert!(two[0].starts_with("certificate 1 of roots.pem is not usable as a root: "), "{two:?}");
    assert!(two[1].starts_with("certificate 3 of roots.pem"), "{two:?}");
}

#[test]
fn unverified_trust_is_a_warning() {
    let problems_of_trust = problems(vec![], VerifyMode::None);
    assert_eq!(problems_of_trust.len(), 1);
    assert_eq!(problems_of_trust[0].0, Severity::Warning);
    assert!(problems_of_trust[0].1.starts_with("trust t verifies no certificate"));
}

#[test]
fn trust_fingerprint_covers_everything_trusted_and_the_identity() {
    let [a, b] = [root("a"), root("b")];
    let stored =
        |roots: Vec<Roots>| compile_roots(&TrustName::new("t"), &written(roots, VerifyMode::Full), &mut Vec::new()).0;
    let anchored = |ders: &[&[u8]]| {
        compile_roots(&TrustName::new("t"), &written(vec![file(ders)], VerifyMode::Full), &mut vec![]).1
    };
    let ab = stored(vec![file(&[&a, &b])]);
    // These anchors share name and key and differ only for revocation.
    let key = KeyPair::generate().unwrap();
    let with = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        params.self_signed(&key).unwrap().der().to_vec()
    };
    let signs_lists = with(&|_| {});
    let no_lists = with(&|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]);
    let other_id = with(&|params| params.key_identifier_method = KeyIdMethod::PreSpecified(vec![1]));
    let own = with(&|params| params.is_ca = IsCa::ExplicitNoCa);
    let [signing, mute, renamed, alone] = [&signs_lists, &no_lists, &other_id, &own].map(|der| anchored(&[der]));
    let [both, reversed] =
        [[&signs_lists, &no_lists], [&no_lists, &signs_lists]].map(|two| anchored(&two.map(Vec::as_slice)));
    let nothing = Anchors::default();
    let (none, pins) = (BTreeSet::new(), BTreeSet::from([[1; 32], [2; 32]]));
    let identity = |name: &str| {
        let key = rustls_pki_types::PrivateKeyDer::try_from(KeyPair::generate().unwrap().serialize_der()).unwrap();
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
        CertifiedKey::new(vec![root(name).into()], key)
    };
    let (one, other) = (identity("one"), identity("other"));
    let plain = || FingerprintInput {
        roots: &ab,
        anchors: &nothing,
        intermediates: vec![],
        min_version: TlsVersion::V1_2,
        verify: VerifyMode::Full,
        strict: false,
        pins: &none,
        crls: vec![],
        crl_policy: CrlPolicy::Require,
        identity: None,
    };
    let of_roots = |roots: Vec<Roots>| fingerprint(&FingerprintInput { roots: &stored(roots), ..plain() });
    let first = fingerprint(&plain());
    assert_eq!(first, of_roots(vec![file(&[&b, &a])]), "order");
    assert_eq!(first, of_roots(vec![file(&[&a]), file(&[&b, &a])]), "files and repetitions");
    let lists = |crls| fingerprint(&FingerprintInput { crls, ..plain() });
    assert_eq!(lists(vec![b"1", b"2"]), lists(vec![b"2", b"1"]), "order of lists");
    let of_anchors = |anchors| fingerprint(&FingerprintInput { anchors, ..plain() });
    assert_eq!(of_anchors(&both), of_anchors(&reversed), "order of anchors of one name and key");
    let one_pin = BTreeSet::from([[1; 32]]);
    let different = [
        first,
        of_roots(vec![file(&[&a])]),
        of_roots(vec![file(&[&a, &b]), Roots::Mozilla]),
        of_roots(vec![]),
        fingerprint(&FingerprintInput { min_version: TlsVersion::V1_3, ..plain() }),
        fingerprint(&FingerprintInput { verify: VerifyMode::None, ..plain() }),
        fingerprint(&FingerprintInput { strict: true, ..plain() }),
        fingerprint(&FingerprintInput { crl_policy: CrlPolicy::Lenient, ..plain() }),
        fingerprint(&FingerprintInput { pins: &pins, ..plain() }),
        fingerprint(&FingerprintInput { pins: &one_pin, ..plain() }),
        fingerprint(&FingerprintInput { crls: vec![&[1; 32]], ..plain() }),
        lists(vec![b"1", b"2"]),
        lists(vec![b"1"]),
        fingerprint(&FingerprintInput { anchors: &alone, ..plain() }),
        fingerprint(&FingerprintInput { anchors: &signing, ..plain() }),
        fingerprint(&FingerprintInput { anchors: &mute, ..plain() }),
        fingerprint(&FingerprintInput { anchors: &renamed, ..plain() }),
        fingerprint(&FingerprintInput { anchors: &both, ..plain() }),
        fingerprint(&FingerprintInput { intermediates: vec![b"1"], ..plain() }),
        fingerprint(&FingerprintInput { identity: Some(&one), ..plain() }),
        fingerprint(&FingerprintInput { identity: Some(&other), ..plain() }),
    ];
    for (index, one) in different.iter().enumerate() {
        assert_eq!(different.iter().position(|other| other == one), Some(index));
    }
}

#[test]
fn mozilla_roots_are_compiled_in() {
    assert!(mozilla_roots().len() > 50);
}

/// 2027-01-10 at midnight, and the midnights around it that change the verdict.
#[test]
fn trust_verdict_may_change_when_a_certificate_or_a_revocation_list_begins_or_ends() {
    const TODAY: u64 = 1_799_539_200;
    const DAY: u64 = 24 * 3600;
    let mut authority = CertificateParams::new([]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "root");
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let leaf = |from: u8, until: u8| {
        let mut leaf = CertificateParams::new(["hooks.acme.example".to_owned()]).unwrap();
        (leaf.not_before, leaf.not_after) = (date_time_ymd(2027, 1, from), date_time_ymd(2027, 1, until));
        leaf.signed_by(&KeyPair::generate().unwrap(), &authority).unwrap().der().clone()
    };
    let list = |from: u8, until: u8| CertificateRevocationListParams {
        this_update: date_time_ymd(2027, 1, from),
        next_update: date_time_ymd(2027, 1, until),
        crl_number: 1_u64.into(),
        issuing_distribution_point: None,
        revoked_certs: Vec::new(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let days_until_change = |lists: &[(u8, u8)], leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>]| {
        let parts = lists.iter().map(|(from, until)| list(*from, *until).signed_by(&authority).unwrap().der().to_vec());
        let mut trust = written(vec![file(&[authority.der()])], VerifyMode::Full);
        trust.value.crls = vec![at(PemFile { path: PathBuf::from("ca.crl"), parts: parts.collect() })];
        let trust = compile_trust(&TrustName::new("t"), &trust, &aws_lc_rs::default_provider(), &mut Vec::new());
        let now = UnixTime::since_unix_epoch(Duration::from_secs(TODAY));
        let next = trust.next_change(leaf, others, now)?;
        Some(next.as_secs().saturating_sub(TODAY) / DAY)
    };
    assert_eq!(days_until_change(&[], &leaf(9, 15), &[]), Some(5));
    assert_eq!(days_until_change(&[], &leaf(9, 15), &[leaf(12, 20)]), Some(2), "another path begins");
    assert_eq!(days_until_change(&[], &leaf(9, 15), &[leaf(1, 9)]), Some(5), "one that has ended changes nothing");
    assert_eq!(days_until_change(&[(9, 14)], &leaf(9, 15), &[]), Some(4), "nextUpdate");
    assert_eq!(days_until_change(&[(9, 14), (11, 30)], &leaf(9, 15), &[]), Some(1), "thisUpdate of a later list");
    assert_eq!(days_until_change(&[], &CertificateDer::from(vec![0]), &[]), None);
}
