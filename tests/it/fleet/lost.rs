//! Instances of a fleet that ended: what the others show of them, until they return or an operator forgets them.
//! Does the fleet still watch the ranges of a host that is gone?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::{Value, json};

use super::{instance, restarted, wait_until_all_live};
use crate::support::audit::until_recorded;
use crate::support::configuration::Config;
use crate::support::control::{exit_code_and_output, get, run, with_admin_socket};
use crate::support::eventually;
use crate::support::scene::Scene;
use crate::support::store::{self, StoreServer};

const RANGES: [&str; 2] = ["127.0.70.0/30", "127.0.71.0/30"];

/// Starts two instances, each with a range that the other one does not list.
fn two_instances(server: &StoreServer) -> [Scene; 2] {
    let scenes = [0, 1].map(|number| {
        let fleet = format!("store = \"redis://127.0.0.1:{}\"", server.port);
        instance(["egress-1", "egress-2"][number], &fleet, &|config: &Config| {
            let config = config.set("egress.default.ranges", [RANGES[number]]).add("audit.file", "{dir}/audit.jsonl");
            with_admin_socket(&config)
        })
    });
    wait_until_all_live(&[&scenes[0], &scenes[1]]);
    scenes
}

fn status(scene: &Scene) -> Value {
    get(&scene.outgate, "/v1/fleet").json()
}

/// Returns the subjects of the problems that concern hosts. The configurations of the instances differ in any case.
fn problems(status: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = status["problems"].as_array().into_iter().flatten();
    let all = all.map(|problem| (text(&problem["problem"]), text(&problem["subject"])));
    all.filter(|(kind, _)| kind != "configuration_differs").collect()
}

fn wait_for_state(shown_by: &Scene, number: usize, state: &str) -> Value {
    let mut shown = Value::Null;
    eventually(&format!("instance {number} is {state}"), || {
        shown = status(shown_by);
        shown["instances"][number]["state"] == state
    });
    shown
}

fn missed() -> Vec<(String, String)> {
    let pair = |kind: &str, subject: &str| (kind.to_owned(), subject.to_owned());
    vec![pair("range_without_host", RANGES[1]), pair("instance_lost", "egress-2")]
}

fn forget(scene: &Scene, instance: &str) -> (i32, String, String) {
    exit_code_and_output(&run(scene, &["fleet", "forget", instance]))
}

#[test]
fn killed_instance_is_lost_and_its_ranges_stay_published_until_it_returns_or_is_forgotten() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let [first, second] = two_instances(&server);
    assert_eq!(problems(&status(&first)), []);
    let (code, _, error) = forget(&first, "egress-2");
    assert!(code == 69 && error.contains("this instance is live"), "{code} {error}");
    second.outgate.signal("KILL");
    let lost = wait_for_state(&first, 1, "lost");
    assert_eq!(problems(&lost), missed());
    assert_eq!(lost["ranges"][1], json!({ "range": RANGES[1], "hosts": [] }));
    let row = &lost["instances"][1];
    assert_eq!((&row["instance"], &row["ready"], &row["weight"]), (&json!("egress-2"), &json!(false), &json!(0)));
    assert!(row["unseen_seconds"].as_i64().is_some_and(|seconds| seconds >= 4), "{row}");
    first.outgate.wait_for_metric("outgate_fleet_instances 1");
    first.outgate.wait_for_metric("outgate_fleet_problems{problem=\"instance_lost\"} 1");
    first.outgate.wait_for_metric("outgate_alerts{name=\"OutgateFleetInstanceLost\"} 1");
    first.outgate.wait_for_metric("outgate_alerts{name=\"OutgateFleetRangeWithoutHost\"} 1");
    let (code, shown, _) = exit_code_and_output(&run(&first, &["fleet", "status"]));
    assert!(
        code == 1 && shown.contains("no: lost, last seen ") && shown.contains("127.0.71.0/30  no instance"),
        "{shown}"
    );
    let page = get(&first.outgate, "/").text();
    assert!(page.contains("lost, last seen ") && page.contains("no instance has 127.0.71.0/30"), "{page}");

    let second = restarted(second);
    assert_eq!(problems(&wait_for_state(&first, 1, "live")), []);
    first.outgate.wait_for_metric("outgate_fleet_instances 2");
    second.outgate.signal("KILL");
    wait_for_state(&first, 1, "lost");
    let (code, shown, error) = forget(&first, "egress-2");
    assert_eq!((code, shown.trim()), (0, "the fleet has forgotten egress-2"), "{error}");
    let record = until_recorded(&first.outgate, "instance.forgotten", 1).remove(0);
    assert_eq!((&record["resource_sid"], &record["source"]), (&json!("egress-2"), &json!("admin")), "{record}");
    assert!(record["actor_sid"].as_str().is_some_and(|name| !name.is_empty()), "{record}");
    let rest = status(&first);
    assert_eq!((rest["instances"].as_array().map(Vec::len), problems(&rest)), (Some(1), Vec::new()), "{rest}");
    assert_eq!(rest["ranges"].as_array().map(Vec::len), Some(1), "{rest}");
    let (code, _, error) = forget(&first, "egress-2");
    assert!(code == 69 && error.contains("no lost instance with this name"), "{code} {error}");
    let _second = restarted(second);
    wait_for_state(&first, 1, "live");
}

