//! Report-only limits and bandwidth limits of a running proxy.
//! Which effects does a limit have on clients, records and metrics?

use crate::support;

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;
use socket2::SockRef;
use support::configuration::Config;
use support::receiver::{Reaction, ok, respond_with};
use support::scene::{Scene, config, scene_with};
use support::{Client, post, tunnel_scene};

/// Starts the usual scene with this limit on the routes.
fn limited(limit: &str) -> Scene {
    limited_with(ok(), limit)
}

fn limited_with(reaction: Reaction, limit: &str) -> Scene {
    let scene = scene_with(reaction, "");
    scene.outgate.reconfigure(&with_limit(&scene, limit));
    scene
}

fn with_limit(scene: &Scene, limit: &str) -> Config {
    let text = config(&scene.good, &scene.plain, &format!("[limits.l]\n{limit}\n"));
    text.add("routes.*.limits", ["l"])
}

/// Starts a delivery that is in flight until its client sends the body.
fn start_upload(scene: &Scene) -> Client {
    scene.outgate.start_upload(&scene.plain_url(), 5)
}

#[test]
fn report_only_limit_refuses_nothing_and_is_counted() {
    let scene = limited("rate = \"1/h\"\nconcurrency = 1\nwait = \"1h\"\nreport_only = true");
    let first = start_upload(&scene);
    let response = scene.outgate.post(&scene.plain_url(), "", "x");
    assert_eq!((response.status, response.field("ratelimit-policy")), (200, ""));
    let would = |kind: &str| json!([{ "kind": "limit", "name": "l", "code": kind }]);
    let record = &scene.outgate.records(1)[0];
    assert_eq!((&record["code"], &record["would_refuse"]), (&json!("delivered"), &would("concurrency_limited")));
    drop(first);
    assert!(scene.outgate.records(2)[1].get("would_refuse").is_none());
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    assert_eq!(scene.outgate.records(3)[2]["would_refuse"], would("rate_limited"));
    let metrics = scene.outgate.admin("/metrics").text();
    for code in ["concurrency_limited", "rate_limited"] {
        let line = format!("outgate_report_only_total{{kind=\"limit\",name=\"l\",code=\"{code}\"}} 1");
        assert!(metrics.contains(&line), "{metrics}");
    }
    // The enforced limit continues with the counts of report_only.
    scene.outgate.reconfigure(&with_limit(&scene, "rate = \"1/h\"\nconcurrency = 1"));
    let response = scene.outgate.post(&scene.plain_url(), "", "x");
    assert_eq!((response.status, response.code()), (429, "rate_limited"));
}

/// Bytes of both directions count together for signed and streamed deliveries, and no delivery is refused.
#[test]
fn bandwidth_limit_paces_bytes_of_both_directions_together() {
    const KIB: usize = 1024;
    let large = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}", 64 * KIB, "a".repeat(64 * KIB));
    let scene = limited_with(respond_with(&large), "bandwidth = \"128 KiB/s\"");
    let body = "b".repeat(48 * KIB);
    for (url, more_than) in [
        // The bytes of one second pass at once. The remaining 96 KiB pass at 128 KiB/s.
        (scene.plain_url(), Duration::from_millis(700)),
        (scene.good_url(), Duration::from_millis(800)),
    ] {
        let begun = Instant::now();
        for _ in 0..2 {
            let response = scene.outgate.post(&url, "", &body);
            assert_eq!((response.status, response.body.len()), (200, 64 * KIB));
        }
        assert!(begun.elapsed() >= more_than, "{url}: {:?}", begun.elapsed());
    }
    let received = [scene.plain.requests(), scene.good.requests()].concat();
    assert!(received.iter().all(|received| received.body == body.as_bytes()), "not a byte is changed");
    // A reload to a higher bandwidth takes effect immediately.
    scene.outgate.reconfigure(&with_limit(&scene, "bandwidth = \"1 GiB/s\""));
    let begun = Instant::now();
    (0..10).for_each(|_| assert_eq!(scene.outgate.post(&scene.plain_url(), "", &body).status, 200));
    // At the former bandwidth, the 1,120 KiB beyond the bytes of one second would take 7.75 s.
    assert!(begun.elapsed() < Duration::from_secs(7), "{:?}", begun.elapsed());
}

