//! SendGrid's Signed Event Webhook: ECDSA over the timestamp and the body.
//! Which signature do SendGrid's libraries verify?
//!
//! <https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/getting-started-event-webhook-security-features>

use aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING;
use http::HeaderName;
use smallvec::smallvec;

use super::algorithm::Algorithm;
use super::error::{KeyParseError, SignError, key_parse_error};
use super::key::{SecretKey, base64};
use super::pem;
use super::scheme::{Headers, Scheme, SchemeSpec, SignerKey, SigningInput, header};

static SIGNATURE: HeaderName = HeaderName::from_static("x-twilio-email-event-webhook-signature");
static TIMESTAMP: HeaderName = HeaderName::from_static("x-twilio-email-event-webhook-timestamp");

pub(super) const SPEC: SchemeSpec = SchemeSpec {
    name: "sendgrid",
    options: &[],
    build: |_, _| Some(Box::new(SendGrid)),
    new_keys: &[(Algorithm::EcdsaP256Sha256, || pem::generate(Algorithm::EcdsaP256Sha256))],
};

struct SendGrid;

impl Scheme for SendGrid {
    fn headers(&self) -> Vec<HeaderName> {
        vec![SIGNATURE.clone(), TIMESTAMP.clone()]
    }

    fn is_single_signature(&self) -> bool {
        true
    }

    fn parse_key(&self, secret: &[u8]) -> Result<SecretKey, KeyParseError> {
        let key = pem::parse_private_key(secret, &ECDSA_P256_SHA256_ASN1_SIGNING)?;
        if key.algorithm() == Algorithm::EcdsaP256Sha256 {
            return Ok(key);
        }
        let message = format!("is for {}, and receivers verify ECDSA P-256", key.algorithm().name());
        Err(key_parse_error(message, "`outgate keys new --scheme sendgrid` makes a key"))
    }

    fn sign(&self, input: &SigningInput<'_>, keys: &[&SignerKey]) -> Result<Headers, SignError> {
        let key = keys.first().ok_or(SignError::NoActiveKey)?;
        let timestamp = input.timestamp();
        let signature = base64(&key.secret.sign([timestamp.as_bytes(), input.body])?);
        Ok(smallvec![header(SIGNATURE.clone(), signature)?, header(TIMESTAMP.clone(), timestamp)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::sign::fixture::{Sample, platform_vectors};
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, EcdsaKeyPair, KeyPair, ParsedPublicKey};
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;

    fn verifies(key: &[u8], headers: (&str, &str), body: &str) -> bool {
        let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key).unwrap();
        let (signature, timestamp) = headers;
        key.verify_sig(format!("{timestamp}{body}").as_bytes(), &BASE64_STANDARD.decode(signature).unwrap()).is_ok()
    }

    /// The published signatures show how a receiver verifies; those of this scheme are verified in the same way.
    #[test]
    fn sendgrid_signature_verifies_like_published_ones() {
        let vectors = platform_vectors("sendgrid");
        for vector in &vectors {
            let text = |name: &str| vector[name].as_str().unwrap();
            let key = BASE64_STANDARD.decode(text("public_key_spki_b64")).unwrap();
            let valid = verifies(&key, (text("signature"), text("timestamp")), text("payload"));
            assert_eq!(valid, vector["expected_valid"].as_bool().unwrap(), "{}", text("name"));
        }
        let body = vectors[0]["payload"].as_str().unwrap();
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
        let public = pair.public_key().as_ref().to_vec();
        let sample = Sample { timestamp: 1_600_112_502, ..Sample::body(body) };
        let signed = sample.sign_with(&SendGrid, vec![SecretKey::EcdsaP256(pair)]).unwrap();
        let headers = (signed[0].1.as_str(), signed[1].1.as_str());
        assert_eq!(headers.1, "1600112502");
        assert!(verifies(&public, headers, body) && !verifies(&public, headers, &body[1..]));
    }

    #[test]
    fn sendgrid_refuses_keys_of_other_algorithms() {
        let key = |algorithm| SendGrid.parse_key(pem::generate(algorithm).unwrap().as_bytes()).map(|_| ());
        assert_eq!(key(Algorithm::EcdsaP256Sha256), Ok(()));
        let expected = "is for ed25519, and receivers verify ECDSA P-256";
        assert_eq!(key(Algorithm::Ed25519).map_err(|error| error.message), Err(expected.to_owned()));
    }
}
