//! `outgate fleet move`: ranges that an operator assigns to one instance.
//! Does one instance alone send from an assigned range, and never from an address that its host does not have?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Scenery, instance, instance_with, restarted, wait_until_all_live, wait_until_stored};
use crate::support::audit::until_recorded;
use crate::support::configuration::{Config, token_hash};
use crate::support::control::{exit_code_and_output, get, run, with_admin_socket};
use crate::support::pki::Pki;
use crate::support::receiver::{Reaction, Receiver, ok};
use crate::support::scene::{Scene, folder};
use crate::support::store::{self, StoreServer};
use crate::support::{Client, TEST_TIMEOUT, eventually, post};

fn fleet_of(server: &StoreServer) -> String {
    format!("store = \"redis://127.0.0.1:{}\"", server.port)
}

/// Starts two instances whose hosts have the range. Each test has its own, because the kernel counts the connections of all
/// processes of a host.
fn two_instances(server: &StoreServer, range: &str) -> [Scene; 2] {
    let scenes = ["egress-1", "egress-2"].map(|name| {
        instance(name, &fleet_of(server), &|config: &Config| {
            let config = with_admin_socket(&config.set("egress.default.ranges", [range]));
            let config = config.add("server.state", "{dir}/state");
            config.add("egress.default.select", "spread").add("audit.file", "{dir}/audit.jsonl")
        })
    });
    wait_until_all_live(&[&scenes[0], &scenes[1]]);
    scenes
}

/// Returns how an instance has its first range, as another one shows it.
fn range_of(shown_by: &Scene, instance: &str) -> Value {
    let status = get(&shown_by.outgate, "/v1/fleet").json();
    let hosts = status["ranges"][0]["hosts"].as_array().unwrap_or_else(|| panic!("{status}"));
    hosts.iter().find(|host| host["instance"] == instance).cloned().unwrap_or_default()
}

pub(super) fn wait_for(shown_by: &Scene, instance: &str, state: &str, usable: &str) {
    eventually(&format!("{instance} has {usable} addresses, {state}"), || {
        let range = range_of(shown_by, instance);
        range["state"] == state && range["usable"] == usable
    });
}

fn wait_for_status(shown_by: &Scene) {
    eventually("the store has answered", || get(&shown_by.outgate, "/v1/fleet").status == 200);
}

pub(super) fn assign(scene: &Scene, words: &[&str]) {
    let (code, _, error) = exit_code_and_output(&run(scene, &[&["fleet", "move"], words].concat()));
    assert_eq!(code, 0, "{error}");
}

/// Sends deliveries, and returns the last octets of their source addresses.
fn sources(scene: &Scene) -> BTreeSet<String> {
    let sent = (0..8).map(|_| scene.outgate.post(&scene.plain_url(), "Connection: close\r\n", "x"));
    let source = |response: crate::support::Response| {
        assert_eq!(response.status, 200, "{}", response.text());
        scene.outgate.record_of(&response)["source"].as_str().unwrap().to_owned()
    };
    sent.map(source).collect()
}

#[test]
fn assigned_range_is_used_by_its_instance_alone_until_it_is_released() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let [first, second] = two_instances(&server, "127.0.60.0/30");
    assert_eq!(sources(&first).len(), 4, "each instance uses what its host has");
    // Any instance takes the command.
    let asked = Instant::now();
    assign(&second, &["127.0.60.0/31", "--to", "egress-2"]);
    wait_for(&second, "egress-1", "free", "0");
    wait_for(&first, "egress-2", "active", "2");
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    assert_eq!(sources(&first), ["127.0.60.2", "127.0.60.3"].map(str::to_owned).into());
    assert_eq!(sources(&second).len(), 4);
    let explained = exit_code_and_output(&run(&first, &["explain", "POST", &first.plain_url(), "--running"])).1;
    let expected = "2 of 4 addresses usable, because 2 are assigned to other instances of the fleet";
    assert!(explained.contains(expected), "{explained}");
    let alert = "the pool default has 2 usable addresses of 4, because 2 are assigned to other instances of the fleet";
    eventually("the alert has the reason", || get(&first.outgate, "/v1/status").text().contains(alert));
    let status = get(&first.outgate, "/v1/fleet").json();
    assert_eq!(status["assignments"], json!([{ "range": "127.0.60.0/31", "instance": "egress-2" }]));
    let rest = &status["ranges"][1];
    assert_eq!((&rest["range"], &rest["hosts"][0]["state"]), (&json!("127.0.60.2/31"), &json!("active")), "{status}");
    assert_eq!((&rest["hosts"][0]["instance"], &rest["hosts"][0]["usable"]), (&json!("egress-1"), &json!("2")));
    let claimed = status["problems"].as_array().unwrap().iter().find(|found| found["problem"] == "range_claimed_twice");
    assert_eq!(claimed.unwrap()["subject"], "127.0.60.2/31", "{status}");
    let record = until_recorded(&second.outgate, "address.assigned", 1).remove(0);
    assert_eq!((&record["resource_sid"], &record["event_data"]["to"]), (&json!("127.0.60.0/31"), &json!("egress-2")));
    assert!(record["actor_sid"].as_str().is_some_and(|name| !name.is_empty()), "{record}");

    // A reload keeps the assignment.
    first.outgate.folder.write_config("config.toml", &first.outgate.config().set("egress.default.select", "random"));
    assert!(run(&first, &["reload"]).status.success());
    assert!(sources(&first).iter().all(|source| source == "127.0.60.2" || source == "127.0.60.3"));

    assign(&first, &["127.0.60.0/31", "--release"]);
    wait_for(&second, "egress-1", "active", "4");
    until_recorded(&first.outgate, "address.released", 1);
    eventually("all addresses are used again", || sources(&first).contains("127.0.60.0"));
}

