//! Hostile HTTP/2 clients, written frame by frame.
//! Does a client that breaks the protocol, floods or never reads harm no other client?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::time::{Duration, Instant};

use support::http2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, connect_http2, error_code, field, frame, frames, head, read_until_frame, whole_frames,
};
use support::receiver::{ok, respond_with};
use support::scene::{Scene, config, scene, scene_with};
use support::{Client, Outgate, TEST_TIMEOUT};

/// Error codes (RFC 9113 §7).
const PROTOCOL_ERROR: u32 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;

/// Starts a scene whose targets respond when the sender is dropped.
fn scene_with_held_responses() -> (std::sync::mpsc::Sender<()>, Scene) {
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let scene = scene_with(
        std::sync::Arc::new(move |_| {
            let _ = wait.lock().unwrap().recv_timeout(TEST_TIMEOUT);
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(), true)
        }),
        "",
    );
    (release, scene)
}

/// A burst beyond SETTINGS_MAX_CONCURRENT_STREAMS is not hostile: a client may not know the limit yet (RFC 9113 §5.1.2).
#[test]
fn streams_beyond_the_limit_are_refused_and_the_connection_stays_open() {
    const STREAMS: u32 = 600;
    const LIMIT: usize = 128;
    const REFUSED_STREAM: u32 = 7;
    let (release, scene) = scene_with_held_responses();
    let mut client = connect_http2(&scene.outgate);
    let head = head(&scene.plain_url());
    for stream in (1..2 * STREAMS).step_by(2) {
        client.send(frame(HEADERS, END_HEADERS, stream, &head));
        client.send(frame(DATA, 0, stream, b"{"));
        client.send(frame(DATA, END_STREAM, stream, b"}"));
    }
    let mut bytes = Vec::new();
    let refused = |frames: &[Frame]| {
        let is_refused = |frame: &&Frame| frame.kind == RST_STREAM && frame.payload == REFUSED_STREAM.to_be_bytes();
        frames.iter().filter(is_refused).count()
    };
    while refused(&frames(&bytes)) < STREAMS as usize - LIMIT {
        bytes.extend(client.read_some());
        assert_eq!(error_code(&frames(&bytes), GOAWAY), None);
    }
    drop(release); // the streams within the limit get their responses
    let is_answered = |frame: &&Frame| frame.kind == HEADERS;
    while frames(&bytes).iter().filter(is_answered).count() < LIMIT {
        bytes.extend(client.read_some());
    }
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 2 * STREAMS + 1, &head));
    while frames(&bytes).iter().filter(is_answered).count() < LIMIT + 1 {
        bytes.extend(client.read_some());
    }
    assert_eq!(error_code(&frames(&bytes), GOAWAY), None);
}

/// A client that does not know the limit yet opens many streams. Their number grows over a long connection.
#[test]
fn refused_streams_of_many_bursts_do_not_end_the_connection() {
    const LIMIT: u32 = 128;
    const BURST: u32 = 300;
    /// This many bursts would be a flood if they came faster.
    const BURSTS: u32 = 15;
    let (release, scene) = scene_with_held_responses();
    // The first requests keep their streams to the end.
    scene.outgate.reconfigure(&config(&scene.good, &scene.plain, "").set("routes.*.timeouts.response", "60s"));
    let mut client = connect_http2(&scene.outgate);
    let head = head(&scene.plain_url());
    let mut next = 1;
    let mut send = |client: &mut Client, count: u32| {
        for _ in 0..count {
            client.send(frame(HEADERS, END_HEADERS | END_STREAM, next, &head));
            next += 2;
        }
    };
    send(&mut client, LIMIT);
    let mut refused = 0;
    let mut bytes = Vec::new();
    for burst in 1..=BURSTS {
        send(&mut client, BURST);
        while refused < (burst * BURST) as usize {
            bytes.extend(client.read_some());
            let (received, length) = whole_frames(&bytes);
            assert_eq!(error_code(&received, GOAWAY), None, "{refused} refused");
            refused += received.iter().filter(|frame| frame.kind == RST_STREAM).count();
            bytes.drain(..length);
        }
        // Without the sleep, the bursts would be a flood.
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(release);
}

/// Checks that another client is served, and that the former connections are closed.
fn assert_other_clients_served(scene: &Scene, label: &str) {
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200, "{label}");
    scene.outgate.wait_for_metric("outgate_client_connections 0");
}

/// Checks that the connections with short timeouts are closed, and that another client is served with the usual ones.
fn assert_closed_and_others_served(scene: &Scene, label: &str) {
    scene.outgate.wait_for_metric("outgate_client_connections 0");
    scene.outgate.reconfigure(&config(&scene.good, &scene.plain, ""));
    assert_other_clients_served(scene, label);
}

