//! Reads the connection-level frames of an HTTP/2 target, whose contents h2 does not expose.
//! How large a request head does the target accept, has it begun to respond, and why does it end the connection?

use std::collections::HashSet;

use crate::net::frame::{
    ACK, DATA, END_STREAM, FRAME_HEADER_LEN, GOAWAY, HEADERS, PUSH_PROMISE, RST_STREAM, SETTINGS, stream_id,
};

/// The largest number of open responses that are remembered. Above it, DATA without HEADERS is not detected.
const OPEN_RESPONSES_MAX: usize = 1024;
/// The identifier of SETTINGS_MAX_HEADER_LIST_SIZE (RFC 9113 §6.5.2).
const MAX_HEADER_LIST_SIZE: u16 = 6;
/// The length of one setting, in bytes.
const SETTING_LEN: usize = 6;
/// The largest part of a payload that is parsed, in bytes: a hundred settings. Servers send about five.
const PAYLOAD_MAX: usize = 100 * SETTING_LEN;

/// An event that a frame reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrameEvent {
    /// SETTINGS arrived, with SETTINGS_MAX_HEADER_LIST_SIZE if it is among them.
    Settings { header_list_max: Option<u32> },
    /// The first HEADERS of a stream has begun: a response head, final or interim. PUSH_PROMISE, or DATA without
    /// HEADERS, violates the protocol, but shows as well that the target has the request.
    Response,
    /// GOAWAY arrived, with its error code (RFC 9113 §7).
    GoAway(u32),
}

/// Parses the frames of a connection, however the bytes are split. It buffers at most [`PAYLOAD_MAX`] bytes and
/// [`OPEN_RESPONSES_MAX`] stream identifiers.
#[derive(Default)]
pub(super) struct FrameScanner {
    /// The part of the frame header that has arrived.
    header: Vec<u8>,
    /// The parsed part of the payload of a SETTINGS or GOAWAY frame that has arrived.
    payload: Vec<u8>,
    /// The number of payload bytes that have not arrived.
    remaining: usize,
    /// The streams whose HEADERS have begun and whose end has not arrived.
    open_responses: HashSet<u32>,
}

impl FrameScanner {
    /// Parses the next bytes of the connection. It calls `on_event` for each complete SETTINGS or GOAWAY frame, and for a
    /// response when it begins.
    pub(super) fn scan(&mut self, mut bytes: &[u8], mut on_event: impl FnMut(FrameEvent)) {
        while !bytes.is_empty() {
            if self.header.len() < FRAME_HEADER_LEN {
                let (header, rest) = bytes.split_at(bytes.len().min(FRAME_HEADER_LEN - self.header.len()));
                self.header.extend_from_slice(header);
                bytes = rest;
                let [a, b, c, kind, flags, _, _, _, _] = self.header[..] else { return };
                self.remaining = u32::from_be_bytes([0, a, b, c]) as usize;
                let stream = stream_id(&self.header[5..]);
                // h2 may reject the frame before it is complete.
                if self.begins_response(kind, flags, stream) {
                    on_event(FrameEvent::Response);
                }
            }
            let (payload, rest) = bytes.split_at(bytes.len().min(self.remaining));
            if matches!(self.header[3], SETTINGS | GOAWAY) {
                let room = PAYLOAD_MAX - self.payload.len();
                self.payload.extend_from_slice(&payload[..payload.len().min(room)]);
            }
            self.remaining -= payload.len();
            bytes = rest;
            if self.remaining == 0 {
                self.frame_event().into_iter().for_each(&mut on_event);
                self.header.clear();
                self.payload.clear();
            }
        }
    }

    fn begins_response(&mut self, kind: u8, flags: u8, stream: u32) -> bool {
        let (in_progress, has_room) =
            (self.open_responses.contains(&stream), self.open_responses.len() < OPEN_RESPONSES_MAX);
        let ends = kind == RST_STREAM || matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0;
        if ends {
            self.open_responses.remove(&stream);
        } else if kind == HEADERS && has_room {
            self.open_responses.insert(stream);
        }
        match kind {
            HEADERS | PUSH_PROMISE => !in_progress,
            DATA => !in_progress && has_room,
            _ => false,
        }
    }

