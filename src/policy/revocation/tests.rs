//! Tests of revocation lists.
//! Which certificates does a list cover, and what is the verdict about a path?

use std::path::PathBuf;
use std::slice;

use rcgen::{CertificateParams, CrlDistributionPoint, KeyUsagePurpose, SerialNumber};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::CertificateDer;

use super::super::anchors::Purpose;
use super::*;
use crate::policy::fixture::at;
use crate::policy::fixture::pki::{
    Authority, DAY, ENUMERATED, INTEGER, List, NOW, SEQUENCE, der, entry, extension, list_extension, unix,
};

const DELTA_CRL_INDICATOR: u8 = 27;
const ISSUING_DISTRIBUTION_POINT: u8 = 28;
const AUTHORITY_KEY_IDENTIFIER: u8 = 35;
const REASON_CODE: u8 = 21;
const CERTIFICATE_ISSUER: u8 = 29;
/// RFC 5280 assigns this number to no extension.
const UNKNOWN: u8 = 99;

const STRICT: RevocationPolicy = RevocationPolicy { allow_unknown: false, allow_stale: false };

/// The fields of an issuingDistributionPoint (RFC 5280 §5.2.5).
const USERS_ONLY: [u8; 3] = [0x81, 1, 0xFF];
const CAS_ONLY: [u8; 3] = [0x82, 1, 0xFF];
const SOME_REASONS: [u8; 4] = [0x83, 2, 1, 0x40];
const INDIRECT: [u8; 3] = [0x84, 1, 0xFF];
const ATTRIBUTES_ONLY: [u8; 3] = [0x85, 1, 0xFF];

fn compile_all(lists: &[Vec<u8>]) -> (Vec<Crl>, Vec<String>) {
    let mut problems = Vec::new();
    let file = PemFile { path: PathBuf::from("ca.crl"), parts: lists.to_vec() };
    let crls = compile(&[at(3, file)], &mut problems);
    assert!(problems.iter().all(|problem| problem.span.is_some_and(|span| span.start == 3) && problem.help.is_some()));
    (crls, problems.into_iter().map(|problem| problem.message).collect())
}

/// Returns the verdict about the path of a leaf to `root` with these lists.
fn judge_path(
    root: &Authority,
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    lists: &[Vec<u8>],
    policy: RevocationPolicy,
) -> Result<(), RevocationError> {
    let (crls, problems) = compile_all(lists);
    assert_eq!(problems, [""; 0]);
    let (mut store, mut anchors) = (RootCertStore::empty(), Anchors::default());
    assert_eq!(anchors.add(&root.der, Purpose::Servers, &mut store), Ok(None));
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let leaf = webpki::EndEntityCert::try_from(leaf).unwrap();
    let usage = webpki::KeyUsage::server_auth();
    let path = leaf.verify_for_usage(algorithms, &store.roots, others, unix(NOW), usage, None, None).unwrap();
    check(&crls, &path, &anchors, policy, algorithms, NOW)
}

/// Returns the verdict about a leaf of `root` with the serial number 7 and these lists.
fn judge(root: &Authority, lists: &[Vec<u8>]) -> Result<(), RevocationError> {
    judge_path(root, &root.leaf(|_| {}), &[], lists, STRICT)
}

/// Returns an issuingDistributionPoint with these fields.
fn scope(fields: &[&[u8]]) -> Vec<u8> {
    list_extension(ISSUING_DISTRIBUTION_POINT, true, &der(SEQUENCE, fields))
}

/// Returns a list that revokes the serial number 7 and has an extension more.
fn list_with(authority: &Authority, extension: Vec<u8>) -> Vec<u8> {
    authority.list(|list| {
        list.entries = vec![entry(&[7], &[])];
        list.extensions.push(extension);
    })
}

fn uri(uri: &str) -> Vec<u8> {
    der(0x86, &[uri.as_bytes()])
}

/// Returns a GeneralName with the name of an authority.
fn directory(authority: &Authority) -> Vec<u8> {
    let parsed = signed_der::parse_certificate(&authority.der).unwrap();
    der(0xA4, &[parsed.subject().as_raw()])
}

/// Returns the field `distributionPoint` with these names in full.
fn full_name(names: &[Vec<u8>]) -> Vec<u8> {
    der(0xA0, &[&der(0xA0, &[&names.concat()])])
}

