//! Rollouts from the first check to the last wave.
//! In which order do the instances adopt a bundle, and which bundle does none adopt?

use serde_json::{Value, json};

use super::{CLOSED, Fleet, GUARD, is_delivered, rollouts};
use crate::support::audit::until_recorded;
use crate::support::control::exit_code_and_output;
use crate::support::pki::Pki;
use crate::support::store;

#[test]
fn rollout_reaches_the_fleet_in_waves_after_a_second_operator_has_approved() {
    if !store::is_installed() {
        return;
    }
    let mut fleet = Fleet::start(3);
    assert!(fleet.scenes.iter().all(|scene| !is_delivered(scene)));
    let file = fleet.desk.write("bundle.toml", GUARD).display().to_string();
    let (code, change, err) = fleet.run(&["fleet", "rollout", &file, "--dry-run", "--then", "2", "--then", "all"]);
    let waves = "wave 1 egress-a; wave 2 egress-b; wave 3 egress-c";
    assert!(code == 0 && err.contains(&format!("the waves would be: {waves}")), "{code} {err}");
    assert!(change.contains("guard: allow") && change.contains("approval: guard.allow has 127.0.0.0/8"), "{change}");
    assert_eq!(fleet.known()["rollout"], Value::Null, "a dry run starts nothing");
    for words in [["--canary", "200%"], ["--pause", "2h"]] {
        assert_eq!(exit_code_and_output(&fleet.command(GUARD, &words).output().unwrap()).0, 2, "{words:?}");
    }
    let (code, _, err) = fleet.approve(1, "bob");
    assert_eq!((code, err.as_str()), (1, "outgate: the fleet has no rollout 1\n"));
    let watch = fleet.watch(GUARD, &["--canary", "1", "--then", "2", "--then", "all", "--pause", "1s"]);
    fleet.wait_for("the change needs an approval", |known| known["rollout"]["outcome"] == "waiting_for_approval");
    fleet.wait_for_problem("rollout_waiting", "OutgateFleetRolloutWaits");
    let (code, shown, _) = fleet.run(&["fleet", "status"]);
    assert!(code == 1 && shown.contains("problem: rollout 1 waits for the approval of a second operator"), "{shown}");
    for (operator, reason) in [
        ("alice", "alice is the author of rollout 1: another operator must approve it"),
        ("mallory", "no operator of [fleet.operators] has this key"),
    ] {
        let (code, _, err) = fleet.approve(1, operator);
        assert!(code == 1 && err.contains(reason), "{code} {err}");
    }
    let (code, _, err) = exit_code_and_output(&fleet.command(CLOSED, &[]).output().unwrap());
    assert!(code == 69 && err.contains("rollout 1 is not over: alice signed it at 20"), "{code} {err}");
    assert!(err.contains("or agree with alice to abort it"), "{err}");
    let (_, status, _) = fleet.run(&["fleet", "rollout", "--status"]);
    assert!(status.contains("waiting for approval, wave 1 of 3; "), "{status}");
    assert!(status.contains("it waits for the approval of a second operator"), "{status}");
    assert_ne!(fleet.approve(2, "bob").0, 0, "there is no rollout 2");
    assert_eq!(fleet.known()["rollout"]["outcome"], "waiting_for_approval");
    let key = fleet.desk.path("bob.pem").display().to_string();
    let (code, preview, err) = fleet.run(&["fleet", "approve", "1", "--key", &key, "--dry-run"]);
    assert_eq!(code, 0, "{err}");
    assert_eq!(fleet.known()["rollout"]["approver"], Value::Null, "a dry run signs nothing");
    let (code, out, err) = fleet.approve(1, "bob");
    assert_eq!((code, &out), (0, &preview), "{err}");
    assert!(out.contains("guard: allow") && out.contains("approval: guard.allow has 127.0.0.0/8"), "{out}");
    let (code, out, err) = exit_code_and_output(&watch.wait_with_output().unwrap());
    assert_eq!(code, 0, "{out}{err}");
    assert!(err.contains(waves), "{err}");
    assert!(out.starts_with(&change), "the command shows the change before the rollout begins: {out}");
    assert!(
        out.contains("approved by bob: in progress, wave 2 of 3; ") && out.contains("approved by bob: kept"),
        "{out}"
    );
    let mut times = Vec::new();
    for scene in &fleet.scenes {
        assert!(is_delivered(scene));
        let record = until_recorded(&scene.outgate, "configuration.updated", 1).remove(0);
        assert_eq!((&record["source"], &record["actor_sid"]), (&json!("fleet"), &json!("alice, bob")), "{record:#}");
        let requested = &record["event_data"]["requested_by"][0];
        assert_eq!(requested, &json!({ "source": "fleet", "rollout": 1, "author": "alice", "approver": "bob" }));
        times.push(record["event_date"].as_str().unwrap_or_else(|| panic!("{record:#}")).to_owned());
    }
    assert!(times.is_sorted(), "{times:?}");
    for (event_type, operator) in [("rollout.started", "alice"), ("rollout.approved", "bob")] {
        let record = until_recorded(&fleet.scenes[0].outgate, event_type, 1).remove(0);
        assert_eq!((&record["resource_sid"], &record["event_data"]["operator"]), (&json!("1"), &json!(operator)));
        assert_eq!((&record["source"], &record["actor_type"]), (&json!("admin"), &json!("user")), "{record:#}");
    }
    let (_, history, _) = fleet.run(&["history"]);
    assert!(history.contains("rollout 1 of alice, approved by bob"), "{history}");
    let (code, status, _) = fleet.run(&["fleet", "rollout", "--status", "--watch"]);
    assert!(code == 0 && status.contains("rollout 1 of alice, approved by bob: kept"), "{status}");
    let (code, status, _) = fleet.run(&["fleet", "rollout", "--status", "--json"]);
    assert_eq!(code, 0, "{status}");
    let status: Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!((&status["rollout"]["outcome"], &status["rollout"]["approver"]), (&json!("kept"), &json!("bob")));
    let (code, _, err) = fleet.run(&["check"]);
    assert!(code == 0 && err.contains("1 file of the bundle of the fleet"), "{err}");
    // A restart keeps the bundle, and changes nothing.
    fleet.restart(2);
    assert!(is_delivered(&fleet.scenes[2]));
    // A small change needs no second operator.
    let timeouts = format!("{GUARD}{CLOSED}");
    let watch = fleet.watch(&timeouts, &["--pause", "1s"]);
    let (code, out, err) = exit_code_and_output(&watch.wait_with_output().unwrap());
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(fleet.known()["rollout"]["approver"], Value::Null);
}

