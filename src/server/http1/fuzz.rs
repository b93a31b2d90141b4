//! Fuzz entries for the parser of requests.
//! Does the parser read the same requests in pieces of any length, and reject ambiguous ones?

use bytes::BytesMut;
use http::header;

use super::head::{self, RequestHead};
use crate::http_message::FieldValue;
use crate::net::body_framing::{Decoded, Framing};

/// The requests in the bytes of a connection, up to the first error.
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
    /// The input ends between two requests, or within one.
    Incomplete,
}

/// Parses `data` as all bytes of one connection: at once, byte by byte, and in pieces of another length.
pub fn requests(data: &[u8]) {
    let whole = read_all(data, data.len().max(1));
    for step in [1, 1 + data.len() % 13] {
        assert_eq!(read_all(data, step), whole, "in pieces of {step}");
    }
}

/// Parses `data` as the body of a chunked request and the bytes that follow it.
pub fn chunks(data: &[u8]) {
    let head = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    requests(&[head, data].concat());
}

fn read_all(data: &[u8], step: usize) -> ReadResult {
    let (mut pieces, mut buffer, mut scanned) = (data.chunks(step), BytesMut::new(), 0);
    let mut requests = Vec::new();
    let mut feed = |buffer: &mut BytesMut| pieces.next().map(|piece| buffer.extend_from_slice(piece)).is_some();
    loop {
        // The connection parses only what may be a complete head.
        let may_be_complete = !buffer.is_empty() && head::may_be_complete(&buffer, scanned);
        let head = match if may_be_complete { head::parse(&mut buffer) } else { Ok(None) } {
            Ok(Some(head)) => head,
            Ok(None) => {
                scanned = buffer.len();
                if feed(&mut buffer) {
                    continue;
                }
                // A malformed head may wait for its end. A whole one must not.
                let end = match head::parse(&mut buffer) {
                    Ok(Some(_)) => unreachable!("a whole head was overlooked"),
                    Ok(None) => ReadEnd::Incomplete,
                    Err(_) => ReadEnd::Malformed,
                };
                return ReadResult { requests, end };
            }
            Err(_) => return ReadResult { requests, end: ReadEnd::Malformed },
        };
        scanned = 0;
        assert_head_invariants(&head);
        let mut framing = head.framing;
        let mut body = Vec::new();
        let end = loop {
            match framing.decode(&mut buffer) {
                Ok(Decoded::Data(data)) => body.extend_from_slice(&data),
                Ok(Decoded::End) => break None,
                Ok(Decoded::Incomplete) if feed(&mut buffer) => {}
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

fn assert_head_invariants(head: &RequestHead) {
    let contains = |name| head.fields.contains(name);
    assert!(!(contains(header::TRANSFER_ENCODING) && contains(header::CONTENT_LENGTH)), "{head:?}");
    assert_eq!(matches!(head.framing, Framing::Chunked { .. }), contains(header::TRANSFER_ENCODING), "{head:?}");
    assert!(head.fields.get_all(&header::HOST).count() <= 1, "{head:?}");
    assert!(head.target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#' && byte != b'\\'), "{head:?}");
    let controls = |value: FieldValue<'_>| value.as_bytes().iter().any(|byte| b"\r\n\0".contains(byte));
    assert!(!head.fields.iter().any(|(_, value)| controls(value)), "{head:?}");
}
