//! Shopify: `X-Shopify-Hmac-SHA256`.
//! Which signature does Shopify's documentation tell receivers to verify?
//!
//! <https://shopify.dev/docs/apps/build/webhooks/verify-deliveries>

use data_encoding::HEXLOWER;
use http::HeaderName;

use super::algorithm::Algorithm;
use super::key::generate_shared_secret;
use super::scheme::SchemeSpec;
use super::template::{Template, TemplatePart};
use crate::config::{Encoding, HmacAlgorithm};

pub(super) const SPEC: SchemeSpec = SchemeSpec {
    name: "shopify",
    options: &[],
    build: |_, _| Some(Box::new(template())),
    // The client secret of an app begins so.
    new_keys: &[(Algorithm::HmacSha256, || generate_shared_secret("shpss_", |bytes| HEXLOWER.encode(bytes)))],
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
    use crate::policy::sign::fixture::{Sample, platform_vectors};

    #[test]
    fn shopify_signature_matches_the_documented_vector() {
        let vector = &platform_vectors("shopify")[0];
        let text = |name: &str| vector[name].as_str().unwrap();
        let headers = Sample::body(text("payload")).sign(&template(), &[text("secret")]).unwrap();
        assert_eq!(headers, [("x-shopify-hmac-sha256".into(), text("expected").into())]);
    }
}
