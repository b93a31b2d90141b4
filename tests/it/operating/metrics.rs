//! The cost and the content of `/metrics`.
//! Does a scrape run on its own thread, and does it show only existing routes?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::fs;

use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder, scene};
use support::{Client, Outgate, eventually};

/// The number of routes. A refused delivery on each of them makes this many series.
const ROUTES: usize = 400;

#[test]
fn metrics_of_a_removed_route_are_dropped_on_reload() {
    let scene = scene();
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    let has = |route: &str| scene.outgate.admin("/metrics").text().contains(&format!("route=\"{route}\""));
    // A delivery is counted once its response has been sent.
    eventually("both routes are counted", || has("signed") && has("plain"));
    let renamed = config(&scene.good, &scene.plain, "").set("routes.plain.name", "other");
    scene.outgate.reconfigure(&renamed);
    assert!(has("signed") && !has("plain"), "{}", scene.outgate.admin("/metrics").text());
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    eventually("the renamed route is counted", || has("other"));
}

#[test]
fn metrics_are_rendered_on_a_thread_of_their_own() {
    let pki = Pki::new();
    let (target, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
    let routes: String =
        (0..ROUTES).map(|n| format!("[[routes]]\nname = \"r{n}\"\nhosts = [\"h{n}.acme.org\"]\n")).collect();
    let text = config(&target, &plain, "").add("server.workers", 1).and(&routes);
    let outgate = Outgate::run(folder(&pki), &text);
    let mut client = Client::connect(outgate.proxy);
    for n in 0..ROUTES {
        client.send(format!("GET https://h{n}.acme.org:8/ HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert_eq!(client.response().code(), "target_port_forbidden");
    }
    let spent = |name: &str| nanoseconds_of(&outgate, name);
    let before = (spent("outgate"), spent("metrics"));
    for _ in 0..10 {
        assert!(outgate.admin("/metrics").text().contains(&format!("route=\"r{}\"", ROUTES - 1)));
    }
    let (worker, metrics) = (spent("outgate") - before.0, spent("metrics") - before.1);
    assert!(metrics > worker, "{metrics} ns on its own thread, {worker} ns on the worker");
}

/// Returns the CPU time of a thread with this name (proc(5): /proc/pid/task/tid/schedstat).
fn nanoseconds_of(outgate: &Outgate, name: &str) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", outgate.pid())).unwrap();
    let paths = tasks.map(|task| task.unwrap().path());
    let path = paths.into_iter().find(|path| fs::read_to_string(path.join("comm")).unwrap().trim() == name);
    let spent = fs::read_to_string(path.expect(name).join("schedstat")).unwrap();
    spent.split(' ').next().unwrap().parse().unwrap()
}
