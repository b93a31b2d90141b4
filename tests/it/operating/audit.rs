//! The audit log of a running proxy: which records there are, and what comes first.
//! Does the log name every change with its author, before the change takes effect?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use serde_json::{Value, json};
use support::audit::{
    audit, audit_file, audited, audited_with, is_of_drift_check, records_in, try_reload, until_recorded, verify,
};
use support::control::{exit_code_and_output, run};
use support::scene::{Scene, billing};
use support::{Client, eventually};

/// The configuration on disk with more of it.
fn and(scene: &Scene, more: &str) -> support::configuration::Config {
    scene.outgate.config().and(more)
}

#[test]
fn audit_log_has_the_start_and_the_end_of_the_process() {
    let mut scene = audited();
    let started = &until_recorded(&scene.outgate, "process.started", 1)[0];
    assert_eq!((&started["seq"], &started["prev"]), (&json!(0), &json!("0".repeat(64))));
    assert_eq!(started["event_data"]["pid"], scene.outgate.pid());
    assert_eq!(started["event_data"]["version"], env!("CARGO_PKG_VERSION"));
    scene.outgate.signal("TERM");
    assert!(scene.outgate.wait().success());
    let records = records_in(&audit_file(&scene.outgate));
    let types: Vec<_> = records.iter().map(|record| record["event_type"].as_str().unwrap()).collect();
    assert_eq!(types, ["process.started", "verification.disabled", "process.draining", "process.stopped"]);
    assert_eq!((&records[2]["source"], &records[2]["actor_type"]), (&json!("signal"), &json!("outgate")));
    assert_eq!(verify(&scene.outgate).0, 0);
}

#[test]
fn audit_log_names_the_user_and_the_difference_of_a_reload() {
    let scene = audited();
    let changed = and(&scene, "[limits.per-host]\nrate = \"20/s\"\n");
    assert_eq!(try_reload(&scene, &changed).0, 0);
    let record = &until_recorded(&scene.outgate, "configuration.updated", 1)[0];
    let uid = rustix::process::getuid().as_raw();
    let data = &record["event_data"];
    assert_eq!(data["changes"], json!(["limits.per-host: added: { rate = \"20/s\" }"]), "{record}");
    assert_eq!((&data["requested_by"][0]["uid"], &data["requested_by"][0]["source"]), (&json!(uid), &json!("admin")));
    assert!(data["requested_by"][0]["pid"].as_u64().is_some_and(|pid| pid > 0), "{record}");
    assert_eq!((&data["previous"]["number"], &data["updated"]["number"]), (&json!(1), &json!(2)));
    assert_eq!(
        (&record["kind"], &record["actor_type"], &record["source"]),
        (&json!("account"), &json!("user"), &json!("admin"))
    );
    assert_eq!((&record["class_uid"], &record["type_uid"]), (&json!(6003), &json!(600_303)));
    // Twilio's names.
    for name in ["sid", "account_sid", "actor_sid", "description", "event_date", "resource_sid", "resource_type"] {
        assert!(record[name].is_string(), "{name}: {record}");
    }
    assert!(record["sid"].as_str().unwrap().starts_with("AE"), "{record}");
}

#[test]
fn audit_log_names_signals_and_file_changes_as_the_source_of_a_reload() {
    let changed = |scene: &Scene| scene.outgate.config().and("[timeouts]\nidle = \"7s\"\n");
    let watched = audited_with(&|text| text.set("server.watch", true));
    watched.outgate.after_reload(|| watched.outgate.replace_config(&changed(&watched)));
    let record = &until_recorded(&watched.outgate, "configuration.updated", 1)[0];
    assert_eq!((&record["source"], &record["actor_sid"]), (&json!("file"), &Value::Null));
    let unwatched = audited();
    support::control::write(&unwatched, &changed(&unwatched));
    unwatched.outgate.after_reload(|| unwatched.outgate.signal("HUP"));
    let record = &until_recorded(&unwatched.outgate, "configuration.updated", 1)[0];
    assert_eq!(record["source"], "signal", "{record}");
}

