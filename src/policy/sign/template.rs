//! HMAC over a text with placeholders, in headers with placeholders: the scheme of most platforms.
//! Which value replaces which placeholder?

use std::borrow::Cow;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use data_encoding::HEXLOWER;
use http::HeaderName;

use super::error::{KeyParseError, SignError};
use super::key::{RawSignature, SecretKey, parse_shared_secret};
use super::scheme::{Headers, Mutations, Scheme, SignerKey, SigningInput, header};
use crate::config::{Encoding, HmacAlgorithm};

/// A part of a template: text, or a placeholder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TemplatePart {
    Text(Cow<'static, str>),
    Method,
    Url,
    /// The path and the query.
    Path,
    Body,
    Id,
    Timestamp,
    TimestampMillis,
    TimestampRfc3339,
    KeyId,
    Signature,
}

pub(super) const fn text(text: &'static str) -> TemplatePart {
    TemplatePart::Text(Cow::Borrowed(text))
}

/// The length for which the value of a header gets memory at first: a signature in hexadecimal, and some text.
const VALUE_LEN: usize = 160;

/// A key, and the signature by it.
type Signed<'a> = (&'a SignerKey, &'a RawSignature);

/// The templates of the signed text and of the headers.
pub(super) struct Template {
    pub(super) algorithm: HmacAlgorithm,
    pub(super) key_encoding: Encoding,
    pub(super) message: Vec<TemplatePart>,
    pub(super) encoding: Encoding,
    pub(super) headers: Vec<(HeaderName, Vec<TemplatePart>)>,
    /// The addition to the first header for each further key; `None` if receivers read one signature.
    pub(super) additional: Option<Vec<TemplatePart>>,
}

impl Template {
    fn encode(&self, signature: &[u8], text: &mut String) {
        match self.encoding {
            Encoding::Base64 => BASE64_STANDARD.encode_string(signature, text),
            Encoding::Base64Url => BASE64_URL_SAFE_NO_PAD.encode_string(signature, text),
            Encoding::Hex | Encoding::Text => HEXLOWER.encode_append(signature, text),
        }
    }

    fn sign_message(&self, input: &SigningInput<'_>, key: &SignerKey) -> Result<RawSignature, SignError> {
        key.secret.sign(self.message.iter().map(|part| render_part(part, input, Some(key))))
    }

    fn render(&self, parts: &[TemplatePart], input: &SigningInput<'_>, signed: Option<Signed<'_>>, text: &mut String) {
        for part in parts {
            match (part, &signed) {
                (TemplatePart::Signature, Some((_, signature))) => self.encode(signature, text),
                _ => {
                    let key = signed.map(|(key, _)| key);
                    text.push_str(&String::from_utf8_lossy(&render_part(part, input, key)));
                }
            }
        }
    }
}

impl Scheme for Template {
    fn headers(&self) -> Vec<HeaderName> {
        self.headers.iter().map(|(name, _)| name.clone()).collect()
    }

    fn is_single_signature(&self) -> bool {
        self.additional.is_none()
    }

    fn parse_key(&self, secret: &[u8]) -> Result<SecretKey, KeyParseError> {
        parse_shared_secret(self.algorithm, self.key_encoding, secret)
    }

    /// Adds the headers that depend on no key before other signers sign, so that these cover the headers as sent.
    fn mutations(&self, input: &SigningInput<'_>) -> Result<Mutations, SignError> {
        let depends_on_key = |part: &TemplatePart| matches!(part, TemplatePart::KeyId | TemplatePart::Signature);
        let headers = self.headers.iter().filter(|(_, parts)| !parts.iter().any(depends_on_key));
        let headers = headers.map(|(name, parts)| {
            let mut value = String::new();
            self.render(parts, input, None, &mut value);
            header(name.clone(), value)
        });
        Ok(Mutations { headers: headers.collect::<Result<_, _>>()?, path_and_query: None })
    }

    fn sign(&self, input: &SigningInput<'_>, keys: &[&SignerKey]) -> Result<Headers, SignError> {
        let (first, others) = keys.split_first().ok_or(SignError::NoActiveKey)?;
        let signature = self.sign_message(input, first)?;
        let mut headers = Headers::new();
        for (name, parts) in &self.headers {
            let mut value = String::with_capacity(VALUE_LEN);
            self.render(parts, input, Some((first, &signature)), &mut value);
            if let Some(additional) = self.additional.as_ref().filter(|_| headers.is_empty()) {
                for key in others {
                    let signature = self.sign_message(input, key)?;
                    self.render(additional, input, Some((key, &signature)), &mut value);
                }
            }
            headers.push(header(name.clone(), value)?);
        }
        Ok(headers)
    }
}

fn render_part<'a>(part: &'a TemplatePart, input: &SigningInput<'a>, key: Option<&'a SignerKey>) -> Cow<'a, [u8]> {
    match part {
        TemplatePart::Text(text) => text.as_bytes().into(),
        TemplatePart::Method => input.method.as_str().as_bytes().into(),
        TemplatePart::Url => input.url().into_bytes().into(),
        TemplatePart::Path => input.path_and_query.as_bytes().into(),
        TemplatePart::Body => input.body.into(),
        TemplatePart::Id => input.id.as_bytes().into(),
        TemplatePart::Timestamp => input.timestamp().into_bytes().into(),
        TemplatePart::TimestampMillis => input.now.as_millisecond().to_string().into_bytes().into(),
        TemplatePart::TimestampRfc3339 => format!("{:.0}", input.now).into_bytes().into(),
        TemplatePart::KeyId => key.map_or("", |key| key.id.as_str()).as_bytes().into(),
        TemplatePart::Signature => b"".into(), // only a header has one: see `render`
    }
}
