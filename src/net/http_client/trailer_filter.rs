//! The trailer fields of an HTTP/1.1 response, from which white space before the colon is removed.
//! Where does the trailer section begin, however the bytes arrive?
//!
//! A proxy must remove this white space from a response (RFC 9112 §5.1). hyper removes it from the head, and refuses a
//! trailer section that has it. So each response is followed here, from its status line to the end of its chunks.

use bytes::BytesMut;

use crate::net::filter_output::FilterOutput;

/// Bytes of a line that are kept. The lines that tell the framing are shorter.
const LINE_MAX: usize = 256;
/// White space that is held until the next byte tells whether it is removed, in bytes. More of it passes, and hyper refuses
/// it.
const SPACE_MAX: usize = 64;

/// Follows the responses of one connection. Where the framing is not understood, everything passes until the next response:
/// hyper judges it.
#[derive(Default)]
pub(super) struct TrailerFilter {
    state: TrailerState,
    /// HEAD was requested: the response has no body, whatever its fields say (RFC 9110 §9.3.2).
    responds_to_head: bool,
    /// The line so far, without the rest of a line that is longer than [`LINE_MAX`].
    line: Vec<u8>,
    /// White space behind the name of a trailer field.
    space: Vec<u8>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum TrailerState {
    /// No trailer section comes before the next response.
    #[default]
    Passing,
    StatusLine,
    Head(ResponseHeadInfo),
    ChunkHeader,
    /// So many bytes of a chunk are still to come.
    Data(u64),
    /// The end of line behind a chunk.
    DataEnd,
    TrailerName,
    TrailerValue,
}

/// What is known of the response's framing (RFC 9112 §6.3).
#[derive(Clone, Copy, PartialEq, Eq)]
struct ResponseHeadInfo {
    is_interim: bool,
    has_body: bool,
    is_chunked: bool,
}

impl TrailerFilter {
    /// Begins the next response; `to_head`: to a request with the method HEAD.
    pub(super) fn expect(&mut self, to_head: bool) {
        *self = Self { state: TrailerState::StatusLine, responds_to_head: to_head, ..Self::default() };
    }

    /// Returns whether nothing needs to be read before the next response.
    pub(super) fn is_passing(&self) -> bool {
        self.state == TrailerState::Passing
    }

    /// Takes the next bytes of the connection. Returns how many of them pass first, as they are; what comes behind these is
    /// added to `rest`.
    pub(super) fn read(&mut self, input: &[u8], rest: &mut BytesMut) -> usize {
        let (mut output, mut at) = (FilterOutput::new(input, rest), 0);
        while let Some(byte) = input.get(at) {
            let left = input.len() - at;
            let taken = match &mut self.state {
                TrailerState::Passing => left,
                TrailerState::Data(size) => {
                    let taken = usize::try_from(*size).unwrap_or(usize::MAX).min(left);
                    *size -= taken as u64;
                    if *size == 0 {
                        self.state = TrailerState::DataEnd;
                    }
                    taken
                }
                TrailerState::TrailerName => {
                    if matches!(byte, b' ' | b'\t') && !self.line.is_empty() && self.space.len() < SPACE_MAX {
                        self.space.push(*byte);
                        at += 1;
                        continue;
                    }
                    if *byte == b':' {
                        self.space.clear();
                    }
                    if *byte == b':' || !self.space.is_empty() {
                        self.state = TrailerState::TrailerValue;
                    }
                    output.write(&self.space);
                    self.space.clear();
                    self.take_line(&input[at..=at])
                }
                _ => self.take_line(&input[at..]),
            };
            output.pass(at..at + taken);
            at += taken;
        }
        output.passes()
    }

    /// Takes the bytes up to the end of the line, and returns their number.
    fn take_line(&mut self, input: &[u8]) -> usize {
        let end = input.iter().position(|byte| *byte == b'\n');
        let taken = end.map_or(input.len(), |end| end + 1);
        let room = LINE_MAX - self.line.len();
        self.line.extend_from_slice(&input[..taken.min(room)]);
        if end.is_some() {
            self.state = self.end_line();
            self.line.clear();
        }
        taken
    }

    fn end_line(&self) -> TrailerState {
        let line = self.line.trim_ascii_end();
        match self.state {
            TrailerState::StatusLine if line.is_empty() => TrailerState::StatusLine, // before it, hyper ignores those
            TrailerState::StatusLine => self.status(line).map_or(TrailerState::Passing, TrailerState::Head),
            TrailerState::Head(head) if !line.is_empty() => {
                head.with_field(line, self.line.len() == LINE_MAX).map_or(TrailerState::Passing, TrailerState::Head)
            }
            TrailerState::Head(head) if head.is_interim => TrailerState::StatusLine,
            TrailerState::Head(head) if head.has_body && head.is_chunked => TrailerState::ChunkHeader,
            TrailerState::ChunkHeader => match chunk_size(line) {
                Some(0) => TrailerState::TrailerName,
                Some(size) => TrailerState::Data(size),
                None => TrailerState::Passing,
            },
            TrailerState::DataEnd if line.is_empty() => TrailerState::ChunkHeader,
            TrailerState::TrailerName | TrailerState::TrailerValue if !line.is_empty() => TrailerState::TrailerName,
            _ => TrailerState::Passing,
        }
    }