#[test]
fn fleet_remembers_an_instance_that_ended_while_no_other_ran() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let [first, second] = two_instances(&server);
    [&first, &second].iter().for_each(|scene| scene.outgate.signal("KILL"));
    let live = "return redis.call('zcount', KEYS[1], redis.call('time')[1] * 1000, '+inf')";
    eventually("the announcements end", || {
        server.cli(&["--raw", "eval", live, "1", "outgate:{instances}"]).trim() == "0"
    });
    let first = restarted(first);
    assert_eq!(problems(&wait_for_state(&first, 1, "lost")), missed());
}

#[test]
fn stopped_instance_is_no_problem_until_it_should_have_started_again() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let [first, mut second] = two_instances(&server);
    second.outgate.signal("TERM");
    assert!(second.outgate.wait().success());
    let stopped = wait_for_state(&first, 1, "stopped");
    assert_eq!(problems(&stopped), [], "an upgrade takes a moment");
    assert_eq!(stopped["ranges"][1], json!({ "range": RANGES[1], "hosts": [] }));
    assert!(stopped["instances"][1]["blocked"][0].as_str().unwrap().starts_with("stopped, last seen "), "{stopped}");
    // Five minutes pass on the clock of the store.
    let earlier = "return redis.call('zincrby', KEYS[1], -300000, 'egress-2')";
    server.cli(&["eval", earlier, "1", "outgate:{instances}:lost"]);
    assert_eq!(problems(&status(&first)), missed());
}

#[test]
fn fleet_status_shows_no_forged_or_oversized_lost_instance() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let [first, second] = two_instances(&server);
    second.outgate.signal("KILL");
    wait_for_state(&first, 1, "lost");
    let [ends, rows] = ["outgate:{instances}:lost", "outgate:{instances}:lost:announcements"];
    let real = server.cli(&["--raw", "hget", rows, "egress-2"]);
    let mut oversized: Value = serde_json::from_str(&real).unwrap();
    oversized["version"] = json!("v".repeat(5000));
    let oversized = oversized.to_string();
    for (name, row) in [("forged", "{}"), ("other", real.trim()), ("egress-3", "x"), ("egress-2", oversized.trim())] {
        server.cli(&["zadd", ends, "1", name]);
        server.cli(&["hset", rows, name, row]);
    }
    let shown = status(&first);
    assert_eq!((shown["instances"].as_array().map(Vec::len), problems(&shown)), (Some(1), Vec::new()), "{shown}");
}