fn resident_kib(outgate: &Outgate) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", outgate.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// RFC 9113 §8.1.1: a malformed field is a stream error.
#[test]
fn malformed_http2_field_resets_its_stream_and_the_connection_goes_on() {
    let scene = scene();
    let malformed = [
        ("X-Upper", "1"),
        ("x y", "1"),
        ("", "1"),
        ("x-control", "a\0b"),
        ("x-line", "a\r\nb: c"),
        ("x-delete", "\x7f"),
        (":unknown", "1"),
        (":method", "P OST"),
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("keep-alive", "1"),
        ("proxy-connection", "keep-alive"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        (":status", "200"),
        (":path", "/twice"),
    ];
    for (name, value) in malformed {
        let mut client = connect_http2(&scene.outgate);
        // Both fields become entries of the dynamic table. The next request refers to the first by its index.
        let indexed = |name: &str, value: &str| [&[0x40], &field(name, value)[1..]].concat();
        let block = [head(&scene.plain_url()), indexed("x-mine", "mine"), indexed(name, value)].concat();
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &block));
        let received = read_until_frame(&mut client, &[RST_STREAM, GOAWAY]);
        assert_eq!(error_code(&received, RST_STREAM), Some(PROTOCOL_ERROR), "{name}: {received:?}");
        let block = [head(&scene.plain_url()), vec![0x80 | 63]].concat();
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, &block));
        let received = read_until_frame(&mut client, &[HEADERS, RST_STREAM, GOAWAY]);
        assert!(received.iter().any(|frame| frame.kind == HEADERS), "{name}: {received:?}");
    }
    assert_other_clients_served(&scene, "malformed heads");
    let received = scene.plain.requests();
    assert_eq!(received.len(), malformed.len() + 1, "nothing malformed was delivered");
    assert!(received[..malformed.len()].iter().all(|received| received.field("x-mine") == "mine"), "{received:?}");
}

#[test]
fn http2_protocol_errors_end_the_connection() {
    let scene = scene();
    let open = frame(HEADERS, END_HEADERS, 1, &head(&scene.plain_url()));
    for (label, bytes) in [
        ("garbage", b"GET http://plain.example/ HTTP/1.1\r\n\r\n".to_vec()),
        ("DATA before HEADERS", frame(DATA, 0, 1, b"x")),
        ("an even stream", frame(HEADERS, END_HEADERS | END_STREAM, 2, &head(&scene.plain_url()))),
        ("CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, 1, b"")),
        ("another stream's CONTINUATION", [frame(HEADERS, 0, 1, b""), frame(CONTINUATION, 4, 3, b"")].concat()),
        ("a window that overflows", frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes())),
        ("settings of a wrong length", frame(SETTINGS, 0, 0, b"12345")),
        ("a broken field", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])),
        ("a table that grows too far", frame(HEADERS, END_HEADERS, 1, &[0x3f, 0xff, 0xff, 0xff, 0x0f])),
        ("a frame too large", [open, frame(DATA, 0, 1, &[0; 20_000])].concat()),
    ] {
        let mut client = connect_http2(&scene.outgate);
        client.try_send(bytes);
        let received = frames(&client.rest());
        assert!(error_code(&received, GOAWAY).is_some_and(|code| code != 0), "{label}: {received:?}");
    }
    assert_other_clients_served(&scene, "broken frames");
}

#[test]
fn http2_floods_end_their_connection() {
    let scene = scene();
    let mut continuations = frame(HEADERS, 0, 1, &head(&scene.plain_url()));
    for _ in 0..10_000 {
        continuations.extend(frame(CONTINUATION, 0, 1, &[]));
    }
    let resets = |spread: u32| -> Vec<u8> {
        let one = |stream: u32| {
            let open = frame(HEADERS, END_HEADERS, stream, &head(&scene.plain_url()));
            [open, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
        };
        (0..spread).flat_map(|number| one(2 * number + 1)).collect()
    };
    let malformed: Vec<u8> = (0..20_000)
        .flat_map(|number| frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &field("connection", "x")))
        .collect();
    let empty: Vec<u8> = frame(DATA, 0, 1, &[]).repeat(100_000);
    let empty = [frame(HEADERS, END_HEADERS, 1, &head(&scene.plain_url())), empty].concat();
    for (label, bytes) in [
        ("rapid reset", resets(10_000)),
        ("CONTINUATION", continuations),
        ("malformed heads", malformed),
        ("empty DATA", empty),
    ] {
        let before = resident_kib(&scene.outgate);
        let mut client = connect_http2(&scene.outgate);
        client.try_send(bytes);
        let received = frames(&client.rest());
        let code = error_code(&received, GOAWAY);
        assert_eq!(code, Some(ENHANCE_YOUR_CALM), "{label}: {:?}", received.last());
        let after = resident_kib(&scene.outgate);
        // The heap of each of the two worker threads keeps up to 10 MiB of a closed connection.
        assert!(after < before + 32 * 1024, "{label}: {before} KiB became {after} KiB");
        assert_other_clients_served(&scene, label);
    }
    assert!(scene.plain.requests().len() < 200, "{} deliveries began", scene.plain.requests().len());
}

