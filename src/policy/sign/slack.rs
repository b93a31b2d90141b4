//! Slack: `X-Slack-Signature`, version 0.
//! Which signature does Slack's documentation tell receivers to verify?
//!
//! <https://docs.slack.dev/authentication/verifying-requests-from-slack>

use data_encoding::HEXLOWER;
use http::HeaderName;

use super::algorithm::Algorithm;
use super::key::generate_shared_secret;
use super::scheme::SchemeSpec;
use super::template::{Template, TemplatePart, text};
use crate::config::{Encoding, HmacAlgorithm};

pub(super) const SPEC: SchemeSpec = SchemeSpec {
    name: "slack",
    options: &[],
    build: |_, _| Some(Box::new(template())),
    new_keys: &[(Algorithm::HmacSha256, || generate_shared_secret("", |bytes| HEXLOWER.encode(bytes)))],
};

fn template() -> Template {
    let signature = HeaderName::from_static("x-slack-signature");
    let timestamp = HeaderName::from_static("x-slack-request-timestamp");
    Template {
        algorithm: HmacAlgorithm::Sha256,
        key_encoding: Encoding::Text,
        message: vec![text("v0:"), TemplatePart::Timestamp, text(":"), TemplatePart::Body],
        encoding: Encoding::Hex,
        headers: vec![
            (signature, vec![text("v0="), TemplatePart::Signature]),
            (timestamp, vec![TemplatePart::Timestamp]),
        ],
        additional: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::sign::fixture::{Sample, platform_vectors};

    #[test]
    fn slack_signature_matches_the_published_vector() {
        let vector = &platform_vectors("slack")[0];
        let text = |name: &str| vector[name].as_str().unwrap();
        let (timestamp, body) = (vector["timestamp"].as_i64().unwrap(), text("payload"));
        let headers = Sample { timestamp, ..Sample::body(body) }.sign(&template(), &[text("signing_secret")]).unwrap();
        let expected = [
            ("x-slack-signature".into(), text("expected").into()),
            ("x-slack-request-timestamp".into(), timestamp.to_string()),
        ];
        assert_eq!(headers, expected);
    }
}
