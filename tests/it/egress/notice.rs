//! Ranges that are announced before webhooks leave from them.
//! Does outgate send from no address that customers could not allow in time?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::collections::BTreeSet;
use std::process::Command;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use support::audit::{audited_with, records_in, try_reload, until_recorded};
use support::configuration::Config;
use support::control::{exit_code_and_output, run, with_admin_socket};
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{SECRET, Scene, config, folder};
use support::{Outgate, eventually, signature};

/// The usual scene, whose state outlives the process. Its pool sends from 127.0.7.0/30.
fn announcing() -> Scene {
    let scene = audited_with(&|text| text.add("server.state", "{dir}/state").set("egress.default.notice", "14d"));
    eventually("the ranges are announced", || scene.outgate.folder.path("state/announced.json").exists());
    scene
}

fn in_days(days: i64) -> String {
    format!("{:.0}", Timestamp::now() + SignedDuration::from_hours(24 * days))
}

/// The configuration with a second range from this time on. "": at once.
fn with_range(config: &Config, from: &str) -> Config {
    let range = json!({ "cidr": "127.0.9.0/30", "from": from });
    let range = if from.is_empty() { json!("127.0.9.0/30") } else { range };
    config.set("egress.default.ranges", json!(["127.0.7.0/30", range]))
}

fn check(scene: &Scene) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    let output = command.arg("check").arg("--config").arg(scene.outgate.folder.path("config.toml")).output().unwrap();
    let (code, out, err) = exit_code_and_output(&output);
    (code, out + &err)
}

#[test]
fn range_without_notice_is_refused_by_reload_and_check() {
    let scene = announcing();
    let good = scene.outgate.config();
    for (from, is_adopted) in [("", false), (&*in_days(13), false), (&*in_days(15), true)] {
        let (code, _, err) = try_reload(&scene, &with_range(&good, from));
        let (checked, printed) = check(&scene);
        if is_adopted {
            assert_eq!((code, checked), (0, 0), "{from}: {err}{printed}");
            continue;
        }
        assert_eq!((code, checked), (78, 1), "{from}: {err}{printed}");
        for words in ["egress.default would send from 127.0.9.0/30", "customers do not know it yet", "force = true"] {
            assert!(err.contains(words) && printed.contains(words), "{words}: {err}{printed}");
        }
    }
    // The help names a time that suffices.
    let (_, _, err) = try_reload(&scene, &with_range(&good, ""));
    let named = err.split("write from = \"").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!(try_reload(&scene, &with_range(&good, named)).0, 0, "{named}");
    // It is announced: an earlier time would shorten the notice, a later one does not.
    let (code, _, err) = try_reload(&scene, &with_range(&good, &in_days(2)));
    assert!(code == 78 && err.contains("customers know it since"), "{err}");
    assert_eq!(try_reload(&scene, &with_range(&good, &in_days(20))).0, 0);
    assert_eq!(try_reload(&scene, &with_range(&good, "").set("egress.default.notice", "0s")).0, 0);
}

#[test]
fn announcement_outlives_the_process_and_a_removed_range_may_return_within_a_day() {
    let mut scene = announcing();
    let (good, announced) = (scene.outgate.config(), with_range(&scene.outgate.config(), &in_days(15)));
    assert_eq!(try_reload(&scene, &announced).0, 0);
    scene.outgate = scene.outgate.restarted();
    let (code, _, err) = try_reload(&scene, &with_range(&good, ""));
    assert!(code == 78 && err.contains("customers know it since"), "{err}");
    // A rollback to a configuration with the range is possible.
    let without = good.set("egress.default.ranges", json!(["127.0.7.0/31"]));
    assert_eq!(try_reload(&scene, &without).0, 0);
    let number = support::control::status(&scene)["configuration"]["number"].as_u64().unwrap();
    let (code, _, err) = exit_code_and_output(&run(&scene, &["rollback", &(number - 1).to_string()]));
    assert_eq!(code, 0, "{err}");
    assert_eq!(check(&scene).0, 0);
}

