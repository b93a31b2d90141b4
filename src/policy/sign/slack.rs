//! Slack: `X-Slack-Signature`, version 0.
//! What does Slack's documentation tell receivers to check?
//!
//! <https://docs.slack.dev/authentication/verifying-requests-from-slack>

use http::HeaderName;

use super::algorithm::Algorithm;
use super::key::{hex, new_shared};
use super::scheme::SchemeSpec;
use super::template::{Template, TemplatePart, text};
use crate::config::{Encoding, HmacAlgorithm};

pub(super) const KNOWN: SchemeSpec = SchemeSpec {
    name: "slack",
    options: &[],
    build: |_, _| Some(Box::new(template())),
    new_keys: &[(Algorithm::HmacSha256, || new_shared("", hex))],
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
    use crate::policy::sign::fixture::{Sample, platforms};

    #[test]
    fn signs_as_published() {
        let vector = &platforms("slack")[0];
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
