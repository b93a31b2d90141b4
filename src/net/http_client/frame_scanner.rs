//! The frames of an HTTP/2 target that concern the whole connection, read beside the HTTP/2 library, which does not tell
//! what they say.
//! How large a request head does the target accept, has it begun to respond, and why does it end the connection?

use std::collections::HashSet;

/// Bytes of a frame header (RFC 9113 §4.1).
const FRAME_HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const GOAWAY: u8 = 7;
/// Flag of a SETTINGS frame that only confirms ours.
const ACK: u8 = 1;
/// Flag of a HEADERS or DATA frame that is the last of its stream.
const END_STREAM: u8 = 1;
/// Streams whose responses are under way that are remembered. Beyond, DATA without HEADERS passes unnoticed.
const RESPONSES_MAX: usize = 1024;
/// RFC 9113 §6.5.2.
const MAX_HEADER_LIST_SIZE: u16 = 6;
/// Bytes of one setting.
const SETTING: usize = 6;
/// Bytes of a frame's payload that are looked at: a hundred settings. Servers send about five.
const PAYLOAD_MAX: usize = 100 * SETTING;

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrameEvent {
    /// SETTINGS; with SETTINGS_MAX_HEADER_LIST_SIZE if it is among them.
    Settings { header_list_max: Option<u32> },
    /// The first HEADERS of a stream has begun: a response head, or an interim one. Or a frame has begun that breaks the
    /// rules where HEADERS belong, PUSH_PROMISE or DATA: it shows as well that the target has the request.
    Response,
    /// GOAWAY, with its error code (RFC 9113 §7).
    GoAway(u32),
}

/// Finds the frames in the bytes of a connection, however they are split. Holds at most [`PAYLOAD_MAX`] bytes and
/// [`RESPONSES_MAX`] streams.
#[derive(Default)]
pub(super) struct FrameScanner {
    /// The frame header, as far as it has come.
    header: Vec<u8>,
    /// The payload of a frame of interest, as far as it has come and is looked at.
    payload: Vec<u8>,
    /// Bytes of the payload that are still to come.
    left: usize,
    /// The streams whose HEADERS have begun, and whose end has not come.
    responses: HashSet<u32>,
}

impl FrameScanner {
    /// Takes the next bytes of the connection and calls `notice` for each frame of interest that is complete, and for
    /// a response when it begins.
    pub(super) fn read(&mut self, mut bytes: &[u8], mut notice: impl FnMut(FrameEvent)) {
        while !bytes.is_empty() {
            if self.header.len() < FRAME_HEADER {
                let (header, rest) = bytes.split_at(bytes.len().min(FRAME_HEADER - self.header.len()));
                self.header.extend_from_slice(header);
                bytes = rest;
                let [a, b, c, kind, flags, s1, s2, s3, s4] = self.header[..] else { return };
                self.left = u32::from_be_bytes([0, a, b, c]) as usize;
                // Without the bit that is reserved (RFC 9113 §4.1).
                let stream = u32::from_be_bytes([s1, s2, s3, s4]) & (u32::MAX >> 1);
                // The library may refuse the frame before it is complete.
                if self.begins_response(kind, flags, stream) {
                    notice(FrameEvent::Response);
                }
            }
            let (payload, rest) = bytes.split_at(bytes.len().min(self.left));
            if matches!(self.header[3], SETTINGS | GOAWAY) {
                let room = PAYLOAD_MAX - self.payload.len();
                self.payload.extend_from_slice(&payload[..payload.len().min(room)]);
            }
            self.left -= payload.len();
            bytes = rest;
            if self.left == 0 {
                self.complete().into_iter().for_each(&mut notice);
                self.header.clear();
                self.payload.clear();
            }
        }
    }

    fn begins_response(&mut self, kind: u8, flags: u8, stream: u32) -> bool {
        let (is_known, has_room) = (self.responses.contains(&stream), self.responses.len() < RESPONSES_MAX);
        let ends = kind == RST_STREAM || matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0;
        if ends {
            self.responses.remove(&stream);
        } else if kind == HEADERS && has_room {
            self.responses.insert(stream);
        }
        match kind {
            HEADERS | PUSH_PROMISE => !is_known,
            DATA => !is_known && has_room,
            _ => false,
        }
    }

