//! GitHub: `X-Hub-Signature-256`.
//! What does GitHub's documentation tell receivers to check?
//!
//! <https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries>

use http::HeaderName;

use super::algorithm::Algorithm;
use super::key::{hex, new_shared};
use super::scheme::SchemeSpec;
use super::template::{Template, TemplatePart, text};
use crate::config::{Encoding, HmacAlgorithm};

pub(super) const KNOWN: SchemeSpec = SchemeSpec {
    name: "github",
    options: &[],
    build: |_, _| Some(Box::new(template())),
    new_keys: &[(Algorithm::HmacSha256, || new_shared("", hex))],
};

fn template() -> Template {
    let signature = HeaderName::from_static("x-hub-signature-256");
    Template {
        algorithm: HmacAlgorithm::Sha256,
        key_encoding: Encoding::Text,
        message: vec![TemplatePart::Body],
        encoding: Encoding::Hex,
        headers: vec![(signature, vec![text("sha256="), TemplatePart::Signature])],
        additional: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::sign::fixture::{Sample, platforms};

    #[test]
    fn signs_as_published() {
        let vector = &platforms("github")[0];
        let text = |name: &str| vector[name].as_str().unwrap();
        let headers = Sample::body(text("payload")).sign(&template(), &[text("secret")]).unwrap();
        assert_eq!(headers, [("x-hub-signature-256".into(), text("expected").into())]);
    }
}
