//! The interim responses (1xx) of each request.
//! Does the target flood outgate with heads before its final response?

use std::collections::HashMap;

/// The interim responses that one request may get.
pub const INTERIM_MAX: usize = 16;

/// The streams whose counts are kept. h2 opens fewer than these towards a target. Beyond them no interim response counts.
const STREAMS_MAX: usize = 1024;

/// The number of interim responses on each stream without a final response.
#[derive(Default)]
pub(super) struct InterimCounts(HashMap<u32, usize>);

impl InterimCounts {
    /// Counts a head. Returns whether it is one interim response too many.
    pub(super) fn exceed_max_with(&mut self, stream: u32, is_interim: bool) -> bool {
        if !is_interim {
            self.forget(stream);
            return false;
        }
        if self.0.len() >= STREAMS_MAX && !self.0.contains_key(&stream) {
            return false;
        }
        let count = self.0.entry(stream).or_default();
        *count += 1;
        *count > INTERIM_MAX
    }

    /// Forgets a stream that has ended.
    pub(super) fn forget(&mut self, stream: u32) {
        self.0.remove(&stream);
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::super::{FieldFilter, MessageKind};
    use super::*;

    /// `:status: 103` and `:status: 200` as frames with END_HEADERS (RFC 7541 §6.2.2, §6.1).
    fn interim(stream: u8) -> Vec<u8> {
        [b"\0\0\x05\x01\x04\0\0\0".as_slice(), &[stream], b"\x08\x03103"].concat()
    }

    fn last(stream: u8) -> Vec<u8> {
        [b"\0\0\x01\x01\x05\0\0\0".as_slice(), &[stream], b"\x88"].concat()
    }

    fn passes_unchanged(frames: &[u8]) -> bool {
        let mut filter = FieldFilter::new(MessageKind::Responses, 1 << 16);
        filter.process(frames, &mut BytesMut::new()) == frames.len() && !filter.has_ended()
    }

    #[test]
    fn interim_responses_beyond_the_maximum_end_the_connection() {
        let most = interim(1).repeat(INTERIM_MAX);
        assert!(passes_unchanged(&[&most[..], &last(1), &interim(3).repeat(INTERIM_MAX), &last(3)].concat()));
        let mut rest = BytesMut::new();
        let mut filter = FieldFilter::new(MessageKind::Responses, 1 << 16);
        assert_eq!(filter.process(&[&most[..], &interim(1), &interim(1)].concat(), &mut rest), most.len());
        let has_violation = rest.windows(16).any(|window| window == b"too_many_interim");
        assert!(filter.has_ended() && has_violation, "{rest:?}");
    }

    #[test]
    fn interim_responses_are_counted_for_each_request() {
        let shared = [interim(1), interim(3)].concat().repeat(INTERIM_MAX);
        assert!(passes_unchanged(&shared));
        assert!(!passes_unchanged(&[&shared[..], &interim(3)].concat()));
    }
}
