//! A webhook to sign, for the tests of the schemes.
//! Which webhook do the tests sign?

use http::{HeaderName, HeaderValue, Method, header};
use jiff::Timestamp;
use serde_json::Value;

use super::error::SignError;
use super::key::SecretKey;
use super::scheme::{Mutations, Scheme, SignerKey, SigningInput};
use crate::config::HmacAlgorithm;
use crate::http_message::Fields;
use crate::names::{Host, KeyId, Scheme as UrlScheme, Target};

pub(super) struct Sample<'a> {
    pub(super) target: Target,
    pub(super) path_and_query: String,
    pub(super) fields: Vec<(&'a str, &'a str)>,
    pub(super) body: &'a str,
    pub(super) timestamp: i64,
    pub(super) id: &'a str,
}

pub(super) fn target(scheme: UrlScheme, host: &str, port: u16) -> Target {
    Target { scheme, host: Host::Name(host.into()), port }
}

impl<'a> Sample<'a> {
    pub(super) fn body(body: &'a str) -> Self {
        let target = target(UrlScheme::Https, "hooks.acme.example", 443);
        Self { target, path_and_query: "/in?a=1".into(), fields: vec![], body, timestamp: 1_614_265_330, id: "msg_1" }
    }

    pub(super) fn headers(&self) -> Fields {
        let mut headers = Fields::default();
        headers.insert(header::HOST, &HeaderValue::try_from(self.target.authority().to_string()).unwrap());
        for (name, value) in &self.fields {
            headers.append(HeaderName::try_from(*name).unwrap(), &HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn with_headers<T>(&self, headers: &Fields, f: impl FnOnce(&SigningInput<'_>) -> T) -> T {
        f(&SigningInput {
            method: &Method::POST,
            target: &self.target,
            tenant: None,
            path_and_query: &self.path_and_query,
            headers,
            body: self.body.as_bytes(),
            now: Timestamp::from_second(self.timestamp).unwrap(),
            id: self.id,
        })
    }

    /// Calls `f` with the webhook as it is before any signer has changed it.
    pub(super) fn with_input<T>(&self, f: impl FnOnce(&SigningInput<'_>) -> T) -> T {
        self.with_headers(&self.headers(), f)
    }

    pub(super) fn mutations(&self, scheme: &dyn Scheme) -> Result<Mutations, SignError> {
        self.with_headers(&self.headers(), |input| scheme.mutations(input))
    }

    /// Signs with these keys, whose ids are `k0`, `k1` and so on.
    pub(super) fn sign_with(
        &self,
        scheme: &dyn Scheme,
        secrets: Vec<SecretKey>,
    ) -> Result<Vec<(String, String)>, SignError> {
        let keys: Vec<SignerKey> = secrets
            .into_iter()
            .enumerate()
            .map(|(i, secret)| {
                let public = secret.public();
                SignerKey { id: KeyId::new(format!("k{i}")), from: None, until: None, secret, public }
            })
            .collect();
        let changes = self.mutations(scheme)?;
        let mut headers = self.headers();
        changes.headers.iter().for_each(|(name, value)| headers.insert(name, value));
        let path_and_query = changes.path_and_query.unwrap_or(self.path_and_query.clone());
        let changed = Self { path_and_query, fields: vec![], target: self.target.clone(), ..*self };
        let signed = changed.with_headers(&headers, |input| scheme.sign(input, &keys.iter().collect::<Vec<_>>()))?;
        Ok(signed.iter().map(|(name, value)| (name.to_string(), value.as_str().to_owned())).collect())
    }

    /// Signs with these secrets, which may be shorter than a scheme accepts: published ones are.
    pub(super) fn sign(&self, scheme: &dyn Scheme, secrets: &[&str]) -> Result<Vec<(String, String)>, SignError> {
        let keys = secrets.iter().map(|secret| SecretKey::hmac(HmacAlgorithm::Sha256, secret.as_bytes()));
        self.sign_with(scheme, keys.collect())
    }
}

pub(super) fn platform_vectors(name: &str) -> Vec<Value> {
    let vectors: Value = serde_json::from_str(include_str!("../../../tests/vectors/platforms.json")).unwrap();
    vectors[name].as_array().unwrap().clone()
}
