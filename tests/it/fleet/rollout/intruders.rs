//! Rollouts in a store and with bundles that an intruder has changed.
//! Does an instance follow only what operators have signed, and only once?

use jiff::SignedDuration;
use outgate::policy::rollout::bundle::digest;
use serde_json::json;

use super::{CLOSED, Fleet, GUARD, is_delivered};
use crate::support::configuration::Replace;
use crate::support::control::{call, exit_code_and_output};
use crate::support::{eventually, store};

/// An intruder can write to the store, and has a bundle that was signed once.
#[test]
fn rollout_refuses_forged_replayed_huge_and_truncated_bundles_and_forged_approvals() {
    if !store::is_installed() {
        return;
    }
    let fleet = Fleet::start(1).rolled_out(GUARD);
    let facts = ["document", "digest", "signature", "approval:bob"].map(|name| (name, fleet.field(name)));
    let [(_, document), _, (_, signature), (_, approval)] = &facts;
    let watch = fleet.watch(CLOSED, &["--pause", "1s"]);
    assert_eq!(exit_code_and_output(&watch.wait_with_output().unwrap()).0, 0);
    assert!(!is_delivered(&fleet.scenes[0]));
    let refuses = |reason: &str, fields: &[(&str, &str)]| {
        fleet.store.nodes[0].cli(&["hdel", "outgate:{rollout}", "report:egress-a", "failure"]);
        fleet.forge(fields);
        eventually(reason, || fleet.field("report:egress-a").contains(reason));
        assert!(!is_delivered(&fleet.scenes[0]), "{reason}");
    };
    let old: Vec<(&str, &str)> = facts.iter().map(|(name, value)| (*name, value.as_str())).collect();
    refuses("its number, 1, is below 2, which this instance has seen", &old);
    let newer = document.replace_one("\"number\":1", "\"number\":3");
    let unsigned = "the signature of the bundle is that of no operator";
    refuses(unsigned, &[("document", &newer), ("digest", &digest(&newer))]);
    let by_mallory = newer.replace_one("alice", "mallory");
    refuses(unsigned, &[("document", &by_mallory), ("digest", &digest(&by_mallory))]);
    let truncated = &newer[..newer.len() / 2];
    refuses(unsigned, &[("document", truncated), ("digest", &digest(truncated))]);
    refuses("the store has another digest", &[("document", document), ("digest", "x"), ("signature", signature)]);
    fleet.store.nodes[0].cli(&["setrange", "huge", "5000000", "x"]);
    fleet.store.nodes[0].cli(&[
        "eval",
        "redis.call('hset', KEYS[1], 'document', redis.call('get', 'huge'), 'digest', 'y')",
        "1",
        "outgate:{rollout}",
    ]);
    refuses(unsigned, &[]); // the store gives out no document that is too long
    // Alice starts a rollout in place of the forged one, which nobody can abort because its signature is invalid. The instance
    // waits for bob's approval: the store has his approval of another bundle, and one that alice has signed as its author.
    assert_eq!(exit_code_and_output(&fleet.command(GUARD, &["--pause", "1s"]).output().unwrap()).0, 0);
    fleet.wait_for_stage(0, "checked");
    let own = fleet.field("signature");
    fleet.forge(&[("approval:bob", approval), ("approval:carol", &own), ("approval:alice", &own)]);
    let claimed = json!({ "stage": "kept", "approval": [], "detail": "" }).to_string();
    fleet.forge(&[("report:egress-z", &claimed)]);
    fleet.wait_for("the forged report is known", |known| known["rollout"]["instances"]["egress-z"]["stage"] == "kept");
    assert_eq!(fleet.known()["rollout"]["outcome"], "waiting_for_approval");
    assert_eq!(fleet.approve(3, "bob").0, 0);
    fleet.wait_for("the bundle is kept", |known| known["rollout"]["outcome"] == "kept");
    assert!(is_delivered(&fleet.scenes[0]));
    // A rollout that all have kept is not undone by a failure.
    fleet.forge(&[("failure", "forged")]);
    fleet.wait_for("the forged failure is known", |known| known["rollout"]["failure"] == "forged");
    assert_eq!(fleet.known()["rollout"]["outcome"], "kept");
    assert_eq!((fleet.stage(0), is_delivered(&fleet.scenes[0])), ("kept".to_owned(), true));
}