/// Returns an instance whose target over TLS responds when the test sends a message.
fn held_instance(name: &str, server: &StoreServer, range: &str) -> (Scene, Sender<()>) {
    let (release, wait) = channel();
    let wait = Mutex::new(wait);
    let held: Reaction = Arc::new(move |_| {
        let _ = wait.lock().unwrap().recv_timeout(TEST_TIMEOUT);
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(), true)
    });
    let pki = Pki::new();
    let good = Receiver::tls(pki.leaf(&["hook.example"]), held);
    let plain = Receiver::plain(ok());
    let folder = folder(&pki);
    let change = |config: &Config| with_admin_socket(&config.set("egress.default.ranges", [range]));
    (instance_with(name, &fleet_of(server), &change, folder, Scenery { pki, good, plain }), release)
}

#[test]
fn instance_that_loses_a_range_finishes_its_deliveries_and_begins_none() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let [(first, release), (second, _)] =
        ["egress-1", "egress-2"].map(|name| held_instance(name, &server, "127.0.61.0/30"));
    wait_until_all_live(&[&first, &second]);
    assert_eq!(first.outgate.post(&first.plain_url(), "", "x").status, 200, "its connection is kept");
    let mut client: Client = first.outgate.connect();
    client.send(post(&first.good_url(), "", "x"));
    eventually("the delivery is at its target", || first.good.connections() == 1);
    first.outgate.wait_for_metric("outgate_deliveries_in_flight 1");
    assign(&second, &["127.0.61.0/30", "--to", "egress-2"]);
    wait_for(&second, "egress-1", "draining", "0");
    wait_for(&second, "egress-2", "active", "4");
    first.outgate.wait_for_metric("outgate_idle_target_connections 0");
    let refused = first.outgate.post(&first.plain_url(), "", "x");
    assert_eq!((refused.status, refused.code()), (503, "no_egress"), "{}", refused.text());
    release.send(()).unwrap();
    assert_eq!(client.response().status, 200, "the delivery in flight finishes");
    wait_for(&second, "egress-1", "free", "0");
    assert_eq!(second.outgate.post(&second.plain_url(), "", "x").status, 200);
}

#[test]
fn assigned_range_waits_for_an_instance_that_does_not_answer_until_its_lease_ends() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let [first, second] = two_instances(&server, "127.0.62.0/30");
    first.outgate.signal("STOP");
    assign(&second, &["127.0.62.0/30", "--to", "egress-2"]);
    wait_for(&second, "egress-2", "waiting", "0");
    assert_eq!(second.outgate.post(&second.plain_url(), "", "x").code(), "no_egress");
    wait_for(&second, "egress-2", "active", "4");
    assert_eq!(second.outgate.post(&second.plain_url(), "", "x").status, 200);
    first.outgate.signal("CONT");
    // The kernel shows it the connections of the other process, too.
    eventually("egress-1 follows", || range_of(&second, "egress-1")["usable"] == "0");
}

