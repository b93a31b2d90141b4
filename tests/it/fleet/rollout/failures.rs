//! Rollouts that fail, are aborted, or see an instance or the store end.
//! Does every instance return to its former bundle?

use serde_json::json;

use super::{CLOSED, Fleet, GUARD, is_delivered, name, rollouts};
use crate::support::control::exit_code_and_output;
use crate::support::{eventually, store};

#[test]
fn rollout_that_raises_refusals_is_rolled_back_everywhere() {
    if !store::is_installed() {
        return;
    }
    let fleet = Fleet::start(3).rolled_out(GUARD);
    assert!(fleet.scenes.iter().all(is_delivered));
    let watch = fleet.watch(CLOSED, &["--canary", "2", "--pause", "10m"]);
    (0..2).for_each(|number| fleet.wait_for_stage(number, "adopted"));
    eventually("egress-b goes back", || {
        is_delivered(&fleet.scenes[1]);
        fleet.stage(1) == "rolled_back"
    });
    let (code, out, err) = exit_code_and_output(&watch.wait_with_output().unwrap());
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("egress-b went back: it refused or failed"), "{out}");
    for (number, scene) in fleet.scenes.iter().enumerate() {
        assert!(is_delivered(scene), "{}", name(number));
        let count = if number < 2 { 1 } else { 0 };
        let back = rollouts(scene).into_iter().filter(|record| record["event_type"] == "configuration.rolled_back");
        assert_eq!(back.count(), count, "{}", name(number));
    }
    assert_eq!(fleet.stage(2), "checked");
    // An intruder lets the failed rollout begin again, and states that the others have kept it.
    fleet.store.nodes[0].cli(&["hdel", "outgate:{rollout}", "failure"]);
    let kept = json!({ "stage": "kept", "approval": [], "detail": "" }).to_string();
    let names = [0, 1].map(|number| format!("report:{}", name(number)));
    fleet.forge(&[(&names[0], &kept), (&names[1], &kept)]);
    let failed =
        fleet.wait_for("the failure is forged away", |known| known["rollout"]["failure"] == "it has ended before");
    assert_eq!(failed["rollout"]["outcome"], "failed");
    assert_eq!(fleet.stage(2), "checked");
    assert!(is_delivered(&fleet.scenes[2]));
}

#[test]
fn rollout_fails_when_an_instance_is_killed_in_its_wave_and_it_returns_after_its_restart() {
    if !store::is_installed() {
        return;
    }
    let mut fleet = Fleet::start(3).rolled_out(GUARD);
    assert_eq!(
        exit_code_and_output(&fleet.command(CLOSED, &["--canary", "2", "--pause", "10m"]).output().unwrap()).0,
        0
    );
    (0..2).for_each(|number| fleet.wait_for_stage(number, "adopted"));
    fleet.scenes[1].outgate.signal("KILL");
    assert_eq!(fleet.wait_for_failure(), "egress-b disappeared in wave 1");
    fleet.wait_for_stage(0, "rolled_back");
    assert!(is_delivered(&fleet.scenes[0]));
    fleet.restart(1);
    fleet.wait_for_stage(1, "rolled_back");
    assert!(fleet.scenes.iter().all(is_delivered));
}