/// The client refers thousands of times to one table entry with a value or a name of 4000 bytes.
#[test]
fn http2_header_bomb_is_not_decompressed() {
    let scene = scene();
    let bomb = |name: &str, value: &str, uses: Vec<u8>| {
        let mut bomb = field(name, value);
        bomb[0] = 0x40; // with incremental indexing, as entry 62
        [head(&scene.plain_url()), bomb, uses].concat()
    };
    let large = bomb("x-bomb", &"b".repeat(4000), vec![0x80 | 62; 10_000]);
    // The entry is malformed. Valid fields of three bytes use its name.
    let malformed = bomb(&"b".repeat(4000), "\0", b"\x0f\x2f\0".repeat(4000));
    let before = resident_kib(&scene.outgate);
    for block in [&large, &malformed].repeat(10) {
        let mut client = connect_http2(&scene.outgate);
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block));
        let received = read_until_frame(&mut client, &[HEADERS, RST_STREAM, GOAWAY]);
        assert_eq!(error_code(&received, GOAWAY), Some(ENHANCE_YOUR_CALM), "{received:?}");
    }
    let after = resident_kib(&scene.outgate);
    assert!(after < before + 16 * 1024, "{before} KiB became {after} KiB");
    // A block that only exceeds the size limit is refused, and the connection stays open.
    let mut client = connect_http2(&scene.outgate);
    let block = [head(&scene.plain_url()), (0..5).flat_map(|_| field("x", &"y".repeat(14_000))).collect()].concat();
    let (first, rest) = block.split_at(16_000);
    client.send(frame(HEADERS, END_STREAM, 1, first));
    for piece in rest.chunks(16_000) {
        client.send(frame(CONTINUATION, 0, 1, piece));
    }
    client.send(frame(CONTINUATION, END_HEADERS, 1, b""));
    let received = read_until_frame(&mut client, &[HEADERS, GOAWAY]);
    assert_eq!(error_code(&received, GOAWAY), None, "{received:?}");
    drop(client);
    assert_other_clients_served(&scene, "bombs");
    assert_eq!(scene.plain.requests().len(), 1);
}

fn set_short_timeouts(scene: &Scene) {
    let text = config(&scene.good, &scene.plain, "[timeouts]\nidle = \"500ms\"\ntotal = \"1s\"\n");
    scene.outgate.reconfigure(&text);
}

/// The client does not read the acknowledgments of SETTINGS and PING. outgate stops reading and then closes.
#[test]
fn http2_control_frames_do_not_reset_the_idle_timeout() {
    let scene = scene_with(ok(), "");
    for (label, one) in [
        ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
        ("PING", frame(PING, 0, 0, &[0; 8])),
        ("PRIORITY", frame(2, 0, 1, &[0; 5])),
    ] {
        set_short_timeouts(&scene);
        let before = resident_kib(&scene.outgate);
        let mut client = connect_http2(&scene.outgate);
        let frames_of_kind = one.repeat(10_000);
        let deadline = Instant::now() + TEST_TIMEOUT;
        while client.try_send(&frames_of_kind) {
            assert!(Instant::now() < deadline, "{label}: still listening");
        }
        let after = resident_kib(&scene.outgate);
        assert!(after < before + 16 * 1024, "{label}: {before} KiB became {after} KiB");
        assert_closed_and_others_served(&scene, label);
    }
}

#[test]
fn http2_client_that_stops_in_a_handshake_or_request_is_closed() {
    let scene = scene_with(ok(), "");
    set_short_timeouts(&scene);
    let url = scene.plain_url();
    for sent in [
        PREFACE[..10].to_vec(),
        PREFACE.to_vec(),
        [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat(),
        [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, 0, 1, &head(&url))].concat(),
        [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, END_HEADERS, 1, &head(&url))].concat(),
    ] {
        let mut client = scene.outgate.connect();
        client.send(&sent);
        client.rest();
    }
    assert_closed_and_others_served(&scene, "half a client");
}

