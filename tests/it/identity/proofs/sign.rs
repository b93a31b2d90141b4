//! Requests signed as a client signs them, without code of outgate.
//! Which fields does a client that signs add to its request?
#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test may panic")]

use aws_lc_rs::digest::{SHA256, digest as hash};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA512,
    RsaEncoding, RsaKeyPair,
};
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};

pub enum Key {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
    Rsa(Box<RsaKeyPair>),
}

pub fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Returns the value of Content-Digest (RFC 9530).
pub fn digest(body: &str) -> String {
    format!("sha-256=:{}:", BASE64_STANDARD.encode(hash(&SHA256, body.as_bytes())))
}

impl Key {
    pub fn ed25519() -> Self {
        Self::Ed25519(Ed25519KeyPair::generate().unwrap())
    }
    pub fn p256() -> Self {
        Self::P256(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }
    pub fn rsa() -> Self {
        Self::Rsa(Box::new(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()))
    }

    pub fn public_pem(&self) -> String {
        let der: PublicKeyX509Der<'static> = match self {
            Self::Ed25519(key) => key.public_key().as_der().unwrap(),
            Self::P256(key) => key.public_key().as_der().unwrap(),
            Self::Rsa(key) => key.public_key().as_der().unwrap(),
        };
        let text = BASE64_STANDARD.encode(der.as_ref());
        let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Ed25519(key) => key.sign(message).as_ref().to_vec(),
            Self::P256(key) => key.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec(),
            Self::Rsa(_) => self.sign_rsa(&RSA_PSS_SHA512, message),
        }
    }

    fn sign_rsa(&self, encoding: &'static dyn RsaEncoding, message: &[u8]) -> Vec<u8> {
        let Self::Rsa(key) = self else { panic!("not RSA") };
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(encoding, &SystemRandom::new(), message, &mut signature).unwrap();
        signature
    }

    /// Returns the fields of an RFC 9421 signature by `billing` over method, target and body.
    pub fn sign_request(&self, method: &str, url: &str, body: &str, params: &str) -> String {
        self.sign_request_as("billing", method, url, body, params)
    }

    pub fn sign_request_as(&self, keyid: &str, method: &str, url: &str, body: &str, params: &str) -> String {
        let digest = digest(body);
        let covered = [("@method", method), ("@target-uri", url), ("content-digest", &digest)];
        format!("Content-Digest: {digest}\r\n{}", self.signature(keyid, &covered, params))
    }

    pub fn sign_components(&self, covered: &[(&str, &str)], params: &str) -> String {
        self.signature("billing", covered, params)
    }

    fn signature(&self, keyid: &str, covered: &[(&str, &str)], params: &str) -> String {
        let names: Vec<String> = covered.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let params = format!("({});created={};keyid=\"{keyid}\";tag=\"outgate\"{params}", names.join(" "), now());
        let mut base: String = covered.iter().map(|(name, value)| format!("\"{name}\": {value}\n")).collect();
        base.push_str(&format!("\"@signature-params\": {params}"));
        let signature = BASE64_STANDARD.encode(self.sign(base.as_bytes()));
        format!("Signature-Input: mine={params}\r\nSignature: mine=:{signature}:\r\n")
    }

    /// Returns the value of `Twilio-Client-Validation` as Twilio's Python library makes it, for a POST with
    /// `Authorization: Basic eDp5`. `query` must be sorted.
    pub fn twilio_token(&self, iss: &str, path: &str, query: &str, host: &str, body: &str, exp: i64) -> String {
        let hex = |bytes: &[u8]| -> String {
            hash(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let body = if body.is_empty() { String::new() } else { hex(body.as_bytes()) };
        let names = "authorization;host";
        let text = format!("POST\n{path}\n{query}\nauthorization:Basic eDp5\nhost:{host}\n\n{names}\n{body}");
        let header = r#"{"alg":"RS256","cty":"twilio-pkrv;v=1","kid":"CR1","typ":"JWT"}"#;
        let rqh = hex(text.as_bytes());
        let claims =
            format!(r#"{{"hrh":"{names}","rqh":"{rqh}","iss":"{iss}","exp":{exp},"nbf":{},"sub":"AC1"}}"#, now());
        let input = format!("{}.{}", BASE64_URL_SAFE_NO_PAD.encode(header), BASE64_URL_SAFE_NO_PAD.encode(claims));
        let signature = self.sign_rsa(&RSA_PKCS1_SHA256, input.as_bytes());
        format!("{input}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}

/// The order of P-256 (SEC 2 §2.4.2).
const ORDER: [u8; 32] = [
    0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa,
    0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51,
];

/// Returns the second valid form of an ECDSA signature (r, s), which is (r, n - s).
pub fn other_ecdsa_form(fields: &str) -> String {
    let start = fields.find("mine=:").unwrap() + "mine=:".len();
    let end = start + fields[start..].find(':').unwrap();
    let mut signature = BASE64_STANDARD.decode(&fields[start..end]).unwrap();
    let mut borrow = 0;
    for (byte, order) in signature[32..].iter_mut().zip(ORDER).rev() {
        let difference = i16::from(order) - i16::from(*byte) - borrow;
        borrow = i16::from(difference < 0);
        *byte = u8::try_from(difference.rem_euclid(256)).unwrap();
    }
    format!("{}{}{}", &fields[..start], BASE64_STANDARD.encode(signature), &fields[end..])
}