#[test]
fn assignments_hold_while_the_store_is_away_and_return_to_one_without_data() {
    if !store::is_installed() {
        return;
    }
    let mut server = StoreServer::start();
    let [first, second] = two_instances(&server, "127.0.63.0/30");
    assign(&first, &["127.0.63.0/30", "--to", "egress-2"]);
    wait_for(&first, "egress-1", "free", "0");
    server.kill();
    first.outgate.wait_for_metric("outgate_fleet_store_up{} 0");
    assert_eq!(first.outgate.post(&first.plain_url(), "", "x").code(), "no_egress");
    server.restart_empty();
    for scene in [&first, &second] {
        scene.outgate.wait_for_metric("outgate_fleet_store_up{} 1");
        wait_for_status(scene);
    }
    let version = || server.cli(&["hget", "outgate:{instances}:state", "assignments"]);
    eventually("the store has the assignment again", || version().contains("127.0.63.0/30"));
    wait_for(&second, "egress-1", "free", "0");
    wait_for(&second, "egress-2", "active", "4");
    assert_eq!(first.outgate.post(&first.plain_url(), "", "x").code(), "no_egress");
    assert_eq!(second.outgate.post(&second.plain_url(), "", "x").status, 200);
}

#[test]
fn assignments_hold_after_a_restart_while_the_store_is_away() {
    if !store::is_installed() {
        return;
    }
    let mut server = StoreServer::start();
    let [first, second] = two_instances(&server, "127.0.67.0/30");
    assign(&first, &["127.0.67.0/31", "--to", "egress-2"]);
    wait_for(&first, "egress-1", "free", "0");
    wait_for(&first, "egress-2", "active", "2");
    for scene in [&first, &second] {
        wait_until_stored(scene, "\"127.0.67.0/31\":\"egress-2\"}},\"awaited\":[]");
    }
    server.kill();
    let [first, second] = [first, second].map(restarted);
    assert_eq!(sources(&first), ["127.0.67.2", "127.0.67.3"].map(str::to_owned).into());
    assert_eq!(sources(&second).len(), 4, "it had begun to use its range before");
    first.outgate.log.wait_for_lines(1, &["the fleet had 2 live instances and 1 assigned range "]);
    // The store has lost its data, and every process that has asked it is gone.
    server.restart_empty();
    wait_for_status(&second);
    // The kernel shows egress-1 the connections of the other process, too.
    eventually("egress-1 has left the range", || range_of(&second, "egress-1")["usable"] == "0");
    wait_for(&second, "egress-2", "active", "2");
    assert_eq!(sources(&first).len(), 2);
    // The store has newer ones.
    assign(&second, &["127.0.67.0/31", "--release"]);
    wait_for(&second, "egress-1", "active", "4");
}

/// The state folder may come from a backup, and so may the data of the store.
#[test]
fn assignments_of_the_store_replace_those_before_a_restart_also_if_they_are_older() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let [mut first, second] = two_instances(&server, "127.0.68.0/30");
    assign(&first, &["127.0.68.0/30", "--to", "egress-2"]);
    wait_until_stored(&first, "127.0.68.0/30");
    first.outgate.signal("KILL");
    first.outgate.wait();
    drop(second);
    let document = "{\"version\":7,\"ranges\":{\"127.0.68.0/31\":\"egress-2\"}}";
    server.cli(&["hset", "outgate:{instances}:state", "assignments_version", "7", "assignments", document]);
    let first = restarted(first);
    wait_for_status(&first);
    wait_for(&first, "egress-1", "free", "0");
    assert_eq!(sources(&first), ["127.0.68.2", "127.0.68.3"].map(str::to_owned).into());
    assert_eq!(server.cli(&["hget", "outgate:{instances}:state", "assignments_version"]).trim(), "7");
    wait_until_stored(&first, "\"version\":7");
}

#[test]
fn hostile_documents_in_the_store_take_no_address_away() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let [first, second] = two_instances(&server, "127.0.66.0/30");
    let state = "outgate:{instances}:state";
    // A long announcement, and one that is none.
    server.cli(&["zadd", "outgate:{instances}", "9e15", "long", "9e15", "none"]);
    let write = "return redis.call('HSET', KEYS[1], 'long', string.rep('x', 300000), 'none', '[1]')";
    assert_eq!(server.cli(&["eval", write, "1", "outgate:{instances}:announcements"]).trim(), "2");
    for (announced, version) in
        [("9007199254740991", "18446744073709551615"), ("9007199254740991", "9007199254740991"), ("later", "7")]
    {
        let document = format!("{{\"version\":{version},\"ranges\":{{\"0.0.0.0/0\":\"nobody\"}}}}");
        server.cli(&["hset", state, "assignments_version", announced, "assignments", &document]);
        server.cli(&["hset", state, "observer_until", "never"]);
        // Each instance has announced itself twice, and so has seen it.
        std::thread::sleep(Duration::from_millis(2500));
        assert_eq!(sources(&first).len(), 4, "{announced}");
        for scene in [&first, &second] {
            assert!(scene.outgate.has_metric("outgate_fleet_store_up{} 1"), "{announced}");
        }
    }
    assert_eq!(get(&first.outgate, "/v1/fleet").json()["instances"].as_array().unwrap().len(), 2);
    // An operator replaces it. The new instance waits while a process cannot be understood.
    assign(&first, &["127.0.66.0/31", "--to", "egress-2"]);
    wait_for(&second, "egress-1", "free", "0");
    wait_for(&second, "egress-2", "waiting", "0");
    server.cli(&["zrem", "outgate:{instances}", "long", "none"]);
    wait_for(&second, "egress-2", "active", "2");
}

