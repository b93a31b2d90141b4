//! Properties of the filter that hold for any bytes.
//! Does the output depend on how the bytes are split, and does it contain a malformed field?

use bytes::BytesMut;

use super::{CONTINUATIONS_MIN, FRAME_HEADER_LEN, FieldFilter, MessageKind, PREFACE_LEN};
use crate::net::hpack::UNENCODED_PATH;

/// The list limit. It is small, so that a few bytes exceed it.
const LIST_MAX: usize = 1000;
/// The largest growth of a block, in bytes: frames that report its violation or end the connection.
const BLOCK_OVERHEAD: usize = LIST_MAX + FRAME_HEADER_LEN * (CONTINUATIONS_MIN + 4) + 200;

/// Filters any bytes, whole and in pieces: the output is the same, and contains no malformed field.
pub fn fields(data: &[u8]) {
    assert_filter_laws(MessageKind::Requests, &[&[0; PREFACE_LEN][..], data].concat());
    assert_filter_laws(MessageKind::Responses, data);
}

fn assert_filter_laws(messages: MessageKind, input: &[u8]) {
    let run = |input: &[u8], step: usize| {
        let (mut filter, mut out, mut rest) = (FieldFilter::new(messages, LIST_MAX), Vec::new(), BytesMut::new());
        for piece in input.chunks(step) {
            let passed_len = filter.process(piece, &mut rest);
            out.extend_from_slice(&piece[..passed_len]);
            out.extend_from_slice(&rest.split());
        }
        // A frame header that a piece cuts is held back, and so is an incomplete block.
        (out, filter.raw, filter.frame_header)
    };
    let (whole, raw, head) = run(input, input.len().max(1));
    for step in [1, 1 + input.len() % 13] {
        assert_eq!(run(input, step), (whole.clone(), raw.clone(), head.clone()), "{messages:?} in pieces of {step}");
    }
    let max_len = input.len() + (input.len() / FRAME_HEADER_LEN + 1) * BLOCK_OVERHEAD;
    assert!(whole.len() <= max_len, "{} became {} bytes", input.len(), whole.len());
    // The output is valid, so filtering it again changes nothing. But no client may send the field of an unencoded path.
    if memchr::memmem::find(&whole, UNENCODED_PATH.as_bytes()).is_none() {
        assert_eq!(run(&whole, whole.len().max(1)).0, whole, "{messages:?}");
    }
}
