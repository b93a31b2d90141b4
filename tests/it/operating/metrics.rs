//! The cost and the content of `/metrics`.
//! Does a scrape run on its own thread, and does it show only existing routes?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::collections::BTreeMap;
use std::fs;

use jiff::Timestamp;
use support::pki::Pki;
use support::ports::refusing;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder, scene_of};
use support::scrape::Scrape;
use support::{Client, Outgate, eventually, post};

/// The number of routes, which is the most that may have their own series. A refused delivery on each makes a series.
const ROUTES: usize = 128;

#[test]
fn metrics_of_a_removed_route_are_dropped_on_reload() {
    let scene = scene_of(&|config| config.add("routes.signed.metrics", "own").add("routes.plain.metrics", "own"));
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    let has = |route: &str| scene.outgate.admin("/metrics").text().contains(&format!("route=\"{route}\""));
    // A delivery is counted once its response has been sent.
    eventually("both routes are counted", || has("signed") && has("plain"));
    let renamed = scene.outgate.config().set("routes.plain.name", "other");
    scene.outgate.reconfigure(&renamed);
    // The registry removes them soon after the adoption.
    eventually("the removed route is gone", || has("signed") && !has("plain"));
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    eventually("the renamed route is counted", || has("other"));
}

#[test]
fn metrics_are_rendered_on_a_thread_of_their_own() {
    let pki = Pki::new();
    let (target, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
    let routes: String = (0..ROUTES)
        .map(|n| format!("[[routes]]\nname = \"r{n}\"\nhosts = [\"h{n}.acme.org\"]\nmetrics = \"own\"\n"))
        .collect();
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

#[test]
fn metrics_of_a_route_are_shared_unless_it_asks_for_its_own() {
    let scene = scene_of(&|config| config.add("routes.signed.metrics", "own"));
    let signed = scene.outgate.post(&scene.good_url(), "", "x");
    assert_eq!(signed.status, 200);
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    assert_eq!(scene.outgate.post("http://nowhere.example/in", "", "x").code(), "no_route");
    scene.outgate.records(3);
    let scrape = Scrape::of(&scene.outgate);
    let routes = |labels: &[(&str, &str)]| {
        let samples = scrape.with("outgate_deliveries_total", labels);
        samples.map(|sample| (sample.labels["route"].clone(), sample.value)).collect::<Vec<_>>()
    };
    assert_eq!(routes(&[("code", "no_route"), ("blame", "client")]), [(String::new(), 1.0)]);
    assert_eq!(routes(&[("code", "delivered")]), [("*".to_owned(), 1.0), ("signed".to_owned(), 1.0)]);
    // The steps that the delivery took, each once.
    let steps = scrape.with("outgate_step_duration_seconds_count", &[("route", "signed")]);
    let steps: BTreeMap<&str, f64> = steps.map(|sample| (&*sample.labels["step"], sample.value)).collect();
    let taken = ["queue", "body", "dns", "connect", "tls", "sign", "first_byte"].map(|step| (step, 1.0));
    assert_eq!(steps, BTreeMap::from(taken));
    let total = |name: &str| scrape.value(&format!("outgate_delivery_duration_seconds_{name}"), &[("route", "signed")]);
    let record = scene.outgate.record_of(&signed);
    let milliseconds = record["ms"]["total"].as_f64().unwrap();
    assert_eq!(total("count"), Some(1.0));
    assert!((total("sum").unwrap() * 1000.0 - milliseconds).abs() < 0.002, "{:?}, {record}", total("sum"));
}

#[test]
fn metrics_of_limits_count_decisions_and_keys() {
    let limits = "[limits.few]\nrate = \"1/h\"\nburst = 2\nper = [\"host\"]\n\
                  [limits.slow]\nrate = \"20/m\"\nburst = 1\nwait = \"10s\"\n";
    let scene = scene_of(&|config| {
        config.and(limits).add("routes.plain.limits", ["few"]).add("routes.signed.limits", ["slow"])
    });
    let codes: Vec<String> =
        (0..3).map(|_| scene.outgate.post(&scene.plain_url(), "", "x").code().to_owned()).collect();
    assert_eq!(codes, ["", "", "rate_limited"]);
    // Both are sent before the limit allows another one.
    let mut paced = [(); 2].map(|()| scene.outgate.connect());
    paced.iter_mut().for_each(|client| client.send(post(&scene.good_url(), "", "x")));
    paced.iter_mut().for_each(|client| assert_eq!(client.response().status, 200));
    let scrape = Scrape::of(&scene.outgate);
    let decided = |limit: &str, result: &str| {
        scrape.value("outgate_limit_decisions_total", &[("limit", limit), ("result", result)])
    };
    let results = |limit| ["allowed", "paced", "refused"].map(|result| decided(limit, result).unwrap());
    assert_eq!((results("few"), results("slow")), ([2.0, 0.0, 1.0], [1.0, 1.0, 0.0]));
    assert_eq!(scrape.value("outgate_limit_keys", &[("limit", "few")]), Some(1.0));
    scene.outgate.wait_for_metric("outgate_limit_keys_near_full{limit=\"few\"} 1");
    let renamed = scene.outgate.config().remove("routes.plain.limits").remove("limits.few");
    scene.outgate.reconfigure(&renamed);
    eventually("the removed limit is gone", || !scene.outgate.admin("/metrics").text().contains("\"few\""));
}

#[test]
fn metrics_of_source_addresses_show_connections_ports_and_failures() {
    let scene = scene_of(&|config| config.set("egress.default.ranges", ["127.0.7.1/32"]));
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    let (_closed, closed) = refusing();
    scene.outgate.reconfigure(&scene.outgate.config().push("routes.plain.ports", closed));
    assert_eq!(scene.outgate.post(&format!("http://plain.example:{closed}/"), "", "x").code(), "connect_refused");
    scene.outgate.records(2);
    let scrape = Scrape::of(&scene.outgate);
    let source = [("pool", "default"), ("address", "127.0.7.1")];
    let attempts = |result| scrape.value("outgate_egress_connects_total", &[source[0], source[1], ("result", result)]);
    assert_eq!((attempts("connected"), attempts("refused")), (Some(1.0), Some(1.0)));
    let open = scrape.value("outgate_egress_connections", &[source[0], source[1], ("state", "open")]).unwrap();
    // Other tests leave from this address, too.
    assert!(open >= 1.0, "{open}");
    let (ports, left) = (
        scrape.value("outgate_egress_ports", &[]).unwrap(),
        scrape.value("outgate_egress_ports_left", &source).unwrap(),
    );
    assert!(left < ports && left > 0.0, "{left} of {ports}");
    let handshakes = scrape.with("outgate_target_tls_handshakes_total", &[("version", "TLSv1.3")]);
    assert_eq!(handshakes.map(|sample| sample.value).sum::<f64>(), 1.0);
    // An address that left the pool takes its series with it.
    scene.outgate.reconfigure(&scene.outgate.config().set("egress.default.ranges", ["127.0.7.2/32"]));
    eventually("its series are gone", || !scene.outgate.admin("/metrics").text().contains("127.0.7.1"));
}

#[test]
fn metrics_show_state_build_process_and_keys() {
    let until = Timestamp::from_second(Timestamp::now().as_second() + 90 * 86_400).unwrap();
    let scene = scene_of(&|config| {
        let keys = format!(
            "[signers.other]\nscheme = \"github\"\nkeys = [{{ id = \"k2\", secret = \"file:{{dir}}/key\", until = \"{until}\" }}]\n"
        );
        config.and(&keys).set("routes.signed.sign", ["platform", "other"])
    });
    let scrape = Scrape::of(&scene.outgate);
    let value = |name: &str| scrape.value(name, &[]);
    assert_eq!((value("outgate_ready"), value("outgate_draining")), (Some(1.0), Some(0.0)));
    assert_eq!(scrape.value("outgate_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), Some(1.0));
    let now = Timestamp::now().as_second() as f64;
    for time in ["outgate_config_adopted_timestamp_seconds", "process_start_time_seconds"] {
        assert!((now - value(time).unwrap()).abs() < 60.0, "{time}");
    }
    let ends: Vec<_> = scrape.with("outgate_signing_key_end_timestamp_seconds", &[]).collect();
    assert_eq!(ends.len(), 1, "the signer platform always has a key: {ends:?}");
    assert_eq!((&*ends[0].labels["signer"], ends[0].value as i64), ("other", until.as_second()));
    // What the kernel says of the process from outside.
    let status = fs::read_to_string(format!("/proc/{}/status", scene.outgate.pid())).unwrap();
    let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")).unwrap().trim();
    let threads: f64 = threads.parse().unwrap();
    // Threads for blocking work come and go.
    assert!((value("process_threads").unwrap() - threads).abs() < 4.0, "{threads}");
    let descriptors = fs::read_dir(format!("/proc/{}/fd", scene.outgate.pid())).unwrap().count() as f64;
    assert!((value("process_open_fds").unwrap() - descriptors).abs() < 4.0, "{descriptors}");
    assert!(value("process_max_fds").unwrap() >= descriptors);
    assert!(value("process_cpu_seconds_total").unwrap() > 0.0);
    assert!(value("process_resident_memory_bytes").unwrap() > 1e6);
    assert!(value("outgate_runtime_workers").unwrap() >= 1.0);
    assert!(value("outgate_runtime_tasks").unwrap() >= 1.0);
}

#[test]
fn metrics_do_not_grow_with_routes_that_share_their_series() {
    let pki = Pki::new();
    let (target, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
    let series_with = |routes: usize| {
        let text: String =
            (0..routes).map(|n| format!("[[routes]]\nname = \"r{n}\"\nhosts = [\"h{n}.acme.org\"]\n")).collect();
        let outgate = Outgate::run(folder(&pki), &config(&target, &plain, "").and(&text));
        for n in 0..routes.min(20) {
            let refused = outgate.post(&format!("https://h{n}.acme.org:8/"), "", "x");
            assert_eq!(refused.code(), "target_port_forbidden");
        }
        outgate.records(routes.min(20));
        Scrape::of(&outgate).samples.iter().filter(|sample| sample.name.starts_with("outgate_")).count()
    };
    assert_eq!(series_with(20), series_with(1000));
}
