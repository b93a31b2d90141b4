//! Stripe: `Stripe-Signature`, with a `v1` for each key.
//! What does Stripe's documentation tell receivers to check?
//!
//! <https://docs.stripe.com/webhooks#verify-manually>

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::HeaderName;

use super::algorithm::Algorithm;
use super::key::new_shared;
use super::scheme::SchemeSpec;
use super::template::{Template, TemplatePart, text};
use crate::config::{Encoding, HmacAlgorithm};

pub(super) const KNOWN: SchemeSpec = SchemeSpec {
    name: "stripe",
    options: &[],
    build: |_, _| Some(Box::new(template())),
    // Unlike that of Standard Webhooks, it is the key as it is written, prefix and all.
    new_keys: &[(Algorithm::HmacSha256, || new_shared("whsec_", |bytes| BASE64_URL_SAFE_NO_PAD.encode(bytes)))],
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
    use crate::policy::sign::fixture::{Sample, platforms};

    #[test]
    fn signs_as_published_and_with_two_keys() {
        for vector in platforms("stripe") {
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
