//! Tests of expiry warnings.
//! Which file is reported when, and with which consequence?

use rcgen::CertificateParams;

use super::*;
use crate::config::{Bind, BindTls, Ca, ClientIdentity, Listen, ListenerTls, Secret, Trust};
use crate::names::TrustName;
use crate::policy::fixture::pki::{Authority, DAY, NOW, date, entry};
use crate::policy::fixture::{at, config, messages, trust};

/// A certificate in DER with this period of validity, relative to now.
fn certificate(from: i64, until: i64) -> Vec<u8> {
    Authority::root("root").leaf(|params| valid(params, from, until)).to_vec()
}

fn authority(from: i64, until: i64) -> Vec<u8> {
    Authority::root_with("root", |params| valid(params, from, until)).der.to_vec()
}

fn valid(params: &mut CertificateParams, from: i64, until: i64) {
    (params.not_before, params.not_after) = (date(NOW + from), date(NOW + until));
}

/// A revocation list with this thisUpdate and nextUpdate, relative to now.
fn list(from: i64, until: i64) -> Vec<u8> {
    Authority::root("root").list(|list| {
        (list.this_update, list.next_update) = (NOW + from, Some(NOW + until));
        list.entries = vec![entry(&[7], &[])];
    })
}

fn file(name: &str, parts: &[&[u8]]) -> Located<PemFile> {
    at(20, PemFile { path: PathBuf::from(name), parts: parts.iter().map(|der| der.to_vec()).collect() })
}

fn key() -> Located<Secret> {
    at(21, Secret::new(b"key".to_vec()))
}

fn tls(certificate: &[u8]) -> ListenerTls {
    ListenerTls { certificate: file("listener.pem", &[certificate]), key: key(), client_ca: None, client_crls: vec![] }
}

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

/// Returns the expiries of a configuration and its warnings.
fn compiled(change: impl FnOnce(&mut Config)) -> (Vec<Expiry>, Vec<Problem>) {
    let (mut config, mut problems) = (config(), Vec::new());
    change(&mut config);
    let all = compile(&config, now(), &mut problems);
    (all, problems)
}

fn with_trust(change: impl FnOnce(&mut Trust)) -> (Vec<Expiry>, Vec<Problem>) {
    compiled(|config| {
        let mut trust = trust();
        change(&mut trust);
        config.trust.insert(TrustName::new("t"), at(8, trust));
    })
}

/// Returns the expiry of one certificate or list, with a period of validity relative to now.
fn expiry(usage: CertificateUse, number: Option<usize>, (from, until): (i64, i64)) -> Expiry {
    let mut all = ExpiryCollector(Vec::new());
    all.add(usage, "t", &file("some.pem", &[]), number, (NOW + from, NOW + until));
    all.0.remove(0).1
}

const YEAR: i64 = 365 * DAY;
const EVERY_USE: [CertificateUse; 11] = [
    CertificateUse::Listener,
    CertificateUse::ClientCa,
    CertificateUse::ClientCrl,
    CertificateUse::Ca,
    CertificateUse::Identity,
    CertificateUse::Roots,
    CertificateUse::DirectlyTrusted(Purpose::Servers),
    CertificateUse::DirectlyTrusted(Purpose::Clients),
    CertificateUse::Intermediates,
    CertificateUse::Crl(CrlPolicy::Require),
    CertificateUse::Crl(CrlPolicy::Lenient),
];

#[test]
fn expired_file_is_reported_with_its_use_and_the_consequence() {
    let refuses = "outgate refuses peers that present it";
    let accepts = "outgate still accepts certificates that it issued";
    let uses = "outgate uses it until the file is replaced";
    let expected = [
        ("listener", "certificate 3 of some.pem expired at", "clients will not trust it"),
        ("client_ca", "certificate 3 of some.pem expired at", accepts),
        ("client_crl", "revocation list 3 of some.pem has been out of date since", uses),
        ("ca", "the authority in some.pem expired at", "outgate cannot inspect tunnels"),
        ("identity", "certificate 3 of some.pem expired at", "targets will not trust it"),
        ("roots", "certificate 3 of some.pem expired at", accepts),
        ("directly_trusted", "certificate 3 of some.pem expired at", refuses),
        ("directly_trusted", "certificate 3 of some.pem expired at", refuses),
        ("intermediates", "certificate 3 of some.pem expired at", "outgate builds no certificate path with it"),
        (
            "crl",
            "revocation list 3 of some.pem has been out of date since",
            "outgate refuses targets whose certificates it covers",
        ),
        ("crl", "revocation list 3 of some.pem has been out of date since", uses),
    ];
    for (usage, (word, what, consequence)) in EVERY_USE.into_iter().zip(expected) {
        assert_eq!(usage.as_str(), word);
        let warning = expiry(usage, Some(3), (-YEAR, -1)).warning(now());
        assert_eq!(warning, Some(format!("{what} 2027-01-09T23:59:59Z: {consequence}")), "{usage:?}");
    }
    let chain = expiry(CertificateUse::Identity, None, (-YEAR, -1)).warning(now());
    let message = "the certificate in some.pem expired at 2027-01-09T23:59:59Z: targets will not trust it";
    assert_eq!(chain.as_deref(), Some(message), "a chain has no number");
}