#[test]
fn list_revokes_the_certificates_that_it_names() {
    let root = Authority::root("root");
    let revokes = |serials: &[&[u8]]| root.list(|list| list.entries = serials.iter().map(|s| entry(s, &[])).collect());
    assert_eq!(judge(&root, &[revokes(&[&[7]])]), Err(RevocationError::Revoked));
    assert_eq!(judge(&root, &[revokes(&[&[6], &[7], &[8]])]), Err(RevocationError::Revoked));
    assert_eq!(judge(&root, &[revokes(&[&[6], &[8], &[7, 7]])]), Ok(()));
    assert_eq!(judge(&root, &[revokes(&[])]), Ok(()));
    // A DER integer has a zero before a first bit that is set.
    let leaf = root.leaf(|params| params.serial_number = Some(SerialNumber::from(vec![0xF0, 0])));
    for (serial, expected) in [(&[0, 0xF0, 0][..], Err(RevocationError::Revoked)), (&[0x70, 0], Ok(()))] {
        assert_eq!(judge_path(&root, &leaf, &[], &[revokes(&[serial])], STRICT), expected, "{serial:?}");
    }
}

#[test]
fn serial_number_counts_without_leading_zeros() {
    for (number, expected) in [
        (&[0, 0, 5, 0][..], &[5, 0][..]),
        (&[5, 0], &[5, 0]),
        (&[0, 0x80], &[0x80]),
        (&[1], &[1]),
        (&[0, 0], &[]),
        (&[], &[]),
    ] {
        assert_eq!(trim_leading_zeros(number), expected, "{number:?}");
    }
}

#[test]
fn certificate_below_the_anchor_needs_a_list_of_its_own_issuer() {
    let root = Authority::root("root");
    let middle = root.intermediate_with("middle", |params| params.serial_number = Some(9_u64.into()));
    let leaf = middle.leaf(|_| {});
    let judge = |lists: &[Vec<u8>], policy| judge_path(&root, &leaf, slice::from_ref(&middle.der), lists, policy);
    let (of_root, of_middle) = (root.list(|_| {}), middle.list(|_| {}));
    assert_eq!(judge(&[of_root.clone(), of_middle.clone()], STRICT), Ok(()));
    assert_eq!(judge(&[of_root.clone(), middle.revokes(7)], STRICT), Err(RevocationError::Revoked));
    assert_eq!(judge(&[root.revokes(9), of_middle.clone()], STRICT), Err(RevocationError::Revoked));
    assert_eq!(judge(&[root.revokes(7), middle.revokes(9)], STRICT), Ok(()), "numbers of other issuers");
    for lists in [&[][..], slice::from_ref(&of_root), slice::from_ref(&of_middle)] {
        assert_eq!(judge(lists, STRICT), Err(RevocationError::Unknown));
        let lenient = RevocationPolicy { allow_unknown: true, allow_stale: false };
        assert_eq!(judge(lists, lenient), Ok(()));
        assert_eq!(judge(lists, RevocationPolicy { allow_unknown: false, allow_stale: true }), judge(lists, STRICT));
    }
    let lenient = RevocationPolicy { allow_unknown: true, allow_stale: true };
    assert_eq!(judge(&[middle.revokes(7)], lenient), Err(RevocationError::Revoked));
    assert_eq!(judge(&[root.revokes(9)], lenient), Err(RevocationError::Revoked), "the leaf's list is missing");
    // The name is that of the issuer, and the key is another's.
    let namesake = Authority::root("middle");
    assert_eq!(judge(&[of_root, namesake.revokes(7)], STRICT), Err(RevocationError::Unknown));
}

#[test]
fn list_applies_from_its_this_update_and_is_stale_at_its_next_update() {
    let root = Authority::root("root");
    let judge = |from: i64, until: i64, allow_stale| {
        let list = root.list(|list| {
            (list.this_update, list.next_update) = (NOW + from, Some(NOW + until));
            list.entries = vec![entry(&[7], &[])];
        });
        let policy = RevocationPolicy { allow_unknown: false, allow_stale };
        judge_path(&root, &root.leaf(|_| {}), &[], &[list], policy)
    };
    assert_eq!(judge(-1, DAY, false), Err(RevocationError::Revoked));
    assert_eq!(judge(0, DAY, false), Err(RevocationError::Revoked), "thisUpdate belongs to the period");
    assert_eq!(judge(1, DAY, false), Err(RevocationError::Unknown), "a list of the future");
    assert_eq!(judge(-DAY, 1, false), Err(RevocationError::Revoked));
    assert_eq!(judge(-DAY, 0, false), Err(RevocationError::Stale), "nextUpdate does not");
    assert_eq!(judge(-DAY, -1, false), Err(RevocationError::Stale));
    assert_eq!(judge(-DAY, -1, true), Err(RevocationError::Revoked));
    assert_eq!(judge(-DAY, 1, true), Err(RevocationError::Revoked));
}

