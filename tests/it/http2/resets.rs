//! An HTTP/2 client that causes thousands of stream resets.
//! Do more resets than the limit wait in memory?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::{Read, Write};
use std::net::TcpStream;

use support::http2::{
    END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, SETTINGS, error_code, field, frame, frames,
};
use support::scene::scene;
use support::{Outgate, TEST_TIMEOUT, read_to_end};

/// RFC 9113 §7.
const ENHANCE_YOUR_CALM: u32 = 11;

/// Returns a memory value of the process in KiB.
fn memory(outgate: &Outgate, line: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", outgate.pid())).unwrap();
    let size = status.lines().find_map(|size| size.strip_prefix(line)).unwrap();
    size.trim().trim_end_matches(" kB").parse().unwrap()
}

/// h2 acknowledges PING and SETTINGS while it reads, even if earlier resets are still queued.
#[test]
fn resets_between_pings_or_settings_do_not_pile_up() {
    const ROUNDS: u32 = 300;
    /// The malformed heads of one round, about as many as the limit.
    const HEADS: u32 = 1100;
    /// The allowed growth in KiB, more than a connection needs. The streams of all rounds would need 600 MiB.
    const GROWTH_MAX: usize = 64 << 10;
    let scene = scene();
    // The responses to so many frames overflow the buffer of h2, which has 16 KiB.
    let pings = frame(PING, 0, 0, &[0; 8]).repeat(960);
    let settings = frame(SETTINGS, 0, 0, &[]).repeat(1900);
    for (label, answered) in [("PING", pings), ("SETTINGS", settings)] {
        let before = memory(&scene.outgate, "VmRSS:");
        let mut client = TcpStream::connect(scene.outgate.proxy).unwrap();
        client.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        client.set_write_timeout(Some(TEST_TIMEOUT)).unwrap();
        // Unknown frames are ignored (RFC 9113 §4.1). They make the kernel grow its buffer for the flood.
        let ignored = frame(0xee, 0, 0, &[0; 16 << 10]).repeat(400);
        let begin = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &ignored, &frame(PING, 0, 0, &[0; 8])].concat();
        client.write_all(&begin).unwrap();
        let mut bytes = Vec::new();
        while !frames(&bytes).iter().any(|frame| frame.kind == PING) {
            let mut piece = [0; 1024];
            let length = client.read(&mut piece).unwrap();
            assert!(length > 0, "{label}: closed");
            bytes.extend_from_slice(&piece[..length]);
        }
        let mut flood = Vec::new();
        for round in 0..ROUNDS {
            for number in 0..HEADS {
                let stream = 2 * (round * HEADS + number) + 1;
                flood.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &field("A", "")));
            }
            flood.extend(&answered);
        }
        let mut writer = client.try_clone().unwrap();
        let writing = std::thread::spawn(move || writer.write_all(&flood));
        bytes.extend(read_to_end(&mut client)); // the connection may end with a reset
        let _ = writing.join().unwrap();
        let received = frames(&bytes);
        let peak = memory(&scene.outgate, "VmHWM:");
        assert!(peak < before + GROWTH_MAX, "{label}: {before} KiB became {peak} KiB");
        assert_eq!(error_code(&received, GOAWAY), Some(ENHANCE_YOUR_CALM), "{label}: {:?}", received.last());
        assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200, "{label}: others are served");
    }
}