#[test]
fn forced_range_is_an_alert_and_an_audit_record() {
    let scene = announcing();
    let forced = with_range(&scene.outgate.config(), "").add("egress.default.force", true);
    let (code, out, err) = try_reload(&scene, &forced);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("egress.default: customers must allow 127.0.9.0/30 at once"), "{out}");
    let record = until_recorded(&scene.outgate, "address.forced", 1).remove(0);
    assert_eq!(record["event_data"]["pool"], "default", "{record}");
    assert_eq!(record["resource_sid"], "127.0.9.0/30", "{record}");
    scene.outgate.wait_for_metric("outgate_alerts{name=\"OutgateUnannouncedRange\"} 1");
    scene
        .outgate
        .log
        .wait_for_lines(1, &["alert OutgateUnannouncedRange", "127.0.9.0/30", "before its notice ends on"]);
    // A later change without effect on the range is not forced again, and needs no `force`.
    let next =
        with_range(&scene.outgate.config(), "").set("egress.default.force", false).and("[limits.a]\nrate = \"1/s\"\n");
    assert_eq!(try_reload(&scene, &next).0, 0);
    until_recorded(&scene.outgate, "configuration.updated", 2);
    let file = support::audit::audit_file(&scene.outgate);
    let forced = records_in(&file).iter().filter(|record| record["event_type"] == "address.forced").count();
    assert_eq!(forced, 1);
}

#[test]
fn range_that_changed_while_outgate_did_not_run_is_an_alert() {
    let mut scene = announcing();
    support::control::write(&scene, &with_range(&scene.outgate.config(), ""));
    scene.outgate = scene.outgate.restarted();
    scene.outgate.wait_for_metric("outgate_alerts{name=\"OutgateUnannouncedRange\"} 1");
    assert_eq!(until_recorded(&scene.outgate, "address.forced", 1)[0]["resource_sid"], "127.0.9.0/30");
}

#[test]
fn rejected_range_is_reported_until_it_is_gone() {
    let scene = announcing();
    let good = scene.outgate.config();
    assert_eq!(try_reload(&scene, &with_range(&good, "")).0, 78);
    // The drift check, which reads the files every 2 s, does not end the rejection.
    scene.outgate.wait_for_metric("outgate_alerts{name=\"OutgateReloadFailed\"} 1");
    assert!(scene.outgate.has_metric("outgate_reload_failed 1"));
    assert_eq!(try_reload(&scene, &good).0, 0);
    assert!(scene.outgate.has_metric("outgate_reload_failed 0"));
}

#[test]
fn range_behind_nat_is_announced_by_the_addresses_that_targets_see() {
    let scene = announcing();
    let range = |seen_as: &str| json!([{ "cidr": "127.0.7.0/30", "seen_as": seen_as }]);
    let good = scene.outgate.config().set("egress.default.ranges", range("203.0.113.0/30"));
    assert_eq!(try_reload(&scene, &good.add("egress.default.force", true)).0, 0);
    let unrelated = good.and("[limits.a]\nrate = \"1/s\"\n");
    assert_eq!(try_reload(&scene, &unrelated).0, 0, "the range is announced");
    let (code, _, err) = try_reload(&scene, &good.set("egress.default.ranges", range("203.0.113.4/30")));
    assert!(code == 78 && err.contains("would send from 203.0.113.4/30 at once"), "{err}");
}

#[test]
fn announcements_that_cannot_be_read_are_kept_aside() {
    let mut scene = announcing();
    let file = scene.outgate.folder.path("state/announced.json");
    scene.outgate.signal("KILL");
    scene.outgate.wait();
    std::fs::write(&file, "{").unwrap();
    scene.outgate = scene.outgate.restarted();
    scene.outgate.log.wait_for_lines(1, &["cannot read", "announced.json", "takes the ranges of its configuration"]);
    let aside = scene.outgate.folder.path("state/announced.json.bad");
    eventually("the file is kept aside", || std::fs::read_to_string(&aside).is_ok_and(|text| text == "{"));
    eventually("new announcements", || file.exists());
}