#[test]
fn rollout_that_one_host_refuses_is_adopted_by_none() {
    if !store::is_installed() {
        return;
    }
    // Paths in a bundle are relative to the main file of each host.
    let fleet = Fleet::start_with(2, "", &[], &|name, folder| {
        if name == "egress-a" {
            folder.write("partner.pem", Pki::new().pem);
        }
    });
    let bundle = "[trust.partner]\nroots = [\"partner.pem\"]\n";
    let watch = fleet.watch(bundle, &["--pause", "1s"]);
    let (code, out, err) = exit_code_and_output(&watch.wait_with_output().unwrap());
    assert_eq!(code, 1, "{out}{err}");
    assert!(
        out.contains("the bundle has a problem on egress-b") && out.contains("partner.pem does not exist"),
        "{out}"
    );
    assert!(fleet.scenes.iter().all(|scene| rollouts(scene).is_empty()));
    fleet.wait_for_problem("rollout_failed", "OutgateFleetRolloutFailed");
    let (code, shown, _) = fleet.run(&["fleet", "status"]);
    assert!(
        code == 1 && shown.contains("problem: rollout 1 has failed: the bundle has a problem on egress-b"),
        "{shown}"
    );
    for scene in &fleet.scenes {
        let record = until_recorded(&scene.outgate, "rollout.failed", 1).remove(0);
        assert_eq!((&record["resource_sid"], &record["source"]), (&json!("1"), &json!("internal")), "{record:#}");
        assert!(record["description"].as_str().is_some_and(|it| it.contains("a problem on egress-b")), "{record:#}");
    }
    // The instance of the operator refuses at once what no host may have from a bundle.
    for (bundle, expected) in [
        ("[server]\nname = \"x\"\n", "only the main file may have it"),
        ("[fleet.operators.mallory]\nkey = \"x\"\n", "only the main file may have it"),
        ("[signers.s]\nscheme = \"github\"\nkeys = [{ id = \"k\", secret = \"hunter2hunter2hunter2\" }]\n", "secret"),
    ] {
        for more in [&[][..], &["--dry-run"]] {
            let (code, _, err) = exit_code_and_output(&fleet.command(bundle, more).output().unwrap());
            assert!(code == 78 && err.contains(expected), "{code} {err}");
            let file = fleet.desk.path("bundle.toml");
            assert!(err.contains(&format!("{}:", file.display())), "the file of the operator: {err}");
            assert!(!err.contains("hunter2") && !err.contains("fleet/current"), "{err}");
        }
    }
    assert_eq!(fleet.known()["rollout"]["number"], 1);
}