    fn complete(&self) -> Option<FrameEvent> {
        match (self.header[3], self.header[4] & ACK) {
            (SETTINGS, 0) => {
                let settings = self.payload.chunks_exact(SETTING);
                // The last one counts (RFC 9113 §6.5.3).
                let header_list_max = settings
                    .rev()
                    .find(|setting| number(&setting[..2]) == u32::from(MAX_HEADER_LIST_SIZE))
                    .map(|setting| number(&setting[2..]));
                Some(FrameEvent::Settings { header_list_max })
            }
            // After the last stream's identifier of four bytes (RFC 9113 §6.8).
            (GOAWAY, _) => self.payload.get(4..8).map(|code| FrameEvent::GoAway(number(code))),
            _ => None,
        }
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SETTINGS with two values, their acknowledgement, HEADERS, DATA that looks like GOAWAY, and
    /// GOAWAY(HTTP_1_1_REQUIRED).
    const FRAMES: &[u8] = b"\0\0\x0c\x04\0\0\0\0\0\0\x03\0\0\0\x64\0\x06\0\0\x40\0\
        \0\0\0\x04\x01\0\0\0\0\
        \0\0\x01\x01\x04\0\0\0\x01\x88\
        \0\0\x11\0\0\0\0\0\x01\0\0\x08\x07\0\0\0\0\0\0\0\0\x01\0\0\0\x02\
        \0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0d";

    fn notices(pieces: &[&[u8]]) -> Vec<FrameEvent> {
        let (mut frames, mut notices) = (FrameScanner::default(), Vec::new());
        for piece in pieces {
            frames.read(piece, |notice| notices.push(notice));
        }
        notices
    }

    #[test]
    fn settings_headers_and_goaway_are_read_however_the_frames_are_split() {
        let expected =
            [FrameEvent::Settings { header_list_max: Some(16 << 10) }, FrameEvent::Response, FrameEvent::GoAway(13)];
        for split in 0..=FRAMES.len() {
            let (a, b) = FRAMES.split_at(split);
            assert_eq!(notices(&[a, b]), expected, "{split}");
        }
    }

    #[test]
    fn a_response_is_noticed_once_and_without_headers_as_well() {
        const HEAD: &[u8] = b"\0\0\x01\x01\x04\0\0\0\x01\x88";
        const DATA: &[u8] = b"\0\0\0\0\0\0\0\0\x01";
        const LAST_DATA: &[u8] = b"\0\0\0\0\x01\0\0\0\x01";
        const PROMISE: &[u8] = b"\0\0\x04\x05\x04\0\0\0\x01\0\0\0\x02";
        const RESET: &[u8] = b"\0\0\x04\x03\0\0\0\0\x01\0\0\0\x07";
        assert_eq!(notices(&[HEAD, DATA, LAST_DATA]), [FrameEvent::Response]);
        assert_eq!(notices(&[DATA]), [FrameEvent::Response]);
        assert_eq!(notices(&[PROMISE]), [FrameEvent::Response]);
        assert_eq!(notices(&[RESET]), []);
        // Behind an interim response, and as trailers.
        const TRAILERS: &[u8] = b"\0\0\x01\x01\x05\0\0\0\x01\x88";
        const RESERVED: &[u8] = b"\0\0\0\0\0\x80\0\0\x01";
        assert_eq!(notices(&[HEAD, HEAD, RESERVED, TRAILERS]), [FrameEvent::Response]);
        let mut frames = FrameScanner::default();
        for stream in 0..2 * RESPONSES_MAX as u32 {
            let head = [b"\0\0\0\x01\x04", &stream.to_be_bytes()[..]].concat();
            frames.read(&head, |_| ());
            assert!(frames.responses.len() <= RESPONSES_MAX);
        }
    }

    #[test]
    fn a_frame_of_any_length_holds_a_bounded_part_of_it() {
        let mut frames = FrameScanner::default();
        frames.read(b"\xff\xff\xff\x04\0\0\0\0\0", |_| ());
        for _ in 0..100 {
            frames.read(&[7; 1000], |_| ());
            assert!(frames.payload.len() <= PAYLOAD_MAX);
        }
        assert_eq!(notices(&[b"\0\0\0\x04\0\0\0\0\0"]), [FrameEvent::Settings { header_list_max: None }]);
    }
}
