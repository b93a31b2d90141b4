//! `outgate drain` and `outgate undrain` of a running proxy.
//! Does outgate leave service in steps, finish what it began, and return at each step?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};

use serde_json::json;
use support::audit::until_recorded;
use support::control::{call, exit_code_and_output, get, json, run, with_admin_socket};
use support::receiver::{Reaction, Receiver};
use support::scene::{Scene, config, folder};
use support::{Outgate, TEST_TIMEOUT, eventually, post};

/// A scene whose target responds when the test sends a message.
fn scene() -> (Scene, Sender<()>) {
    let (release, wait) = channel();
    let wait = Mutex::new(wait);
    let held: Reaction = Arc::new(move |_| {
        let _ = wait.lock().unwrap().recv_timeout(TEST_TIMEOUT);
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(), true)
    });
    let pki = support::pki::Pki::new();
    let good = Receiver::tls(pki.leaf(&["hook.example"]), held);
    let plain = Receiver::plain(support::receiver::ok());
    let text = with_admin_socket(&config(&good, &plain, "")).add("audit.file", "{dir}/audit.jsonl");
    let outgate = Outgate::run(folder(&pki), &text);
    (Scene { pki, outgate, good, plain }, release)
}

fn stage(scene: &Scene) -> String {
    get(&scene.outgate, "/v1/status").json()["drain"]["stage"].as_str().unwrap().to_owned()
}

#[test]
fn drain_ends_readiness_then_refuses_and_undrain_returns_from_each_stage() {
    let (scene, _release) = scene();
    let deliver = || scene.outgate.post(&scene.plain_url(), "", "x");
    let ready = || scene.outgate.admin("/readyz");
    // Announced: not ready, and new deliveries are accepted.
    let drained = json(&run(&scene, &["drain", "--grace", "1h", "--json"]));
    assert_eq!(drained["drain"]["stage"], "announced", "{drained}");
    assert!(ready().status == 503 && ready().text().contains("draining"), "{}", ready().text());
    assert_eq!(deliver().status, 200);
    assert!(scene.outgate.has_metric("outgate_draining 1"));
    let (code, out, err) = exit_code_and_output(&run(&scene, &["undrain"]));
    assert!(code == 0 && out.starts_with("serving"), "{out}{err}");
    assert_eq!((ready().status, deliver().status), (200, 200));
    // Refusing.
    assert_eq!(run(&scene, &["drain", "--grace", "0s"]).status.code(), Some(0));
    eventually("refusing", || stage(&scene) == "refusing");
    let refused = deliver();
    assert_eq!((refused.status, refused.code(), refused.field("retry-after")), (503, "draining", "1"));
    let (code, out, _) = exit_code_and_output(&run(&scene, &["drain", "--wait", "--timeout", "10s"]));
    assert!(code == 0 && out.contains("refuses new deliveries, requested by user"), "{out}");
    assert_eq!(run(&scene, &["undrain"]).status.code(), Some(0));
    assert_eq!((ready().status, deliver().status), (200, 200));
    // Without a drain, `undrain` changes nothing.
    assert_eq!(call(&scene.outgate, "POST", "/v1/undrain", "{}").json()["drain"]["stage"], "serving");
    let drained = until_recorded(&scene.outgate, "process.draining", 2);
    assert_eq!(drained[1]["event_data"]["grace_seconds"], json!(0.0), "{drained:?}");
    assert!(drained[1]["actor_sid"].is_string(), "{drained:?}");
    assert_eq!(until_recorded(&scene.outgate, "process.undrained", 2).len(), 2);
}

#[test]
fn drain_wait_ends_after_the_last_delivery_in_flight() {
    let (scene, release) = scene();
    let mut busy = scene.outgate.connect();
    busy.send(post(&scene.good_url(), "", "x"));
    eventually("the delivery reaches the target", || scene.good.connections() > 0);
    let (code, _, err) = exit_code_and_output(&run(&scene, &["drain", "--grace", "0s", "--wait", "--timeout", "1ms"]));
    assert!(code == 75 && err.contains("has not ended within 1ms"), "{code} {err}");
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    command.args(["drain", "--wait", "--json", "--config"]).arg(scene.outgate.folder.path("config.toml"));
    let waiting = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("refusing", || stage(&scene) == "refusing");
    release.send(()).unwrap();
    let response = busy.response();
    assert_eq!((response.status, response.field("connection")), (200, "close"), "a delivery in flight finishes");
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(json(&output)["deliveries_in_flight"], 0);
}

#[test]
fn drain_default_grace_is_that_of_the_configuration_and_term_ends_it() {
    let (mut scene, _release) = scene();
    scene.outgate.reconfigure(&scene.outgate.config().add("server.drain_grace", "2h"));
    let drained = call(&scene.outgate, "POST", "/v1/drain", "{}").json();
    let from: jiff::Timestamp = drained["drain"]["refuses_from"].as_str().unwrap().parse().unwrap();
    let left = from.duration_since(jiff::Timestamp::now()).as_secs();
    assert!((7000..=7200).contains(&left), "{drained}");
    scene.outgate.signal("TERM");
    assert!(scene.outgate.wait().success());
}
