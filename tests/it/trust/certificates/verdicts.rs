//! A comparison of the verdicts with `openssl verify -x509_strict` and webpki alone, in `verdicts.md`.
//! Where does outgate differ from others, and why?
//!
//! With BLESS=1 in the environment the table is written instead of compared.

use std::fmt::Write;
use std::process::Command;

use rustls_pki_types::{CertificateDer, TrustAnchor};
use webpki::{CertRevocationList, EndEntityCert, KeyUsage, OwnedCertRevocationList, RevocationOptionsBuilder};

use super::generator::{Case, GOOD};
use super::support;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/trust/certificates/verdicts.md");

/// The text for a difference without a reason, which the table must not have.
const NO_REASON: &str = "no reason";

/// The version of the table. Another version may have other verdicts and texts.
const OPENSSL: &str = "OpenSSL 3.0.";

const HEAD: &str = "# Verdicts

Written by `BLESS=1 cargo test --test it verdicts` with OpenSSL 3.0; `cargo test` compares it. Every row is a chain
of the suite. `strict` and `loose` are outgate's verdicts with and without the rules of the Web PKI; `openssl` is
`openssl verify -x509_strict -purpose sslserver`, with `-crl_check_all` where there are lists; `webpki` is the library alone.
The last column is there where another verdict differs from `loose`, or `strict` from `loose`: it has the rule that ours
follows from, and what the other does instead.

| chain | strict | loose | openssl | webpki | reason for a difference |
| --- | --- | --- | --- | --- | --- |
";

#[test]
fn the_table_of_verdicts_is_up_to_date() {
    let version = Command::new("openssl").arg("version").output().map(|output| output.stdout).unwrap_or_default();
    if !version.starts_with(OPENSSL.as_bytes()) {
        assert!(!support::required(), "no {OPENSSL}x");
        return;
    }
    let mut table = HEAD.to_owned();
    for case in super::cases() {
        let (openssl, webpki) = (openssl(&case), webpki(&case));
        let is_good = |verdict: &str| verdict == GOOD;
        let loose = is_good(case.loose);
        let mut reasons = Vec::new();
        if is_good(case.strict) != loose || is_good(&openssl) != loose || is_good(webpki) != loose {
            reasons.push(case.rule.to_owned());
        }
        if is_good(&openssl) != loose {
            reasons.push(format!("openssl: {}", openssl_reason(&openssl, &case)));
        }
        if is_good(webpki) != loose {
            reasons.push(format!("webpki: {}", webpki_reason(&case)));
        }
        let row = [case.description, case.strict, case.loose, &openssl, webpki, &reasons.join("; ")];
        writeln!(table, "| {} |", row.map(|cell| cell.replace('|', "\\|")).join(" | ")).unwrap();
    }
    assert!(!table.contains(NO_REASON), "a difference without a reason:\n{table}");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(TABLE, &table).unwrap();
    }
    let written = std::fs::read_to_string(TABLE).unwrap_or_default();
    let different: Vec<_> = table.lines().filter(|line| !written.lines().any(|other| other == *line)).collect();
    assert!(table == written, "{TABLE} is not up to date: BLESS=1 writes it\n{}", different.join("\n"));
}

/// Returns the first error of OpenSSL, or [`GOOD`].
fn openssl(case: &Case) -> String {
    let folder = case.folder();
    let file = |name: &str| folder.path(name).display().to_string();
    let (presented, _, intermediates, lists) = case.parts();
    let time = case.time().as_secs().to_string();
    let mut command = Command::new("openssl");
    command.args(["verify", "-x509_strict", "-purpose", "sslserver", "-no-CApath", "-no-CAstore", "-attime", &time]);
    command.arg("-CAfile").arg(file("roots.pem"));
    let target = case.name();
    match &target {
        rustls_pki_types::ServerName::IpAddress(_) => command.arg("-verify_ip"),
        _ => command.arg("-verify_hostname"),
    };
    command.arg(target.to_str().as_ref());
    if presented.len() > 1 || !intermediates.is_empty() {
        command.arg("-untrusted").arg(file("shown.pem"));
    }
    if !lists.is_empty() {
        command.arg("-crl_check_all").arg("-CRLfile").arg(file("crls.pem"));
    }
    let output = command.arg(file("leaf.pem")).output().unwrap();
    if output.status.success() {
        return GOOD.to_owned();
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    let error = text.lines().find_map(|line| line.split_once(" depth lookup: ")).map(|(_, error)| error.trim());
    error.unwrap_or("cannot be read").to_owned()
}

/// Returns the verdict of webpki as a client calls it: all roots as anchors, lists with the defaults, and the name.
fn webpki(case: &Case) -> &'static str {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let (presented, roots, intermediates, lists) = case.parts();
    let certificates = |ders: &[&[Vec<u8>]]| -> Vec<CertificateDer<'static>> {
        ders.concat().iter().map(|der| CertificateDer::from(der.clone())).collect()
    };
    let (leaf, others) = (CertificateDer::from(presented[0].clone()), certificates(&[&presented[1..], intermediates]));
    let roots = certificates(&[roots]);
    let anchors: Vec<TrustAnchor<'_>> =
        roots.iter().filter_map(|root| webpki::anchor_from_trusted_cert(root).ok()).collect();
    let lists: Result<Vec<CertRevocationList<'_>>, _> =
        lists.iter().map(|der| OwnedCertRevocationList::from_der(der).map(Into::into)).collect();
    let Ok(lists) = lists else { return "refused" };
    let lists: Vec<_> = lists.iter().collect();
    let revocation = RevocationOptionsBuilder::new(&lists).ok().map(RevocationOptionsBuilder::build);
    let algorithms = provider.signature_verification_algorithms.all;
    let verdict = EndEntityCert::try_from(&leaf).and_then(|parsed| {
        let usage = KeyUsage::server_auth();
        parsed.verify_for_usage(algorithms, &anchors, &others, case.time(), usage, revocation, None)?;
        parsed.verify_is_valid_for_subject_name(&case.name())
    });
    if verdict.is_ok() { GOOD } else { "refused" }
}

