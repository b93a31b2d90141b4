//! The content of a capture: a request and its response, as one JSON document.
//! What does the tenant read when it opens a capture?

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Capture;
use crate::http_message::{FieldName, FieldValue, Fields};
use crate::policy::redact::Redactor;

/// The text in place of a removed value.
const REMOVED: &str = "***";

/// A copy of a request and its response.
#[derive(Default)]
pub struct CapturedExchange {
    pub at: Timestamp,
    pub request_id: String,
    /// The members of the document that identify the delivery.
    pub identity: Value,
    pub method: String,
    /// The path and the query, as sent to the target.
    pub path: String,
    pub request: CapturedMessage,
    pub status: Option<u16>,
    pub response: CapturedMessage,
    /// The code of outgate's refusal, or of the abort of the response.
    pub code: Option<&'static str>,
}

/// The head and the body of a message, as far as they were copied.
#[derive(Default)]
pub struct CapturedMessage {
    pub fields: Fields,
    pub body: CapturedBody,
}

/// The first bytes of a body.
#[derive(Default)]
pub struct CapturedBody {
    pub bytes: Vec<u8>,
    /// The bytes that have passed.
    pub length: u64,
    /// Whether the last byte has passed.
    pub is_complete: bool,
}

impl CapturedExchange {
    /// Returns the document to seal, without the values that the capture or the section `redact` removes.
    pub fn document(&self, capture: &Capture, redactor: &Redactor) -> Vec<u8> {
        let mut document = self.identity.clone();
        document["request"] = self.request.as_json(capture, redactor);
        document["request"]["method"] = (*self.method).into();
        document["request"]["path"] = (*self.path).into();
        document["response"] = self.status.map_or(Value::Null, |status| {
            let mut response = self.response.as_json(capture, redactor);
            response["status"] = status.into();
            response
        });
        document["code"] = self.code.into();
        document.to_string().into_bytes()
    }
}

impl CapturedMessage {
    fn as_json(&self, capture: &Capture, redactor: &Redactor) -> Value {
        let field = |(name, value): (FieldName<'_>, FieldValue<'_>)| {
            let is_listed = capture.section.headers.iter().any(|listed| name == *listed);
            let is_removed = value.is_sensitive() || is_listed || redactor.is_credential(name);
            json!([
                name.as_written(),
                if is_removed { REMOVED.into() } else { String::from_utf8_lossy(value.as_bytes()) }
            ])
        };
        json!({
            "headers": self.fields.iter().map(field).collect::<Vec<_>>(),
            "body": self.body.as_json(&capture.section.pointers),
        })
    }
}

impl CapturedBody {
    /// Returns the body as text or base64. A body of which values must be removed is omitted if it is not whole or not
    /// JSON.
    fn as_json(&self, pointers: &[String]) -> Value {
        let is_truncated = (self.bytes.len() as u64) < self.length;
        let mut body = json!({ "length": self.length, "complete": self.is_complete, "truncated": is_truncated });
        let redacted = match pointers {
            [] => Some(self.bytes.clone()),
            _ if self.length == 0 => Some(Vec::new()),
            _ if is_truncated || !self.is_complete => None,
            pointers => without(&self.bytes, pointers),
        };
        match redacted.map(String::from_utf8) {
            None => body["omitted"] = "outgate cannot remove values from a body that is not JSON or not whole".into(),
            Some(Ok(text)) => body["text"] = text.into(),
            Some(Err(binary)) => body["base64"] = data_encoding::BASE64.encode(binary.as_bytes()).into(),
        }
        body
    }
}

/// Returns a JSON body without the values at the pointers (RFC 6901). `None`: the body is not JSON, so that its values
/// cannot be found.
///
/// The body is written anew even if no pointer matches. Of a name that occurs twice in an object, parsers differ in which
/// they take (RFC 8259 §4); the new body has only one.
fn without(body: &[u8], pointers: &[String]) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(body).ok()?;
    for pointer in pointers {
        if let Some(found) = value.pointer_mut(pointer) {
            *found = REMOVED.into();
        }
    }
    serde_json::to_vec(&value).ok()
}
