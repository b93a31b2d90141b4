//! The field lines of an HTTP/1 head, of a request and of a response.
//! Where in the head is each field, and how is a field written?

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

/// The fields that outgate adds to a message on its way, at most.
const ADDED_FIELDS: usize = 8;

/// The place of a field in the buffer of its head.
pub(crate) struct FieldSpan {
    name: Range<usize>,
    value: Range<usize>,
}

/// A field that breaks RFC 9110 §5.
pub(crate) enum InvalidField {
    Name,
    Value,
}

/// Returns the places of fields that httparse has found in `buffer`.
pub(crate) fn locate(buffer: &[u8], fields: &[httparse::Header<'_>]) -> Vec<FieldSpan> {
    let start = buffer.as_ptr() as usize;
    let span = |part: &[u8]| {
        let from = part.as_ptr() as usize - start;
        from..from + part.len()
    };
    fields.iter().map(|field| FieldSpan { name: span(field.name.as_bytes()), value: span(field.value) }).collect()
}

/// Returns the fields of a head. Their values share its memory.
pub(crate) fn parse(head: &Bytes, spans: &[FieldSpan]) -> Result<HeaderMap, InvalidField> {
    let mut fields = HeaderMap::with_capacity(spans.len() + ADDED_FIELDS);
    for FieldSpan { name, value } in spans {
        let name = HeaderName::from_bytes(&head[name.clone()]).map_err(|_| InvalidField::Name)?;
        let value = HeaderValue::from_maybe_shared(head.slice(value.clone())).map_err(|_| InvalidField::Value)?;
        fields.append(name, value);
    }
    Ok(fields)
}

/// Returns whether `buffer` holds the end of a head that its first `scanned` bytes do not hold.
pub(crate) fn have_end(buffer: &[u8], scanned: usize) -> bool {
    let fresh = &buffer[scanned.saturating_sub(3)..];
    memchr::memmem::find(fresh, b"\n\r\n").is_some() || memchr::memmem::find(fresh, b"\n\n").is_some()
}

/// Writes the fields, without the empty line that ends the head.
pub(crate) fn write(out: &mut Vec<u8>, fields: &HeaderMap) {
    for (name, value) in fields {
        write_one(out, name.as_str(), value.as_bytes());
    }
}

pub(crate) fn write_one(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