#[test]
fn assignment_gives_no_instance_an_address_that_its_host_lacks() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    // No host of this test has this range.
    let [first, second] = ["egress-1", "egress-2"].map(|name| {
        instance(name, &fleet_of(&server), &|config: &Config| {
            with_admin_socket(&config.set("egress.default.ranges", ["127.0.64.0/30", "198.51.100.16/28"]))
        })
    });
    wait_until_all_live(&[&first, &second]);
    assign(&first, &["198.51.100.16/28", "--to", "egress-2"]);
    let missing = || {
        let status = get(&first.outgate, "/v1/fleet").json();
        let hosts = status["ranges"][1]["hosts"].clone();
        assert_eq!((&status["ranges"][1]["range"], hosts), (&json!("198.51.100.16/28"), json!([])), "{status}");
        status["problems"].as_array().unwrap().iter().any(|found| found["subject"] == "198.51.100.16/28")
    };
    eventually("the range has no host", missing);
    assert!(sources(&second).iter().all(|source| source.starts_with("127.0.64.")));
}

#[test]
fn fleet_move_needs_an_operator_a_live_instance_and_a_published_range() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let user = |name: &str| {
        let hash = token_hash(&format!("{name}-token"));
        format!("[admin.users.{name}]\nrole = \"{name}\"\ntokens = [\"{hash}\"]\n")
    };
    let scene = instance("egress-1", &fleet_of(&server), &|config: &Config| {
        let config = with_admin_socket(&config.set("egress.default.ranges", ["127.0.65.0/30"]));
        let config = config.add("audit.file", "{dir}/audit.jsonl");
        config.and(&user("viewer")).and(&user("operator"))
    });
    let other = instance("egress-2", &fleet_of(&server), &|config: &Config| config.clone());
    wait_until_all_live(&[&scene, &other]);
    let call = |path: &str, user: &str| {
        let mut client = Client::connect(scene.outgate.admin);
        let credential = format!("Authorization: Bearer {user}-token\r\nContent-Type: application/json\r\n");
        client.send(format!("POST {path} HTTP/1.1\r\nHost: localhost\r\n{credential}Content-Length: 0\r\n\r\n"));
        client.response()
    };
    let path = "/v1/fleet/move?range=127.0.65.0/30&to=egress-1";
    assert_eq!(call(path, "viewer").status, 403);
    assert_eq!(call(path, "operator").status, 200);
    let record = until_recorded(&scene.outgate, "address.assigned", 1).remove(0);
    assert!(record["actor_sid"].as_str().unwrap().contains("operator"), "{record}");
    for (words, error) in [
        (&["127.0.65.0/30", "--to", "egress-9"][..], "no live instance has this name"),
        (&["203.0.113.0/28", "--to", "egress-1"], "no instance publishes this range"),
        (&["127.0.65.0/30", "--to", "egress-2"], "the file of egress-2 does not list the range"),
        (&["127.0.65.0/31", "--to", "egress-1"], "127.0.65.0/30 is assigned, and overlaps it"),
        (&["127.0.65.0/31", "--release"], "this range is not assigned"),
        (&["127.0.65.1/30", "--to", "egress-1"], "write a published range"),
    ] {
        let (code, _, shown) = exit_code_and_output(&run(&scene, &[&["fleet", "move"], words].concat()));
        assert!(code == 69 && shown.contains(error), "{words:?}: {code} {shown}");
    }
    let (code, ..) = exit_code_and_output(&run(&scene, &["fleet", "move", "127.0.65.0/30"]));
    assert_eq!(code, 2, "neither --to nor --release");
}
