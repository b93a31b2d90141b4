//! `outgate reload`, `diff` and `status` of the real binary, over the admin socket.
//! Does `diff` show a change before `reload` applies it, and does `status` show its author?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::process::Command;
use std::time::Instant;

use support::TEST_TIMEOUT;
use support::configuration::Replace;
use support::control::{exit_code_and_output, json, run, status, text, with_admin_socket, write};
use support::scene::{Scene, scene_of};

fn scene() -> Scene {
    scene_of(&with_admin_socket)
}

#[test]
fn diff_shows_a_change_before_reload_applies_and_reports_it() {
    let scene = scene();
    assert_eq!(run(&scene, &["diff"]).status.code(), Some(0));
    let changed = text(&scene, "[limits.per-host]\nrate = \"20/s\"\n")
        .set("routes.plain.hosts", ["other.example"])
        .set("routes.signed.hosts", ["hook.example", "127.0.0.1"]);
    write(&scene, &changed);
    let expected = "limits.per-host: added: { rate = \"20/s\" }\nroutes.plain: hosts \"plain.example\" removed\n\
                    routes.plain: hosts \"other.example\" added\nroutes.signed: hosts \"other.example\" removed\n";
    // `diff` shows the change and does not apply it.
    for _ in 0..2 {
        let (code, out, err) = exit_code_and_output(&run(&scene, &["diff"]));
        assert_eq!((code, out.as_str()), (1, expected), "{err}");
        assert!(err.contains("4 changes to configuration 1"), "{err}");
    }
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    let (code, out, err) = exit_code_and_output(&run(&scene, &["reload"]));
    assert_eq!((code, out.as_str()), (0, expected), "{err}");
    assert!(err.contains("configuration 2 is active: 4 changes"), "{err}");
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").code(), "no_route");
    let (code, out, err) = exit_code_and_output(&run(&scene, &["reload"]));
    assert_eq!((code, out.as_str()), (0, ""), "{err}");
    assert!(err.contains("unchanged: configuration 2 is active since"), "{err}");

    let found = status(&scene);
    let configuration = &found["configuration"];
    let uid = rustix::process::getuid().as_raw();
    assert!(configuration["by"].as_str().unwrap().contains(&format!("(uid {uid}, pid ")), "{configuration}");
    assert_eq!((&configuration["number"], configuration["changes"].as_array().unwrap().len()), (&2.into(), 4));
    let (code, out, _) = exit_code_and_output(&run(&scene, &["status"]));
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("configuration  2 of ") && out.contains("egress         default: 4 usable of 4"), "{out}");
    scene.outgate.log.wait_for_lines(1, &["changed: routes.plain: hosts"]);
}

#[test]
fn every_command_reports_a_missing_configuration_file() {
    let folder = support::Folder::new();
    let path = folder.path("missing.toml");
    for words in ["status", "reload", "diff", "history", "rollback 1", "rollback --finish"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        let output = command.args(words.split(' ')).arg("--config").arg(&path).output().unwrap();
        let (code, _, err) = exit_code_and_output(&output);
        assert!(code == 78 && err.contains("missing.toml does not exist"), "{words}: {code} {err}");
    }
}

#[test]
fn reload_of_an_invalid_configuration_reports_it_and_changes_nothing() {
    let scene = scene();
    write(&scene, &text(&scene, "").remove("routes.plain.hosts").add("routes.plain.hots", ["plain.example"]));
    for command in ["diff", "reload"] {
        let (code, out, err) = exit_code_and_output(&run(&scene, &[command]));
        assert_eq!((code, out.as_str()), (78, ""), "{err}");
        assert!(err.contains("error: unknown key `routes.hots`") && err.contains("config.toml:"), "{err}");
        let rejected = scene.outgate.admin("/readyz").text().contains("rejected");
        assert_eq!(rejected, command == "reload", "diff does not change the state");
    }
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    assert!(scene.outgate.has_metric("outgate_reload_failed 1"));
    let found = status(&scene);
    assert_eq!(found["configuration"]["number"], 1);
    assert!(found["rejected"]["problems"][0].as_str().unwrap().contains("hots"), "{found}");
    let reload = run(&scene, &["reload", "--json"]);
    assert_eq!((reload.status.code(), &json(&reload)["outcome"]), (Some(78), &"rejected".into()));

    // The command itself compares another file; the running process does not read it.
    let new = scene.outgate.folder.write_config("new.toml", &text(&scene, "[timeouts]\nidle = \"7s\"\n"));
    let (code, out, err) = exit_code_and_output(&run(&scene, &["diff", "--config", new.to_str().unwrap()]));
    assert_eq!((code, out.as_str()), (1, "timeouts: idle \"7s\" added\n"), "{err}");

    write(&scene, &text(&scene, ""));
    assert_eq!(exit_code_and_output(&run(&scene, &["reload"])).0, 0);
    assert!(scene.outgate.has_metric("outgate_reload_failed 0"));
}

