//! Tests with frames of one connection.
//! Which frames pass unchanged, and which replacements does h2 get?

mod control_frames;

use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

use super::fuzz::fields;
use super::*;
use crate::net::frame::SETTINGS;
use crate::net::hpack::{self, EMPTY_TABLE};

const LIST_MAX: usize = 64 * 1024;
const TEST_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(20);

fn frame_on(stream: u32, kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    frame_on(1, kind, flags, payload)
}

fn field(kind: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    hpack::encode(&mut block, kind, name, value);
    block
}

fn malformed() -> Vec<u8> {
    [&[EMPTY_TABLE][..], &field(0, b"connection", b"close")].concat()
}

fn violation(code: &str) -> Vec<u8> {
    let head = [&[EMPTY_TABLE, 0x80 | 14][..], &field(0, b"outgate-response-violation", code.as_bytes())].concat();
    [frame(HEADERS, END_HEADERS, &head), frame(HEADERS, END_HEADERS | END_STREAM, &malformed())].concat()
}

/// Returns the output, and the length of its prefix that was not copied.
fn read(filter: &mut FieldFilter, input: &[u8]) -> (Vec<u8>, usize) {
    let mut rest = BytesMut::new();
    let passed_len = filter.process(input, &mut rest);
    ([&input[..passed_len], &rest].concat(), passed_len)
}

fn requests(frames: &[u8]) -> Vec<u8> {
    let mut filter = FieldFilter::new(MessageKind::Requests, LIST_MAX);
    read(&mut filter, &[0; PREFACE_LEN]);
    read(&mut filter, frames).0
}

fn responses(frames: &[u8]) -> Vec<u8> {
    read(&mut FieldFilter::new(MessageKind::Responses, LIST_MAX), frames).0
}

/// Splits a block into frames of the largest size.
fn frames_of(flags: u8, block: &[u8]) -> Vec<u8> {
    let mut pieces = block.chunks(FRAME_SIZE_MAX).peekable();
    let mut frames = Vec::new();
    while let Some(piece) = pieces.next() {
        let (kind, flags) = if frames.is_empty() { (HEADERS, flags) } else { (CONTINUATION, 0) };
        let ends = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        frames.extend(frame(kind, flags | ends, piece));
    }
    frames
}

#[test]
fn field_filter_passes_well_formed_frames_unchanged() {
    let block = field(0, b"x", b"y");
    let padded = [&[3][..], &block, &[0; 3]].concat();
    for frames in [
        frame(SETTINGS, 0, &[]),
        frame(HEADERS, END_HEADERS, &block),
        frame(HEADERS, END_HEADERS | PADDED, &padded),
        frame(HEADERS, END_HEADERS | HAS_PRIORITY, &[&[0; 5][..], &block].concat()),
        [frame(HEADERS, 0, &block[..2]), frame(CONTINUATION, END_HEADERS, &block[2..])].concat(),
        frame(HEADERS, END_HEADERS, &[0x80]), // h2 ends the connection for it
    ] {
        assert_eq!(requests(&frames), frames);
    }
}

/// h2 resets only the stream for the first frames of some inputs, and would read later frames that were not validated.
#[test]
fn field_filter_passes_nothing_behind_an_interrupted_block() {
    let block = field(0, b"x", b"y");
    let depends_on_itself = [&1_u32.to_be_bytes()[..], &[0]].concat();
    let next = frame_on(3, HEADERS, END_HEADERS | END_STREAM, &field(0, b"X-Bad", b"y"));
    let misplaced = |stream| frame_on(stream, CONTINUATION, END_HEADERS, &[]);
    for (frames, ended_by) in [
        ([frame(HEADERS, 0, &block), frame_on(0, SETTINGS, 0, &[])].concat(), misplaced(0)),
        ([frame(HEADERS, HAS_PRIORITY, &depends_on_itself), frame_on(0, SETTINGS, 0, &[])].concat(), misplaced(0)),
        ([frame(HEADERS, 0, &malformed()), frame_on(0, SETTINGS, 0, &[])].concat(), misplaced(0)),
        (frame(HEADERS, END_HEADERS | PADDED, &[9]), misplaced(1)),
        (frame(HEADERS, END_HEADERS | PADDED | HAS_PRIORITY, &[&[9], &depends_on_itself[..]].concat()), misplaced(1)),
        (frame(HEADERS, END_HEADERS | HAS_PRIORITY, &[0; 3]), misplaced(1)),
        (
            frame(HEADERS, END_HEADERS, &[0; FRAME_SIZE_MAX + 1]),
            frame(HEADERS, END_HEADERS, &[0; FRAME_SIZE_MAX + 1])[..9].to_vec(),
        ),
    ] {
        for step in [frames.len() + next.len(), 7] {
            for messages in [MessageKind::Requests, MessageKind::Responses] {
                let mut filter = FieldFilter::new(messages, LIST_MAX);
                filter.remaining = 0;
                let input = [frames.clone(), next.clone()].concat();
                let output: Vec<u8> = input.chunks(step).flat_map(|piece| read(&mut filter, piece).0).collect();
                assert_eq!(output, ended_by, "{messages:?}, {step}: {frames:?}");
                assert!(filter.has_ended());
            }
        }
    }
}