#[test]
fn announcements_that_cannot_be_written_are_reported_once_and_are_no_failure_of_the_history() {
    let scene = announcing();
    let unfinished = scene.outgate.folder.path("state/announced.json.tmp");
    std::fs::create_dir(&unfinished).unwrap(); // the write begins with the removal of this file
    assert_eq!(try_reload(&scene, &with_range(&scene.outgate.config(), &in_days(15))).0, 0);
    let report = ["cannot write", "announced.json", "count as announced from then on"];
    scene.outgate.log.wait_for_lines(1, &report);
    let degraded = || support::control::json(&run(&scene, &["status", "--json"]))["degraded"].clone();
    let is_stored = |reasons: &Value| !reasons.to_string().contains("the announced ranges are not stored");
    eventually("the status says so", || !is_stored(&degraded()));
    assert!(!degraded().to_string().contains("history"), "{}", degraded());
    // outgate writes again with the next check of the files. Until then it tries, and reports nothing.
    std::fs::remove_dir(&unfinished).unwrap();
    let file = scene.outgate.folder.path("state/announced.json");
    eventually("the range is stored", || {
        std::fs::read_to_string(&file).is_ok_and(|text| text.contains("127.0.9.0/30"))
    });
    eventually("the status has recovered", || is_stored(&degraded()));
    let lines = scene.outgate.log.wait_for("the log", |lines| Some(lines.to_vec()));
    let reports = lines.iter().filter(|line| report.iter().all(|word| line.contains(word))).count();
    assert_eq!(reports, 1, "{lines:#?}");
}

#[test]
fn diff_shows_what_customers_must_do_and_by_when() {
    let scene = announcing();
    let from = in_days(15);
    let next = with_range(&scene.outgate.config(), &from);
    support::control::write(&scene, &next);
    let (_, out, err) = exit_code_and_output(&run(&scene, &["diff"]));
    assert!(out.contains(&format!("egress.default: customers must allow 127.0.9.0/30 before {from}")), "{out}{err}");
    let output = run(&scene, &["diff", "--json"]);
    let actions = support::control::json(&output)["customer_actions"].clone();
    assert_eq!(actions, json!([format!("egress.default: customers must allow 127.0.9.0/30 before {from}")]));
}

/// The messages of a subscriber without copies: the change and the ranges of each.
fn changes(subscriber: &Receiver) -> Vec<(Value, Vec<Value>)> {
    let (mut ids, mut changes) = (BTreeSet::new(), Vec::new());
    for request in subscriber.requests() {
        if ids.insert(request.field("webhook-id").to_owned()) {
            let message: Value = serde_json::from_slice(&request.body).unwrap();
            assert_eq!(message["type"], "egress.changed");
            let ranges = message["data"]["ranges"].as_array().unwrap().iter();
            changes.push((message["data"]["change"].clone(), ranges.map(|range| range["cidr"].clone()).collect()));
        }
    }
    changes
}

#[test]
fn subscribers_get_a_signed_webhook_when_a_range_is_announced_starts_and_ends() {
    let pki = Pki::new();
    let (good, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
    let subscriber = Receiver::tls(pki.leaf(&["customer.example"]), ok());
    let text = with_admin_socket(&config(&good, &plain, ""))
        .host("customer.example", "127.0.0.1")
        .add("server.state", "{dir}/state")
        .add("notices.webhooks", [format!("https://customer.example:{}/egress", subscriber.port())])
        .add("notices.sign", ["platform"]);
    let outgate = Outgate::run(folder(&pki), &text);
    let mut scene = Scene { pki, outgate, good, plain };
    let until = |count: usize| {
        eventually(&format!("{count} changes"), || changes(&subscriber).len() >= count);
        changes(&subscriber)
    };
    let in_seconds = |seconds: i64| (Timestamp::now() + SignedDuration::from_secs(seconds)).to_string();
    let range = json!({ "cidr": "127.0.9.0/30", "from": in_seconds(8), "until": in_seconds(16) });
    let text = scene.outgate.config();
    assert_eq!(try_reload(&scene, &text.set("egress.default.ranges", json!(["127.0.7.0/30", range.clone()]))).0, 0);
    let about = |change: &str| (json!(change), vec![json!("127.0.9.0/30")]);
    assert_eq!(until(1)[..1], [about("announced")]);
    signature::verify(&subscriber.requests()[0], SECRET);
    let from = &subscriber.requests()[0].from;
    assert!(from.to_string().starts_with("127.0.7."), "{from}");
    assert_eq!(until(2)[..2], [about("announced"), about("started")]);
    // The range ends while outgate does not run.
    scene.outgate.signal("KILL");
    scene.outgate.wait();
    let end: Timestamp = range["until"].as_str().unwrap().parse().unwrap();
    eventually("the end of the range", || Timestamp::now() > end);
    scene.outgate = scene.outgate.restarted();
    assert_eq!(until(3), [about("announced"), about("started"), about("ended")]);
    let record = scene.outgate.records(1).remove(0);
    assert_eq!((&record["route"], &record["client"]), (&json!("notices"), &json!("outgate")), "{record}");
}