#[test]
fn newest_list_counts() {
    let root = Authority::root("root");
    let list = |from: i64, number: &[u8], serial: u8| {
        root.list(|list| {
            list.this_update = from;
            list.extensions = vec![list_extension(20, false, &der(INTEGER, &[number]))];
            list.entries = vec![entry(&[serial], &[])];
        })
    };
    let (old, new) = (list(NOW - 2, &[1], 7), list(NOW - 1, &[1], 8));
    assert_eq!(judge(&root, &[old.clone(), new.clone()]), Ok(()));
    assert_eq!(judge(&root, &[new, old]), Ok(()));
    // Of two lists of one second, the greater crlNumber is the newer.
    let (smaller, greater) = (list(NOW, &[0x7F], 8), list(NOW, &[1, 0], 7));
    assert_eq!(judge(&root, &[smaller.clone(), greater.clone()]), Err(RevocationError::Revoked));
    assert_eq!(judge(&root, &[greater, smaller]), Err(RevocationError::Revoked));
}

#[test]
fn list_counts_only_from_the_key_that_issued_the_certificate() {
    let root = Authority::root("root");
    let key_id = |id: &[u8]| list_extension(AUTHORITY_KEY_IDENTIFIER, false, &der(SEQUENCE, &[&der(0x80, &[id])]));
    let own = root.key_id();
    assert_eq!(judge(&root, &[list_with(&root, key_id(&own))]), Err(RevocationError::Revoked));
    assert_eq!(judge(&root, &[list_with(&root, key_id(b"other"))]), Err(RevocationError::Unknown));
    let other = Authority::root("root");
    assert_eq!(judge(&root, &[other.revokes(7)]), Err(RevocationError::Unknown), "another key of this name");
    assert_eq!(judge(&root, &[other.revokes(7), root.list(|_| {})]), Ok(()), "the list of the right key is found");
    // An intermediate authority's identifier counts likewise.
    let middle = root.intermediate("middle");
    let leaf = middle.leaf(|_| {});
    let judge = |id: &[u8]| {
        let lists = [root.list(|_| {}), list_with(&middle, key_id(id))];
        judge_path(&root, &leaf, slice::from_ref(&middle.der), &lists, STRICT)
    };
    assert_eq!(judge(&middle.key_id()), Err(RevocationError::Revoked));
    assert_eq!(judge(&own), Err(RevocationError::Unknown));
}

#[test]
fn list_counts_only_if_its_issuer_may_sign_lists() {
    for (usages, expected) in [
        (vec![], Err(RevocationError::Revoked)),
        (vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign], Err(RevocationError::Revoked)),
        (vec![KeyUsagePurpose::KeyCertSign], Err(RevocationError::Unknown)),
    ] {
        let root = Authority::root_with("root", |params| params.key_usages = usages.clone());
        assert_eq!(judge(&root, &[root.revokes(7)]), expected, "root {usages:?}");
        let root = Authority::root("root");
        let middle = root.intermediate_with("middle", |params| params.key_usages = usages.clone());
        let lists = [root.list(|_| {}), middle.revokes(7)];
        let verdict = judge_path(&root, &middle.leaf(|_| {}), slice::from_ref(&middle.der), &lists, STRICT);
        assert_eq!(verdict, expected, "intermediate {usages:?}");
    }
}

#[test]
fn list_covers_the_kind_of_certificates_in_its_scope() {
    let root = Authority::root("root");
    let (leaf, middle) = (root.leaf(|_| {}), root.intermediate("middle").der);
    let covers = |list: &[u8], der: &[u8]| {
        Crl::read(list).unwrap_or_else(|error| panic!("{error}")).covers(&signed_der::parse_certificate(der).unwrap())
    };
    // [the leaf, the intermediate authority]
    for (extension, expected) in [
        (vec![], [true, true]),
        (scope(&[]), [true, true]),
        (scope(&[&USERS_ONLY]), [true, false]),
        (scope(&[&CAS_ONLY]), [false, true]),
    ] {
        let list = list_with(&root, extension);
        assert_eq!([&leaf, &middle].map(|der| covers(&list, der)), expected);
    }
    let other = Authority::root("other").list(|_| {});
    assert!(!covers(&other, &leaf), "another issuer");
    let subject = signed_der::parse_certificate(&root.der).unwrap().subject().as_raw().to_vec();
    let issuer = Crl::read(&root.list(|_| {})).unwrap_or_else(|error| panic!("{error}")).issuer().to_vec();
    assert_eq!(signed_der::wrap_sequence(&issuer), subject, "the name without its header");
    // The verdict depends on the scope.
    assert_eq!(judge(&root, &[list_with(&root, scope(&[&USERS_ONLY]))]), Err(RevocationError::Revoked));
    assert_eq!(judge(&root, &[list_with(&root, scope(&[&CAS_ONLY]))]), Err(RevocationError::Unknown));
}

