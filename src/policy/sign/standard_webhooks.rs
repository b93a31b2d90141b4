//! Standard Webhooks 1.0.0: symmetric signatures (`v1`) and asymmetric ones (`v1a`), together in one header.
//! Which headers does <https://www.standardwebhooks.com> require?

use std::ops::RangeInclusive;

use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::HeaderName;
use smallvec::smallvec;
use zeroize::Zeroizing;

use super::algorithm::Algorithm;
use super::error::{KeyParseError, NewKeyError, SignError, key_parse_error};
use super::key::{SecretKey, base64, generate_shared_secret};
use super::public::PublicKey;
use super::scheme::{Headers, Mutations, Scheme, SchemeSpec, SignerKey, SigningInput, header};
use crate::config::HmacAlgorithm;

static ID: HeaderName = HeaderName::from_static("webhook-id");
static TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
static SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

const SECRET_PREFIX: &str = "whsec_";
const PRIVATE_PREFIX: &str = "whsk_";
const PUBLIC_PREFIX: &str = "whpk_";

/// "between 24 bytes and 64 bytes" (spec/standard-webhooks.md, Signature scheme).
const SECRET_BYTES: RangeInclusive<usize> = 24..=64;

const SEED_BYTES: usize = 32;

pub(super) const SPEC: SchemeSpec = SchemeSpec {
    name: "standard-webhooks",
    options: &[],
    build: |_, _| Some(Box::new(StandardWebhooks)),
    new_keys: &[
        (Algorithm::HmacSha256, || generate_shared_secret(SECRET_PREFIX, base64)),
        (Algorithm::Ed25519, new_key_pair),
    ],
};

struct StandardWebhooks;

impl Scheme for StandardWebhooks {
    /// The headers of Svix, from which the scheme grew, are included: Svix's libraries look for them first.
    fn headers(&self) -> Vec<HeaderName> {
        let svix = ["svix-id", "svix-timestamp", "svix-signature"].map(HeaderName::from_static);
        [ID.clone(), TIMESTAMP.clone(), SIGNATURE.clone()].into_iter().chain(svix).collect()
    }

    /// A receiver accepts any one signature, and skips versions that it does not know.
    fn is_single_signature(&self) -> bool {
        false
    }

    fn parse_key(&self, secret: &[u8]) -> Result<SecretKey, KeyParseError> {
        const HELP: &str = "`outgate keys new --scheme standard-webhooks` makes a key";
        if let Some(encoded) = secret.strip_prefix(PRIVATE_PREFIX.as_bytes()) {
            let pair = decode(encoded).ok_or_else(|| key_parse_error("is not whsk_ and base64 with padding", HELP))?;
            return match pair.split_at_checked(SEED_BYTES) {
                Some((seed, public)) if public.len() == SEED_BYTES => {
                    let pair = Ed25519KeyPair::from_seed_and_public_key(seed, public);
                    pair.map(SecretKey::Ed25519)
                        .map_err(|_| key_parse_error("has a public key that does not belong to its private key", HELP))
                }
                _ => Err(key_parse_error(format!("is {} bytes long, not {}", pair.len(), 2 * SEED_BYTES), HELP)),
            };
        }
        let encoded = secret.strip_prefix(SECRET_PREFIX.as_bytes());
        let encoded = encoded.ok_or_else(|| key_parse_error("begins with neither whsec_ nor whsk_", HELP))?;
        let secret = decode(encoded).ok_or_else(|| key_parse_error("is not whsec_ and base64 with padding", HELP))?;
        if !SECRET_BYTES.contains(&secret.len()) {
            return Err(key_parse_error(format!("is {} bytes long, not 24 to 64", secret.len()), HELP));
        }
        Ok(SecretKey::hmac(HmacAlgorithm::Sha256, &secret))
    }

    /// Adds the id before other signers sign, so that they can cover it.
    fn mutations(&self, input: &SigningInput<'_>) -> Result<Mutations, SignError> {
        Ok(Mutations { headers: smallvec![header(ID.clone(), input.id.to_owned())?], path_and_query: None })
    }

    fn sign(&self, input: &SigningInput<'_>, keys: &[&SignerKey]) -> Result<Headers, SignError> {
        let timestamp = input.timestamp();
        let message: [&[u8]; 5] = [input.id.as_bytes(), b".", timestamp.as_bytes(), b".", input.body];
        let mut signatures = String::with_capacity(96 * keys.len());
        for key in keys {
            if !signatures.is_empty() {
                signatures.push(' ');
            }
            let is_shared = key.secret.algorithm() == Algorithm::HmacSha256;
            signatures.push_str(if is_shared { "v1," } else { "v1a," });
            BASE64_STANDARD.encode_string(key.secret.sign(message)?, &mut signatures);
        }
        Ok(smallvec![
            header(ID.clone(), input.id.to_owned())?,
            header(TIMESTAMP.clone(), timestamp)?,
            header(SIGNATURE.clone(), signatures)?,
        ])
    }

    fn encode_public_key(&self, key: &PublicKey) -> Option<String> {
        key.raw().map(|raw| format!("{PUBLIC_PREFIX}{}", base64(raw)))
    }
}

/// Decodes base64, which must be padded and canonical: the strictest library of a receiver requires that.
fn decode(encoded: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    BASE64_STANDARD.decode(encoded).ok().map(Zeroizing::new)
}

