//! Rollouts that another one replaces, or that the store loses.
//! Does an operator learn of it, and does no instance begin the next rollout with the bundle of one that has failed?

use std::io::{BufRead, BufReader};

use jiff::SignedDuration;
use outgate::policy::rollout::bundle::digest;

use super::{CLOSED, Fleet, GUARD, is_delivered};
use crate::support::audit::records_in;
use crate::support::control::exit_code_and_output;
use crate::support::{eventually, store};

#[test]
fn rollout_begins_after_all_live_instances_have_returned_from_the_failed_one() {
    if !store::is_installed() {
        return;
    }
    let fleet = Fleet::start(2).rolled_out(GUARD);
    let start =
        || exit_code_and_output(&fleet.command(CLOSED, &["--canary", "all", "--pause", "10m"]).output().unwrap());
    let folder = &fleet.scenes[1].outgate.folder;
    let [state, kept] = ["rollout.json", "kept.json"].map(|name| folder.path(&format!("state/fleet/{name}")));
    for number in [2, 3] {
        assert_eq!(start().0, 0);
        (0..2).for_each(|number| fleet.wait_for_stage(number, "adopted"));
        // An instance that cannot store its return stays with the bundle.
        std::fs::rename(&state, &kept).unwrap();
        std::fs::create_dir(&state).unwrap();
        fleet.abort(number);
        fleet.wait_for_stage(0, "rolled_back");
        let (code, _, err) = start();
        assert!(code == 69 && err.contains(&format!("still have the bundle of rollout {number}")), "{code} {err}");
        assert!(err.contains("egress-b") && !err.contains("egress-a"), "{err}");
        if number == 2 {
            std::fs::remove_dir(&state).unwrap();
            std::fs::rename(&kept, &state).unwrap();
            fleet.wait_for_stage(1, "rolled_back");
        }
    }
    fleet.scenes[1].outgate.signal("KILL");
    eventually("a dead instance holds no rollout up", || start().0 == 0);
}

#[test]
fn rollout_that_is_followed_and_lost_or_replaced_ends_the_command() {
    if !store::is_installed() {
        return;
    }
    let fleet = Fleet::start(1);
    let cli = |words: &[&str]| fleet.store.nodes[0].cli(words);
    for number in [1, 2] {
        let mut watch = fleet.watch(GUARD, &["--pause", "1s"]);
        let shown = BufReader::new(watch.stdout.take().unwrap()).lines();
        let line = shown.map(Result::unwrap).find(|line| line.starts_with("rollout "));
        assert!(line.is_some_and(|line| line.starts_with(&format!("rollout {number} of alice"))));
        if number == 1 {
            cli(&["del", "outgate:{rollout}"]);
        } else {
            let (document, signature) = fleet.signed(3, SignedDuration::ZERO, &["egress-z", "egress-a"]);
            fleet.forge(&[("document", &document), ("digest", &digest(&document)), ("signature", &signature)]);
        }
        eventually("the command ends", || watch.try_wait().unwrap().is_some());
        let (code, _, err) = exit_code_and_output(&watch.wait_with_output().unwrap());
        assert!(code == 1 && err.contains(&format!("the fleet has rollout {number} no longer")), "{code} {err}");
    }
}

/// A store that was restarted empty has no bundle for a host that joins.
#[test]
fn rollout_whose_bundle_the_store_has_lost_waits_for_its_repetition() {
    if !store::is_installed() {
        return;
    }
    let fleet = Fleet::start(1).rolled_out(GUARD);
    assert_eq!(fleet.run(&["fleet", "status"]).0, 0);
    fleet.store.nodes[0].cli(&["del", "outgate:{rollout}"]);
    fleet.wait_for_problem("rollout_waiting", "OutgateFleetRolloutWaits");
    let (code, shown, _) = fleet.run(&["fleet", "status"]);
    assert!(code == 1 && shown.contains("problem: rollout 1 waits for its repetition: the store has lost"), "{shown}");
    let (code, out, err) = exit_code_and_output(&fleet.watch(GUARD, &["--pause", "1s"]).wait_with_output().unwrap());
    assert!(code == 0 && out.contains("the bundle changes nothing on egress-a"), "{code} {out} {err}");
    eventually("the problem has gone", || fleet.run(&["fleet", "status"]).0 == 0);
}

/// The store knows only the last rollout, and an instance that was away does not learn how the former one ended.
#[test]
fn rollout_is_undone_by_an_instance_that_was_away_at_its_failure_and_at_the_next_one() {
    if !store::is_installed() {
        return;
    }
    let mut fleet = Fleet::start(2).rolled_out(GUARD);
    let words = ["--canary", "all", "--pause", "10m"];
    assert_eq!(exit_code_and_output(&fleet.command(CLOSED, &words).output().unwrap()).0, 0);
    (0..2).for_each(|number| fleet.wait_for_stage(number, "adopted"));
    fleet.scenes[1].outgate.signal("KILL");
    fleet.abort(2);
    let start = || exit_code_and_output(&fleet.command(CLOSED, &words).output().unwrap()).0;
    eventually("the next rollout begins without the dead instance", || start() == 0);
    fleet.abort(3);
    fleet.restart(1);
    eventually("it returns to the bundle that all have kept", || is_delivered(&fleet.scenes[1]));
    fleet.restart(1);
    assert!(is_delivered(&fleet.scenes[1]));
}

/// The store has another rollout, which the instance has not read yet.
#[test]
fn rollout_takes_no_approval_for_one_that_was_replaced() {
    if !store::is_installed() {
        return;
    }
    let fleet = Fleet::start(1);
    assert_eq!(exit_code_and_output(&fleet.command(GUARD, &["--pause", "1s"]).output().unwrap()).0, 0);
    fleet.wait_for("the change needs an approval", |known| known["rollout"]["outcome"] == "waiting_for_approval");
    // An instance reads the facts only after a change of their version.
    let digest = fleet.field("digest");
    fleet.store.nodes[0].cli(&["hset", "outgate:{rollout}", "digest", "another"]);
    let (code, _, err) = fleet.approve(1, "bob");
    assert!(code == 69 && err.contains("another rollout has replaced this one"), "{code} {err}");
    fleet.store.nodes[0].cli(&["hset", "outgate:{rollout}", "digest", &digest]);
    assert_eq!(fleet.field("approval:bob"), "");
    let records = records_in(&fleet.scenes[0].outgate.folder.path("audit.jsonl"));
    assert!(!records.iter().any(|record| record["event_type"] == "rollout.approved"), "{records:?}");
    assert_eq!(fleet.approve(1, "bob").0, 0);
    fleet.wait_for("the bundle is kept", |known| known["rollout"]["outcome"] == "kept");
}