/// The instance was away during a rollout that was aborted. An intruder has kept its bundle, which alice has signed.
#[test]
fn rollout_refuses_a_bundle_older_than_one_it_has_seen_and_one_that_was_signed_long_ago() {
    if !store::is_installed() {
        return;
    }
    let mut fleet = Fleet::start(1).rolled_out(GUARD);
    let day = SignedDuration::from_hours(24);
    let replay = |fleet: &Fleet, number: u64, age: SignedDuration, waves: &[&str]| {
        let (document, signature) = fleet.signed(number, age, waves);
        fleet.store.nodes[0].cli(&["hdel", "outgate:{rollout}", "report:egress-a", "failure", "approval:bob"]);
        let digest = digest(&document);
        fleet.forge(&[("document", &document), ("digest", &digest), ("signature", &signature)]);
    };
    let refuses = |fleet: &Fleet, reason: &str| {
        eventually(reason, || fleet.field("report:egress-a").contains(reason));
        assert!(is_delivered(&fleet.scenes[0]), "{reason}");
        let (code, shown, _) = fleet.run(&["fleet", "status"]);
        assert!(code == 1 && shown.contains(&format!("refuses the rollout in the store: {reason}")), "{shown}");
    };
    // The instance sees rollout 3, which it does not adopt: egress-z has to be the first.
    replay(&fleet, 3, SignedDuration::ZERO, &["egress-z", "egress-a"]);
    fleet.wait_for_stage(0, "checked");
    replay(&fleet, 2, SignedDuration::from_mins(30), &["egress-a"]);
    refuses(&fleet, "its number, 2, is below 3, which this instance has seen");
    fleet.restart(0);
    replay(&fleet, 2, SignedDuration::from_mins(31), &["egress-a"]);
    refuses(&fleet, "its number, 2, is below 3, which this instance has seen");
    for age in [day * 91, SignedDuration::from_hours(-2)] {
        replay(&fleet, 4, age, &["egress-a"]);
        refuses(&fleet, "the bundle was signed at");
    }
    // The admin listener starts no rollout with a bundle that was signed before.
    let (document, signature) = fleet.signed(4, SignedDuration::from_hours(2), &["egress-a"]);
    let body = json!({ "statement": "start", "document": document, "signature": signature }).to_string();
    let refused = call(&fleet.scenes[0].outgate, "POST", "/v1/fleet/rollout", &body);
    assert!(refused.status == 400 && refused.text().contains("the bundle was signed at"), "{}", refused.text());
    // A host that comes late adopts the bundle of a rollout that all others kept weeks ago.
    fleet.forge(&[("report:egress-z", &json!({ "stage": "kept" }).to_string())]);
    replay(&fleet, 4, day * 80, &["egress-z"]);
    eventually("the bundle is adopted", || !is_delivered(&fleet.scenes[0]));
    let repeat = "problem: rollout 4 waits for its repetition: in ";
    eventually(repeat, || fleet.run(&["fleet", "status"]).1.contains(repeat));
}

/// The failure names the detail of the report, and both are as long as the store allows.
#[test]
fn rollout_fails_for_all_also_with_a_forged_report_of_the_longest_size() {
    if !store::is_installed() {
        return;
    }
    let fleet = Fleet::start(1);
    let (document, signature) = fleet.signed(1, SignedDuration::ZERO, &["egress-z", "egress-a"]);
    let report = json!({ "stage": "refused", "detail": "x".repeat(65_500) }).to_string();
    assert!(report.len() <= 65_536);
    let facts = [("document", &*document), ("digest", &digest(&document)), ("signature", &signature)];
    fleet.forge(&[&facts[..], &[("report:egress-z", &report)]].concat());
    let failure = fleet.wait_for_failure();
    assert!(failure.starts_with("the bundle has a problem on egress-z: xxx") && failure.len() == 500, "{failure}");
    assert_eq!(fleet.known()["rollout"]["instances"]["egress-z"]["detail"].as_str().map(str::len), Some(500));
    // A failure that no instance reads does not stand in the way of the next one.
    let (document, signature) = fleet.signed(2, SignedDuration::ZERO, &["egress-z", "egress-a"]);
    let facts = [("document", &*document), ("digest", &digest(&document)), ("signature", &signature)];
    fleet.forge(&[&facts[..], &[("failure", &"y".repeat(65_537))]].concat());
    eventually("the failure is replaced", || fleet.field("failure").contains("xxx"));
}
