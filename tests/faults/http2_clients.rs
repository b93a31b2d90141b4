//! HTTP/2 clients that flood: with frames that cost outgate more than them, or by not reading.
//! Does outgate end the connection of the flood only, within its bounds of time and memory?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::time::Duration;

use crate::bystander::{Fault, Processor, for_a_period, pick, pin};
use crate::support::http2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    connect_http2, error_code, field, frame, frames, head,
};
use crate::support::receiver::respond_with;
use crate::support::scene::{Scene, scene, scene_with};
use crate::support::scrape::Scrape;
use crate::support::{Client, Outgate, eventually};

/// ENHANCE_YOUR_CALM (RFC 9113 §7).
const ENHANCE_YOUR_CALM: u32 = 11;
/// The longest time that outgate keeps a flood, on a busy machine.
const FLOOD_MAX: Duration = Duration::from_secs(15);
/// What floods may leave in the heaps of the workers: each keeps up to 10 MiB of a closed connection.
const MEMORY_MARGIN_KIB: usize = 32 * 1024;
const URL: &str = "https://nowhere.example/in";

fn resident_kib(outgate: &Outgate) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", outgate.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Sends the flood over connection after connection, beside the bystander.
fn flood(name: &'static str, flooding: &[u8]) {
    let pinned = pin(Processor::Own);
    let scene = scene();
    let fault = Fault { name, harmed: "the connection of the flood", reported: "GOAWAY(ENHANCE_YOUR_CALM)" };
    let before = resident_kib(&scene.outgate);
    // No delivery begins: the bystander's are all that the law counts.
    let harm = fault.run_by_law(&scene.outgate, &scene.plain_url(), &[], |harm| {
        let attack = || {
            let _pinned = pin(Processor::Fault);
            let mut client = connect_http2(&scene.outgate);
            client.try_send(flooding);
            let received = frames(&client.rest());
            assert_eq!(error_code(&received, GOAWAY), Some(ENHANCE_YOUR_CALM), "{:?}", received.last());
        };
        for_a_period(|| harm.wait_for(attack));
    });
    drop(pinned);
    assert!(harm.longest < FLOOD_MAX, "a flood lasted {:?}", harm.longest);
    let after = resident_kib(&scene.outgate);
    assert!(after < before + MEMORY_MARGIN_KIB, "{before} KiB became {after} KiB");
    scene.outgate.wait_for_metric("outgate_client_connections 0");
}

fn open() -> Vec<u8> {
    frame(HEADERS, END_HEADERS, 1, &head(URL))
}

#[test]
fn http2_rapid_reset_harms_its_own_connection_only() {
    let one = |number: u32| {
        let stream = 2 * number + 1;
        let open = frame(HEADERS, END_HEADERS, stream, &head(URL));
        [open, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    };
    flood("HTTP/2 rapid reset", &(0..10_000).flat_map(one).collect::<Vec<_>>());
}

#[test]
fn http2_continuation_flood_harms_its_own_connection_only() {
    let flooding = [frame(HEADERS, 0, 1, &head(URL)), frame(CONTINUATION, 0, 1, &[]).repeat(10_000)].concat();
    flood("HTTP/2 CONTINUATION flood", &flooding);
}

#[test]
fn http2_empty_data_flood_harms_its_own_connection_only() {
    let flooding = [open(), frame(DATA, 0, 1, &[]).repeat(100_000)].concat();
    flood("HTTP/2 empty DATA frames", &flooding);
}

/// The client refers thousands of times to an entry of 4000 bytes in the table of fields.
#[test]
fn http2_header_list_bomb_harms_its_own_connection_only() {
    let entry = [&[0x40], &field("x-bomb", &"v".repeat(3900))[1..]].concat();
    let block = [head(URL), entry, vec![0x80 | 62; 12_000]].concat();
    flood("HTTP/2 header list bomb", &frame(HEADERS, END_HEADERS | END_STREAM, 1, &block));
}

#[test]
fn http2_ping_flood_harms_its_own_connection_only() {
    flood("HTTP/2 PING flood", &frame(PING, 0, 0, &[0; 8]).repeat(100_000));
}

#[test]
fn http2_settings_flood_harms_its_own_connection_only() {
    flood("HTTP/2 SETTINGS flood", &frame(SETTINGS, 0, 0, &[]).repeat(100_000));
}

#[test]
fn http2_window_update_flood_harms_its_own_connection_only() {
    flood("HTTP/2 WINDOW_UPDATE flood", &frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()).repeat(100_000));
}

/// The client sends requests and gives the responses no window, so that outgate holds them.
#[test]
fn http2_client_without_a_window_harms_its_own_deliveries_until_the_total_timeout() {
    const STREAMS: u32 = 100;
    const CODE: &str = "client_gone";
    let large = format!("HTTP/1.1 200 OK\r\nContent-Length: 300000\r\n\r\n{}", "x".repeat(300_000));
    let scene: Scene = scene_with(respond_with(&large), "[timeouts]\ntotal = \"1s\"\n");
    // The bystander reads the same responses.
    let fault = Fault {
        name: "HTTP/2 client without a window",
        harmed: "the deliveries of this client",
        reported: "records, outgate_deliveries_total",
    };
    let before = resident_kib(&scene.outgate);
    let harm = fault.run_by_law(&scene.outgate, &scene.plain_url(), &[], |harm| {
        let no_window = [&[0, 4][..], &0_u32.to_be_bytes()].concat();
        let mut clients = Vec::new();
        for _ in 0..pick(1, 10) {
            let mut client = Client::connect(scene.outgate.proxy);
            client.send([PREFACE, &frame(SETTINGS, 0, 0, &no_window)].concat());
            for number in 0..STREAMS {
                client.send(frame(HEADERS, END_HEADERS | END_STREAM, 2 * number + 1, &head(&scene.plain_url())));
            }
            clients.push(client);
        }
        let ended = |code: &str| Scrape::of(&scene.outgate).sum("outgate_deliveries_total", &[("code", code)]) as u64;
        let all = u64::from(STREAMS) * clients.len() as u64;
        harm.wait_for(|| eventually("the deliveries end", || ended(CODE) == all));
        harm.add(CODE, all);
    });
    assert!(harm.longest >= Duration::from_secs(1) && harm.longest < FLOOD_MAX, "{:?}", harm.longest);
    let after = resident_kib(&scene.outgate);
    assert!(after < before + 2 * MEMORY_MARGIN_KIB, "{before} KiB became {after} KiB");
}