#[test]
fn list_of_a_distribution_point_covers_the_certificates_that_name_it() {
    let root = Authority::root("root");
    let other = Authority::root("other");
    let (here, there) = (uri("http://acme.example/1.crl"), uri("http://acme.example/2.crl"));
    let covers = |names: &[Vec<u8>], change: &dyn Fn(&mut CertificateParams)| {
        let list = list_with(&root, scope(&[&full_name(names)]));
        let leaf = root.leaf(|params| change(params));
        let list = Crl::read(&list).unwrap_or_else(|error| panic!("{error}"));
        list.covers(&signed_der::parse_certificate(&leaf).unwrap())
    };
    let at_uris = |uris: &[&str]| {
        let uris = uris.iter().map(|uri| (*uri).to_owned()).collect();
        move |params: &mut CertificateParams| {
            params.crl_distribution_points = vec![CrlDistributionPoint { uris: Vec::clone(&uris) }];
        }
    };
    let one = at_uris(&["http://acme.example/1.crl"]);
    assert!(covers(slice::from_ref(&here), &one));
    assert!(covers(&[there.clone(), here.clone()], &one));
    assert!(covers(slice::from_ref(&here), &at_uris(&["ldap://acme.example", "http://acme.example/1.crl"])));
    assert!(!covers(slice::from_ref(&there), &one));
    assert!(!covers(&[uri("HTTP://ACME.EXAMPLE/1.CRL")], &one), "names are compared byte by byte");
    // The issuer's name is the implied distribution point of every certificate.
    assert!(!covers(slice::from_ref(&here), &|_| {}));
    assert!(covers(&[directory(&root)], &|_| {}));
    assert!(covers(&[directory(&root)], &one));
    assert!(!covers(&[directory(&other)], &|_| {}));
    // A point for some reasons, or of another issuer, names no complete list of the certificate's own issuer.
    let at_point = |name: &[u8], more: &[u8]| {
        let point = der(SEQUENCE, &[&der(SEQUENCE, &[name, more])]);
        move |params: &mut CertificateParams| params.custom_extensions = vec![extension(31, false, point.clone())]
    };
    let (name, reasons, issuer) =
        (full_name(slice::from_ref(&here)), [0x81, 2, 1, 0x40], der(0xA2, &[&directory(&other)]));
    assert!(covers(slice::from_ref(&here), &at_point(&name, &[])));
    assert!(!covers(slice::from_ref(&here), &at_point(&name, &reasons)));
    assert!(!covers(slice::from_ref(&here), &at_point(&name, &issuer)));
    assert!(!covers(slice::from_ref(&here), &at_point(&name, &[&reasons[..], &issuer].concat())));
    assert!(covers(&[directory(&other)], &at_point(&full_name(&[directory(&other)]), &[])));
    // A name of a kind that cannot be compared is no match.
    let mail = der(0x81, &[b"ops@acme.example"]);
    assert!(!covers(slice::from_ref(&mail), &at_point(&full_name(slice::from_ref(&mail)), &[])));
}

/// Returns the reason why a list is not usable.
fn refusal(list: &[u8]) -> Option<&'static str> {
    Crl::read(list).err()
}

#[test]
fn list_with_an_unknown_scope_is_not_usable() {
    let root = Authority::root("root");
    let refusal = |fields: &[&[u8]]| refusal(&list_with(&root, scope(fields)));
    let point = full_name(&[uri("http://acme.example/1.crl")]);
    for fields in [&[][..], &[&point[..]], &[&point, &USERS_ONLY], &[&point, &CAS_ONLY], &[&USERS_ONLY], &[&CAS_ONLY]] {
        assert_eq!(refusal(fields), None, "{fields:?}");
    }
    let unreadable = Some("the name of its distribution point cannot be read, or is relative to its issuer");
    // A name relative to the issuer: one attribute, as RFC 5280 A.2 encodes it.
    let common_name = der(SEQUENCE, &[&[0x06, 3, 0x55, 4, 3], &der(0x0C, &[b"a"])]);
    let relative = der(0xA0, &[&der(0xA1, &[&common_name])]);
    for fields in [
        &[&relative[..]][..],
        &[&relative, &USERS_ONLY],
        &[&USERS_ONLY, &point],
        &[&CAS_ONLY, &USERS_ONLY],
        &[&USERS_ONLY, &USERS_ONLY],
        &[&point, &CAS_ONLY, &USERS_ONLY],
    ] {
        assert_eq!(refusal(fields), unreadable, "{fields:?}");
    }
    assert_eq!(refusal(&[&ATTRIBUTES_ONLY]), Some("it lists attribute certificates only"));
    assert_eq!(refusal(&[&INDIRECT]), Some("it is an indirect CRL, which covers certificates of other issuers"));
    assert_eq!(refusal(&[&SOME_REASONS]), Some("it covers only some reasons of revocation"));
    assert_eq!(refusal(&[&[0x81, 9]]), Some("its issuingDistributionPoint cannot be read"));
}

