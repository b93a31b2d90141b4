//! Standard Webhooks 1.0.0, symmetric signatures (`v1`).
//! What does <https://www.standardwebhooks.com> ask for?

use std::ops::RangeInclusive;

use aws_lc_rs::{hmac, rand};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderName, HeaderValue};

use super::{BadKey, Draft, Key, NewKeyError, Scheme, SecretKey, SignError};

const ID: &str = "webhook-id";
const TIMESTAMP: &str = "webhook-timestamp";
const SIGNATURE: &str = "webhook-signature";

const PREFIX: &str = "whsec_";

/// "between 24 bytes and 64 bytes" (spec/standard-webhooks.md, Signature scheme).
const SECRET_BYTES: RangeInclusive<usize> = 24..=64;

pub(super) struct StandardWebhooks;

impl Scheme for StandardWebhooks {
    fn name(&self) -> &'static str {
        "standard-webhooks"
    }

    fn headers(&self) -> &'static [&'static str] {
        &[ID, TIMESTAMP, SIGNATURE]
    }

    fn parse_key(&self, secret: &[u8]) -> Result<Box<dyn SecretKey>, BadKey> {
        let bad = |message: &str| {
            let help = "`outgate keys new standard-webhooks` makes one".to_owned();
            BadKey { message: message.to_owned(), help }
        };
        let encoded = secret.strip_prefix(PREFIX.as_bytes()).ok_or_else(|| bad("does not begin with whsec_"))?;
        // As strict as the strictest receiver's library: padded and canonical.
        let secret = BASE64_STANDARD.decode(encoded).map_err(|_| bad("is not whsec_ and base64 with padding"))?;
        let secret = zeroize::Zeroizing::new(secret);
        if !SECRET_BYTES.contains(&secret.len()) {
            return Err(bad(&format!("is {} bytes long, not 24 to 64", secret.len())));
        }
        Ok(Box::new(HmacSha256(hmac::Key::new(hmac::HMAC_SHA256, &secret))))
    }

    fn new_key(&self) -> Result<String, NewKeyError> {
        let mut secret = [0; 32];
        rand::fill(&mut secret).map_err(|_| NewKeyError::NoRandom)?;
        Ok(format!("{PREFIX}{}", BASE64_STANDARD.encode(secret)))
    }

    fn sign(&self, draft: &Draft<'_>, keys: &[&Key]) -> Result<Vec<(HeaderName, HeaderValue)>, SignError> {
        // The time of this attempt, not of the event.
        let timestamp = draft.now.as_second().to_string();
        let message: [&[u8]; 5] = [draft.id.as_bytes(), b".", timestamp.as_bytes(), b".", draft.body];
        let mut signatures = String::with_capacity(48 * keys.len());
        for key in keys {
            signatures.push_str(if signatures.is_empty() { "v1," } else { " v1," });
            BASE64_STANDARD.encode_string(key.secret.sign(&message), &mut signatures);
        }
        let header = |name, value: &str| match HeaderValue::from_str(value) {
            Ok(value) => Ok((HeaderName::from_static(name), value)),
            // Digits and base64 always are a header's value; only the id comes from elsewhere.
            Err(_) => Err(SignError::InvalidId),
        };
        Ok(vec![header(ID, draft.id)?, header(TIMESTAMP, &timestamp)?, header(SIGNATURE, &signatures)?])
    }
}

/// The key schedule is computed once.
struct HmacSha256(hmac::Key);