/// An index of one byte becomes 4 KB in a rewritten block. The clock is paused: the bucket does not leak.
#[tokio::test(start_paused = true)]
async fn field_filter_limits_the_expansion_of_rewritten_blocks() {
    let status = field(0, b":status", b"103");
    let first = [status.clone(), field(0x40, b"x-large", &[b'y'; 4000])].concat();
    let block = [status.clone(), vec![0x80 | 62; 60]].concat();
    let input: Vec<u8> = (0..100).flat_map(|n| frame_on(2 * n + 1, HEADERS, END_HEADERS, &block)).collect();
    for rewrites in [false, true] {
        let mut filter = FieldFilter::new(MessageKind::Responses, 4 * LIST_MAX);
        read(&mut filter, &frame(HEADERS, END_HEADERS, &first));
        if rewrites {
            read(&mut filter, &frame_on(3, HEADERS, END_HEADERS, &field(0, b"X-Bad", b"y")));
        }
        let (output, _) = read(&mut filter, &input);
        assert_eq!(filter.has_ended(), rewrites);
        assert!(output.len() < input.len() + EXPANSION_MAX as usize, "{}", output.len());
        assert_eq!(output == input, !rewrites);
    }
}

#[test]
fn field_filter_does_not_copy_well_formed_frames() {
    let head = frame(HEADERS, END_HEADERS, &[0x88, 0x0f, 0x0d, 1, b'2']);
    let frames = [head, frame(DATA, 0, &[7; 5000]), frame(DATA, END_STREAM, b"")].concat();
    let mut filter = FieldFilter::new(MessageKind::Responses, LIST_MAX);
    assert_eq!(read(&mut filter, &frames), (frames.clone(), frames.len()));
    // If a piece ends within a frame header, only the header is held back.
    let (first, second) = frames.split_at(4);
    assert_eq!(read(&mut filter, first), (Vec::new(), 0));
    assert_eq!(read(&mut filter, second), (frames.clone(), 0));
    let (first, second) = frames.split_at(1000);
    assert_eq!(read(&mut filter, first), (first.to_vec(), 1000));
    assert_eq!(read(&mut filter, second), (second.to_vec(), second.len()));
}

#[test]
fn field_filter_replaces_a_malformed_request_by_one_that_resets_its_stream() {
    let bad = field(0, b"X-Bad", b"y");
    let next = frame(0, END_STREAM, b"{}");
    for frames in [
        frame(HEADERS, END_HEADERS, &bad),
        frame(HEADERS, END_HEADERS | PADDED, &[&[1][..], &bad, &[0]].concat()),
        [frame(HEADERS, 0, &bad[..3]), frame(CONTINUATION, END_HEADERS, &bad[3..])].concat(),
    ] {
        let expected = [frame(HEADERS, END_HEADERS, &malformed()), next.clone()].concat();
        assert_eq!(requests(&[frames, next.clone()].concat()), expected);
    }
}