/// The steps of docs/fleet.md: the files of the host lose a section, which takes effect only together with the bundle.
#[test]
fn section_moves_from_the_file_of_a_host_into_the_first_bundle() {
    if !store::is_installed() {
        return;
    }
    let mut fleet = Fleet::start(1);
    let outgate = &fleet.scenes[0].outgate;
    let bare = outgate.config().add("server.watch", false);
    outgate.replace_config(&bare.and(GUARD));
    fleet.restart(0);
    assert!(is_delivered(&fleet.scenes[0]));
    let (code, _, err) = exit_code_and_output(&fleet.command(GUARD, &[]).output().unwrap());
    assert!(code != 0 && err.contains("`guard` is in two files"), "{code} {err}");
    fleet.scenes[0].outgate.replace_config(&bare);
    let (code, out, err) = exit_code_and_output(&fleet.command(GUARD, &["--pause", "1s"]).output().unwrap());
    assert_eq!(code, 0, "{out}{err}");
    let kept = fleet.wait_for("the bundle is kept", |known| known["rollout"]["outcome"] == "kept");
    assert_eq!(kept["rollout"]["approver"], Value::Null, "the host permits the same as before");
    assert!(is_delivered(&fleet.scenes[0]));
    // The same files again are a rollout with a new number and a new time.
    let watch = fleet.watch(GUARD, &["--pause", "1s"]);
    let (code, out, err) = exit_code_and_output(&watch.wait_with_output().unwrap());
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("rollout 2 of alice: kept"), "{out}");
}

/// The rollout of the first bundle fails after the section has left the file of the host.
#[test]
fn instance_that_returns_from_its_first_bundle_runs_what_it_ran_before() {
    if !store::is_installed() {
        return;
    }
    let mut fleet = Fleet::start(1);
    let bare = fleet.scenes[0].outgate.config().add("server.watch", false);
    let whole = bare.and(GUARD);
    fleet.scenes[0].outgate.replace_config(&whole);
    fleet.restart(0);
    fleet.scenes[0].outgate.replace_config(&bare);
    for number in [1, 2] {
        let start = fleet.command(GUARD, &["--pause", "10m"]).output().unwrap();
        assert_eq!(exit_code_and_output(&start).0, 0, "{start:?}");
        fleet.wait_for_stage(0, "adopted");
        fleet.abort(number);
        fleet.wait_for_stage(0, "rolled_back");
        assert!(is_delivered(&fleet.scenes[0]), "the file of the host has no guard");
        fleet.scenes[0].outgate.wait_for_metric("outgate_config_drift 1");
    }
    // The operator puts the copy back.
    fleet.scenes[0].outgate.replace_config(&whole);
    let (code, _, err) = fleet.run(&["reload"]);
    assert_eq!(code, 0, "{err}");
    assert!(is_delivered(&fleet.scenes[0]));
    fleet.scenes[0].outgate.wait_for_metric("outgate_config_drift 0");
    // Another rollout begins with files that are whole, and leaves no drift.
    let start = fleet.command(CLOSED, &["--pause", "10m"]).output().unwrap();
    assert_eq!(exit_code_and_output(&start).0, 0, "{start:?}");
    fleet.wait_for_stage(0, "adopted");
    fleet.abort(3);
    fleet.wait_for_stage(0, "rolled_back");
    assert!(fleet.scenes[0].outgate.has_metric("outgate_config_drift 0"));
}

#[test]
fn new_host_is_not_ready_before_it_has_adopted_the_bundle_with_its_routes() {
    if !store::is_installed() {
        return;
    }
    let mut fleet = Fleet::start(1);
    let ready = |fleet: &Fleet| fleet.scenes[0].outgate.admin("/readyz");
    assert_eq!(ready(&fleet).status, 200, "its own files have routes");
    let outgate = &fleet.scenes[0].outgate;
    outgate.replace_config(&outgate.config().add("server.watch", false).remove("routes"));
    fleet.store.nodes[0].kill();
    fleet.restart(0);
    let waits = |fleet: &Fleet| {
        let (answer, load) = (ready(fleet), fleet.scenes[0].outgate.admin("/loadz"));
        assert!(answer.status == 503 && answer.text().contains("this host has no bundle"), "{}", answer.text());
        assert_eq!((load.status, &load.json()["limited_by"]), (503, &json!("bundle")));
        fleet.scenes[0].outgate.wait_for_metric("outgate_load_weight 0");
    };
    waits(&fleet);
    fleet.store.nodes[0].restart_empty();
    fleet.wait_for("the instance is live", |known| known["live_instances"][0] == "egress-a");
    waits(&fleet);
    let port = fleet.scenes[0].plain.port();
    let bundle = format!(
        "{GUARD}[[routes]]\nname = \"plain\"\nhosts = [\"plain.example\"]\nports = [{port}]\nplaintext = \"allow\"\n"
    );
    let watch = fleet.watch(&bundle, &["--pause", "1s"]);
    fleet.wait_for("the change needs an approval", |known| known["rollout"]["outcome"] == "waiting_for_approval");
    waits(&fleet);
    assert_eq!(fleet.approve(1, "bob").0, 0);
    let (code, out, err) = exit_code_and_output(&watch.wait_with_output().unwrap());
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(ready(&fleet).status, 200);
    assert!(is_delivered(&fleet.scenes[0]));
    // It starts from its disk while the store is away.
    fleet.store.nodes[0].kill();
    fleet.restart(0);
    assert_eq!(ready(&fleet).status, 200);
    assert!(is_delivered(&fleet.scenes[0]));
}
