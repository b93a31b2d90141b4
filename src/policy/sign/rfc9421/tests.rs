//! Tests of message signatures: the vectors of RFC 9421, and signatures beside those of clients.
//! Does each signature verify for the webhook as sent?

use super::*;
use crate::policy::sign::PublicKey;
use crate::policy::sign::fixture::Sample;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair, ParsedPublicKey, RSA_PSS_2048_8192_SHA512,
    RsaKeyPair,
};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use sfv::{BareItem, Dictionary, FieldType, ListEntry, Parser};

const BODY: &str = r#"{"hello": "world"}"#;
const SHARED: &str = "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==";

/// The scheme with default options.
fn default_scheme() -> MessageSignatures {
    MessageSignatures(SignatureProfile::compile(&crate::policy::fixture::signer("rfc9421"), &mut Vec::new()).unwrap())
}

fn ed25519() -> SecretKey {
    SecretKey::Ed25519(Ed25519KeyPair::generate().unwrap())
}

fn value<'a>(signed: &'a [(String, String)], name: &str) -> &'a str {
    signed.iter().find(|(other, _)| other == name).map_or("", |(_, value)| value)
}

/// Rebuilds the signature base from the received request, as a receiver does.
fn base(sample: &Sample<'_>, input: &str, fields: &[(&str, &str)]) -> String {
    let (_, params) = input.split_once('=').unwrap();
    let names = params[1..params.find(')').unwrap()].split(' ').map(|name| name.trim_matches('"'));
    let component = |name: &str| -> String {
        match name {
            "@method" => "POST".into(),
            "@authority" => "hooks.acme.example".into(),
            "@path" => sample.path_and_query.split('?').next().unwrap().into(),
            "@query" => format!("?{}", sample.path_and_query.split_once('?').map_or("", |(_, query)| query)),
            field => fields.iter().find(|(name, _)| *name == field).unwrap().1.into(),
        }
    };
    let lines: String = names.map(|name| format!("\"{name}\": {}\n", component(name))).collect();
    format!("{lines}\"@signature-params\": {params}")
}

fn signature(value: &str) -> Vec<u8> {
    let (_, bytes) = value.split_once("=:").unwrap();
    BASE64_STANDARD.decode(bytes.strip_suffix(':').unwrap()).unwrap()
}

/// Only deterministic algorithms have published signatures to compare.
#[test]
fn message_signatures_match_published_vectors() {
    let read = |text| serde_json::from_str::<Value>(text).unwrap();
    let vectors = read(include_str!("../../../../tests/vectors/message_signatures.json"));
    let keys = read(include_str!("../../../../tests/vectors/private_keys.json"));
    let pem = keys["keys"]["test-key-ed25519"]["private_pem"].as_str().unwrap();
    let der = BASE64_STANDARD.decode(pem.lines().nth(1).unwrap()).unwrap();
    let ed25519 = SecretKey::Ed25519(Ed25519KeyPair::from_pkcs8(&der).unwrap());
    let shared = SecretKey::hmac(HmacAlgorithm::Sha256, &BASE64_STANDARD.decode(SHARED).unwrap());
    let mut count = 0;
    for vector in vectors["signatures"].as_array().unwrap() {
        if vector["keyid"] == "test-key-ed25519" {
            let text = |name: &str| vector[name].as_str().unwrap();
            let made = ed25519.sign([text("signature_base").as_bytes()]).unwrap();
            assert_eq!(made[..], signature(text("signature")), "{}", text("name"));
            count += 1;
        }
    }
    assert!(count >= 2, "{count}");
    // B.2.5
    let base = "\"date\": Tue, 20 Apr 2021 02:07:55 GMT\n\"@authority\": example.com\n\"content-type\": application/json\n\
                \"@signature-params\": (\"date\" \"@authority\" \"content-type\");created=1618884473;keyid=\"test-shared-secret\"";
    assert_eq!(base64(&shared.sign([base.as_bytes()]).unwrap()), "pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8=");
}