/// The client never opens its flow-control windows, or never reads its socket.
#[test]
fn http2_client_that_does_not_read_is_closed() {
    let large = format!("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{}", "x".repeat(1_000_000));
    let scene = scene_with(respond_with(&large), "");
    set_short_timeouts(&scene);
    let before = resident_kib(&scene.outgate);
    let no_window = [&[0, 4][..], &0_u32.to_be_bytes()].concat();
    let all_windows = [&[0, 4][..], &0x7fff_ffff_u32.to_be_bytes()].concat();
    let mut clients = Vec::new();
    for settings in [&no_window, &all_windows] {
        let mut client = scene.outgate.connect();
        client.send([PREFACE, &frame(SETTINGS, 0, 0, settings)].concat());
        if *settings == all_windows {
            client.send(frame(WINDOW_UPDATE, 0, 0, &0x7000_0000_u32.to_be_bytes()));
        }
        for number in 0..100 {
            client.send(frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &head(&scene.plain_url())));
        }
        clients.push(client);
    }
    let records = scene.outgate.records(200);
    let after = resident_kib(&scene.outgate);
    assert!(after < before + 64 * 1024, "{before} KiB became {after} KiB");
    let codes: Vec<_> = records.iter().map(|record| record["code"].as_str().unwrap()).collect();
    // A target on a loaded machine may not have sent its response in time.
    let unread = codes.iter().filter(|code| matches!(**code, "client_gone" | "response_timeout"));
    assert!(unread.count() > 150, "{codes:?}");
    assert_closed_and_others_served(&scene, "a client that does not read");
}

/// The library removes a fragment, and gives a path a slash. outgate itself uses a field for a path that the library refuses.
#[test]
fn http2_path_that_is_no_path_is_refused_and_sets_no_other() {
    let scene = scene();
    let url = scene.plain_url();
    let (valid, own) = (head(&url), field(":path", "/in"));
    let at = valid.windows(own.len()).position(|window| window == own).unwrap();
    let with_path = |path: &str| [&valid[..at], &field(":path", path)[..], &valid[at + own.len()..]].concat();
    let mut client = connect_http2(&scene.outgate);
    for (number, path) in ["/in#frag?z", "#frag", "?x", "in", "*", "/{x}#frag"].into_iter().enumerate() {
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 2 * number as u32 + 1, &with_path(path)));
        let received = read_until_frame(&mut client, &[HEADERS, RST_STREAM, GOAWAY]);
        assert!(received.iter().any(|frame| frame.kind == HEADERS), "{path}: {received:?}");
        assert_eq!(scene.outgate.records(number + 1)[number]["code"], "request_malformed", "{path}");
    }
    let with_field = [valid.clone(), field("outgate-unencoded-path", "/other")].concat();
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 101, &with_field));
    let received = read_until_frame(&mut client, &[HEADERS, RST_STREAM, GOAWAY]);
    assert!(received.iter().any(|frame| frame.kind == RST_STREAM), "{received:?}");
    client.send(frame(HEADERS, END_HEADERS | END_STREAM, 103, &valid));
    read_until_frame(&mut client, &[HEADERS]);
    let lines: Vec<String> = scene.plain.wait_for_requests(1).iter().map(|request| request.line.clone()).collect();
    assert!(lines.len() == 1 && lines[0].contains(" /in "), "{lines:?}");
}

/// The library refuses some of these characters in a path, and others in a query.
#[test]
fn unencoded_characters_of_an_http2_path_are_percent_encoded() {
    let scene = scene();
    let path = "/<>\"{}|^`?<>\"{}|^`";
    let url = scene.plain_url();
    let (before, own) = (head(&url), field(":path", "/in"));
    let at = before.windows(own.len()).position(|window| window == own).unwrap();
    // A literal with incremental indexing (RFC 7541 §6.2.1), after the field to which an index refers later.
    let unencoded = [&[0x40], &field(":path", path)[1..]].concat();
    let block = [&before[..at], &unencoded, &before[at + own.len()..]].concat();
    let again = [&before[..at], &[0x80 | 62], &before[at + own.len()..]].concat();
    let mut client = connect_http2(&scene.outgate);
    for (stream, block) in [(1, &block), (3, &again), (5, &before)] {
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, block));
        let received = read_until_frame(&mut client, &[HEADERS, RST_STREAM, GOAWAY]);
        assert!(received.iter().any(|frame| frame.kind == HEADERS), "{stream}: {received:?}");
    }
    let encoded = "%3C%3E%22%7B%7D%7C%5E%60";
    let lines: Vec<String> = scene
        .plain
        .wait_for_requests(3)
        .iter()
        .map(|received| received.line.split(' ').nth(1).unwrap().to_owned())
        .collect();
    let encoded = format!("/{encoded}?{encoded}");
    assert_eq!(lines, [encoded.as_str(), encoded.as_str(), "/in"]);
}
