//! Reload and drain of the real binary.
//! Does a change take effect at once, without an effect on other deliveries?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use support::configuration::Replace;
use support::law::{assert_law, delivered};
use support::receiver::{Reaction, Receiver, ok};
use support::scene::{config, scene, scene_with};
use support::{TEST_TIMEOUT, eventually, post};

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Returns a reaction that waits for a message, and the sender of the messages.
fn held() -> (Reaction, mpsc::Sender<()>) {
    let (release, wait) = mpsc::channel();
    let wait = Mutex::new(wait);
    let reaction: Reaction = Arc::new(move |_| {
        let _ = wait.lock().unwrap().recv_timeout(TEST_TIMEOUT);
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(), true)
    });
    (reaction, release)
}

#[test]
fn reload_rejects_an_invalid_configuration_and_reports_it_in_readyz_and_metrics() {
    let scene = scene();
    let text = config(&scene.good, &scene.plain, "").to_string();
    let connections = |count| assert_eq!(scene.good.connections(), count);
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    for broken in ["", "[server", &text.replace_all("hosts", "hots"), &text[..text.len() / 2]] {
        scene.outgate.reconfigure_to_rejection(broken);
        assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200, "{broken}");
        let ready = scene.outgate.admin("/readyz");
        assert!(ready.status == 200 && ready.text().contains("rejected"), "{}", ready.text());
        assert!(scene.outgate.admin("/metrics").text().contains("outgate_reload_failed 1"));
    }
    scene.outgate.reconfigure(&format!("{text}\n# better\n"));
    assert!(!scene.outgate.admin("/readyz").text().contains("rejected"));
    assert!(scene.outgate.admin("/metrics").text().contains("outgate_reload_failed 0"));
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    connections(1);
}