#[test]
fn reload_by_file_change_signal_and_command_records_its_source() {
    let scene = scene_of(&|text| with_admin_socket(text).set("server.watch", true));
    let watched = |more: &str| text(&scene, more).set("server.watch", true);
    for (number, idle) in [(2, "7s"), (3, "8s")] {
        let config = watched(&format!("[timeouts]\nidle = \"{idle}\"\n"));
        scene.outgate.after_reload(|| scene.outgate.replace_config(&config));
        let found = status(&scene);
        assert_eq!(found["configuration"]["number"], number);
        assert_eq!(found["configuration"]["by"], "file change");
    }
    // Nothing watches the files of this process, so that only the signal loads the change.
    let scene = scene_of(&with_admin_socket);
    write(&scene, &text(&scene, "[timeouts]\nidle = \"9s\"\n"));
    scene.outgate.after_reload(|| scene.outgate.signal("HUP"));
    let found = status(&scene);
    assert_eq!((&found["configuration"]["number"], &found["configuration"]["by"]), (&2.into(), &"signal".into()));
}

#[test]
fn reload_requests_that_arrive_together_share_one_outcome() {
    let scene = scene();
    let numbers = std::thread::scope(|scope| {
        let reload_with_limit = |number: usize| {
            let scene = &scene;
            move || {
                let limit = format!("[limits.l{number}]\nrate = \"20/s\"\n");
                let next = scene.outgate.folder.write_config(&format!("next{number}"), &text(scene, &limit));
                std::fs::rename(next, scene.outgate.folder.path("config.toml")).unwrap();
                let outcome = json(&run(scene, &["reload", "--json"]));
                assert!(outcome["outcome"] == "adopted" || outcome["outcome"] == "unchanged", "{outcome}");
                outcome["number"].as_u64().unwrap()
            }
        };
        let threads: Vec<_> = (0..50).map(|number| scope.spawn(reload_with_limit(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    // The last file was on disk before its writer requested a reload, so it is active now.
    assert_eq!(run(&scene, &["diff"]).status.code(), Some(0));
    let last = status(&scene)["configuration"]["number"].as_u64().unwrap();
    assert!(last <= 51 && numbers.iter().all(|number| (1..=last).contains(number)), "{numbers:?} {last}");
}

#[test]
fn commands_name_the_admin_socket_that_does_not_answer() {
    let folder = support::Folder::new();
    let socket = format!("unix:{}", folder.path("admin.sock").display());
    let named = folder.write("config.toml", format!("[admin]\nlisten = [\"{socket}\"]\n[[broken"));
    for words in [["--admin", socket.as_str()], ["--config", named.to_str().unwrap()]] {
        for command in ["reload", "status", "diff"] {
            let output = Command::new(env!("CARGO_BIN_EXE_outgate")).arg(command).args(words).output().unwrap();
            let (code, _, err) = exit_code_and_output(&output);
            assert!(code == 69 && err.contains(&format!("no process listens on {socket}")), "{command}: {err}");
        }
        let mut explain = Command::new(env!("CARGO_BIN_EXE_outgate"));
        explain.args(["explain", "POST", "https://a.example/", "--running"]).args(words);
        let (code, _, err) = exit_code_and_output(&explain.output().unwrap());
        assert!(code == 69 && err.contains(&format!("no process listens on {socket}")), "{err}");
        assert!(err.contains("--admin") && !err.contains("SIGHUP"), "{err}");
    }
    let output =
        Command::new(env!("CARGO_BIN_EXE_outgate")).args(["reload", "--admin", "127.0.0.1:1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn explain_running_shows_limits_in_use_and_open_circuits() {
    let more = "[limits.few]\nrate = \"3/h\"\nconcurrency = 5\nper = [\"host\"]\n[circuit]\nfailures = 1\nopen = \"1h\"\nopen_max = \"1h\"\n";
    let scene = scene();
    let limited = text(&scene, more).add("routes.signed.limits", ["few"]);
    write(&scene, &limited);
    assert_eq!(exit_code_and_output(&run(&scene, &["reload"])).0, 0);
    let explain = |url: &str| {
        let output = run(&scene, &["explain", "POST", url, "--running", "--json"]);
        let steps = json(&output)["steps"].as_array().unwrap().clone();
        let now =
            steps.iter().filter(|step| step["step"] == "now").map(|step| step["what"].as_str().unwrap().to_owned());
        (output.status.code().unwrap(), now.collect::<Vec<_>>())
    };
    let url = scene.good_url();
    let pool = "pool default: 4 of 4 addresses usable".to_owned();
    assert_eq!(explain(&url), (0, vec!["limit few: 3 of 3 left, 0 of 5 in flight".to_owned(), pool.clone()]));
    for _ in 0..3 {
        assert_eq!(scene.outgate.post(&url, "", "x").status, 200);
    }
    let (code, now) = explain(&url);
    assert_eq!((code, &now[1]), (1, &pool));
    assert!(
        now[0].starts_with("limit few: 0 of 3 left, the next token in ")
            && now[0].ends_with(", 0 of 5 in flight: refused as rate_limited"),
        "{now:?}"
    );
    // `explain` spends no token, so another host still has all of them.
    let other = url.replace_one("hook.example", "other.example");
    assert_eq!(explain(&other).1[0], "limit few: 3 of 3 left, 0 of 5 in flight");

    let silent_target = format!("https://plain.example:{}/", scene.plain.port());
    assert_eq!(
        scene.outgate.post(&silent_target, "", "x").code(),
        "connect_timeout",
        "it waits for a request in plaintext"
    );
    let (code, now) = explain(&silent_target);
    assert_eq!(code, 1, "{now:?}");
    assert!(now[1].starts_with("the circuit of the target is open: refused as target_circuit_open for 3"), "{now:?}");
    assert_eq!(explain("https://elsewhere.example/").0, 1, "refused, as it would be");
    let (code, out, _) = exit_code_and_output(&run(&scene, &["explain", "POST", &url, "--running"]));
    assert!(code == 1 && out.contains("now        limit few: 0 of 3 left"), "{out}");
}

#[test]
fn explain_running_exits_1_for_what_would_be_refused_now() {
    let scene = scene();
    let url = scene.plain_url();
    let explain = || exit_code_and_output(&run(&scene, &["explain", "POST", &url, "--running"]));
    let reload = |name: &str, limit: &str, range: &str| {
        let text = text(&scene, &format!("[limits.{name}]\n{limit}\n")).set("egress.default.ranges", [range]);
        write(&scene, &text.add("routes.plain.limits", [name]));
        let (code, _, err) = exit_code_and_output(&run(&scene, &["reload"]));
        assert_eq!(code, 0, "{err}");
    };
    for (name, limit, refused) in [
        ("rate", "rate = \"1/h\"", Some("rate_limited")),
        ("waits", "rate = \"1/h\"\nwait = \"1h\"", None),
        ("reports", "rate = \"1/h\"\nreport_only = true", None),
        ("full", "concurrency = 1", Some("concurrency_limited")),
        ("queues", "concurrency = 1\nwait = \"1s\"", None),
    ] {
        reload(name, limit, "127.0.7.0/30");
        assert_eq!(explain().0, 0, "{name} is unused");
        // One delivery is in flight and has spent a token.
        let mut client = scene.outgate.start_upload(&url, 1);
        let (code, out, err) = explain();
        assert_eq!(code, i32::from(refused.is_some()), "{name}: {out}{err}");
        assert_eq!(out.contains("refused as"), refused.is_some(), "{out}");
        assert!(refused.is_none_or(|code| out.contains(&format!("in flight: refused as {code}"))), "{out}");
        client.send("x");
        assert_eq!(client.response().status, 200);
    }
    reload("none", "concurrency = 9", "198.51.100.16/28");
    let (code, out, _) = explain();
    assert!(code == 1 && out.contains("0 of 16 addresses usable: refused as no_egress"), "{out}");
}

/// A delivery acquires its limits before the guard checks the addresses of its target.
#[test]
fn explain_running_gives_the_first_refusal_that_the_proxy_gives() {
    let scene = scene();
    let more = "[limits.once]\nrate = \"1/h\"\n[[routes]]\nname = \"inside\"\nhosts = [\"inside.example\"]\nlimits = [\"once\"]\n";
    write(&scene, &text(&scene, more).host("inside.example", "10.0.0.1"));
    let (code, _, err) = exit_code_and_output(&run(&scene, &["reload"]));
    assert_eq!(code, 0, "{err}");
    let url = "https://inside.example/";
    for expected in ["target_forbidden", "rate_limited"] {
        let explained = json(&run(&scene, &["explain", "POST", url, "--running", "--json"]));
        assert_eq!(explained["refusal"], expected, "{explained}");
        assert_eq!(scene.outgate.post(url, "", "x").code(), expected);
    }
}

#[test]
fn warnings_are_logged_as_warnings_and_once() {
    let scene = scene();
    let log = &scene.outgate.log;
    let logged = |level: &str| log.wait_for_lines(0, &[&format!("{level} "), "[unused]"]);
    // A reload does not repeat the warnings of the previous one.
    let with = |more: &str| text(&scene, &format!("[limits.idle]\nrate = \"1/h\"\n{more}"));
    write(&scene, &with("wait = \"1s\"\n"));
    assert_eq!(exit_code_and_output(&run(&scene, &["reload"])).0, 0);
    log.wait_for_lines(1, &["configuration reloaded"]);
    assert_eq!(logged("WARN"), 1, "{:#?}", log.all());
    write(&scene, &with("wait = \"2s\"\n"));
    assert_eq!(exit_code_and_output(&run(&scene, &["reload"])).0, 0);
    log.wait_for_lines(2, &["configuration reloaded"]);
    assert_eq!(logged("WARN"), 1, "{:#?}", log.all());
    assert!(status(&scene)["configuration"]["warnings"].to_string().contains("[unused]"));
    // Warnings of a rejected configuration are not listed as problems.
    let broken = with("[limits.other]\nrate = \"1/h\"\n").set("signers.platform.scheme", "other");
    write(&scene, &broken);
    let (code, _, err) = exit_code_and_output(&run(&scene, &["reload"]));
    assert!(code == 78 && err.contains("warning[unused]"), "{err}");
    log.wait_for_lines(1, &["configuration not adopted"]);
    assert_eq!((logged("ERROR"), logged("WARN")), (0, 2), "{:#?}", log.all());
    assert_eq!(status(&scene)["rejected"]["problems"].as_array().unwrap().len(), 1);
}

/// Polls `status` until `found` returns true.
fn wait_for_status(scene: &Scene, label: &str, mut found: impl FnMut(&serde_json::Value) -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        let status = status(scene);
        if found(&status) {
            return;
        }
        assert!(Instant::now() < deadline, "{label}: {status:#}");
    }
}

#[test]
fn status_drops_a_rejected_configuration_when_its_files_change_back() {
    let scene = scene();
    let good = text(&scene, "");
    write(&scene, &good.set("signers.platform.scheme", "other"));
    assert_eq!(run(&scene, &["reload"]).status.code(), Some(78));
    assert!(scene.outgate.has_metric("outgate_reload_failed 1"));
    write(&scene, &good);
    wait_for_status(&scene, "neither rejected nor drifting", |status| {
        status["rejected"].is_null() && status["drift"].is_null()
    });
    assert!(scene.outgate.has_metric("outgate_reload_failed 0"));
    // A later change of the files is reported as drift.
    write(&scene, &good.set("signers.platform.scheme", "other"));
    assert_eq!(run(&scene, &["reload"]).status.code(), Some(78));
    write(&scene, &text(&scene, "[limits.late]\nrate = \"20/s\"\n"));
    wait_for_status(&scene, "drifting only", |status| {
        status["rejected"].is_null() && status["drift"]["what"] == "limits.late: added: { rate = \"20/s\" }"
    });
}

#[test]
fn drift_is_reported_while_diff_requests_arrive() {
    let scene = scene();
    write(&scene, &text(&scene, "[limits.late]\nrate = \"20/s\"\n"));
    wait_for_status(&scene, "drift", |status| {
        assert_eq!(run(&scene, &["diff"]).status.code(), Some(1));
        !status["drift"].is_null()
    });
}
