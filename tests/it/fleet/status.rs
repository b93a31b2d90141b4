//! `outgate fleet status`: the instances of a fleet, their ranges and their problems, as each of them shows them.
//! Does an operator see the whole fleet, and does one instance watch it for all?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{instance, wait_until_all_live, wait_until_up};
use crate::support::configuration::Config;
use crate::support::control::{exit_code_and_output, get, json, run, with_admin_socket};
use crate::support::namespace::{self, inside_namespace};
use crate::support::scene::Scene;
use crate::support::store::{self, StoreServer};
use crate::support::{Folder, Outgate, eventually};

fn fleet_of(server: &StoreServer) -> String {
    format!("store = \"redis://127.0.0.1:{}\"", server.port)
}

/// Returns the fleet as an instance with an admin socket shows it.
fn status(outgate: &Outgate) -> Value {
    get(outgate, "/v1/fleet").json()
}

/// Returns the subjects of the problems of one kind.
fn subjects(status: &Value, kind: &str) -> Vec<String> {
    let problems = status["problems"].as_array().unwrap_or_else(|| panic!("{status}"));
    let of_kind = problems.iter().filter(|problem| problem["problem"] == kind);
    of_kind.map(|problem| problem["subject"].as_str().unwrap().to_owned()).collect()
}

fn has_problems(scene: &Scene, kind: &str, count: usize) -> bool {
    scene.outgate.has_metric(&format!("outgate_fleet_problems{{problem=\"{kind}\"}} {count}"))
}

fn is_observer(scene: &Scene) -> bool {
    scene.outgate.admin("/metrics").text().contains("outgate_fleet_problems{")
}

#[test]
fn fleet_status_shows_instances_ranges_problems_and_a_store_that_is_away() {
    if !store::is_installed() {
        return;
    }
    let mut server = StoreServer::start();
    let [first, second] = ["egress-1", "egress-2"].map(|name| {
        let ranges = if name == "egress-1" { &["127.0.7.0/30", "198.51.100.0/28"][..] } else { &["127.0.7.2/31"] };
        instance(name, &fleet_of(&server), &|config: &Config| {
            with_admin_socket(&config.set("egress.default.ranges", ranges))
        })
    });
    wait_until_all_live(&[&first, &second]);
    let status = json(&run(&first, &["fleet", "status", "--json"]));
    assert_eq!(status["instance"], "egress-1", "{status}");
    let names: Vec<_> = status["instances"].as_array().unwrap().iter().map(|found| &found["instance"]).collect();
    assert_eq!(names, ["egress-1", "egress-2"], "{status}");
    let own = json(&run(&first, &["status", "--json"]));
    let shown = &status["instances"][0];
    assert_eq!((&shown["digest"], &shown["version"]), (&own["configuration"]["digest"], &own["version"]), "{status}");
    assert_eq!((&shown["ready"], &shown["started"]), (&json!(true), &own["started"]), "{status}");
    assert_eq!(status["ranges"][0]["range"], "127.0.7.0/30", "{status}");
    assert_eq!(status["ranges"][0]["hosts"][0]["usable"], "4", "{status}");
    assert_eq!(status["ranges"][2], json!({ "range": "198.51.100.0/28", "hosts": [] }), "{status}");
    assert_eq!(subjects(&status, "range_without_host"), ["198.51.100.0/28"]);
    assert_eq!(subjects(&status, "range_claimed_twice"), ["127.0.7.2/31"]);
    assert_eq!(subjects(&status, "range_not_on_host"), ["egress-1 198.51.100.0/28"]);
    eventually("the observer raises the alert", || {
        let has_alert =
            |scene: &&Scene| scene.outgate.has_metric("outgate_alerts{name=\"OutgateFleetRangeNotOnHost\"} 1");
        [&first, &second].into_iter().find(has_alert).is_some_and(|scene| has_problems(scene, "range_not_on_host", 1))
    });
    assert_eq!(subjects(&status, "configuration_differs").len(), 1);

    let (code, shown, _) = exit_code_and_output(&run(&second, &["fleet", "status"]));
    assert_eq!(code, 1, "{shown}");
    assert!(shown.contains("problem: no instance has 198.51.100.0/28"), "{shown}");
    let page = get(&second.outgate, "/").text();
    for shown in
        ["no instance has 198.51.100.0/28", "egress-1 lists 198.51.100.0/28", "egress-1", "127.0.7.2/31", "active"]
    {
        assert!(page.contains(shown), "the page has no {shown}: {page}");
    }

    server.kill();
    second.outgate.wait_for_metric("outgate_fleet_store_up{} 0");
    let (code, _, error) = exit_code_and_output(&run(&second, &["fleet", "status"]));
    assert_eq!(code, 69, "{error}");
    assert!(error.contains("the store of the fleet has been away for"), "{error}");
    // The first error may be that of a connection that has ended.
    let refused = format!("127.0.0.1:{}: Connection refused", server.port);
    eventually(&refused, || exit_code_and_output(&run(&second, &["fleet", "status"])).2.contains(&refused));
}