#[test]
fn field_filter_replaces_a_malformed_response_by_its_rule_and_a_reset() {
    let status = field(0, b":status", b"200");
    let bad = [status.clone(), field(0, b"x", b" y")].concat();
    let data = frame(DATA, END_STREAM, b"{}");
    let frames = [frame(HEADERS, END_HEADERS, &bad), data.clone()].concat();
    assert_eq!(responses(&frames), [violation("field_white_space"), data].concat());
    let interim = field(0, b":status", b"103");
    assert_eq!(responses(&frame(HEADERS, END_HEADERS | END_STREAM, &interim)), violation("status"));
    let frames = [frame(HEADERS, END_HEADERS, &interim), frame(HEADERS, END_HEADERS, &status)].concat();
    assert_eq!(responses(&frames), frames);
}

#[test]
fn field_filter_distinguishes_trailers_from_heads() {
    let status = field(0, b":status", b"200");
    let (head, data) = (frame(HEADERS, END_HEADERS, &status), frame(DATA, 0, b"x"));
    let trailers = frame(HEADERS, END_HEADERS | END_STREAM, &status);
    let reset = frame(HEADERS, END_HEADERS | END_STREAM, &malformed());
    let frames = [head.clone(), data.clone(), trailers.clone()].concat();
    assert_eq!(responses(&frames), [head.clone(), data.clone(), reset].concat());
    // Each head has its own stream, or the earlier stream has ended.
    let other = frame_on(3, HEADERS, END_HEADERS | END_STREAM, &status);
    let frames = [trailers.clone(), other, frame(DATA, END_STREAM, b""), trailers].concat();
    assert_eq!(responses(&frames), frames);
    let path = field(0, b":path", b"/");
    let frames = [frame(HEADERS, END_HEADERS, &path), frame(HEADERS, END_HEADERS | END_STREAM, &path)].concat();
    let reset = frame(HEADERS, END_HEADERS | END_STREAM, &malformed());
    assert_eq!(requests(&frames), [frame(HEADERS, END_HEADERS, &path), reset].concat());
}

/// h2 never reads the entries of a replaced block.
#[test]
fn field_filter_rewrites_later_blocks_without_the_dynamic_table() {
    let first = frame(HEADERS, END_HEADERS, &[field(0x40, b"x-good", b"1"), field(0x40, b"X-Bad", b"2")].concat());
    let second = frame_on(3, HEADERS, END_HEADERS, &[0x82, 0x80 | 63]);
    let rewritten = [&[EMPTY_TABLE, 0x82][..], &field(0, b"x-good", b"1")].concat();
    let expected = [frame(HEADERS, END_HEADERS, &malformed()), frame_on(3, HEADERS, END_HEADERS, &rewritten)].concat();
    assert_eq!(requests(&[first, second].concat()), expected);
}

/// h2 resets such a stream without reading the block, whose entries its table would lack.
#[test]
fn field_filter_removes_a_self_dependency() {
    let block = field(0x40, b"x-good", b"1");
    let first = frame(HEADERS, END_HEADERS | HAS_PRIORITY, &[&[0, 0, 0, 1, 7][..], &block].concat());
    let expected = [&[EMPTY_TABLE][..], &field(0, b"x-good", b"1")].concat();
    assert_eq!(requests(&first), frame(HEADERS, END_HEADERS, &expected));
}

#[test]
fn field_filter_ends_the_connection_for_a_block_that_decodes_to_too_much() {
    let bomb = field(0x40, &[b'n'; 4000], b"\0");
    let block = [bomb, b"\x0f\x2f\0".repeat(35_000)].concat();
    let frames = [frames_of(END_STREAM, &block), frame(0, END_STREAM, b"{}")].concat();
    let endless = [frame(HEADERS, 0, &[]), frame(CONTINUATION, 0, &[]).repeat(CONTINUATIONS_MIN + 1)].concat();
    assert_eq!(requests(&frames), endless);
    // A block of too many frames also ends the connection, and so does `end_connection`.
    let many = [frame(HEADERS, 0, &[]), frame(CONTINUATION, 0, &[]).repeat(20)].concat();
    assert_eq!(requests(&many), endless);
    let mut filter = FieldFilter::new(MessageKind::Requests, LIST_MAX);
    let (preface, data) = ([0; PREFACE_LEN], frame(DATA, 0, b"x"));
    read(&mut filter, &[&preface[..], &data[..4]].concat());
    filter.end_connection();
    assert_eq!(read(&mut filter, &[&data[4..], &data].concat()).0, endless);
    assert!(filter.has_ended());
    fields(&frames);
    // Small blocks, none of which is too large, do not grow without bound.
    let small = frame(HEADERS, END_HEADERS, &b"\x0f\x2f\0".repeat(40));
    let opening = frame(HEADERS, END_HEADERS, &field(0x40, &[b'n'; 4000], b"\0"));
    fields(&[opening, small.repeat(1000)].concat());
    fields(&frame(HEADERS, END_HEADERS, &b"\x02\0\x08\0".repeat(2000)));
}

