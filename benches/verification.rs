//! Measures the CPU time to verify the signature of a client's request by each algorithm, and a target's certificate.
//! What does verification cost?
//!
//! `cargo bench --bench verification`

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    dead_code,
    reason = "a benchmark that cannot go on ends, and needs not all of the tests"
)]

#[path = "../tests/it/identity/proofs/sign.rs"]
mod sign;
mod support;

use std::hint::black_box;
use std::path::PathBuf;

use http::{HeaderName, HeaderValue, Method};
use jiff::Timestamp;
use outgate::config;
use outgate::http_message::{FieldValue, Fields};
use outgate::policy::authn::{Caller, Clients, PresentedCredentials, SignableRequest};
use outgate::policy::{authn::TWILIO_CLIENT_VALIDATION, trust};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

const HOST: &str = "hooks.acme.example";
const URL: &str = "https://hooks.acme.example/webhooks/in";
const TIMES: u32 = 200;

/// A configuration file that is removed with the value.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("outgate-bench-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn parse_config(more: &str) -> config::Config {
    let text = format!("[egress.default]\nranges = [\"192.0.2.1\"]\n{more}\n");
    let Ok(loaded) = config::parse(&text, &std::env::temp_dir().join("outgate-bench.toml")) else {
        panic!("the configuration is not valid:\n{text}")
    };
    loaded.config
}

/// Measures the authentication of a request with a body of 1 KiB and these fields: the signature, and the digest of the
/// body.
fn client(name: &str, algorithm: &str, key: &sign::Key, fields: &str) {
    let body = "x".repeat(1024);
    let public = TempFile::new("client.pem", &key.public_pem());
    let config = parse_config(&format!("[clients.billing]\npublic_keys = [{:?}]", public.0));
    let mut problems = Vec::new();
    let clients = Clients::compile(&config, &mut problems);
    assert!(problems.is_empty(), "{problems:?}");
    let mut headers = Fields::default();
    for line in fields.lines() {
        let (name, value) = line.split_once(": ").unwrap();
        headers.append(HeaderName::try_from(name).unwrap(), &HeaderValue::try_from(value).unwrap());
    }
    let sent = SignableRequest { method: &Method::POST, target: URL, fields: &headers, has_body: true };
    let twilio_token = headers.get(&TWILIO_CLIENT_VALIDATION).map(FieldValue::as_bytes);
    let credentials = PresentedCredentials {
        caller: &Caller::default(),
        proxy_authorization: None,
        client_validation: twilio_token,
        request: sent,
    };
    let now = Timestamp::now();
    let cost = support::microseconds(TIMES, || {
        let Ok(identified) = clients.authenticate(black_box(&credentials), now) else {
            panic!("{name} {algorithm}: unknown")
        };
        let body_check = identified.into_checks().1.unwrap();
        assert!(body_check.verify(black_box(body.as_bytes())).is_ok(), "{name} {algorithm}: another body");
    });
    println!("{name:<26} {algorithm:<20} {cost:>8.1}");
}

fn clients() {
    let body = "x".repeat(1024);
    for (algorithm, key) in [
        ("ed25519", sign::Key::ed25519()),
        ("ecdsa-p256-sha256", sign::Key::p256()),
        ("rsa-pss-sha512, 2048", sign::Key::rsa()),
    ] {
        client("client, RFC 9421", algorithm, &key, &key.sign_request("POST", URL, &body, ""));
    }
    let key = sign::Key::rsa();
    let token = key.twilio_token("billing", "/webhooks/in", "", HOST, &body, sign::now() + 300);
    let fields = format!("Host: {HOST}\nAuthorization: Basic eDp5\nTwilio-Client-Validation: {token}");
    client("client, Twilio's token", "RS256, 2048", &key, &fields);
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// Measures the verification of a chain of leaf, intermediate and root, all P-256, under the rules of the Web PKI.
fn target() {
    let (root, root_key) = (authority("root"), KeyPair::generate().unwrap());
    let root_certificate = root.self_signed(&root_key).unwrap();
    let (intermediate_params, intermediate_key) = (authority("intermediate"), KeyPair::generate().unwrap());
    let intermediate: CertificateDer<'_> =
        intermediate_params.signed_by(&intermediate_key, &Issuer::new(root, root_key)).unwrap().der().clone();
    let mut params = CertificateParams::new([HOST.to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = time::OffsetDateTime::now_utc() - time::Duration::days(1);
    params.not_after = params.not_before + time::Duration::days(40);
    let issuer = Issuer::new(intermediate_params, intermediate_key);
    let leaf: CertificateDer<'_> = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().der().clone();

    let roots = TempFile::new("roots.pem", &root_certificate.pem());
    let config = parse_config(&format!("[trust.t]\nroots = [{:?}]\nstrict = true", roots.0));
    let trusts = trust::compile(&config, &mut Vec::new());
    let name = ServerName::try_from(HOST).unwrap();
    let cost = support::microseconds(TIMES, || {
        let verdict = trusts["t"].verify(black_box(&leaf), std::slice::from_ref(&intermediate), &name, UnixTime::now());
        assert_eq!(verdict, Ok(()));
    });
    println!("{:<26} {:<20} {cost:>8.1}", "target, chain of three", "ecdsa-p256-sha256");
}

fn main() {
    println!("{:<26} {:<20} {:>8}", "who proves itself", "by", "µs");
    clients();
    target();
}