#[test]
fn audit_log_has_rejected_reloads_and_rollbacks() {
    let scene = audited();
    let good = scene.outgate.config();
    assert_eq!(try_reload(&scene, &good.and("[limits.l]\nrate = \"1/s\"\n")).0, 0);
    let (code, _, _) = try_reload(&scene, &good.and("[limits.l]\nrat = \"1/s\"\n"));
    assert_eq!(code, 78);
    let rejected = &until_recorded(&scene.outgate, "configuration.rejected", 1)[0];
    assert!(rejected["event_data"]["problems"][0].as_str().unwrap().contains("limits.l.rat"), "{rejected}");
    assert_eq!(rejected["actor_type"], "user");
    let (code, _, err) = exit_code_and_output(&run(&scene, &["rollback", "1"]));
    assert_eq!(code, 0, "{err}");
    let back = &until_recorded(&scene.outgate, "configuration.rolled_back", 1)[0];
    assert_eq!(back["event_data"]["cause"], "rollback to 1", "{back}");
    assert_eq!(verify(&scene.outgate).0, 0);
}

#[test]
fn audit_log_has_records_of_their_own_for_tokens_keys_logs_and_verification() {
    let scene = audited();
    let hash = format!("sha256:{}", "0a".repeat(32));
    let client = format!("[clients.billing]\ntokens = [\"{hash}\"]\n");
    let trust =
        "[trust.lax]\nverify = \"none\"\n[[routes]]\nname = \"lax\"\nhosts = [\"lax.example\"]\ntrust = \"lax\"\n";
    let next = and(&scene, &client).and(trust).and("[log]\nlevel = \"debug\"\n");
    scene.outgate.folder.write("key", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD");
    assert_eq!(try_reload(&scene, &next).0, 0);
    let of = |event_type: &str| until_recorded(&scene.outgate, event_type, 1).remove(0);
    assert_eq!(of("token.updated")["resource_sid"], "clients.billing");
    let key = of("key.updated");
    assert_eq!(key["resource_sid"], "signers.platform", "{key}");
    assert_eq!(of("log.updated")["event_data"]["changes"], json!(["log: level \"debug\" added"]));
    let off = until_recorded(&scene.outgate, "verification.disabled", 2).remove(1);
    assert_eq!((&off["resource_sid"], &off["event_data"]["routes"]), (&json!("trust.lax"), &json!(["lax"])), "{off}");
    assert_eq!(off["severity_id"], 4);
    let text = std::fs::read_to_string(audit_file(&scene.outgate)).unwrap();
    assert!(!text.contains(&"0a".repeat(32)) && !text.contains("whsec"), "{text}");
    let on = next.set("trust.lax.verify", "full");
    assert_eq!(try_reload(&scene, &on).0, 0);
    assert_eq!(of("verification.enabled")["resource_sid"], "trust.lax");
}

/// The difference lists 100 changes, and a signer comes after the limits.
#[test]
fn audit_log_has_a_record_of_a_key_that_changes_beside_many_other_changes() {
    let scene = audited();
    let limits: String = (0..150).map(|number| format!("[limits.l{number}]\nrate = \"1/s\"\n")).collect();
    let key = "keys = [{ id = \"k2\", secret = \"file:{dir}/key\" }]\n";
    let signer = format!("[signers.zeta]\nscheme = \"standard-webhooks\"\n{key}");
    let (code, _, err) = try_reload(&scene, &and(&scene, &limits).and(&signer));
    assert_eq!(code, 0, "{err}");
    let updated = &until_recorded(&scene.outgate, "configuration.updated", 1)[0];
    assert_eq!(updated["event_data"]["more_changes"], 51, "{updated}");
    let key = &until_recorded(&scene.outgate, "key.updated", 1)[0];
    assert_eq!(key["resource_sid"], "signers.zeta", "{key}");
    assert!(key["event_data"]["changes"][0].as_str().unwrap().starts_with("signers.zeta: added"), "{key}");
}

#[test]
fn audit_log_has_the_address_of_a_command_that_is_refused_over_tcp() {
    let mut scene = audited();
    let mut client = Client::connect(scene.outgate.admin);
    client.send("POST /v1/reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.response().status, 401);
    scene.outgate.signal("TERM");
    assert!(scene.outgate.wait().success());
    let refused = &until_recorded(&scene.outgate, "authentication.failed", 1)[0];
    assert_eq!(
        (&refused["resource_sid"], &refused["source_ip_address"], &refused["event_data"]["addresses"]),
        (&json!("/v1/reload"), &json!("127.0.0.1"), &json!(["127.0.0.1"])),
        "{refused}"
    );
}

#[test]
fn removed_audit_log_leaves_no_warning() {
    let scene = audited();
    scene.outgate.folder.write("audit.key", support::audit::checkpoint_key());
    // A folder in the place of the next checkpoint.
    std::fs::create_dir(scene.outgate.folder.path("audit.jsonl.checkpoint.new")).unwrap();
    let signed = scene.outgate.config().add("audit.checkpoint_key", "{dir}/audit.key");
    assert_eq!(try_reload(&scene, &signed).0, 0);
    let has_warning = || scene.outgate.admin("/readyz").text().contains("the audit checkpoint is not written");
    eventually("the warning", has_warning);
    let without = scene.outgate.config().remove("audit.file").remove("audit.checkpoint_key");
    assert_eq!(try_reload(&scene, &without).0, 0);
    eventually("no warning", || !has_warning());
}

#[test]
fn audit_log_counts_refused_clients_and_denied_targets_by_code_client_and_tenant() {
    let mut scene = audited_with(&|text| {
        text.remove("server.allow_anonymous")
            .and(&billing("TOKEN"))
            .host("inner.example", "10.0.0.1")
            .and("[[routes]]\nname = \"inner\"\nhosts = [\"inner.example\"]\n")
    });
    // The user name of a configured client, and a wrong token.
    let wrong = "Proxy-Authorization: Basic YmlsbGluZzpXUk9ORw==\r\n";
    for _ in 0..3 {
        assert_eq!(scene.outgate.post(&scene.good_url(), wrong, "x").status, 407);
    }
    let right = "Proxy-Authorization: Bearer TOKEN\r\nOutgate-Tenant: acme\r\n";
    assert_eq!(scene.outgate.post("https://inner.example/in", right, "x").code(), "target_forbidden");
    scene.outgate.signal("TERM");
    assert!(scene.outgate.wait().success());
    let failed = &until_recorded(&scene.outgate, "authentication.failed", 1)[0];
    assert_eq!(
        (&failed["resource_sid"], &failed["event_data"]["count"]),
        (&json!("client_unauthenticated"), &json!(3))
    );
    assert_eq!(failed["source_ip_address"], "127.0.0.1", "{failed}");
    assert_eq!(
        (&failed["actor_type"], &failed["actor_sid"]),
        (&json!("outgate"), &Value::Null),
        "anybody can claim it"
    );
    assert_eq!(failed["event_data"]["claimed_client"], "billing", "{failed}");
    let denied = &until_recorded(&scene.outgate, "target.denied", 1)[0];
    assert_eq!(denied["resource_sid"], "target_forbidden", "{denied}");
    assert_eq!((&denied["actor_sid"], &denied["event_data"]["tenant"]), (&json!("billing"), &json!("acme")));
    assert_eq!(denied["actor_type"], "client");
}

#[test]
fn audit_log_has_drift_and_calls_of_the_admin_socket() {
    let mut scene = audited();
    support::control::write(&scene, &and(&scene, "[timeouts]\nidle = \"7s\"\n"));
    let drift = &until_recorded(&scene.outgate, "configuration.drifted", 1)[0];
    assert!(drift["description"].as_str().unwrap().contains("idle"), "{drift}");
    assert_eq!(run(&scene, &["diff"]).status.code(), Some(1));
    assert_eq!(run(&scene, &["reload"]).status.code(), Some(0));
    until_recorded(&scene.outgate, "configuration.restored", 1);
    // A rejection is the begin of a drift, too.
    let good = scene.outgate.config();
    assert_eq!(try_reload(&scene, &good.and("[limits.broken]\nrat = 1\n")).0, 78);
    assert_eq!(try_reload(&scene, &good).0, 0);
    until_recorded(&scene.outgate, "configuration.restored", 2);
    assert_eq!(until_recorded(&scene.outgate, "configuration.drifted", 2).len(), 2);
    scene.outgate.signal("TERM");
    assert!(scene.outgate.wait().success());
    let calls = until_recorded(&scene.outgate, "admin.called", 1);
    let call = calls.iter().find(|call| call["resource_sid"] == "/v1/diff").unwrap_or_else(|| panic!("{calls:?}"));
    assert_eq!((&call["kind"], &call["source"]), (&json!("actor"), &json!("admin")));
    assert!(call["actor_sid"].is_string(), "{call}");
}

#[test]
fn audit_show_filters_by_kind_type_actor_and_time() {
    let scene = audited();
    assert_eq!(try_reload(&scene, &and(&scene, "[limits.l]\nrate = \"1/s\"\n")).0, 0);
    let config = scene.outgate.folder.path("config.toml");
    let show = |more: &[&str]| {
        let (code, out, err) = audit(&[&["show", "--config", config.to_str().unwrap(), "--json"], more].concat());
        assert_eq!(code, 0, "{err}");
        let types = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["event_type"].clone());
        let types = types.map(|name| name.as_str().unwrap().to_owned());
        types.filter(|name| !is_of_drift_check(name)).collect::<Vec<_>>()
    };
    assert_eq!(show(&[]), ["process.started", "verification.disabled", "configuration.updated"]);
    assert_eq!(show(&["--kind", "account"]), ["verification.disabled", "configuration.updated"]);
    assert_eq!(show(&["--kind", "other"]), ["process.started"]);
    assert_eq!(show(&["--kind", "actor"]), ["configuration.updated"]);
    assert_eq!(show(&["--kind", "address"]), [""; 0]);
    assert_eq!(show(&["--type", "configuration"]), ["configuration.updated"]);
    assert_eq!(show(&["--type", "process.started"]), ["process.started"]);
    assert_eq!(show(&["--type", "process.start"]), [""; 0]);
    assert_eq!(show(&["--since", "1h"]).len(), 3);
    assert_eq!(show(&["--since", "2100-01-01T00:00:00Z"]), [""; 0]);
    let user = until_recorded(&scene.outgate, "configuration.updated", 1)[0]["actor_sid"].as_str().unwrap().to_owned();
    assert_eq!(show(&["--actor", &user]), ["configuration.updated"]);
    assert_eq!(show(&["--actor", "nobody"]), [""; 0]);
    let (code, out, _) = audit(&["show", "--config", config.to_str().unwrap()]);
    assert_eq!(code, 0);
    let lines = out.lines().filter(|line| !line.split_whitespace().any(is_of_drift_check));
    assert!(out.starts_with("TIME ") && lines.count() == 4, "{out}");
}

#[test]
fn audit_log_begins_moves_and_ends_by_a_reload() {
    let scene = audited();
    let first = scene.outgate.config();
    let moved = first.set("audit.file", "{dir}/other.jsonl");
    assert_eq!(try_reload(&scene, &moved).0, 0);
    let types = |name: &str| {
        let records = records_in(&scene.outgate.folder.path(name));
        let types = records.iter().map(|record| record["event_type"].as_str().unwrap().to_owned());
        types.filter(|name| !is_of_drift_check(name)).collect::<Vec<_>>()
    };
    eventually("the record of the move in both logs", || {
        types("audit.jsonl").contains(&"audit.updated".to_owned())
            && types("other.jsonl")[..] == ["configuration.updated", "audit.updated"]
    });
    assert_eq!(try_reload(&scene, &first.remove("audit.file")).0, 0);
    assert_eq!(types("other.jsonl").last().unwrap(), "audit.updated");
    let ended = types("other.jsonl").len();
    assert_eq!(try_reload(&scene, &first.remove("audit.file").and("[limits.l]\nrate = \"1/s\"\n")).0, 0);
    assert_eq!(types("other.jsonl").len(), ended);
    assert_eq!(try_reload(&scene, &first).0, 0);
    assert_eq!(types("audit.jsonl").last().unwrap(), "audit.updated");
    assert_eq!(verify(&scene.outgate).0, 0);
    let (code, _, err) = try_reload(&scene, &first.set("audit.file", "{dir}/missing/audit.jsonl"));
    assert!(code == 78 && err.contains("cannot open the audit log"), "{err}");
}

#[test]
fn check_tests_that_the_audit_log_can_be_written() {
    let scene = audited();
    let config = scene.outgate.config().set("audit.file", "{dir}/missing/audit.jsonl");
    let path = scene.outgate.folder.write_config("other.toml", &config);
    let (code, _, err) = exit_code_and_output(&run(&scene, &["check", "--config", path.to_str().unwrap()]));
    assert!(code == 1 && err.contains("outgate cannot write the audit log"), "{err}");
}