/// Generates a key pair: the seed and the public half, as Svix keeps them.
fn new_key_pair() -> Result<Zeroizing<String>, NewKeyError> {
    let pair = Ed25519KeyPair::generate().map_err(|_| NewKeyError::NoRandomness)?;
    let seed = pair.seed().map_err(|_| NewKeyError::NoRandomness)?;
    let seed: Curve25519SeedBin<'_> = seed.as_be_bytes().map_err(|_| NewKeyError::NoRandomness)?;
    let both = Zeroizing::new([seed.as_ref(), pair.public_key().as_ref()].concat());
    Ok(Zeroizing::new(format!("{PRIVATE_PREFIX}{}", Zeroizing::new(base64(&both)).as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::sign::fixture::Sample;
    use serde_json::Value;

    #[test]
    fn standard_webhooks_signature_matches_published_vectors() {
        let vectors: Value =
            serde_json::from_str(include_str!("../../../tests/vectors/standard_webhooks.json")).unwrap();
        let list = |name: &str| vectors[name].as_array().unwrap();
        let all: Vec<&Value> = ["sign", "rotation", "asymmetric"].into_iter().flat_map(list).collect();
        assert_eq!(all.len(), 4);
        for vector in all {
            let text = |name: &str| vector[name].as_str().unwrap();
            let secrets: Vec<&str> = match (vector["secrets"].as_array(), vector["secret"].as_str()) {
                (Some(secrets), _) => secrets.iter().map(|secret| secret.as_str().unwrap()).collect(),
                (None, Some(secret)) => vec![secret],
                (None, None) => vec![text("secret_key")],
            };
            let keys = secrets.iter().map(|secret| StandardWebhooks.parse_key(secret.as_bytes()).ok().unwrap());
            let timestamp = vector["timestamp"].as_i64().unwrap();
            let sample = Sample { timestamp, id: text("msg_id"), ..Sample::body(text("payload")) };
            let headers = sample.sign_with(&StandardWebhooks, keys.collect()).unwrap();
            let expected = [
                ("webhook-id", text("msg_id")),
                ("webhook-timestamp", &timestamp.to_string()),
                ("webhook-signature", text("expected")),
            ];
            assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())), "{}", text("name"));
        }
    }

    #[test]
    fn standard_webhooks_puts_both_versions_in_one_header() {
        let vectors: Value =
            serde_json::from_str(include_str!("../../../tests/vectors/standard_webhooks.json")).unwrap();
        let pair = &vectors["asymmetric"][0];
        let key = |secret: &str| StandardWebhooks.parse_key(secret.as_bytes()).ok().unwrap();
        let (shared, pair_key) =
            (key(vectors["sign"][0]["secret"].as_str().unwrap()), key(pair["secret_key"].as_str().unwrap()));
        let public = StandardWebhooks.encode_public_key(&pair_key.public().unwrap());
        assert_eq!(public.as_deref(), pair["public_key"].as_str());
        let (id, body) = (pair["msg_id"].as_str().unwrap(), pair["payload"].as_str().unwrap());
        let sample = Sample { id, ..Sample::body(body) };
        let headers = sample.sign_with(&StandardWebhooks, vec![shared, pair_key]).unwrap();
        let (one, other) = (vectors["sign"][0]["expected"].as_str().unwrap(), pair["expected"].as_str().unwrap());
        assert_eq!(headers[2].1, format!("{one} {other}"));
    }

    #[test]
    fn standard_webhooks_refuses_malformed_secrets() {
        let encoded = |prefix: &str, bytes: usize| format!("{prefix}{}", BASE64_STANDARD.encode(vec![7; bytes]));
        let padding = "is not whsec_ and base64 with padding";
        for (secret, expected) in [
            (encoded("whsec_", 24), None),
            (encoded("whsec_", 64), None),
            (encoded("whsec_", 23), Some("is 23 bytes long, not 24 to 64")),
            (encoded("whsec_", 65), Some("is 65 bytes long, not 24 to 64")),
            (encoded("whsec_", 32).trim_end_matches('=').into(), Some(padding)),
            // The last character before the padding carries bits that mean nothing.
            (encoded("whsec_", 32).replace("BwcHBwc=", "BwcHBwd="), Some(padding)),
            (encoded("", 24), Some("begins with neither whsec_ nor whsk_")),
            ("whsec_****".into(), Some(padding)),
            (encoded("whsk_", 64), Some("has a public key that does not belong to its private key")),
            (encoded("whsk_", 32), Some("is 32 bytes long, not 64")),
            ("whsk_****".into(), Some("is not whsk_ and base64 with padding")),
        ] {
            let message = StandardWebhooks.parse_key(secret.as_bytes()).err().map(|error| error.message);
            assert_eq!(message.as_deref(), expected, "{secret}");
        }
    }

    #[test]
    fn standard_webhooks_parses_generated_keys() {
        for (algorithm, new) in SPEC.new_keys {
            let (one, other) = (new().unwrap(), new().unwrap());
            assert_ne!(one, other);
            assert_eq!(StandardWebhooks.parse_key(one.as_bytes()).ok().unwrap().algorithm(), *algorithm);
        }
    }
}
