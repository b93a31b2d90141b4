//! Laws of the filter, for any bytes.
//! Does the output depend on how the bytes arrive, and is a malformed field left in it?

use bytes::BytesMut;

use super::{CONTINUATIONS_LEAST, FRAME_HEAD, FieldFilter, MessageKind, PREFACE};

/// Small, so that a few bytes exceed it.
const LIST_MAX: usize = 1000;
/// Bytes that a block may become besides: frames that tell what is wrong with it, or end the connection.
const BLOCK_OVERHEAD: usize = LIST_MAX + FRAME_HEAD * (CONTINUATIONS_LEAST + 4) + 200;

/// Any bytes come out the same however they arrive, and no malformed field is left in them.
pub fn fields(data: &[u8]) {
    check(MessageKind::Requests, &[&[0; PREFACE][..], data].concat());
    check(MessageKind::Responses, data);
}

fn check(messages: MessageKind, input: &[u8]) {
    let run = |input: &[u8], step: usize| {
        let (mut filter, mut out, mut rest) = (FieldFilter::new(messages, LIST_MAX), Vec::new(), BytesMut::new());
        for piece in input.chunks(step) {
            let passes = filter.read(piece, &mut rest);
            out.extend_from_slice(&piece[..passes]);
            out.extend_from_slice(&rest.split());
        }
        // The head of a frame that a piece cuts is held back; so is a block that has begun.
        (out, filter.raw, filter.head)
    };
    let (whole, raw, head) = run(input, input.len().max(1));
    for step in [1, 1 + input.len() % 13] {
        assert_eq!(run(input, step), (whole.clone(), raw.clone(), head.clone()), "{messages:?} in pieces of {step}");
    }
    let most = input.len() + (input.len() / FRAME_HEAD + 1) * BLOCK_OVERHEAD;
    assert!(whole.len() <= most, "{} became {} bytes", input.len(), whole.len());
    // What was judged once is as it should be: nothing in it is replaced again.
    assert_eq!(run(&whole, whole.len().max(1)).0, whole, "{messages:?}");
}