#[test]
fn fleet_status_without_a_fleet_is_an_error() {
    let scene = crate::support::scene::scene_of(&with_admin_socket);
    let (code, _, error) = exit_code_and_output(&run(&scene, &["fleet", "status"]));
    assert_eq!((code, error.trim()), (69, "outgate: the active configuration has no [fleet]"));
}

/// Starts a further process with the configuration of an instance, whose files it shares.
fn sibling(scene: &Scene, name: &str) -> Outgate {
    let config = scene.outgate.config().set("fleet.instance", name);
    Outgate::run(Folder::linked(&scene.outgate.folder), &config)
}

#[test]
fn fleet_compares_configurations_without_the_names_of_the_instances() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let unwatched = |config: &Config| config.add("server.watch", false);
    let first = instance("egress-1", &fleet_of(&server), &unwatched);
    let _second = sibling(&first, "egress-2");
    let third = instance("egress-3", &fleet_of(&server), &with_admin_socket);
    let differing = || subjects(&status(&third.outgate), "configuration_differs");
    eventually("three instances", || status(&third.outgate)["instances"].as_array().is_some_and(|all| all.len() == 3));
    assert_eq!(differing(), ["egress-3"]);
}

#[test]
fn fleet_reports_two_processes_with_one_name_while_both_run() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let first = instance("egress-1", &fleet_of(&server), &|config| config.add("server.watch", false));
    let watcher = instance("egress-2", &fleet_of(&server), &with_admin_socket);
    let duplicates = || subjects(&status(&watcher.outgate), "duplicate_instance");
    eventually("two instances", || status(&watcher.outgate)["instances"].as_array().is_some_and(|all| all.len() == 2));
    let double = sibling(&first, "egress-1");
    eventually("the second process is reported", || duplicates() == ["egress-1"]);
    first.outgate.signal("KILL");
    eventually("one process is left", || duplicates().is_empty());
    // A process that follows one that was killed is no duplicate.
    double.signal("KILL");
    let _successor = sibling(&first, "egress-1");
    let count = |status: &Value| status["instances"].as_array().map_or(0, Vec::len);
    let mut seen = Vec::new();
    eventually("the lease of the killed process ends", || {
        let status = status(&watcher.outgate);
        seen.extend(subjects(&status, "duplicate_instance"));
        count(&status) == 2 && status["instances"][0]["clock_offset_ms"].is_number()
    });
    assert!(seen.is_empty(), "{seen:?}");
}

#[test]
fn change_of_readiness_is_announced_at_once() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let [first, second] = ["egress-1", "egress-2"].map(|name| instance(name, &fleet_of(&server), &with_admin_socket));
    wait_until_all_live(&[&first, &second]);
    let mut took = Duration::ZERO;
    for round in 0..6 {
        let (command, blocked) = if round % 2 == 0 { ("drain", json!(["draining"])) } else { ("undrain", json!([])) };
        assert!(run(&first, &[command]).status.success());
        let asked = Instant::now();
        eventually("the change is announced", || status(&second.outgate)["instances"][0]["blocked"] == blocked);
        took += asked.elapsed();
    }
    // At the ticks alone, six changes would take three seconds on average.
    assert!(took < Duration::from_millis(1500), "{took:?}");
}