#[test]
fn field_filter_replaces_a_too_large_response_head_by_the_limit_and_a_reset() {
    let large = field(0, b"x", &vec![b'v'; 8000]).repeat(LIST_MAX / 8000 + 1);
    let next = frame_on(3, HEADERS, END_HEADERS | END_STREAM, &[0x88]);
    let block = [&[0x88][..], &large].concat();
    let after = frame_on(3, HEADERS, END_HEADERS | END_STREAM, &[EMPTY_TABLE, 0x88]);
    assert_eq!(responses(&[frames_of(0, &block), next].concat()), [violation("too_large"), after].concat());
    // A block of too many frames ends the connection, too.
    let endless = [frame(HEADERS, 0, &[0x88]), frame(CONTINUATION, 0, &large[..8000]).repeat(20)].concat();
    assert_eq!(responses(&endless), [violation("too_large"), frame(HEADERS, END_HEADERS, &[0x80])].concat());
    // A block in many small frames is rewritten, because h2 limits their number.
    let small =
        [frame(HEADERS, 0, &[0x88]), frame(CONTINUATION, 0, &[]).repeat(6), frame(CONTINUATION, END_HEADERS, &[])];
    assert_eq!(responses(&small.concat()), frame(HEADERS, END_HEADERS, &[0x88]));
}

