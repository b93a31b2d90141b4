//! Stripe: `Stripe-Signature`, with a `v1` for each key.
//! Which signature does Stripe's documentation tell receivers to verify?
//!
//! <https://docs.stripe.com/webhooks#verify-manually>

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::HeaderName;

use super::algorithm::Algorithm;
use super::key::generate_shared_secret;
use super::scheme::SchemeSpec;
use super::template::{Template, TemplatePart, text};
use crate::config::{Encoding, HmacAlgorithm};

pub(super) const SPEC: SchemeSpec = SchemeSpec {
    name: "stripe",
    options: &[],
    build: |_, _| Some(Box::new(template())),
    // The whole text is the key, prefix included; in Standard Webhooks the prefix is no part of it.
    new_keys: &[(Algorithm::HmacSha256, || {
        generate_shared_secret("whsec_", |bytes| BASE64_URL_SAFE_NO_PAD.encode(bytes))
    })],
};

fn template() -> Template {
    let value = vec![text("t="), TemplatePart::Timestamp, text(",v1="), TemplatePart::Signature];
    Template {
        algorithm: HmacAlgorithm::Sha256,
        key_encoding: Encoding::Text,
        message: vec![TemplatePart::Timestamp, text("."), TemplatePart::Body],
        encoding: Encoding::Hex,
        headers: vec![(HeaderName::from_static("stripe-signature"), value)],
        additional: Some(vec![text(",v1="), TemplatePart::Signature]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::sign::fixture::{Sample, platform_vectors};

    #[test]
    fn stripe_signature_matches_published_vectors_and_carries_two_keys() {
        for vector in platform_vectors("stripe") {
            let text = |name: &str| vector[name].as_str().unwrap();
            let sample = Sample { timestamp: vector["timestamp"].as_i64().unwrap(), ..Sample::body(text("payload")) };
            let sign = |secrets: &[&str]| sample.sign(&template(), secrets).unwrap()[0].1.clone();
            let (published, other) = (sign(&[text("secret")]), sign(&["another"]));
            assert_eq!(published, text("expected_header"));
            let (_, other) = other.split_once(',').unwrap();
            assert_eq!(sign(&[text("secret"), "another"]), format!("{published},{other}"));
        }
    }
}