#[test]
fn fleet_has_one_observer_whose_death_another_instance_notices() {
    if !store::is_installed() {
        return;
    }
    let mut server = StoreServer::start();
    let scenes = ["egress-1", "egress-2"].map(|name| instance(name, &fleet_of(&server), &with_admin_socket));
    wait_until_all_live(&[&scenes[0], &scenes[1]]);
    let claimed = |scene: &Scene| has_problems(scene, "range_claimed_twice", 1);
    eventually("the observer sees the problem", || scenes.iter().any(claimed));
    assert_eq!(scenes.iter().filter(|scene| is_observer(scene)).count(), 1);
    let observer = scenes.iter().find(|scene| is_observer(scene)).unwrap();
    observer.outgate.wait_for_metric("outgate_alerts{name=\"OutgateFleetRangeClaimedTwice\"} 1");
    observer.outgate.wait_for_metric("outgate_alerts{name=\"OutgateFleetInstanceDiffers\"} 1");
    let other = scenes.iter().find(|scene| !is_observer(scene)).unwrap();
    assert!(other.outgate.has_metric("outgate_alerts{name=\"OutgateFleetRangeClaimedTwice\"} 0"));

    // A store without data has no observer and no announcements: both return.
    server.kill();
    scenes.iter().for_each(|scene| scene.outgate.wait_for_metric("outgate_fleet_store_up{} 0"));
    assert!(!scenes.iter().any(is_observer), "without the store, no instance knows the problems");
    server.restart_empty();
    scenes.iter().for_each(wait_until_up);
    eventually("an observer returns", || scenes.iter().filter(|scene| is_observer(scene)).count() == 1);
    eventually("the problem is seen again", || scenes.iter().any(claimed));

    let observer = scenes.iter().position(is_observer).unwrap();
    scenes[observer].outgate.signal("KILL");
    let killed = Instant::now();
    eventually("the other instance observes", || is_observer(&scenes[1 - observer]));
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    eventually("one instance claims its range alone", || has_problems(&scenes[1 - observer], "range_claimed_twice", 0));
}

#[test]
fn fleet_status_reads_a_cluster() {
    if !store::is_installed() {
        return;
    }
    let nodes = store::cluster();
    let fleet = format!("store = \"redis-cluster://127.0.0.1:{}\"\ntimeout = \"2s\"", nodes[0].port);
    let [first, second] = ["egress-1", "egress-2"].map(|name| instance(name, &fleet, &with_admin_socket));
    wait_until_all_live(&[&first, &second]);
    let status = json(&run(&second, &["fleet", "status", "--json"]));
    assert_eq!(status["instances"].as_array().map(Vec::len), Some(2), "{status}");
    assert_eq!(subjects(&status, "range_claimed_twice"), ["127.0.7.0/30"]);
}

#[test]
fn no_announcement_has_addresses_that_the_host_lacks() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let tap = server.wiretap();
    let scene = instance("egress-1", &format!("store = \"redis://{}\"", tap.address), &|config: &Config| {
        config.set("egress.default.ranges", ["198.51.100.16/28"])
    });
    wait_until_all_live(&[&scene]);
    let sent = tap.traffic().iter().map(|one| String::from_utf8_lossy(&one.sent).into_owned()).collect::<String>();
    let counts: BTreeSet<_> = sent.split("\"present\":").skip(1).filter_map(|rest| rest.split(',').next()).collect();
    assert_eq!(counts, ["\"0\""].into(), "the first announcement included");
}

#[test]
fn addresses_that_the_host_gains_or_loses_are_announced_within_a_second() {
    let path = "fleet::status::addresses_that_the_host_gains_or_loses_are_announced_within_a_second";
    if !store::is_installed() || !inside_namespace(path) {
        return;
    }
    namespace::run("ip address add 198.51.100.16/32 dev lo");
    let server = StoreServer::start();
    let ranges = |config: &Config| with_admin_socket(&config.set("egress.default.ranges", ["198.51.100.16/31"]));
    let [_first, second] = ["egress-1", "egress-2"].map(|name| instance(name, &fleet_of(&server), &ranges));
    let usable = || status(&second.outgate)["ranges"][0]["hosts"][0]["usable"].clone();
    eventually("the first address is announced", || usable() == "1");
    let mut took = Duration::ZERO;
    for (command, expected) in [
        ("add 198.51.100.17/32", json!("2")),
        ("del 198.51.100.16/32", json!("1")),
        ("del 198.51.100.17/32", Value::Null),
        ("add 198.51.100.17/32", json!("1")),
    ] {
        namespace::run(&format!("ip address {command} dev lo"));
        let changed = Instant::now();
        eventually("the change is announced", || usable() == expected);
        took += changed.elapsed();
        assert!(changed.elapsed() < Duration::from_secs(1), "{command}: {:?}", changed.elapsed());
    }
    assert!(took < Duration::from_millis(1500), "{took:?}: at the ticks alone, two seconds on average");
    assert_eq!(subjects(&status(&second.outgate), "range_without_host"), ["198.51.100.16/32"]);
}