#[test]
fn rollout_survives_restarts_of_instance_and_store_and_an_operator_aborts_it() {
    if !store::is_installed() {
        return;
    }
    let mut fleet = Fleet::start(2).rolled_out(GUARD);
    assert_eq!(exit_code_and_output(&fleet.command(CLOSED, &["--pause", "10m"]).output().unwrap()).0, 0);
    fleet.wait_for_stage(0, "adopted");
    fleet.restart(0);
    fleet.wait_for("the instance knows the rollout", |known| known["rollout"]["number"] == 2);
    assert!(!is_delivered(&fleet.scenes[0]), "it still has the bundle");
    // Another rollout has to wait.
    let (code, _, err) = exit_code_and_output(&fleet.command(GUARD, &[]).output().unwrap());
    assert!(code == 69 && err.contains("rollout 2 is not over"), "{code} {err}");
    let key = |name: &str| fleet.desk.path(&format!("{name}.pem")).display().to_string();
    assert_ne!(fleet.run(&["fleet", "abort", "2", "--key", &key("mallory")]).0, 0);
    assert_eq!(fleet.run(&["fleet", "abort", "2", "--key", &key("bob")]).0, 0);
    assert_eq!(fleet.wait_for_failure(), "bob has aborted it");
    fleet.wait_for_stage(0, "rolled_back");
    assert!(fleet.scenes.iter().all(is_delivered));
    // A store that has lost its data changes nothing, and the numbers go on.
    fleet.store.nodes[0].kill();
    fleet.store.nodes[0].restart_empty();
    fleet.wait_for("the store is empty", |known| known["rollout"].is_null() && known["next_number"] == 3);
    let watch = fleet.watch(&format!("{GUARD}{CLOSED}"), &["--pause", "1s"]);
    let (code, out, err) = exit_code_and_output(&watch.wait_with_output().unwrap());
    assert_eq!(code, 0, "{out}{err}");
}

/// The files of the host have an error when the instance goes back.
#[test]
fn rollout_return_that_failed_is_repeated_while_the_store_is_away() {
    if !store::is_installed() {
        return;
    }
    let mut fleet = Fleet::start(1);
    let config = fleet.scenes[0].outgate.config().add("server.watch", false);
    fleet.scenes[0].outgate.reconfigure(&config);
    fleet = fleet.rolled_out(GUARD);
    assert!(is_delivered(&fleet.scenes[0]));
    assert_eq!(exit_code_and_output(&fleet.command(CLOSED, &["--pause", "10m"]).output().unwrap()).0, 0);
    fleet.wait_for_stage(0, "adopted");
    fleet.scenes[0].outgate.replace_config("[");
    eventually("the instance tries to go back", || {
        assert!(!is_delivered(&fleet.scenes[0]));
        fleet.scenes[0].outgate.log.all().iter().any(|line| line.contains("cannot return to its former bundle"))
    });
    fleet.store.nodes[0].kill();
    fleet.scenes[0].outgate.wait_for_metric("outgate_fleet_store_up{} 0");
    fleet.scenes[0].outgate.replace_config(&config);
    eventually("the instance has returned", || is_delivered(&fleet.scenes[0]));
}

/// A damaged state could permit a bundle again that has failed.
#[test]
fn rollout_is_not_followed_with_a_damaged_state_and_the_instance_says_so() {
    if !store::is_installed() {
        return;
    }
    let mut fleet = Fleet::start(1);
    let file = fleet.scenes[0].outgate.folder.path("state/fleet/rollout.json");
    std::fs::write(&file, "{").unwrap();
    fleet.restart(0);
    let expected = format!("this instance follows no rollout: it cannot read its own state: {}", file.display());
    eventually("the state is read", || fleet.scenes[0].outgate.admin("/readyz").text().contains(&expected));
    let (code, _, err) = exit_code_and_output(&fleet.command(GUARD, &[]).output().unwrap());
    assert!(code == 69 && err.contains(&expected), "{code} {err}");
}

/// The next command finds what the former one has stated.
#[test]
fn rollout_begins_at_once_after_another_was_aborted() {
    if !store::is_installed() {
        return;
    }
    let fleet = Fleet::start(1);
    for number in 1..=3 {
        let (code, _, err) = exit_code_and_output(&fleet.command(GUARD, &["--pause", "10m"]).output().unwrap());
        assert_eq!(code, 0, "{err}");
        assert_eq!(fleet.known()["rollout"]["number"], number);
        fleet.abort(number);
        assert_eq!(fleet.known()["rollout"]["outcome"], "failed");
    }
}
