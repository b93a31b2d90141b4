//! The reader of requests, for whoever wants to break it.
//! Does the same input mean the same however it arrives, and is nothing taken that two parsers could read in two ways?

use bytes::BytesMut;
use http::header;

use super::body::{Decoded, Framing};
use super::head::{self, RequestHead};

/// What a connection's bytes are, up to where they stop making sense.
#[derive(Debug, PartialEq, Eq)]
struct ReadResult {
    /// Method, target and body of each request.
    requests: Vec<(String, String, Vec<u8>)>,
    end: ReadEnd,
}

#[derive(Debug, PartialEq, Eq)]
enum ReadEnd {
    Malformed,
    BadChunk,
    /// Between two requests, or in one.
    Incomplete,
}

/// All that a client sends on one connection.
pub fn requests(data: &[u8]) {
    let whole = read(data, data.len().max(1));
    let step = 1 + data.len() % 13;
    assert_eq!(read(data, step), whole, "in pieces of {step}");
}

/// The body of a chunked request, and what follows it.
pub fn chunks(data: &[u8]) {
    let head = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    requests(&[head, data].concat());
}

fn read(data: &[u8], step: usize) -> ReadResult {
    let (mut pieces, mut buffer) = (data.chunks(step), BytesMut::new());
    let mut requests = Vec::new();
    let mut more = |buffer: &mut BytesMut| pieces.next().map(|piece| buffer.extend_from_slice(piece)).is_some();
    loop {
        let head = match head::parse(&mut buffer) {
            Ok(Some(head)) => head,
            Ok(None) if more(&mut buffer) => continue,
            Ok(None) => return ReadResult { requests, end: ReadEnd::Incomplete },
            Err(_) => return ReadResult { requests, end: ReadEnd::Malformed },
        };
        check(&head);
        let mut framing = head.framing;
        let mut body = Vec::new();
        let end = loop {
            match framing.decode(&mut buffer) {
                Ok(Decoded::Data(data)) => body.extend_from_slice(&data),
                Ok(Decoded::End) => break None,
                Ok(Decoded::Incomplete) if more(&mut buffer) => {}
                Ok(Decoded::Incomplete) => break Some(ReadEnd::Incomplete),
                Err(_) => break Some(ReadEnd::BadChunk),
            }
        };
        requests.push((head.method.to_string(), head.target, body));
        if let Some(end) = end {
            return ReadResult { requests, end };
        }
    }
}

fn check(head: &RequestHead) {
    let has = |name| head.fields.contains_key(name);
    assert!(!(has(header::TRANSFER_ENCODING) && has(header::CONTENT_LENGTH)), "{head:?}");
    assert_eq!(matches!(head.framing, Framing::Chunked { .. }), has(header::TRANSFER_ENCODING), "{head:?}");
    assert!(head.fields.get_all(header::HOST).iter().count() <= 1, "{head:?}");
    assert!(head.target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#' && byte != b'\\'), "{head:?}");
    let controls = |value: &http::HeaderValue| value.as_bytes().iter().any(|byte| b"\r\n\0".contains(byte));
    assert!(!head.fields.values().any(controls), "{head:?}");
}
