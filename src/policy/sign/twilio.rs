//! Twilio: `X-Twilio-Signature`, by the account's auth token (HMAC-SHA1) or by a shared key (HMAC-SHA256).
//! Which signature do Twilio's libraries validate?
//!
//! <https://www.twilio.com/docs/usage/webhooks/webhooks-security>, and `request_validator.py` of twilio-python, which
//! knows shared keys since 9.13.

use std::collections::BTreeSet;

use data_encoding::HEXLOWER;
use http::{HeaderName, header::CONTENT_TYPE};
use smallvec::smallvec;

use super::algorithm::Algorithm;
use super::error::{KeyParseError, SignError};
use super::key::{SecretKey, base64, generate_shared_secret, parse_shared_secret};
use super::scheme::{Headers, Mutations, Scheme, SchemeSpec, SignerKey, SigningInput, header};
use crate::config::{self, Encoding, HmacAlgorithm, Problem};
use crate::digest::sha256;

static SIGNATURE: HeaderName = HeaderName::from_static("x-twilio-signature");
/// The header that names the shared key; signatures by the auth token have none.
static SETTINGS: HeaderName = HeaderName::from_static("x-twilio-webhooks-signature-settings");

/// The query parameter that carries the hash of a body that is no form.
const BODY_HASH: &str = "bodySHA256";

/// The parameters of a form: sorting a body that is all separators would take a hundred times its memory. Frameworks
/// accept fewer: PHP 1000 (`max_input_vars`), Node's body-parser 1000 (`parameterLimit`).
const PARAMETERS_MAX: usize = 4096;

pub(super) const SPEC: SchemeSpec = SchemeSpec {
    name: "twilio",
    options: &["algorithm"],
    build,
    new_keys: &[
        (Algorithm::HmacSha1, || generate_shared_secret("", |bytes| HEXLOWER.encode(bytes))),
        (Algorithm::HmacSha256, || generate_shared_secret("", |bytes| HEXLOWER.encode(bytes))),
    ],
};

struct Twilio {
    algorithm: HmacAlgorithm,
}

fn build(written: &config::Signer, problems: &mut Vec<Problem>) -> Option<Box<dyn Scheme>> {
    let algorithm =
        match &written.algorithm {
            None => HmacAlgorithm::Sha1,
            Some(written) if written.value == HmacAlgorithm::Sha512 => {
                let problem = Problem::at(written.span, "the scheme twilio does not support hmac-sha512");
                problems.push(problem.help(
                    "write \"hmac-sha1\" to sign with the auth token, or \"hmac-sha256\" to sign with a shared key",
                ));
                return None;
            }
            Some(written) => written.value,
        };
    Some(Box::new(Twilio { algorithm }))
}

impl Scheme for Twilio {
    /// Both headers, whatever the algorithm: settings from the client would make the receiver verify by another one.
    fn headers(&self) -> Vec<HeaderName> {
        vec![SIGNATURE.clone(), SETTINGS.clone()]
    }

    fn is_single_signature(&self) -> bool {
        true
    }

    fn parse_key(&self, secret: &[u8]) -> Result<SecretKey, KeyParseError> {
        parse_shared_secret(self.algorithm, Encoding::Text, secret)
    }

    /// Adds the hash of a body that is no form to the URL, with which it is signed.
    fn mutations(&self, input: &SigningInput<'_>) -> Result<Mutations, SignError> {
        let query = input.path_and_query.split_once('?').map(|(_, query)| query);
        let parameters = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        let body_hashes: Vec<_> = parameters.filter(|(name, _)| name == BODY_HASH).collect();
        if input.body.is_empty() || is_form(input) {
            const HASHED: &str = "the query has a bodySHA256, so receivers would expect a body that is not a form";
            return if body_hashes.is_empty() { Ok(Mutations::default()) } else { Err(SignError::Unsignable(HASHED)) };
        }
        let hash = HEXLOWER.encode(&sha256(input.body));
        match body_hashes.as_slice() {
            [] => {
                let separator = match query {
                    None => "?",
                    Some("") => "",
                    Some(_) => "&",
                };
                let path_and_query = format!("{}{separator}{BODY_HASH}={hash}", input.path_and_query);
                Ok(Mutations { path_and_query: Some(path_and_query), headers: Headers::new() })
            }
            [(_, sent)] if *sent == hash => Ok(Mutations::default()),
            _ => Err(SignError::Unsignable("the query has a bodySHA256 that does not match the body")),
        }
    }