#[test]
fn watch_follows_secrets_and_symlinks() {
    let scene = scene();
    let folder = &scene.outgate.folder;
    scene.outgate.after_reload(|| drop(folder.write("key", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")));
    // Kubernetes mounts a ConfigMap so: the file is a link through a folder that is replaced.
    let text = folder.placed(&config(&scene.good, &scene.plain, ""));
    for (version, extra) in [("v1", "# one"), ("v2", "# two")] {
        scene.outgate.after_reload(|| {
            std::fs::create_dir(folder.path(version)).unwrap();
            std::fs::write(folder.path(version).join("config.toml"), format!("{text}\n{extra}\n")).unwrap();
            let _ = std::fs::remove_file(folder.path("..data_tmp"));
            std::os::unix::fs::symlink(version, folder.path("..data_tmp")).unwrap();
            std::fs::rename(folder.path("..data_tmp"), folder.path("..data")).unwrap();
            if version == "v1" {
                std::os::unix::fs::symlink("..data/config.toml", folder.path("link")).unwrap();
                std::fs::rename(folder.path("link"), folder.path("config.toml")).unwrap();
            }
        });
    }
    let write = |text: String| std::fs::write(folder.path("v2").join("config.toml"), text).unwrap();
    scene.outgate.after_reload(|| write(format!("{text}\n# three\n")));
    scene.outgate.after_reload(|| {
        scene.outgate.signal("HUP");
        write(format!("{text}\n# four\n"));
    });
}

#[test]
fn reload_leaves_a_delivery_in_flight_under_its_former_configuration() {
    let (reaction, release) = held();
    let scene = scene_with(reaction, "");
    let mut client = scene.outgate.connect();
    client.send(post(&scene.good_url(), "", "x"));
    wait_for_connection(&scene.good);
    let text = config(&scene.good, &scene.plain, "").set("routes.signed.hosts", ["other.example", "127.0.0.1"]);
    scene.outgate.reconfigure(&text);
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").code(), "no_route");
    release.send(()).unwrap();
    assert_eq!(client.response().status, 200);
}

fn wait_for_connection(receiver: &Receiver) {
    eventually("a connection to the target", || receiver.connections() > 0);
}

#[test]
fn drain_after_term_finishes_deliveries_and_exits_0() {
    let (reaction, release) = held();
    let mut scene = scene_with(reaction, "");
    let mut idle = scene.outgate.connect();
    let mut busy = scene.outgate.connect();
    busy.send(post(&scene.good_url(), "", "x"));
    wait_for_connection(&scene.good);
    scene.outgate.signal("TERM");
    scene.outgate.log.wait_for("the drain", |lines| lines.iter().any(|line| line.contains("draining")).then_some(()));
    assert!(idle.is_closed());
    let response = scene.outgate.post(&scene.good_url(), "", "x");
    assert_eq!((response.status, response.code(), response.field("connection")), (503, "draining", "close"));
    assert_eq!(scene.outgate.admin("/readyz").status, 503);
    release.send(()).unwrap();
    let response = busy.response();
    assert_eq!((response.status, response.field("connection")), (200, "close"));
    drop(busy);
    assert!(scene.outgate.wait().success());
    assert_eq!(scene.outgate.records(2).len(), 2);
}

#[test]
fn drain_timeout_ends_a_drain() {
    let (reaction, _never) = held();
    let mut scene = scene_with(reaction, "");
    scene.outgate.reconfigure(&config(&scene.good, &scene.plain, "").set("server.drain_timeout", "100ms"));
    let mut busy = scene.outgate.connect();
    busy.send(post(&scene.good_url(), "", "x"));
    wait_for_connection(&scene.good);
    scene.outgate.signal("INT");
    assert!(scene.outgate.wait().success());
    let records = scene.outgate.records(1);
    assert_eq!(records.len(), 1, "one delivery, one record, even if it is cut");
    assert_eq!(records[0]["code"], "draining");
}

/// Returns the resident memory in KiB and the number of open descriptors.
fn memory_and_descriptors(outgate: &support::Outgate) -> (usize, usize) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", outgate.pid())).unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let rss = rss.trim().trim_end_matches(" kB").parse().unwrap();
    (rss, std::fs::read_dir(format!("/proc/{}/fd", outgate.pid())).unwrap().count())
}

/// The test makes a hundred changes a second, for one second or, with all tests required, for ten.
#[test]
fn reloads_in_quick_succession_under_load_lose_no_delivery() {
    let scene = scene_with(ok(), "");
    let stop = AtomicBool::new(false);
    let rounds = if support::required() { 1000 } else { 100 };
    let text = scene.outgate.folder.placed(&config(&scene.good, &scene.plain, ""));
    let load = |streams: bool| {
        let (mut client, mut count) = (scene.outgate.connect(), 0);
        let upload = format!(
            "POST {} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            scene.plain_url()
        );
        while !stop.load(Ordering::Relaxed) {
            client.send(if streams { upload.clone() } else { post(&scene.good_url(), "", "{}") });
            assert_eq!(client.response().status, 200);
            count += 1;
        }
        count
    };
    let reloads = || scene.outgate.reloads();
    let (before, sent): (_, usize) = std::thread::scope(|scope| {
        let load = &load;
        let threads: Vec<_> = (0..8).map(|number| scope.spawn(move || load(number % 4 == 0))).collect();
        let (mut before, deadline) = ((0, 0), Instant::now() + 3 * TEST_TIMEOUT);
        for round in 0.. {
            // A busy machine may adopt several changes at once, so the changes continue until enough reloads have happened.
            if round >= rounds && (reloads() > rounds / 10 || Instant::now() > deadline) {
                break;
            }
            scene.outgate.folder.write("next", format!("{text}\n# {round}\n"));
            std::fs::rename(scene.outgate.folder.path("next"), scene.outgate.folder.path("config.toml")).unwrap();
            scene.outgate.signal("HUP");
            std::thread::sleep(std::time::Duration::from_millis(10)); // the interval of the changes
            if round == rounds / 4 {
                before = memory_and_descriptors(&scene.outgate);
            }
        }
        let after = memory_and_descriptors(&scene.outgate);
        stop.store(true, Ordering::Relaxed);
        let sent = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert!(after.0 < before.0 + 16 * 1024, "{} KiB became {} KiB", before.0, after.0);
        assert!(after.1 <= before.1 + 4, "{} descriptors became {}", before.1, after.1);
        (before, sent)
    });
    assert!(before.0 > 0);
    assert_law(&scene.outgate, &delivered(sent));
    assert!(scene.good.connections() <= 8, "connections outlive a reload: {}", scene.good.connections());
    assert!(reloads() > rounds / 10, "{} changes were seen one by one", reloads());
}

/// The writes never pause long enough for the debounce.
#[test]
fn watch_loads_a_file_that_is_rewritten_continuously() {
    let scene = scene();
    let text = config(&scene.good, &scene.plain, "");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let next = text.set("server.drain_timeout", format!("{}s", 10 + number % 50));
                let next = scene.outgate.folder.write_config("config.toml.new", &next);
                std::fs::rename(next, scene.outgate.folder.path("config.toml")).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(50)); // the interval of the writes
            }
        });
        let read = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            scene.outgate.log.wait_for_lines(2, &["configuration reloaded"]);
        }));
        stop.store(true, Ordering::Relaxed);
        read.unwrap();
    });
}
