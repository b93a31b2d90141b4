//! Removes white space before the colon of the trailer fields of an HTTP/1.1 response.
//! Where does the trailer section begin, however the bytes are split?
//!
//! A proxy must remove this white space from a response (RFC 9112 §5.1). hyper removes it from the head, and rejects a
//! trailer section that has it. So this filter parses each response from its status line to the end of its chunks.

use bytes::BytesMut;

use crate::net::filter_output::FilterOutput;

/// The bytes of a line that are kept. The lines that determine the framing are shorter.
const LINE_MAX: usize = 256;
/// The white space that is held back until the next byte determines whether it is removed, in bytes. More white space
/// passes, and hyper rejects it.
const WHITE_SPACE_MAX: usize = 64;

/// Parses the responses of one connection. If the framing is not understood, all bytes pass until the next response,
/// and hyper validates them.
#[derive(Default)]
pub(super) struct TrailerFilter {
    state: TrailerState,
    /// The request method was HEAD: the response has no body, whatever its fields say (RFC 9110 §9.3.2).
    responds_to_head: bool,
    /// The line so far, truncated to [`LINE_MAX`].
    line: Vec<u8>,
    /// The white space after the name of a trailer field.
    space: Vec<u8>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum TrailerState {
    /// The response has no trailer section.
    #[default]
    Passing,
    StatusLine,
    Head(ResponseHeadInfo),
    ChunkHeader,
    /// The number of bytes of the chunk that have not arrived.
    Data(u64),
    /// The end of line after a chunk's data.
    DataEnd,
    TrailerName,
    TrailerValue,
}

/// The framing of the response (RFC 9112 §6.3).
#[derive(Clone, Copy, PartialEq, Eq)]
struct ResponseHeadInfo {
    is_interim: bool,
    has_body: bool,
    is_chunked: bool,
}

impl TrailerFilter {
    /// Begins the next response; `to_head`: the request method is HEAD.
    pub(super) fn begin_response(&mut self, to_head: bool) {
        *self = Self { state: TrailerState::StatusLine, responds_to_head: to_head, ..Self::default() };
    }

    /// Returns whether all bytes pass until the next response.
    pub(super) fn is_passing(&self) -> bool {
        self.state == TrailerState::Passing
    }