    fn sign(&self, input: &SigningInput<'_>, keys: &[&SignerKey]) -> Result<Headers, SignError> {
        let key = keys.first().ok_or(SignError::NoActiveKey)?;
        let form = if is_form(input) { input.body } else { b"" };
        if form.split(|byte| *byte == b'&').nth(PARAMETERS_MAX).is_some() {
            return Err(SignError::Unsignable("the form has more than 4096 parameters, which receivers do not accept"));
        }
        let text = string_to_sign(&input.url(), form_urlencoded::parse(form));
        let mut headers: Headers = smallvec![header(SIGNATURE.clone(), base64(&key.secret.sign([text.as_bytes()])?))?];
        if self.algorithm == HmacAlgorithm::Sha256 {
            headers.push(header(SETTINGS.clone(), format!("key={},algorithm=HMAC_SHA256", key.id))?);
        }
        Ok(headers)
    }
}

fn is_form(input: &SigningInput<'_>) -> bool {
    let essence = input.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()?.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded"))
}

/// Returns the URL, then the sorted parameters and values without separators. Duplicates occur once.
fn string_to_sign<T: AsRef<str> + Ord>(url: &str, parameters: impl Iterator<Item = (T, T)>) -> String {
    let sorted: BTreeSet<(T, T)> = parameters.collect();
    sorted.iter().fold(url.to_owned(), |text, (name, value)| text + name.as_ref() + value.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Scheme as UrlScheme;
    use crate::policy::fixture::{at, messages, signer};
    use crate::policy::sign::fixture::{Sample, target};
    use serde_json::Value;

    const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded; charset=utf-8");

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../../tests/vectors/twilio_signature.json")).unwrap()
    }

    fn parameters(vector: &Value) -> Vec<(String, String)> {
        let values = |name: &String, value: &Value| match value {
            Value::Array(values) => values.iter().map(|value| (name.clone(), value.as_str().unwrap().into())).collect(),
            value => vec![(name.clone(), value.as_str().unwrap().to_owned())],
        };
        vector["params"].as_object().unwrap().iter().flat_map(|(name, value)| values(name, value)).collect()
    }

    #[test]
    fn twilio_signature_matches_published_vectors() {
        let vectors = vectors();
        for (list, secret, algorithm) in
            [("sha1", "auth_token", HmacAlgorithm::Sha1), ("sha256", "secret", HmacAlgorithm::Sha256)]
        {
            for vector in vectors[list].as_array().unwrap() {
                let field = |name: &str| vector[name].as_str().unwrap();
                let key = SecretKey::hmac(algorithm, field(secret).as_bytes());
                let text = string_to_sign(field("signed_url"), parameters(vector).into_iter());
                assert_eq!(base64(&key.sign([text.as_bytes()]).unwrap()), field("expected"), "{}", field("name"));
            }
        }
        assert_eq!(vectors["sha1"].as_array().unwrap().len(), 22);
    }

    /// Vectors whose URL no target has are skipped: those with a user or an explicit default port.
    #[test]
    fn twilio_signs_webhooks_like_published_vectors() {
        let mut count = 0;
        for vector in vectors()["sha1"].as_array().unwrap() {
            let url = vector["signed_url"].as_str().unwrap();
            let (scheme, rest) = url.split_once("://").unwrap();
            let (host, path) = rest.split_at(rest.find('/').unwrap());
            if host.contains('@') || host.ends_with(":443") || host.ends_with(":80") || url.contains(BODY_HASH) {
                continue;
            }
            let (host, port) = host.split_once(':').map_or((host, None), |(host, port)| (host, port.parse().ok()));
            let scheme = if scheme == "https" { UrlScheme::Https } else { UrlScheme::Http };
            let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(parameters(vector)).finish();
            let sample = Sample {
                target: target(scheme, host, port.unwrap_or(scheme.default_port())),
                path_and_query: path.into(),
                fields: vec![FORM],
                ..Sample::body(&body)
            };
            let key = SecretKey::hmac(HmacAlgorithm::Sha1, vector["auth_token"].as_str().unwrap().as_bytes());
            let signed = sample.sign_with(&Twilio { algorithm: HmacAlgorithm::Sha1 }, vec![key]).unwrap();
            let expected = [(SIGNATURE.to_string(), vector["expected"].as_str().unwrap().to_owned())];
            assert_eq!(signed, expected, "{url}");
            count += 1;
        }
        assert_eq!(count, 13);
    }

    #[test]
    fn twilio_hashes_a_body_that_is_no_form_into_the_url() {
        let vectors = vectors();
        let (body, hash) =
            ("{\"property\": \"value\", \"boolean\": true}", &vectors["bodies"][0]["expected_sha256_hex"]);
        let hash = hash.as_str().unwrap();
        let at = |path: &str| Sample {
            target: target(UrlScheme::Https, "mycompany.com", 443),
            path_and_query: path.into(),
            fields: vec![("content-type", "application/json")],
            ..Sample::body(body)
        };
        let scheme = Twilio { algorithm: HmacAlgorithm::Sha1 };
        for (path, expected) in [
            ("/myapp.php?foo=1&bar=2", Some(format!("/myapp.php?foo=1&bar=2&bodySHA256={hash}"))),
            ("/myapp.php", Some(format!("/myapp.php?bodySHA256={hash}"))),
            ("/myapp.php?", Some(format!("/myapp.php?bodySHA256={hash}"))),
            (&format!("/?bodySHA256={hash}"), None),
        ] {
            assert_eq!(at(path).mutations(&scheme).unwrap().path_and_query, expected, "{path}");
        }
        for path in ["/?bodySHA256=00".to_owned(), format!("/?bodySHA256={hash}&bodySHA256={hash}")] {
            assert!(at(&path).mutations(&scheme).is_err(), "{path}");
        }
        let signed = |path: &str| {
            let key = SecretKey::hmac(HmacAlgorithm::Sha1, b"12345");
            at(path).sign_with(&scheme, vec![key]).unwrap()[0].1.clone()
        };
        assert_eq!(signed("/myapp.php?foo=1&bar=2"), "a9nBmqA0ju/hNViExpshrM61xv4=");
        assert_eq!(signed("/myapp.php"), "y77kIzt2vzLz71DgmJGsen2scGs=");
        let empty = Sample { fields: vec![], ..Sample::body("") };
        assert_eq!(empty.mutations(&scheme).unwrap().path_and_query, None);
        // Node's validateIncomingRequest would then compare it with a body that it does not see.
        for (fields, body) in [(vec![], ""), (vec![FORM], "a=1")] {
            let sample = Sample { fields, path_and_query: format!("/?bodySHA256={hash}"), ..Sample::body(body) };
            assert!(sample.mutations(&scheme).is_err(), "{body:?}");
        }
    }

    #[test]
    fn twilio_refuses_forms_with_too_many_parameters() {
        let sign = |count: usize| {
            let body = "a&".repeat(count - 1) + "a";
            Sample { fields: vec![FORM], ..Sample::body(&body) }
                .sign(&Twilio { algorithm: HmacAlgorithm::Sha1 }, &["12345"])
        };
        assert!(sign(PARAMETERS_MAX).is_ok());
        assert!(matches!(sign(PARAMETERS_MAX + 1), Err(SignError::Unsignable(_))));
    }

    #[test]
    fn twilio_names_the_shared_key() {
        let scheme = Twilio { algorithm: HmacAlgorithm::Sha256 };
        let signed = Sample { fields: vec![FORM], ..Sample::body("a=1") }.sign(&scheme, &["12345"]).unwrap();
        assert_eq!(signed[1], (SETTINGS.to_string(), "key=k0,algorithm=HMAC_SHA256".to_owned()));
    }

    #[test]
    fn twilio_supports_hmac_sha1_and_sha256_only() {
        let mut problems = vec![];
        let with = |algorithm| config::Signer { algorithm: Some(at(5, algorithm)), ..signer("twilio") };
        assert!(build(&with(HmacAlgorithm::Sha256), &mut problems).is_some() && problems.is_empty());
        assert!(build(&with(HmacAlgorithm::Sha512), &mut problems).is_none());
        assert_eq!(messages(&problems), ["the scheme twilio does not support hmac-sha512"]);
    }
}
