//! Shopify: `X-Shopify-Hmac-SHA256`.
//! What does Shopify's documentation tell receivers to check?
//!
//! <https://shopify.dev/docs/apps/build/webhooks/verify-deliveries>

use http::HeaderName;

use super::algorithm::Algorithm;
use super::key::{hex, new_shared};
use super::scheme::SchemeSpec;
use super::template::{Template, TemplatePart};
use crate::config::{Encoding, HmacAlgorithm};

pub(super) const KNOWN: SchemeSpec = SchemeSpec {
    name: "shopify",
    options: &[],
    build: |_, _| Some(Box::new(template())),
    // The client secret of an app, as it is written.
    new_keys: &[(Algorithm::HmacSha256, || new_shared("shpss_", hex))],
};

fn template() -> Template {
    Template {
        algorithm: HmacAlgorithm::Sha256,
        key_encoding: Encoding::Text,
        message: vec![TemplatePart::Body],
        encoding: Encoding::Base64,
        headers: vec![(HeaderName::from_static("x-shopify-hmac-sha256"), vec![TemplatePart::Signature])],
        additional: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::sign::fixture::{Sample, platforms};

    #[test]
    fn signs_as_documented() {
        let vector = &platforms("shopify")[0];
        let text = |name: &str| vector[name].as_str().unwrap();
        let headers = Sample::body(text("payload")).sign(&template(), &[text("secret")]).unwrap();
        assert_eq!(headers, [("x-shopify-hmac-sha256".into(), text("expected").into())]);
    }
}