    fn frame_event(&self) -> Option<FrameEvent> {
        match (self.header[3], self.header[4] & ACK) {
            (SETTINGS, 0) => {
                let settings = self.payload.chunks_exact(SETTING_LEN);
                // The last value applies (RFC 9113 §6.5.3).
                let header_list_max = settings
                    .rev()
                    .find(|setting| be_u32(&setting[..2]) == u32::from(MAX_HEADER_LIST_SIZE))
                    .map(|setting| be_u32(&setting[2..]));
                Some(FrameEvent::Settings { header_list_max })
            }
            // The error code follows the last stream identifier of four bytes (RFC 9113 §6.8).
            (GOAWAY, _) => self.payload.get(4..8).map(|code| FrameEvent::GoAway(be_u32(code))),
            _ => None,
        }
    }
}

fn be_u32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The frames are SETTINGS with two values, an acknowledgement, HEADERS, DATA that looks like GOAWAY, and
    /// GOAWAY(HTTP_1_1_REQUIRED).
    const FRAMES: &[u8] = b"\0\0\x0c\x04\0\0\0\0\0\0\x03\0\0\0\x64\0\x06\0\0\x40\0\
        \0\0\0\x04\x01\0\0\0\0\
        \0\0\x01\x01\x04\0\0\0\x01\x88\
        \0\0\x11\0\0\0\0\0\x01\0\0\x08\x07\0\0\0\0\0\0\0\0\x01\0\0\0\x02\
        \0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0d";

    fn scan_all(pieces: &[&[u8]]) -> Vec<FrameEvent> {
        let (mut frames, mut notices) = (FrameScanner::default(), Vec::new());
        for piece in pieces {
            frames.scan(piece, |notice| notices.push(notice));
        }
        notices
    }

    #[test]
    fn frame_scanner_reads_settings_headers_and_goaway_at_every_split() {
        let expected =
            [FrameEvent::Settings { header_list_max: Some(16 << 10) }, FrameEvent::Response, FrameEvent::GoAway(13)];
        for split in 0..=FRAMES.len() {
            let (a, b) = FRAMES.split_at(split);
            assert_eq!(scan_all(&[a, b]), expected, "{split}");
        }
    }

    #[test]
    fn frame_scanner_reports_a_response_once_and_without_headers() {
        const HEAD: &[u8] = b"\0\0\x01\x01\x04\0\0\0\x01\x88";
        const DATA: &[u8] = b"\0\0\0\0\0\0\0\0\x01";
        const LAST_DATA: &[u8] = b"\0\0\0\0\x01\0\0\0\x01";
        const PROMISE: &[u8] = b"\0\0\x04\x05\x04\0\0\0\x01\0\0\0\x02";
        const RESET: &[u8] = b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x07";
        assert_eq!(scan_all(&[HEAD, DATA, LAST_DATA]), [FrameEvent::Response]);
        assert_eq!(scan_all(&[DATA]), [FrameEvent::Response]);
        assert_eq!(scan_all(&[PROMISE]), [FrameEvent::Response]);
        assert_eq!(scan_all(&[RESET]), []);
        // The later HEADERS follow an interim response, or are trailers.
        const TRAILERS: &[u8] = b"\0\0\x01\x01\x05\0\0\0\x01\x88";
        const RESERVED: &[u8] = b"\0\0\0\0\0\x80\0\0\x01";
        assert_eq!(scan_all(&[HEAD, HEAD, RESERVED, TRAILERS]), [FrameEvent::Response]);
        let mut frames = FrameScanner::default();
        for stream in 0..2 * OPEN_RESPONSES_MAX as u32 {
            let head = [b"\0\0\0\x01\x04", &stream.to_be_bytes()[..]].concat();
            frames.scan(&head, |_| ());
            assert!(frames.open_responses.len() <= OPEN_RESPONSES_MAX);
        }
    }

    #[test]
    fn frame_scanner_buffers_a_bounded_part_of_a_frame() {
        let mut frames = FrameScanner::default();
        frames.scan(b"\xff\xff\xff\x04\0\0\0\0\0", |_| ());
        for _ in 0..100 {
            frames.scan(&[7; 1000], |_| ());
            assert!(frames.payload.len() <= PAYLOAD_MAX);
        }
        assert_eq!(scan_all(&[b"\0\0\0\x04\0\0\0\0\0"]), [FrameEvent::Settings { header_list_max: None }]);
    }
}