#[test]
fn list_with_an_extension_that_outgate_does_not_know_is_usable_unless_it_is_critical() {
    let root = Authority::root("root");
    let critical = "it has a critical extension that cannot be read or that outgate does not support";
    let with = |extension| refusal(&list_with(&root, extension));
    assert_eq!(with(list_extension(UNKNOWN, false, &[5, 0])), None);
    assert_eq!(with(list_extension(UNKNOWN, true, &[5, 0])), Some(critical));
    assert_eq!(with(list_extension(AUTHORITY_KEY_IDENTIFIER, true, &[5, 0])), Some(critical));
    for is_critical in [false, true] {
        // Without its scope, a list would cover every certificate of its issuer.
        let unreadable = list_extension(ISSUING_DISTRIBUTION_POINT, is_critical, &[5, 0]);
        assert_eq!(with(unreadable), Some(critical), "{is_critical}");
    }
    let delta = "it is a delta CRL, which lists only the changes to another list";
    assert_eq!(with(list_extension(DELTA_CRL_INDICATOR, false, &der(INTEGER, &[&[1]]))), Some(delta));
}

#[test]
fn list_whose_entry_has_an_unknown_critical_extension_is_not_usable() {
    let root = Authority::root("root");
    let refusal = |extension: Vec<u8>, scope: Option<Vec<u8>>| {
        refusal(&root.list(|list: &mut List| {
            list.entries = vec![entry(&[6], &[]), entry(&[7], slice::from_ref(&extension))];
            list.extensions.extend(scope);
        }))
    };
    let reason = |critical| list_extension(REASON_CODE, critical, &der(ENUMERATED, &[&[1]]));
    let other_issuer = || {
        let name = der(SEQUENCE, &[&directory(&Authority::root("other"))]);
        list_extension(CERTIFICATE_ISSUER, true, &name)
    };
    assert_eq!(refusal(reason(false), None), None);
    assert_eq!(refusal(reason(true), None), None, "a reason is known");
    assert_eq!(refusal(list_extension(UNKNOWN, false, &[5, 0]), None), None);
    let unsupported = Some("it has a critical extension that outgate does not support");
    assert_eq!(refusal(list_extension(UNKNOWN, true, &[5, 0]), None), unsupported);
    // webpki examines no entry of a list whose scope has no distribution point.
    let unsupported = Some("an entry has a critical extension that outgate does not support");
    assert_eq!(refusal(list_extension(UNKNOWN, true, &[5, 0]), Some(scope(&[&USERS_ONLY]))), unsupported);
    assert_eq!(refusal(other_issuer(), Some(scope(&[&USERS_ONLY]))), unsupported);
    assert_eq!(refusal(reason(true), Some(scope(&[&USERS_ONLY]))), None);
}

#[test]
fn list_that_is_not_usable_is_reported_with_its_number() {
    let root = Authority::root("root");
    let good = root.list(|_| {});
    let first_version = root.list(|list| list.version = Some(0));
    let endless = root.list(|list| list.next_update = None);
    let (crls, problems) = compile_all(&[b"odd".to_vec(), good.clone(), first_version, endless]);
    assert_eq!(crls.len(), 1);
    assert_eq!(
        problems,
        [
            "revocation list 1 of ca.crl is not usable: it cannot be read",
            "revocation list 3 of ca.crl is not usable: it is of version 1",
            "revocation list 4 of ca.crl is not usable: it violates RFC 5280",
        ]
    );
    assert_eq!(crls[0].validity(), [NOW - DAY, NOW + DAY]);
    // A list of version 1 as issued has neither a version nor extensions.
    let plain = root.list(|list| (list.version, list.extensions) = (None, vec![]));
    assert_eq!(refusal(&plain), Some("it violates RFC 5280"));
}