impl SecretKey for HmacSha256 {
    fn sign(&self, message: &[&[u8]]) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&self.0);
        for part in message {
            context.update(part);
        }
        context.sign().as_ref().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Config, Secret, SigningKey};
    use crate::names::{Host, KeyId, SignerName, Target};
    use crate::policy::fixture::{at, config};
    use crate::policy::sign::{Signature, compile};
    use http::{HeaderMap, Method};
    use jiff::Timestamp;
    use serde_json::Value;

    /// Signs with these secrets, all in force, written in this order.
    fn sign(secrets: &[&str], id: &str, timestamp: i64, body: &str) -> Result<Signature, SignError> {
        let key = |(i, secret): (usize, &&str)| {
            let secret = at(i as u32, Secret::new(secret.as_bytes().to_vec()));
            at(i as u32, SigningKey { id: KeyId::new(i.to_string()), secret, from: None, until: None })
        };
        let keys = secrets.iter().enumerate().map(key).collect();
        let signer = config::Signer { scheme: at(0, "standard-webhooks".into()), keys };
        let config = Config { signers: [(SignerName::new("s"), at(0, signer))].into(), ..config() };
        let mut problems = vec![];
        let signers = compile(&config, &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        let host = Host::Name("hooks.acme.example".into());
        let target = Target { scheme: crate::names::Scheme::Https, host, port: 443 };
        signers["s"].sign(&Draft {
            method: &Method::POST,
            target: &target,
            path_and_query: "/in",
            headers: &HeaderMap::new(),
            body: body.as_bytes(),
            now: Timestamp::from_second(timestamp).unwrap(),
            id,
        })
    }

    #[test]
    fn signs_as_published() {
        let vectors: Value =
            serde_json::from_str(include_str!("../../../tests/vectors/standard_webhooks.json")).unwrap();
        let all: Vec<&Value> = ["sign", "rotation"].iter().flat_map(|list| vectors[list].as_array().unwrap()).collect();
        assert_eq!(all.len(), 3);
        for vector in all {
            let text = |name: &str| vector[name].as_str().unwrap();
            let secrets = match vector["secrets"].as_array() {
                Some(secrets) => secrets.iter().map(|secret| secret.as_str().unwrap()).collect(),
                None => vec![text("secret")],
            };
            let timestamp = vector["timestamp"].as_i64().unwrap();
            let signature = sign(&secrets, text("msg_id"), timestamp, text("payload")).unwrap();
            let headers: Vec<_> =
                signature.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
            let expected = [(ID, text("msg_id")), (TIMESTAMP, &timestamp.to_string()), (SIGNATURE, text("expected"))];
            assert_eq!(headers, expected, "{}", text("name"));
            assert_eq!(signature.keys.len(), secrets.len());
        }
    }

    #[test]
    fn an_id_that_could_be_read_otherwise_is_not_signed() {
        let secret = StandardWebhooks.new_key().unwrap();
        assert!(sign(&[&secret], "msg_1", 1, "2.x").is_ok());
        assert_eq!(sign(&[&secret], "msg_1.1", 2, "x").err(), Some(SignError::InvalidId));
    }

    #[test]
    fn secrets() {
        let encoded = |bytes: usize| format!("whsec_{}", BASE64_STANDARD.encode(vec![7; bytes]));
        let padding = "is not whsec_ and base64 with padding";
        for (secret, expected) in [
            (encoded(24), None),
            (encoded(64), None),
            (encoded(23), Some("is 23 bytes long, not 24 to 64")),
            (encoded(65), Some("is 65 bytes long, not 24 to 64")),
            (encoded(32).trim_end_matches('=').into(), Some(padding)),
            // The last character before the padding carries bits that mean nothing.
            (encoded(32).replace("BwcHBwc=", "BwcHBwd="), Some(padding)),
            (encoded(24).replace("whsec_", ""), Some("does not begin with whsec_")),
            (encoded(24).replace("whsec_", "whsk_"), Some("does not begin with whsec_")),
            ("whsec_****".into(), Some(padding)),
        ] {
            let message = StandardWebhooks.parse_key(secret.as_bytes()).err().map(|bad| bad.message);
            assert_eq!(message.as_deref(), expected, "{secret}");
        }
    }

    #[test]
    fn new_keys_differ_and_are_taken() {
        let keys = [StandardWebhooks.new_key().unwrap(), StandardWebhooks.new_key().unwrap()];
        assert_ne!(keys[0], keys[1]);
        assert!(keys.iter().all(|key| StandardWebhooks.parse_key(key.as_bytes()).is_ok()));
    }
}
