//! Hints between the instances of a fleet: open circuits and suspected allow-list gaps.
//! Does an instance learn from others, and still decide by itself?

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use super::{Scenery, instance_with, wait_until_all_live, wait_until_up};
use crate::support::configuration::Config;
use crate::support::control;
use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok, respond_and_close};
use crate::support::scene::{Scene, folder};
use crate::support::store::{self, StoreServer};
use crate::support::{Outgate, eventually};

const CLOSING: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Starts an instance whose target `plain.example` is `target`, with these keys of the pool.
fn start(server: &StoreServer, name: &str, target: &Receiver, pool: &[(&str, toml::Value)]) -> Scene {
    let scenery = Scenery { pki: Pki::new(), good: Receiver::plain(ok()), plain: target.clone() };
    let folder = folder(&scenery.pki);
    let change = |config: &Config| {
        let circuit = "[circuit]\nfailures = 6\nwindow = \"1m\"\nopen = \"1m\"\n[timeouts]\nconnect = \"1s\"\n";
        let config = control::with_admin_socket(&config.and(circuit)).push("routes.plain.ports", 80);
        let config = config.push("routes.plain.ports", 81).remove("routes.plain.timeouts");
        pool.iter().fold(config, |config, (key, value)| match *key {
            "ranges" => config.set("egress.default.ranges", value),
            _ => config.add(&format!("egress.default.{key}"), value),
        })
    };
    instance_with(name, &format!("store = \"redis://127.0.0.1:{}\"", server.port), &change, folder, scenery)
}

fn hints(outgate: &Outgate, resource: &str) -> Vec<Value> {
    let report = control::get(outgate, resource).json();
    report["hints"].as_array().expect("an array").clone()
}

fn wait_for_hint(scene: &Scene, resource: &str) -> Value {
    eventually("a hint", || !hints(&scene.outgate, resource).is_empty());
    let [hint] = &hints(&scene.outgate, resource)[..] else { panic!("several hints") };
    hint.clone()
}

fn explain(scene: &Scene, url: &str) -> String {
    control::exit_code_and_output(&control::run(scene, &["explain", "POST", url, "--running"])).1
}

fn post(scene: &Scene, url: &str) -> String {
    scene.outgate.post(url, "", "x").code().to_owned()
}

/// No receiver has these ports.
const DOWN: &str = "http://plain.example/in";
const OTHER_DOWN: &str = "http://plain.example:81/in";

#[test]
fn fleet_circuit_hint_opens_a_circuit_after_fewer_failures_and_never_without_one() {
    if !store::is_installed() {
        return;
    }
    let (server, target) = (StoreServer::start(), Receiver::plain(ok()));
    let [first, second] = ["egress-1", "egress-2"].map(|name| start(&server, name, &target, &[]));
    wait_until_all_live(&[&first, &second]);
    // Failures count once in a fifth of a second.
    eventually("the circuit of the first instance is open", || post(&first, DOWN) == "target_circuit_open");
    let hint = wait_for_hint(&second, "/v1/circuits");
    assert_eq!((hint["instance"].as_str(), hint["source"].is_null()), (Some("egress-1"), true));
    assert!(hints(&first.outgate, "/v1/circuits").is_empty(), "an instance has no hints of its own");
    let explained = explain(&second, DOWN);
    assert!(
        explained.contains("egress-1 reports that the circuit of the target is open: it opens here after 2 failures")
    );
    assert!(!explain(&second, OTHER_DOWN).contains("reports"));

    assert_eq!(post(&second, DOWN), "connect_refused", "a hint is no verdict");
    let circuits = control::get(&second.outgate, "/v1/circuits").json();
    assert_eq!(circuits["circuits"][0]["reported_by"][0], "egress-1");
    let failures = |scene: &Scene, url: &str| {
        let mut failures = 0;
        eventually("the circuit is open", || {
            let is_open = post(scene, url) == "target_circuit_open";
            failures += usize::from(!is_open);
            is_open
        });
        failures
    };
    // A pause of more than a fifth of a second: the subject is the number of counted failures, and not of all.
    std::thread::sleep(Duration::from_millis(250));
    assert_eq!(failures(&second, DOWN), 1, "the second counted failure opens the circuit");
    assert!(failures(&second, OTHER_DOWN) >= 5, "without a hint, the threshold stays");

    let stored = server.cli(&["zrange", "outgate:{hints}", "0", "-1"]);
    assert!(stored.contains("egress-1") && !stored.contains("plain.example"), "{stored}");

    // The hints of an instance that is gone end.
    first.outgate.signal("KILL");
    eventually("no hint", || hints(&second.outgate, "/v1/circuits").is_empty());
}