#[test]
fn message_signatures_verify_for_each_algorithm() {
    let (p256, rsa) = (
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
        RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap(),
    );
    let pair = Ed25519KeyPair::generate().unwrap();
    let digest = message::digest::sha256_field(BODY.as_bytes());
    let fields = vec![("content-type", "application/json"), ("webhook-id", "msg_1"), ("x-other", "1")];
    let sample = Sample { fields: fields.clone(), ..Sample::body(BODY) };
    let received = [fields, vec![("content-digest", digest.as_str())]].concat();
    let public = |key: &[u8], by| ParsedPublicKey::new(by, key).unwrap();
    let keys = [
        public(pair.public_key().as_ref(), &ED25519),
        public(p256.public_key().as_ref(), &ECDSA_P256_SHA256_FIXED),
        public(rsa.public_key().as_ref(), &RSA_PSS_2048_8192_SHA512),
    ];
    let thumbprint = PublicKey::ed25519(pair.public_key()).unwrap().thumbprint().to_owned();
    let secrets = vec![
        SecretKey::Ed25519(pair),
        SecretKey::EcdsaP256(p256),
        SecretKey::RsaPss(Box::new(rsa)),
        SecretKey::hmac(HmacAlgorithm::Sha256, &[7; 32]),
    ];
    let signed = sample.sign_with(&default_scheme(), secrets).unwrap();
    let (inputs, signatures) = (value(&signed, "signature-input"), value(&signed, "signature"));
    let (inputs, signatures): (Vec<_>, Vec<_>) = (inputs.split(", ").collect(), signatures.split(", ").collect());
    assert_eq!((inputs.len(), signatures.len()), (4, 4));
    let covered = r#"sig1=("@method" "@authority" "@path" "@query" "content-digest" "content-type" "webhook-id")"#;
    let params = format!(r#";created=1614265330;expires=1614265630;keyid="{thumbprint}";alg="ed25519";nonce=""#);
    assert!(inputs[0].starts_with(&format!("{covered}{params}")), "{}", inputs[0]);
    assert!(inputs[3].contains(r#";keyid="k3";alg="hmac-sha256""#), "{}", inputs[3]);
    for ((key, input), made) in keys.iter().zip(&inputs).zip(&signatures) {
        let (base, made) = (base(&sample, input, &received), signature(made));
        assert!(key.verify_sig(base.as_bytes(), &made).is_ok(), "{input}");
        assert!(key.verify_sig(base.replace("POST", "PUT").as_bytes(), &made).is_err(), "{input}");
    }
    let again = SecretKey::hmac(HmacAlgorithm::Sha256, &[7; 32]);
    assert_eq!(again.sign([base(&sample, inputs[3], &received).as_bytes()]).unwrap()[..], signature(signatures[3]));
}

#[test]
fn message_signatures_are_strictly_serialized() {
    let signed = Sample::body(BODY).sign_with(&default_scheme(), vec![ed25519(), ed25519()]).unwrap();
    for (name, value) in &signed {
        let parsed: Dictionary = Parser::new(value).parse().unwrap();
        assert_eq!(parsed.serialize().as_deref(), Some(value.as_str()), "{name}");
    }
    let parsed: Dictionary = Parser::new(value(&signed, "signature-input")).parse().unwrap();
    let nonce = |member: &ListEntry| match member {
        ListEntry::InnerList(list) => {
            list.params.get("nonce").and_then(BareItem::as_string).unwrap().as_str().to_owned()
        }
        ListEntry::Item(_) => panic!("{signed:?}"),
    };
    let nonces: Vec<_> = parsed.values().map(nonce).collect();
    assert_ne!(nonces[0], nonces[1]);
}

#[test]
fn message_signatures_keep_foreign_signatures_and_labels() {
    let foreign = [
        ("signature-input", r#"sig1=("@method");created=1;keyid="x, y""#),
        ("signature-input", "proxy=();created=2"),
        ("signature", "sig1=:AAAA:,  sig3=:BBBB:"),
        ("signature", "proxy=:CCCC:"),
    ];
    let sample = Sample { fields: foreign.to_vec(), ..Sample::body(BODY) };
    let signed = sample.sign_with(&default_scheme(), vec![ed25519(), ed25519()]).unwrap();
    let (inputs, signatures) = (value(&signed, "signature-input"), value(&signed, "signature"));
    assert!(inputs.starts_with(r#"sig1=("@method");created=1;keyid="x, y", proxy=();created=2, sig2=("#), "{inputs}");
    assert!(signatures.starts_with("sig1=:AAAA:, sig3=:BBBB:, proxy=:CCCC:, sig2=:"), "{signatures}");
    assert!(inputs.contains(", sig4=(") && signatures.contains(", sig4=:"), "{signed:?}");
    for broken in ["keyId=\"x\",signature=\"y\"", "sig1=:AAAA:, sig1=:BBBB:"] {
        let sample = Sample { fields: vec![("signature", broken)], ..Sample::body(BODY) };
        let refused = sample.sign_with(&default_scheme(), vec![ed25519()]).err();
        assert!(matches!(refused, Some(SignError::Unsignable(_))), "{broken}");
    }
}

#[test]
fn message_signatures_refuse_a_field_that_is_not_ascii() {
    let sample = Sample { fields: vec![("content-type", "text/é")], ..Sample::body(BODY) };
    assert_eq!(
        sample.sign_with(&default_scheme(), vec![ed25519()]).err(),
        Some(SignError::Unsignable("a field that the signature covers is not ASCII"))
    );
}

#[test]
fn content_digest_is_kept_if_it_matches_and_replaced_if_not() {
    let sha512 = "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:";
    let right = message::digest::sha256_field(BODY.as_bytes());
    for (there, stays) in [
        (sha512.to_owned(), true),
        (right.clone(), true),
        (format!("md5=:AAAA:, {right}"), true),
        ("md5=:AAAA:".into(), false),
        (format!("{right}, sha-512=:AAAA:"), false),
        (message::digest::sha256_field(b"{}"), false),
        ("broken".into(), false),
    ] {
        let sample = Sample { fields: vec![("content-digest", &there)], ..Sample::body(BODY) };
        let changes = sample.mutations(&default_scheme()).unwrap().headers;
        let set: Vec<_> = changes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let expected = if stays { vec![] } else { vec![("content-digest", right.as_str())] };
        assert_eq!(set, expected, "{there}");
    }
}

#[test]
fn message_signature_keys_have_the_algorithm_of_their_kind() {
    let algorithm = |secret: &str| {
        default_scheme().parse_key(secret.as_bytes()).map(|key| key.algorithm().name()).map_err(|error| error.message)
    };
    for (known, make) in SPEC.new_keys {
        assert_eq!(algorithm(&make().unwrap()), Ok(known.name()));
    }
    let refused = |message: &str| Err(message.to_owned());
    assert_eq!(algorithm(SHARED), refused("is published in RFC 9421, so it is no secret"));
    assert_eq!(algorithm("c2hvcnQ="), refused("is too short: 5 bytes, not 16 or more"));
    assert_eq!(algorithm("no base64"), refused("is not base64 with padding"));
}

#[test]
fn web_bot_auth_covers_its_agent_and_refuses_shared_secrets() {
    let at = crate::policy::fixture::at::<String>;
    let profile = crate::config::SignatureParams {
        tag: Some(at(40, "web-bot-auth".into())),
        components: Some(vec![at(41, "@authority".into()), at(42, "x-none".into())]),
        signature_agent: Some(at(43, "https://signer.example".into())),
        ..crate::config::SignatureParams::default()
    };
    let written = crate::config::Signer { signature_params: profile, ..crate::policy::fixture::signer("rfc9421") };
    let scheme = MessageSignatures(SignatureProfile::compile(&written, &mut Vec::new()).unwrap());
    assert_eq!(
        scheme.parse_key(&[b'A'; 44]).err().unwrap().message,
        "is a shared secret, and web-bot-auth allows only key pairs"
    );
    assert!(scheme.headers().contains(&SIGNATURE_AGENT));
    let sample = Sample { fields: vec![("signature-agent", r#"theirs="https://a.example""#)], ..Sample::body(BODY) };
    assert!(sample.mutations(&scheme).unwrap().headers.is_empty(), "no digest that nothing covers");
    let signed = sample.sign_with(&scheme, vec![ed25519()]).unwrap();
    assert_eq!(value(&signed, "signature-agent"), r#"theirs="https://a.example", sig1="https://signer.example""#);
    let input = value(&signed, "signature-input");
    let covered = r#"sig1=("@authority" "signature-agent";key="sig1");created=1614265330;expires=1614265630;"#;
    assert!(input.starts_with(covered) && input.ends_with(r#";tag="web-bot-auth""#), "{input}");
}