    /// Filters the next bytes of the connection. Returns the length of the prefix that passes unchanged; the bytes that
    /// follow it are appended to `rest`.
    pub(super) fn process(&mut self, input: &[u8], rest: &mut BytesMut) -> usize {
        let (mut output, mut at) = (FilterOutput::new(input, rest), 0);
        while let Some(byte) = input.get(at) {
            let remaining = input.len() - at;
            let taken = match &mut self.state {
                TrailerState::Passing => remaining,
                TrailerState::Data(size) => {
                    let taken = usize::try_from(*size).unwrap_or(usize::MAX).min(remaining);
                    *size -= taken as u64;
                    if *size == 0 {
                        self.state = TrailerState::DataEnd;
                    }
                    taken
                }
                TrailerState::TrailerName => {
                    if matches!(byte, b' ' | b'\t') && !self.line.is_empty() && self.space.len() < WHITE_SPACE_MAX {
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
            output.pass_through(at..at + taken);
            at += taken;
        }
        output.passthrough()
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
            TrailerState::StatusLine if line.is_empty() => TrailerState::StatusLine, // hyper ignores empty lines before it
            TrailerState::StatusLine => self.parse_status_line(line).map_or(TrailerState::Passing, TrailerState::Head),
            TrailerState::Head(head) if !line.is_empty() => {
                head.with_field(line, self.line.len() == LINE_MAX).map_or(TrailerState::Passing, TrailerState::Head)
            }
            TrailerState::Head(head) if head.is_interim => TrailerState::StatusLine,
            TrailerState::Head(head) if head.has_body && head.is_chunked => TrailerState::ChunkHeader,
            TrailerState::ChunkHeader => match parse_chunk_size(line) {
                Some(0) => TrailerState::TrailerName,
                Some(size) => TrailerState::Data(size),
                None => TrailerState::Passing,
            },
            TrailerState::DataEnd if line.is_empty() => TrailerState::ChunkHeader,
            TrailerState::TrailerName | TrailerState::TrailerValue if !line.is_empty() => TrailerState::TrailerName,
            _ => TrailerState::Passing,
        }
    }

    fn parse_status_line(&self, line: &[u8]) -> Option<ResponseHeadInfo> {
        let code = line.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
        let is_interim = code[0] == b'1' && code != b"101";
        let has_body = !self.responds_to_head && !matches!(code, b"101" | b"204" | b"304");
        Some(ResponseHeadInfo { is_interim, has_body, is_chunked: false })
    }
}

impl ResponseHeadInfo {
    /// Returns `None` if the line is ambiguous. `is_cut`: the line was truncated.
    fn with_field(self, line: &[u8], is_cut: bool) -> Option<Self> {
        let colon = line.iter().position(|byte| *byte == b':').filter(|_| !line[0].is_ascii_whitespace())?;
        let (name, value) = (line[..colon].trim_ascii_end(), &line[colon + 1..]);
        if !name.eq_ignore_ascii_case(b"transfer-encoding") {
            return Some(self);
        }
        if is_cut || !value.is_ascii() {
            return None;
        }
        // The last coding of the last line applies, as in hyper.
        let last = value.rsplit(|byte| *byte == b',').next()?;
        Some(Self { is_chunked: last.trim_ascii().eq_ignore_ascii_case(b"chunked"), ..self })
    }
}

/// Parses the size before the chunk extensions (RFC 9112 §7.1).
fn parse_chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    if digits == LINE_MAX {
        return None; // the line may be truncated
    }
    u64::from_str_radix(std::str::from_utf8(&line[..digits]).ok()?, 16).ok()
}

/// Filters any bytes, whole and in pieces: the output is the same, and only white space is removed.
#[cfg(any(test, fuzzing))]
pub fn trailers(data: &[u8]) {
    let run = |input: &[u8], step: usize| {
        let (mut trailers, mut out, mut rest) = (TrailerFilter::default(), Vec::new(), BytesMut::new());
        trailers.begin_response(false);
        for piece in input.chunks(step) {
            let passed_len = trailers.process(piece, &mut rest);
            out.extend_from_slice(&piece[..passed_len]);
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
    let without_space = |bytes: &[u8]| bytes.iter().copied().filter(|byte| !b" \t".contains(byte)).collect::<Vec<u8>>();
    assert_eq!(without_space(data), without_space(&whole));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &[u8], to_head: bool) -> String {
        let (mut trailers, mut rest) = (TrailerFilter::default(), BytesMut::new());
        trailers.begin_response(to_head);
        let passed_len = trailers.process(input, &mut rest);
        assert!(trailers.is_passing(), "{}", String::from_utf8_lossy(input));
        String::from_utf8([&input[..passed_len], &rest].concat()).unwrap()
    }

    #[test]
    fn trailer_filter_removes_white_space_from_the_trailer_section_only() {
        let head = "HTTP/1.1 103 Early Hints\r\nLink : x\r\n\r\nHTTP/1.1 200 OK\r\nX : y\r\nTransfer-Encoding : gzip, Chunked\r\n\r\n";
        let chunks = "7;a : b\r\nc : d\r\n\r\n0\r\n";
        let input = format!("{head}{chunks}Sum \t: 1 : 2\r\nPlain: a : b\r\nBare \n: x\r\n\r\nHTTP/1.1 200 : x");
        let output = format!("{head}{chunks}Sum: 1 : 2\r\nPlain: a : b\r\nBare \n: x\r\n\r\nHTTP/1.1 200 : x");
        assert_eq!(read(input.as_bytes(), false), output);
    }

    #[test]
    fn trailer_filter_passes_responses_that_are_not_chunked_unchanged() {
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