#[test]
fn advice_depends_on_who_must_learn_of_the_successor() {
    for usage in EVERY_USE {
        let expected = match usage.as_str() {
            "ca" => "clients must trust its successor before it expires: `outgate ca new`",
            "roots" | "client_ca" => "add its successor to the file; remove this one when no peer uses it",
            _ => "replace the file: outgate loads the new file at once",
        };
        assert_eq!(expiry(usage, None, (-YEAR, YEAR)).help(), expected, "{usage:?}");
    }
}

#[test]
fn expiry_is_reported_14_days_before_and_that_of_the_inspection_authority_30_days() {
    for (usage, days) in [(CertificateUse::Listener, 14), (CertificateUse::Roots, 14), (CertificateUse::Ca, 30)] {
        let warns = |until: i64| expiry(usage, None, (-YEAR, until)).warning(now()).is_some();
        assert!(!warns(days * DAY), "{usage:?}");
        assert!(warns(days * DAY - 1), "{usage:?}");
    }
    // A quarter of a short period is enough.
    let warns = |from: i64, until: i64| expiry(CertificateUse::Listener, None, (from, until)).warning(now()).is_some();
    assert!(!warns(-6 * DAY, 2 * DAY));
    assert!(warns(-6 * DAY - 4, 2 * DAY));
    assert!(!warns(-30, 10));
    assert!(warns(-34, 10));
}

#[test]
fn end_of_the_period_belongs_to_it() {
    let listener = |until: i64| expiry(CertificateUse::Listener, None, (-YEAR, until)).warning(now()).unwrap();
    let consequence = "clients will not trust it";
    let path = "the certificate in some.pem";
    assert_eq!(listener(-1), format!("{path} expired at 2027-01-09T23:59:59Z: {consequence}"));
    assert_eq!(listener(0), format!("{path} expires at 2027-01-10T00:00:00Z"));
    assert_eq!(listener(1), format!("{path} expires at 2027-01-10T00:00:01Z"));
    let list = expiry(CertificateUse::ClientCrl, None, (-YEAR, 1)).warning(now());
    assert_eq!(list.as_deref(), Some("revocation list 1 of some.pem will be out of date at 2027-01-10T00:00:01Z"));
}

#[test]
fn start_of_the_period_belongs_to_it() {
    let warning = |usage, from: i64| expiry(usage, None, (from, YEAR)).warning(now());
    for usage in [CertificateUse::Listener, CertificateUse::ClientCrl] {
        assert_eq!(warning(usage, -1), None, "{usage:?}");
        assert_eq!(warning(usage, 0), None, "{usage:?}");
    }
    assert_eq!(
        warning(CertificateUse::Listener, 1).as_deref(),
        Some("the certificate in some.pem is not valid yet: clients will not trust it")
    );
    assert_eq!(
        warning(CertificateUse::ClientCrl, 1).as_deref(),
        Some("revocation list 1 of some.pem has a thisUpdate in the future: outgate ignores the list until then")
    );
}

#[test]
fn every_file_of_a_configuration_is_reported_once_and_each_of_its_independent_parts() {
    let good = certificate(-YEAR, YEAR);
    let (all, problems) = compiled(|config| {
        let mut own = Bind::new(Listen::Tcp(([127, 0, 0, 1], 4751).into()));
        own.tls = BindTls::Own(Box::new(at(12, tls(&good))));
        config.server.listen.push(at(11, own.clone()));
        config.admin.listen = vec![at(13, own.clone())];
        let mut tls = tls(&good);
        tls.client_ca = Some(file("clients.pem", &[&authority(-YEAR, YEAR), b"odd", &good]));
        tls.client_crls = vec![file("clients.crl", &[&list(-YEAR, YEAR), b"odd", &list(-YEAR, YEAR)])];
        config.server.tls = Some(at(10, tls));
        let certificate = file("ca.pem", &[&authority(-YEAR, YEAR)]);
        config.server.ca = Some(at(18, Ca { certificate, key: key() }));
        let mut trust = trust();
        let roots = vec![authority(-YEAR, YEAR), good.clone()];
        trust.roots = vec![at(14, Roots::Mozilla), at(15, Roots::File(PathBuf::from("roots.pem"), roots))];
        trust.intermediates = vec![file("middle.pem", &[b"odd", &authority(-YEAR, YEAR)])];
        trust.crls = vec![file("ca.crl", &[&list(-YEAR, YEAR), &list(-YEAR, YEAR)])];
        trust.crl_policy = Some(at(16, CrlPolicy::Lenient));
        let certificate = file("identity.pem", &[&good, &good]);
        trust.identity = Some(at(17, ClientIdentity { certificate, key: key() }));
        config.trust.insert(TrustName::new("t"), at(8, trust));
    });
    assert_eq!(messages(&problems), [""; 0]);
    let found: Vec<_> = all.iter().map(|found| (found.usage.as_str(), found.trust.as_str(), found.label())).collect();
    let part = |number: usize, path: &str| format!("certificate {number} of {path}");
    let list = |number: usize, path: &str| format!("revocation list {number} of {path}");
    let chain = |path: &str| format!("the certificate in {path}");
    assert_eq!(
        found,
        [
            ("listener", "", chain("listener.pem")),
            ("client_ca", "", part(1, "clients.pem")),
            ("directly_trusted", "", part(3, "clients.pem")),
            ("client_crl", "", list(1, "clients.crl")),
            ("client_crl", "", list(3, "clients.crl")),
            ("listener", "", chain("listener.pem")),
            ("listener", "", chain("listener.pem")),
            ("ca", "", "the authority in ca.pem".to_owned()),
            ("roots", "t", part(1, "roots.pem")),
            ("directly_trusted", "t", part(2, "roots.pem")),
            ("intermediates", "t", part(2, "middle.pem")),
            ("crl", "t", list(1, "ca.crl")),
            ("crl", "t", list(2, "ca.crl")),
            ("identity", "t", chain("identity.pem")),
        ]
    );
    assert!(all.iter().all(|found| found.expires_at.as_second() == NOW + YEAR));
    assert_eq!(all[11].usage, CertificateUse::Crl(CrlPolicy::Lenient));
    assert_eq!(all[2].usage, CertificateUse::DirectlyTrusted(Purpose::Clients));
    assert_eq!(all[9].usage, CertificateUse::DirectlyTrusted(Purpose::Servers));
}

