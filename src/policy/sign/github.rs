//! GitHub: `X-Hub-Signature-256`.
//! Which signature does GitHub's documentation tell receivers to verify?
//!
//! <https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries>

use data_encoding::HEXLOWER;
use http::HeaderName;

use super::algorithm::Algorithm;
use super::key::generate_shared_secret;
use super::scheme::SchemeSpec;
use super::template::{Template, TemplatePart, text};
use crate::config::{Encoding, HmacAlgorithm};

pub(super) const SPEC: SchemeSpec = SchemeSpec {
    name: "github",
    options: &[],
    build: |_, _| Some(Box::new(template())),
    new_keys: &[(Algorithm::HmacSha256, || generate_shared_secret("", |bytes| HEXLOWER.encode(bytes)))],
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
    use crate::policy::sign::fixture::{Sample, platform_vectors};

    #[test]
    fn github_signature_matches_the_published_vector() {
        let vector = &platform_vectors("github")[0];
        let text = |name: &str| vector[name].as_str().unwrap();
        let headers = Sample::body(text("payload")).sign(&template(), &[text("secret")]).unwrap();
        assert_eq!(headers, [("x-hub-signature-256".into(), text("expected").into())]);
    }
}