#[test]
fn fleet_gap_hint_makes_an_instance_prefer_another_source() {
    if !store::is_installed() {
        return;
    }
    let (server, target) = (StoreServer::start(), Receiver::plain(respond_and_close(CLOSING)));
    let sticky = start(&server, "sticky", &target, &[]);
    let spread: [(&str, toml::Value); 2] = [("select", "spread".into()), ("failover", false.into())];
    let [first, second] = ["egress-1", "egress-2"].map(|name| start(&server, name, &target, &spread));
    wait_until_all_live(&[&sticky, &first, &second]);
    let url = sticky.plain_url();
    assert_eq!(sticky.outgate.post(&url, "", "x").status, 200);
    let gap = target.requests()[0].from.to_string();
    let only = [("ranges", toml::Value::from(vec![format!("{gap}/32")]))];
    let only = start(&server, "only", &target, &only);

    target.drop_packets_from(&[&gap]);
    eventually("the first instance suspects a gap", || {
        std::thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(|| post(&first, &url)))));
        first.outgate.has_metric("outgate_suspected_allow_list_gaps 1")
    });
    for scene in [&second, &sticky, &only] {
        let hint = wait_for_hint(scene, "/v1/egress");
        assert_eq!((hint["instance"].as_str(), hint["source"].as_str()), (Some("egress-1"), Some(&*gap)));
        let line = format!("egress-1 reports that the target does not respond to source {gap}");
        assert!(explain(scene, &url).contains(&line));
    }
    let sources = |scene: &Scene, count: usize| -> BTreeSet<String> {
        let before = target.requests().len();
        (0..count).for_each(|_| assert_eq!(scene.outgate.post(&url, "", "x").status, 200));
        target.requests()[before..].iter().map(|request| request.from.to_string()).collect()
    };
    let used = sources(&second, 8);
    assert!(used.len() == 3 && !used.contains(&gap), "{gap}: {used:?}");

    // The hint lasts for some seconds after the target has allowed the source. A sticky source and the only one serve.
    target.drop_packets_from(&[]);
    assert_eq!(sources(&sticky, 1), BTreeSet::from([gap.clone()]));
    assert_eq!(sources(&only, 1), BTreeSet::from([gap.clone()]));
    assert!(!hints(&only.outgate, "/v1/egress").is_empty());
}

#[test]
fn fleet_hints_that_are_garbage_are_ignored_and_bounded() {
    if !store::is_installed() {
        return;
    }
    let (server, target) = (StoreServer::start(), Receiver::plain(ok()));
    let hash = |number: usize| format!("{number:032x} - egress-9");
    let add = |members: &[String]| {
        for members in members.chunks(100) {
            let scored = members.iter().flat_map(|member| ["9999999999999", member]);
            let words: Vec<&str> = ["zadd", "outgate:{hints}"].into_iter().chain(scored).collect();
            assert_eq!(server.cli(&words).trim(), members.len().to_string());
        }
    };
    add(&["garbage".to_owned(), format!("{} {}", hash(0), "x".repeat(1000)), "x".repeat(100_000)]);
    add(&[hash(1)]);
    let scene = start(&server, "egress-1", &target, &[]);
    wait_until_up(&scene);
    assert_eq!(wait_for_hint(&scene, "/v1/circuits")["instance"], "egress-9");
    add(&(10..1000).map(hash).collect::<Vec<_>>());
    eventually("the store keeps 512 hints", || server.cli(&["zcard", "outgate:{hints}"]).trim() == "512");
    eventually("the instance has these", || hints(&scene.outgate, "/v1/circuits").len() > 500);

    // A key of another type is not an outage of the store.
    assert_eq!(server.cli(&["set", "outgate:{hints}", "x"]).trim(), "OK");
    eventually("no hint", || hints(&scene.outgate, "/v1/circuits").is_empty());
    assert!(scene.outgate.has_metric("outgate_fleet_store_errors_total 0"));
}