#[test]
fn chain_is_valid_while_each_of_its_certificates_is() {
    let warnings = |parts: &[&[u8]]| {
        let (_, problems) = with_trust(|trust| {
            let certificate = file("identity.pem", parts);
            trust.identity = Some(at(17, ClientIdentity { certificate, key: key() }));
        });
        messages(&problems)
    };
    let [good, expired, future] = [(-YEAR, YEAR), (-YEAR, -1), (1, YEAR)].map(|(from, until)| certificate(from, until));
    assert_eq!(warnings(&[&good, &good]), [""; 0]);
    let ends = "warning: the certificate in identity.pem expired at 2027-01-09T23:59:59Z: targets will not trust it";
    for parts in [[&good[..], &expired], [&expired, &good], [b"odd", &expired]] {
        assert_eq!(warnings(&parts), [ends]);
    }
    let begins = "warning: the certificate in identity.pem is not valid yet: targets will not trust it";
    for parts in [[&good[..], &future], [&future, &good]] {
        assert_eq!(warnings(&parts), [begins]);
    }
    assert_eq!(warnings(&[b"odd"]), [""; 0]);
}

#[test]
fn expired_inspection_authority_is_reported_elsewhere() {
    let warnings = |until: i64| {
        let ca = Ca { certificate: file("ca.pem", &[&authority(-YEAR, until)]), key: key() };
        let (all, problems) = compiled(|config| config.server.ca = Some(at(18, ca)));
        assert_eq!(all.len(), 1, "its expiry is known all the same");
        assert!(problems.iter().all(|problem| problem.span.is_some_and(|span| span.start == 20)));
        messages(&problems)
    };
    assert_eq!(warnings(-1), [""; 0]);
    assert_eq!(warnings(0), ["warning: the authority in ca.pem expires at 2027-01-10T00:00:00Z"]);
    assert_eq!(warnings(30 * DAY - 1), ["warning: the authority in ca.pem expires at 2027-02-08T23:59:59Z"]);
    assert_eq!(warnings(30 * DAY), [""; 0]);
}

#[test]
fn revocation_list_is_reported_by_its_own_dates() {
    let warnings = |der: &[u8]| messages(&with_trust(|trust| trust.crls = vec![file("ca.crl", &[der])]).1);
    assert_eq!(warnings(&list(-YEAR, YEAR)), [""; 0]);
    assert_eq!(
        warnings(&list(-YEAR, -1)),
        ["warning: revocation list 1 of ca.crl has been out of date since 2027-01-09T23:59:59Z: outgate refuses \
             targets whose certificates it covers"]
    );
    assert_eq!(
        warnings(&list(1, YEAR)),
        ["warning: revocation list 1 of ca.crl has a thisUpdate in the future: outgate ignores the list until then"]
    );
    assert_eq!(crl_validity(&list(-5, 9)), Some((NOW - 5, NOW + 9)));
    let endless = Authority::root("root").list(|list| list.next_update = None);
    assert_eq!(crl_validity(&endless), None);
    assert_eq!(crl_validity(b"odd"), None);
}

#[test]
fn certificate_without_an_expiry_ends_with_the_last_timestamp() {
    // 99991231235959Z
    assert_eq!(certificate_timestamp(253_402_300_799), Timestamp::MAX);
    assert_eq!(certificate_timestamp(NOW), now());
}