    fn status(&self, line: &[u8]) -> Option<ResponseHeadInfo> {
        let code = line.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
        let is_interim = code[0] == b'1' && code != b"101";
        let has_body = !self.responds_to_head && !matches!(code, b"101" | b"204" | b"304");
        Some(ResponseHeadInfo { is_interim, has_body, is_chunked: false })
    }
}

impl ResponseHeadInfo {
    /// Returns `None` where the line may be read in two ways. `is_cut`: its rest was not kept.
    fn with_field(self, line: &[u8], is_cut: bool) -> Option<Self> {
        let colon = line.iter().position(|byte| *byte == b':').filter(|_| !line[0].is_ascii_whitespace())?;
        let (name, value) = (line[..colon].trim_ascii_end(), &line[colon + 1..]);
        if !name.eq_ignore_ascii_case(b"transfer-encoding") {
            return Some(self);
        }
        if is_cut || !value.is_ascii() {
            return None;
        }
        // The last coding of the last line counts, for hyper as well.
        let last = value.rsplit(|byte| *byte == b',').next()?;
        Some(Self { is_chunked: last.trim_ascii().eq_ignore_ascii_case(b"chunked"), ..self })
    }
}

/// Reads the size before the chunk extensions (RFC 9112 §7.1).
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    if digits == LINE_MAX {
        return None; // the last ones may be missing
    }
    u64::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()
}

/// Any bytes come out the same however they arrive, and nothing but white space is removed.
#[cfg(any(test, fuzzing))]
pub fn trailers(data: &[u8]) {
    let run = |input: &[u8], step: usize| {
        let (mut trailers, mut out, mut rest) = (TrailerFilter::default(), Vec::new(), BytesMut::new());
        trailers.expect(false);
        for piece in input.chunks(step) {
            let passes = trailers.read(piece, &mut rest);
            out.extend_from_slice(&piece[..passes]);
            out.extend_from_slice(&rest.split());
        }
        out.extend_from_slice(&trailers.space);
        out
    };
    let whole = run(data, data.len().max(1));
    for step in [1, 1 + data.len() % 13] {
        assert_eq!(run(data, step), whole, "in pieces of {step}");
    }
    assert_eq!(run(&whole, whole.len().max(1)), whole);
    let solid = |bytes: &[u8]| bytes.iter().copied().filter(|byte| !b" \t".contains(byte)).collect::<Vec<u8>>();
    assert_eq!(solid(data), solid(&whole));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &[u8], to_head: bool) -> String {
        let (mut trailers, mut rest) = (TrailerFilter::default(), BytesMut::new());
        trailers.expect(to_head);
        let passes = trailers.read(input, &mut rest);
        assert!(trailers.is_passing(), "{}", String::from_utf8_lossy(input));
        String::from_utf8([&input[..passes], &rest].concat()).unwrap()
    }

    #[test]
    fn white_space_is_removed_from_the_trailer_section_alone() {
        let head = "HTTP/1.1 103 Early Hints\r\nLink : x\r\n\r\nHTTP/1.1 200 OK\r\nX : y\r\nTransfer-Encoding : gzip, Chunked\r\n\r\n";
        let chunks = "7;a : b\r\nc : d\r\n\r\n0\r\n";
        let input = format!("{head}{chunks}Sum \t: 1 : 2\r\nPlain: a : b\r\nBare \n: x\r\n\r\nHTTP/1.1 200 : x");
        let output = format!("{head}{chunks}Sum: 1 : 2\r\nPlain: a : b\r\nBare \n: x\r\n\r\nHTTP/1.1 200 : x");
        assert_eq!(read(input.as_bytes(), false), output);
    }

    #[test]
    fn what_is_no_chunked_response_passes_as_it_is() {
        const CHUNKED: &str = "Transfer-Encoding: chunked";
        const BODY: &str = "0\r\nX : y\r\n\r\n";
        let zeros = "0".repeat(LINE_MAX);
        let response = |status: &str, field: &str| format!("HTTP/1.1 {status}\r\n{field}\r\n\r\n{BODY}");
        let mut responses: Vec<String> = ["101 Switching Protocols", "204 No Content", "304 Not Modified"]
            .map(|status| response(status, CHUNKED))
            .into();
        responses.extend(
            [
                "Content-Length: 12",
                "Transfer-Encoding: chunked, gzip",
                "Transfer-Encoding: \u{e9}, chunked",
                " x: y\r\nTransfer-Encoding: chunked",
            ]
            .map(|field| response("200 OK", field)),
        );
        responses.push(response("200 OK", CHUNKED).replace("HTTP/1.1", "HTTP/1.0"));
        responses.push(response("200 OK", CHUNKED).replace("\r\n0\r\n", "\r\ng\r\n"));
        responses.push(response("200 OK", CHUNKED).replace("\r\n0\r\n", &format!("\r\n{zeros}5\r\n")));
        responses.push(response("200 OK", CHUNKED).replace("\r\n0\r\n", "\r\n1\r\nab\r\n0\r\n"));
        responses.push(response("200 OK", &format!("Transfer-Encoding: {:>LINE_MAX$}", "chunked")));
        responses.push(response("200 OK", &format!("Transfer-Encoding: {:LINE_MAX$}, gzip", "chunked")));
        for response in responses {
            assert_eq!(read(response.as_bytes(), false), response);
        }
        let response = response("200 OK", CHUNKED);
        assert_eq!(read(response.as_bytes(), true), response);
    }
}
