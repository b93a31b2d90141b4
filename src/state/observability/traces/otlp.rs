//! The messages of OTLP (opentelemetry-proto 1.8) that carry spans, in the encoding of Protocol Buffers.
//! Which bytes does a collector get, and how many spans does its response reject?

use crate::host;
use crate::policy::trace::TraceContext;

/// `Span.SpanKind`.
#[derive(Clone, Copy)]
pub enum SpanKind {
    Internal = 1,
    Server = 2,
    Client = 3,
}

/// `Status.StatusCode.STATUS_CODE_ERROR`.
const STATUS_ERROR: u64 = 2;

/// A message that grows field by field (<https://protobuf.dev/programming-guides/encoding/>).
#[derive(Clone, Default)]
pub struct Message(Vec<u8>);

impl Message {
    fn varint(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn number(self, field: u64, value: u64) -> Self {
        self.varint(field << 3).varint(value)
    }

    fn fixed64(self, field: u64, value: u64) -> Self {
        let mut message = self.varint(field << 3 | 1);
        message.0.extend(value.to_le_bytes());
        message
    }

    fn bytes(self, field: u64, bytes: impl AsRef<[u8]>) -> Self {
        let mut message = self.varint(field << 3 | 2).varint(bytes.as_ref().len() as u64);
        message.0.extend(bytes.as_ref());
        message
    }

    /// Begins the span of a delivery. 0 is the delivery itself, and the parent of the others. Times are nanoseconds of Unix
    /// time.
    pub fn span(trace: &TraceContext, number: u8, name: &str, kind: SpanKind, (start, end): (u64, u64)) -> Self {
        let parent = if number == 0 { trace.parent } else { Some(trace.span_id(0)) };
        let span = Self::default().bytes(1, trace.trace_id).bytes(2, trace.span_id(number));
        let span = parent.into_iter().fold(span, |span, parent| span.bytes(4, parent));
        span.bytes(5, name).number(6, kind as u64).fixed64(7, start).fixed64(8, end)
    }

    /// Adds an attribute to a span, if it has a value.
    pub fn text(self, key: &str, value: Option<impl ToString>) -> Self {
        let text = value.map(|value| Self::default().bytes(1, value.to_string()));
        self.attribute(9, key, text)
    }

    pub fn integer(self, key: &str, value: Option<impl Into<u64>>) -> Self {
        self.attribute(9, key, value.map(|value| Self::default().number(3, value.into())))
    }

    fn attribute(self, field: u64, key: &str, value: Option<Self>) -> Self {
        let Some(Self(value)) = value else { return self };
        self.bytes(field, Self::default().bytes(1, key).bytes(2, value).0)
    }

    /// Marks a span as failed. `error`: the value of `error.type`.
    pub fn failed(self, error: &str, message: &str) -> Self {
        let status = Self::default().bytes(2, message).number(3, STATUS_ERROR);
        self.text("error.type", Some(error)).bytes(15, status.0)
    }
}

/// Returns an `ExportTraceServiceRequest`.
pub(super) fn request(spans: &[Message]) -> Vec<u8> {
    let (name, version) = ("outgate", env!("CARGO_PKG_VERSION"));
    let host = host::own_name();
    let attributes = [("service.name", name), ("service.version", version), ("host.name", &host)];
    let resource = attributes.into_iter().fold(Message::default(), |resource, (key, text)| {
        resource.attribute(1, key, Some(Message::default().bytes(1, text)))
    });
    let scope = Message::default().bytes(1, Message::default().bytes(1, name).bytes(2, version).0);
    let scope_spans = spans.iter().fold(scope, |scope, span| scope.bytes(2, &span.0));
    let resource_spans = Message::default().bytes(1, resource.0).bytes(2, scope_spans.0);
    Message::default().bytes(1, resource_spans.0).0
}

/// Returns `partial_success.rejected_spans` of an `ExportTraceServiceResponse`. Both fields have the number 1, which
/// encoders write first.
pub(super) fn rejected_spans(response: &[u8]) -> u64 {
    let partial_success = response.strip_prefix(&[0x0a]).and_then(read_varint).map(|(_, message)| message);
    let rejected = partial_success.and_then(|message| message.strip_prefix(&[0x08])).and_then(read_varint);
    rejected.map_or(0, |(count, _)| count)
}

/// Returns the number at the start of a text, and the rest.
fn read_varint(text: &[u8]) -> Option<(u64, &[u8])> {
    let length = 1 + text.iter().take(10).position(|byte| *byte < 0x80)?;
    let (number, rest) = text.split_at(length);
    let value = number.iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f));
    Some((value, rest))
}

/// Reads a response.
#[cfg(any(test, fuzzing))]
pub fn otlp_responses(data: &[u8]) {
    rejected_spans(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn otlp_numbers_have_seven_bits_in_each_byte() {
        for (value, encoded) in [(0, &[0][..]), (127, &[127]), (300, &[0xac, 2]), (u64::MAX, &[255; 9])] {
            let Message(bytes) = Message::default().varint(value);
            assert!(bytes.starts_with(encoded), "{value}: {bytes:?}");
            assert_eq!(read_varint(&bytes), Some((value, &[][..])));
        }
    }

    #[test]
    fn otlp_response_states_the_spans_that_it_rejects() {
        let partial = Message::default().number(1, 300).bytes(2, "x".repeat(200));
        let response = Message::default().bytes(1, partial.0).0;
        assert_eq!(rejected_spans(&response), 300);
        for response in [&[][..], &[0x0a, 0], &[0x0a], &[0x0a, 5, 8], &[0x0d, 1], b"<html>", &[0xff; 20]] {
            assert_eq!(rejected_spans(response), 0, "{response:?}");
        }
    }
}
