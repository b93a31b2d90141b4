//! Targets that fail, and what is left of them for the others.
//! Is a target that keeps failing left alone, tried again, and forgiven?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use support::receiver::Reaction;
use support::scene::{Scene, scene_with};
use support::tunnel_scene::{Played, played};
use support::{Answer, PATIENCE, post};

/// Hangs up on a request for `/sick`, and on every other while the switch says so.
fn moody() -> (Reaction, Arc<AtomicBool>) {
    let sick = Arc::new(AtomicBool::new(true));
    let theirs = Arc::clone(&sick);
    let reaction: Reaction = Arc::new(move |seen| {
        if theirs.load(Ordering::Relaxed) || seen.line.contains("/sick") {
            (Vec::new(), false)
        } else {
            (b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n".to_vec(), true)
        }
    });
    (reaction, sick)
}

fn moody_scene(open: &str) -> (Scene, Arc<AtomicBool>) {
    let (reaction, sick) = moody();
    let fuse = format!("[circuit]\nfailures = 3\nwindow = \"10m\"\nopen = \"{open}\"\nopen_max = \"{open}\"\n");
    (scene_with(reaction, &fuse), sick)
}

fn codes(scene: &Scene, url: &str, count: usize) -> Vec<String> {
    let code = |answer: Answer| if answer.status == 500 { "500".to_owned() } else { answer.code().to_owned() };
    (0..count).map(|_| code(scene.outgate.post(url, "", "x"))).collect()
}

const LOST: &str = "connection_lost";
const OPEN: &str = "target_circuit_open";

#[test]
fn a_target_that_fails_is_left_alone_and_no_other_is() {
    let (scene, sick) = moody_scene("1h");
    assert_eq!(codes(&scene, &scene.good_url(), 5), [LOST, LOST, LOST, OPEN, OPEN]);
    assert_eq!(scene.good.seen().len(), 3, "nobody knocks any more");
    let answer = scene.outgate.post(&scene.good_url(), "", "x");
    let retry: u64 = answer.field("retry-after").parse().unwrap();
    assert_eq!((answer.status, answer.field("proxy-status").contains("destination_unavailable")), (503, true));
    assert!((3500..=3960).contains(&retry), "{retry}");
    assert_eq!((&answer.json()["blame"], &answer.json()["retryable"]), (&"target".into(), &true.into()));

    // The same address by another name is another target, and so is another port of it.
    sick.store(false, Ordering::Relaxed);
    let other = scene.good_url().replace("hook.example", "127.0.0.1");
    assert_ne!(codes(&scene, &other, 1), [OPEN]);
    assert_eq!(codes(&scene, &scene.plain_url(), 1), ["500"]);

    let metrics = scene.outgate.admin("/metrics").text();
    assert!(metrics.contains("outgate_circuits_open 1") && metrics.contains("outgate_circuits_opened_total 1"));
    scene.outgate.log.until("word of it", |lines| {
        lines.iter().any(|line| line.contains("its circuit is open") && line.contains(LOST)).then_some(())
    });
    // Whoever switches circuits off has none.
    scene.outgate.reconfigure(&support::scene::config(&scene.good, &scene.plain, "[circuit]\nfailures = 0\n"));
    assert_eq!(codes(&scene, &scene.good_url(), 1), ["500"]);
}

#[test]
fn an_answer_that_somebody_gets_begins_the_count_anew() {
    let (scene, sick) = moody_scene("1h");
    sick.store(false, Ordering::Relaxed);
    let sick = scene.good_url().replace("/in", "/sick");
    for _ in 0..4 {
        assert_eq!(codes(&scene, &sick, 2), [LOST, LOST]);
        assert_eq!(codes(&scene, &scene.good_url(), 1), ["500"]);
    }
    assert_eq!(codes(&scene, &sick, 3), [LOST, LOST, LOST]);
    assert_eq!(codes(&scene, &scene.good_url(), 1), [OPEN]);
}

#[test]
fn one_delivery_tries_and_its_answer_closes_the_circuit() {
    let (scene, sick) = moody_scene("1ms");
    assert_eq!(codes(&scene, &scene.good_url(), 3), [LOST, LOST, LOST]);
    sick.store(false, Ordering::Relaxed);
    let deadline = Instant::now() + PATIENCE;
    while codes(&scene, &scene.good_url(), 1) == [OPEN] {
        assert!(Instant::now() < deadline, "it is never tried");
    }
    assert_eq!(codes(&scene, &scene.good_url(), 3), ["500", "500", "500"]);
    assert!(scene.outgate.admin("/metrics").text().contains("outgate_circuits_open 0"));
    scene
        .outgate
        .log
        .until("word of it", |lines| lines.iter().any(|line| line.contains("its circuit is closed")).then_some(()));
}

/// Where the total timeout is the shorter one, it says the same of a target that does not answer.
#[test]
fn a_target_that_keeps_everybody_waiting_to_the_end_is_left_alone() {
    let silent: Reaction = Arc::new(|_| {
        std::thread::sleep(PATIENCE); // longer than anybody waits
        (Vec::new(), false)
    });
    // Of which half is the target's, however busy this machine is.
    let scene =
        scene_with(silent, "[circuit]\nfailures = 2\nopen = \"1h\"\nopen_max = \"1h\"\n[timeouts]\ntotal = \"2s\"\n");
    assert_eq!(codes(&scene, &scene.good_url(), 3), ["response_timeout", "response_timeout", OPEN]);
}

/// A refusal that comes before the body is asked for costs no upload.
#[test]
fn nobody_sends_a_body_to_an_open_circuit() {
    let (scene, _sick) = moody_scene("1h");
    assert_eq!(codes(&scene, &scene.good_url(), 3), [LOST, LOST, LOST]);
    let mut client = scene.outgate.connect();
    let head = post(&scene.good_url(), "Expect: 100-continue\r\n", &"x".repeat(1000));
    client.send(&head[..head.len() - 1000]);
    assert_eq!(client.one_answer("POST").code(), OPEN);
}

#[test]
fn tunnels_are_counted_with_the_webhooks() {
    let played = played("[circuit]\nfailures = 2\nopen = \"1h\"\nopen_max = \"1h\"\n");
    let authority = played.authority();
    let Played { outgate, listener } = played;
    drop(listener);
    let code = |authority: &str| outgate.tunnel(authority, "").1.code().to_owned();
    for _ in 0..3 {
        assert_eq!(
            code("plain.example:1"),
            "target_port_forbidden",
            "what a client may not do says nothing of a target"
        );
    }
    assert_eq!(code(&authority), "connect_refused");
    assert_eq!(outgate.post(&format!("https://{authority}/in"), "", "x").code(), "connect_refused");
    assert_eq!(code(&authority), OPEN);
    assert_eq!(outgate.post(&format!("https://{authority}/in"), "", "x").code(), OPEN);
}
