//! HMAC over a text with gaps, in headers with gaps: what nearly every platform's scheme comes to.
//! What stands in which gap?

use std::borrow::Cow;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use http::HeaderName;

use super::error::{KeyParseError, SignError};
use super::key::{SecretKey, hex, shared};
use super::scheme::{Headers, Mutations, Scheme, SignerKey, SigningInput, header};
use crate::config::{Encoding, HmacAlgorithm};

/// A part of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TemplatePart {
    Text(Cow<'static, str>),
    Method,
    Url,
    /// With the query.
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

pub(super) struct Template {
    pub(super) algorithm: HmacAlgorithm,
    pub(super) key_encoding: Encoding,
    pub(super) message: Vec<TemplatePart>,
    pub(super) encoding: Encoding,
    pub(super) headers: Vec<(HeaderName, Vec<TemplatePart>)>,
    /// What each further key adds to the first header; `None`: its receivers read one signature.
    pub(super) additional: Option<Vec<TemplatePart>>,
}

impl Template {
    fn encode(&self, signature: &[u8]) -> String {
        match self.encoding {
            Encoding::Base64 => BASE64_STANDARD.encode(signature),
            Encoding::Base64Url => BASE64_URL_SAFE_NO_PAD.encode(signature),
            Encoding::Hex | Encoding::Text => hex(signature),
        }
    }

    fn signature(&self, draft: &SigningInput<'_>, key: &SignerKey) -> Result<String, SignError> {
        let parts: Vec<Cow<'_, [u8]>> = self.message.iter().map(|piece| fill(piece, draft, Some(key), "")).collect();
        let parts: Vec<&[u8]> = parts.iter().map(AsRef::as_ref).collect();
        Ok(self.encode(&key.secret.sign(&parts)?))
    }
}

impl Scheme for Template {
    fn headers(&self) -> Vec<HeaderName> {
        self.headers.iter().map(|(name, _)| name.clone()).collect()
    }

    fn carries_one(&self) -> bool {
        self.additional.is_none()
    }

    fn parse_key(&self, secret: &[u8]) -> Result<SecretKey, KeyParseError> {
        shared(self.algorithm, self.key_encoding, secret)
    }

    /// What no key has a part in is there before others sign, so that they cover what will be sent.
    fn mutations(&self, draft: &SigningInput<'_>) -> Result<Mutations, SignError> {
        let by_key = |piece: &TemplatePart| matches!(piece, TemplatePart::KeyId | TemplatePart::Signature);
        let headers = self.headers.iter().filter(|(_, pieces)| !pieces.iter().any(by_key));
        let headers = headers.map(|(name, pieces)| header(name.clone(), &join(pieces, draft, None, "")));
        Ok(Mutations { headers: headers.collect::<Result<_, _>>()?, path_and_query: None })
    }

    fn sign(&self, draft: &SigningInput<'_>, keys: &[&SignerKey]) -> Result<Headers, SignError> {
        let (first, others) = keys.split_first().ok_or(SignError::NoActiveKey)?;
        let signature = self.signature(draft, first)?;
        let mut values: Vec<String> =
            self.headers.iter().map(|(_, pieces)| join(pieces, draft, Some(first), &signature)).collect();
        if let (Some(further), Some(value)) = (&self.additional, values.first_mut()) {
            for key in others {
                value.push_str(&join(further, draft, Some(key), &self.signature(draft, key)?));
            }
        }
        self.headers.iter().zip(values).map(|((name, _), value)| header(name.clone(), &value)).collect()
    }
}

fn join(pieces: &[TemplatePart], draft: &SigningInput<'_>, key: Option<&SignerKey>, signature: &str) -> String {
    pieces.iter().map(|piece| String::from_utf8_lossy(&fill(piece, draft, key, signature)).into_owned()).collect()
}

fn fill<'a>(
    piece: &'a TemplatePart,
    draft: &SigningInput<'a>,
    key: Option<&'a SignerKey>,
    signature: &'a str,
) -> Cow<'a, [u8]> {
    match piece {
        TemplatePart::Text(text) => text.as_bytes().into(),
        TemplatePart::Method => draft.method.as_str().as_bytes().into(),
        TemplatePart::Url => draft.url().into_bytes().into(),
        TemplatePart::Path => draft.path_and_query.as_bytes().into(),
        TemplatePart::Body => draft.body.into(),
        TemplatePart::Id => draft.id.as_bytes().into(),
        TemplatePart::Timestamp => draft.timestamp().into_bytes().into(),
        TemplatePart::TimestampMillis => draft.now.as_millisecond().to_string().into_bytes().into(),
        TemplatePart::TimestampRfc3339 => format!("{:.0}", draft.now).into_bytes().into(),
        TemplatePart::KeyId => key.map_or("", |key| key.id.as_str()).as_bytes().into(),
        TemplatePart::Signature => signature.as_bytes().into(),
    }
}
