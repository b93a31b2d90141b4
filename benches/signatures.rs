//! Measures the CPU time to sign a body of 1 KiB by each scheme, and to verify the signature as a receiver does.
//! What does it cost to sign a webhook, and to verify one?
//!
//! `cargo bench --bench signatures`

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on ends"
)]

mod support;

use std::ffi::OsString;
use std::hint::black_box;
use std::path::Path;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    ParsedPublicKey, RSA_PSS_2048_8192_SHA512, RSA_PSS_SHA512, RsaKeyPair, VerificationAlgorithm,
};
use http::{HeaderValue, Method, header};
use jiff::Timestamp;
use outgate::config;
use outgate::http_message::Fields;
use outgate::names::{Host, Scheme, Target};
use outgate::policy::sign::{self, Signer, SigningInput};

const BODY: [u8; 1024] = [b'x'; 1024];

const SIGNATURES: u32 = 200;

/// Scheme, algorithm, and further keys of the signer's configuration.
const SIGNERS: &[(&str, &str, &str)] = &[
    ("standard-webhooks", "hmac-sha256", ""),
    ("standard-webhooks", "ed25519", ""),
    ("rfc9421", "hmac-sha256", ""),
    ("rfc9421", "ed25519", ""),
    ("rfc9421", "ecdsa-p256-sha256", ""),
    ("rfc9421", "rsa-pss-sha512", ""),
    ("twilio", "hmac-sha1", ""),
    ("twilio", "hmac-sha256", "algorithm = \"hmac-sha256\""),
    ("sendgrid", "ecdsa-p256-sha256", ""),
    ("stripe", "hmac-sha256", ""),
    ("github", "hmac-sha256", ""),
    ("slack", "hmac-sha256", ""),
    ("shopify", "hmac-sha256", ""),
    ("hmac", "hmac-sha256", "message = \"{timestamp}.{id}.{body}\"\nheaders = [\"X-Acme: {signature}\"]"),
];

/// Returns a signer with one new key, compiled from a configuration.
fn signer(scheme: &str, algorithm: &str, more: &str) -> std::sync::Arc<Signer> {
    let secret: OsString = sign::new_key(scheme, Some(algorithm)).unwrap().as_str().into();
    let text = format!(
        "[egress.default]\nranges = [\"192.0.2.1\"]\n[signers.s]\nscheme = {scheme:?}\n{more}\n\
         keys = [{{ id = \"k\", secret = \"env:KEY\" }}]\n"
    );
    let path = std::env::temp_dir().join(format!("outgate-bench-{}.toml", std::process::id()));
    std::fs::write(&path, text).unwrap();
    let loaded = config::load_with_environment(Path::new(&path), &|name| (name == "KEY").then(|| secret.clone()));
    std::fs::remove_file(&path).unwrap();
    let Ok(loaded) = loaded else { panic!("{scheme}: the configuration is not valid") };
    let mut problems = Vec::new();
    let signers = sign::compile(&loaded.config, None, &mut problems);
    assert!(problems.is_empty(), "{scheme}: {problems:?}");
    signers["s"].clone()
}

/// Returns the microseconds to sign and to verify 1 KiB with the bare algorithm.
fn primitive(algorithm: &str) -> (f64, f64) {
    let random = SystemRandom::new();
    let measure = |sign: &dyn Fn() -> Vec<u8>, public: &[u8], by: &'static dyn VerificationAlgorithm| {
        let (signature, public) = (sign(), ParsedPublicKey::new(by, public).unwrap());
        let sign_time = support::microseconds(SIGNATURES, || drop(black_box(sign())));
        let verify_time =
            support::microseconds(SIGNATURES, || public.verify_sig(black_box(&BODY), &signature).unwrap());
        (sign_time, verify_time)
    };
    match algorithm {
        "ed25519" => {
            let key = Ed25519KeyPair::generate().unwrap();
            measure(&|| key.sign(&BODY).as_ref().to_vec(), key.public_key().as_ref(), &ED25519)
        }
        "ecdsa-p256-sha256" => {
            let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
            let sign = || key.sign(&random, &BODY).unwrap().as_ref().to_vec();
            measure(&sign, key.public_key().as_ref(), &ECDSA_P256_SHA256_FIXED)
        }
        "rsa-pss-sha512" => {
            let key = RsaKeyPair::generate(KeySize::Rsa3072).unwrap();
            let sign = || {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PSS_SHA512, &random, &BODY, &mut signature).unwrap();
                signature
            };
            measure(&sign, key.public_key().as_ref(), &RSA_PSS_2048_8192_SHA512)
        }
        _ => (0.0, 0.0),
    }
}

fn main() {
    let target = Target { scheme: Scheme::Https, host: Host::Name("hooks.acme.example".into()), port: 443 };
    let headers = Fields::from_iter([
        (header::HOST, HeaderValue::from_static("hooks.acme.example")),
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
    ]);
    let input = SigningInput {
        method: &Method::POST,
        target: &target,
        tenant: None,
        path_and_query: "/webhooks/in?tenant=1",
        headers: &headers,
        body: &BODY,
        now: Timestamp::from_second(1_800_000_000).unwrap(),
        id: "msg_p5jXN8AQM9LWM0D4loKWxJek",
    };
    println!("{:<20} {:<20} {:>8} {:>8}", "scheme", "algorithm", "sign µs", "verify µs");
    for (scheme, algorithm, more) in SIGNERS {
        let signer = signer(scheme, algorithm, more);
        // The input of a signature includes the fields that the scheme adds.
        let mutations = signer.mutations(&input).unwrap();
        let mut headers = headers.clone();
        mutations.headers.iter().for_each(|(name, value)| headers.insert(name, value));
        let path_and_query = mutations.path_and_query.as_deref().unwrap_or(input.path_and_query);
        let mutated_input = SigningInput { headers: &headers, path_and_query, ..input };
        let best = support::microseconds(SIGNATURES, || {
            black_box(signer.mutations(black_box(&input)).unwrap());
            black_box(signer.sign(black_box(&mutated_input)).unwrap());
        });
        // A receiver builds the same message again. With a shared secret that is all of its work. With a key pair, the
        // verification by the public key replaces the signature by the private key.
        let (sign_time, verify_time) = primitive(algorithm);
        let verify = best - sign_time + verify_time;
        println!("{scheme:<20} {algorithm:<20} {best:>8.1} {verify:>8.1}");
    }
}