/// A field of a head in one of the HPACK representations.
#[derive(Debug, Clone)]
enum FieldRepresentation {
    Literal {
        kind: u8,
        name: &'static str,
        value: &'static str,
    },
    /// An index among the newest entries.
    Index(u8),
    /// A value with the name of an entry; the field becomes a new entry.
    Named(u8, &'static str),
}

fn field_representation() -> impl Strategy<Value = FieldRepresentation> {
    let names =
        ["x", "y-long-name", "te", "X", "", "connection", ":path", ":status", ":odd", "a b", "cookie", ":method"];
    let values = ["v", "", " v", "v ", "a\0b", "trailers", "200", "GET", "\u{e9}"];
    let (names, values) = (prop::sample::select(names.to_vec()), prop::sample::select(values.to_vec()));
    let kinds = prop::sample::select(vec![0x40, 0x40, 0, 0x10]);
    let literal = (kinds, names, values.clone()).prop_map(|(kind, name, value)| FieldRepresentation::Literal {
        kind,
        name,
        value,
    });
    prop_oneof![
        3 => literal,
        1 => (0_u8..8).prop_map(FieldRepresentation::Index),
        1 => (0_u8..8, values).prop_map(|(index, value)| FieldRepresentation::Named(index, value)),
    ]
}

/// Encodes a request. Returns its fields if all are well-formed. `entries`: the table, the newest first.
fn request(
    path: &str,
    representations: &[FieldRepresentation],
    entries: &mut Vec<(String, String)>,
) -> (Vec<u8>, Option<Vec<(String, String)>>) {
    let mut block = [&[0x82, 0x87, 0x41, 1, b'h'][..], &field(0, b":path", path.as_bytes())].concat();
    entries.insert(0, (":authority".into(), "h".into()));
    let mut fields = Vec::new();
    for representation in representations {
        let (name, value) = match representation {
            FieldRepresentation::Literal { kind, name, value } => {
                block.extend(field(*kind, name.as_bytes(), value.as_bytes()));
                ((*name).to_owned(), (*value).to_owned())
            }
            FieldRepresentation::Index(index) => {
                let Some(entry) = entries.get(usize::from(*index)) else { continue };
                block.push(0x80 | (62 + index));
                entry.clone()
            }
            FieldRepresentation::Named(index, value) => {
                let Some((name, _)) = entries.get(usize::from(*index)) else { continue };
                if 62 + index < 63 {
                    block.push(0x40 | (62 + index));
                } else {
                    block.extend([0x7f, 62 + index - 63]);
                }
                block.push(value.len() as u8);
                block.extend_from_slice(value.as_bytes());
                (name.clone(), (*value).to_owned())
            }
        };
        if matches!(representation, FieldRepresentation::Literal { kind: 0x40, .. } | FieldRepresentation::Named(..)) {
            entries.insert(0, (name.clone(), value.clone()));
        }
        fields.push((name, value));
    }
    let is_good = |(name, value): &(String, String)| {
        matches!(name.as_str(), "x" | "y-long-name" | "cookie") && !value.contains('\0')
            || name == "te" && value == "trailers"
    };
    let are_good = fields.iter().all(is_good);
    (block, are_good.then_some(fields))
}

proptest! {
    /// h2 reads all fields of well-formed requests, and resets the streams of the others.
    #[test]
    fn field_filter_lets_h2_read_well_formed_requests_behind_malformed_ones(
        requests in prop::collection::vec(prop::collection::vec(field_representation(), 0..6), 1..8),
        step in 1_usize..200,
    ) {
        let mut input = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame_on(0, SETTINGS, 0, &[])].concat();
        let (mut entries, mut expected) = (Vec::new(), Vec::new());
        let last: &[FieldRepresentation] = &[FieldRepresentation::Literal { kind: 0x40, name: "x", value: "last" }];
        let requests = requests.iter().map(Vec::as_slice).chain([last]);
        for (number, representations) in requests.enumerate() {
            let (block, fields) = request(&format!("/{number}"), representations, &mut entries);
            let flags = END_HEADERS | END_STREAM;
            input.extend(frame_on(2 * number as u32 + 1, HEADERS, flags, &block));
            expected.extend(fields.map(|fields| (format!("/{number}"), fields)));
        }
        let (mut filter, mut out) = (FieldFilter::new(MessageKind::Requests, LIST_MAX), Vec::new());
        for piece in input.chunks(step) {
            let (output, _) = read(&mut filter, piece);
            out.extend(output);
        }
        expected.iter_mut().for_each(|(_, fields): &mut (_, Vec<_>)| fields.sort());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let seeing = async {
            let (mut client, server) = tokio::io::duplex(1 << 20);
            client.write_all(&out).await.unwrap();
            let mut connection = h2::server::handshake(server).await.unwrap();
            let mut seen = Vec::new();
            while seen.last() != expected.last()
                && let Some(request) = connection.accept().await
            {
                let Ok((request, _)) = request else { return None };
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let fields = request.headers().iter();
                let mut fields: Vec<_> =
                    fields.map(|(name, value)| (name.as_str().to_owned(), text(value.as_bytes()))).collect();
                fields.sort();
                seen.push((request.uri().path().to_owned(), fields));
            }
            Some(seen)
        };
        let seen = runtime.block_on(async { tokio::time::timeout(TEST_TIMEOUT, seeing).await });
        prop_assert_eq!(seen, Ok(Some(expected)));
    }
}

/// A path that h2 rejects either arrives in its field, or its request is rejected as too large. The request never goes
/// to another path.
#[test]
fn field_filter_carries_or_refuses_an_unencoded_path_at_every_head_size() {
    let own = [("x-fill", 6), (":path", 5)].map(|(_, length)| length + 32).iter().sum::<usize>();
    for path_length in [2, 34, 35, 200, 5000] {
        let path = [b"/", &vec![b'|'; path_length - 1][..]].concat();
        for size in (LIST_MAX - 2 * path_length - 200..LIST_MAX + 40).step_by(7) {
            let fill = vec![b'y'; size - own - path_length];
            let block = [field(0, b":path", &path), field(0, b"x-fill", &fill)].concat();
            let output = requests(&frames_of(END_STREAM, &block));
            let has = |text: &[u8]| output.windows(text.len()).any(|window| window == text);
            let is_carried = has(&field(0, b"outgate-unencoded-path", &path)[..20]) && has(&path);
            let is_refused = has(b"too_large");
            assert!(is_carried != is_refused, "{path_length}, {size}: {is_carried} {is_refused}");
        }
    }
}