/// Returns the reason for a difference between OpenSSL and outgate.
fn openssl_reason(verdict: &str, case: &Case) -> &'static str {
    let own = [
        ("excluded: a name that a wildcard covers", "it asks whether the wildcard itself is excluded"),
        ("a directory name within what is permitted", "it processes limits on directory names"),
        ("seven authorities", "its paths have up to a hundred"),
        ("no authority allowed below, itself with another key", "self-issued certificates do not count (§4.2.1.9)"),
        ("critical policy constraints", "it processes policies"),
        ("a byte after the end", "it ignores what follows a certificate"),
        ("cross-signed, the trusted one sent last", "it builds one path, by the first issuer that fits"),
        ("cross-signed, and the other root trusted instead", "it builds one path, by the first issuer that fits"),
        ("a root that allows none below, one there", "a root's own pathLenConstraint counts"),
        ("a root for any purpose", "a root that names purposes needs serverAuth itself"),
        (
            "another issuer's leaf in roots, sent itself",
            "without -partial_chain a path ends at a self-signed certificate",
        ),
        ("keyCertSign missing in roots, sent itself", "an authority without keyCertSign is none, and no server's"),
        ("at notAfter", "notAfter itself is too late"),
        ("a root that has expired", "the dates of roots count"),
        ("an authority as a server", "an authority may be a server"),
    ];
    if let Some((_, why)) = own.iter().find(|(description, _)| *description == case.description) {
        return why;
    }
    match (verdict, case.loose) {
        (GOOD, "unsupported_algorithm" | "weak_key" | "weak_signature") => {
            "at its default security level it takes more keys and algorithms"
        }
        (GOOD, "no_subject_alt_name") => "the common name counts where there is no subjectAltName",
        (GOOD, "name_mismatch") => "it takes a wildcard for a part of a label",
        (GOOD, "pin_mismatch") => "it has no pins",
        (GOOD, "revoked") | ("certificate revoked", _) => {
            "of lists of one date it takes the first, whatever its number"
        }
        ("different CRL scope", _) => "-crl_check_all asks about the root, too",
        ("CRL is not yet valid" | "CRL has expired" | "unable to get certificate CRL", _) => {
            "every certificate needs a list in date"
        }
        (
            "invalid CA certificate"
            | "CA cert does not include key usage extension"
            | "Basic Constraints of CA cert not marked critical",
            GOOD,
        ) => "-x509_strict holds authorities and leaves to the form of RFC 5280; here `strict` does",
        _ => NO_REASON,
    }
}

fn webpki_reason(case: &Case) -> &'static str {
    match case.loose {
        GOOD if case.rule.contains("lenient") => "by default what no list speaks of is refused",
        GOOD if case.description.contains("in roots") => {
            "an anchor vouches for what its key has signed, not for itself"
        }
        GOOD | "revoked" => "it takes the first list of the issuer's name, of any date, number and key",
        "revocation_unknown" => "an anchor has no keyUsage, and a list of the future counts",
        "revocation_stale" => "by default a list that is out of date counts",
        "unknown_issuer" => "an anchor is a name and a key: what its certificate says of itself does not count",
        "pin_mismatch" => "it has no pins",
        "wrong_usage" => "an issuer's keyUsage does not count",
        "weak_key" | "unsupported_algorithm" => "a leaf's own key is left to the handshake",
        _ => NO_REASON,
    }
}