/// The body timeout does not run while the limit holds the client back.
#[test]
fn bandwidth_limit_does_not_use_up_the_body_timeout() {
    let scene = limited("bandwidth = \"64 KiB/s\"\nper = [\"route\"]");
    let text = with_limit(&scene, "bandwidth = \"64 KiB/s\"\nper = [\"route\"]");
    let text = text.set("routes.*.timeouts.body", "2s").set("routes.signed.body_max", "1 MiB");
    scene.outgate.reconfigure(&text);
    // The bytes of one second pass at once, and the rest takes 5 s. One body is streamed, the other is buffered.
    let body = "b".repeat(6 * 64 * 1024);
    std::thread::scope(|scope| {
        for url in [scene.plain_url(), scene.good_url()] {
            let (scene, body) = (&scene, &body);
            scope.spawn(move || {
                let begun = Instant::now();
                let response = scene.outgate.post(&url, "", body);
                assert_eq!(response.status, 200, "{url}: {response:?}");
                assert!(begun.elapsed() >= Duration::from_secs(4), "{url}: {:?}", begun.elapsed());
            });
        }
    });
    // The body timeout still applies to a stalled client.
    let mut client = start_upload(&scene);
    assert_eq!(client.response().code(), "body_timeout");
}

#[test]
fn bandwidth_limit_paces_tunnels_in_both_directions() {
    let scene = tunnel_scene::manual_scene("");
    let limit = "[limits.l]\nbandwidth = \"64 KiB/s\"\n";
    let text = tunnel_scene::config(scene.listener.local_addr().unwrap().port(), limit);
    scene.outgate.reconfigure(&text.add("routes.plain.limits", ["l"]));
    let (mut client, mut target) = scene.open();
    let begun = Instant::now();
    let sent: Vec<u8> = (0..64 * 1024_u32).map(|n| (n % 251) as u8).collect();
    client.send(&sent);
    assert!(tunnel_scene::read(&mut target, sent.len()) == sent);
    target.write_all(&sent[..32 * 1024]).unwrap();
    let mut got = Vec::new();
    while got.len() < 32 * 1024 {
        got.extend(client.read_some());
    }
    assert!(got == sent[..32 * 1024]);
    assert!(begun.elapsed() >= Duration::from_millis(450), "{:?}", begun.elapsed());
}

/// A client that does not read does not use its share.
#[test]
fn bandwidth_share_of_a_slow_reader_goes_to_the_others() {
    const CHUNK: usize = 4000; // small chunks, which outgate gathers before a write
    const LARGE: usize = 8192 * CHUNK; // more than the buffers of the kernel hold
    let chunk = format!("{CHUNK:x}\r\n{}\r\n", "a".repeat(CHUNK));
    let large =
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(LARGE / CHUNK));
    let scene = limited_with(respond_with(&large), "bandwidth = \"8 MiB/s\"");
    let text = with_limit(&scene, "bandwidth = \"8 MiB/s\"");
    scene.outgate.reconfigure(&text.add("routes.plain.response_max", "1 GiB"));
    let start_request = || {
        let mut client = scene.outgate.connect();
        client.send(post(&scene.plain_url(), "", "x"));
        client
    };
    let mut stuck = [(); 4].map(|()| {
        let client = start_request();
        SockRef::from(client.socket()).set_recv_buffer_size(4096).unwrap();
        client
    });
    let mut reader = start_request();
    // The stuck clients get a share while the kernel buffers it, and stop long before the reader has the whole response.
    let mut read = 0;
    while read < LARGE {
        read += reader.read_some().len();
    }
    assert!(
        scene.outgate.records(1)[0]["bytes_received"].as_u64() >= Some(LARGE as u64),
        "the other deliveries are in flight"
    );
    assert!(stuck.iter_mut().all(|client| !client.read_some().is_empty()));
}
