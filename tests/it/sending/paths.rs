//! Paths that servers read in different ways: dot segments, escapes, backslashes and empty segments.
//! Does a request reach only the paths that its route allows, and does `explain` say so?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::process::Command;

use serde_json::{Value, json};
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Outgate, Response};

/// Paths of `hooks.example` and the code of their refusal. An empty code: the request is delivered.
const PATHS: &[(&str, &str)] = &[
    ("/webhooks/x", ""),
    ("/webhooks//x", ""),
    ("/webhooks/a/../b?c=/../d", ""),
    ("/webhooks/a%2Fb;c/%20", ""),
    ("/admin/x", "no_route"),
    ("/admin/./x", "no_route"),
    ("/webhooks/../admin/x", "request_malformed"),
    ("/webhooks/%2e%2e/admin/x", "request_malformed"),
    ("/webhooks/%2E./admin/x", "request_malformed"),
    ("/webhooks/..%2fadmin/x", "request_malformed"),
    ("/webhooks/..%5cadmin/x", "request_malformed"),
    ("/webhooks/.%2e%2Fadmin/x", "request_malformed"),
    ("/webhooks/%252e%252e/admin/x", "request_malformed"),
    ("/webhooks/..;/admin/x", "request_malformed"),
    ("/webhooks/..;a=b/admin/x", "request_malformed"),
    ("/webhooks/%c0%ae%c0%ae/admin/x", "request_malformed"),
    ("/webhooks/a/..//../../admin/x", "request_malformed"),
    ("/webhooks/..", "request_malformed"),
    ("/admin/../webhooks/x", "request_malformed"),
    ("/%77ebhooks/x", "request_malformed"),
    ("//webhooks/x", "request_malformed"),
];

struct Scene {
    outgate: Outgate,
    target: Receiver,
}

fn scene() -> Scene {
    let (pki, target) = (Pki::new(), Receiver::plain(ok()));
    let route = |name: &str, rest: &str| {
        let ports = target.port();
        format!("[[routes]]\nname = {name:?}\nports = [{ports}]\nplaintext = \"allow\"\n{rest}\n")
    };
    let routes = route("hooks", "hosts = [\"hooks.example\"]\npaths = [\"/webhooks/\"]")
        + &route("whole", "hosts = [\"whole.example\"]")
        + &route("trial", "hosts = [\"whole.example\"]\npaths = [\"/in/\"]\nreport_only = true");
    let text = config(&target, &target, &routes).host("hooks.example", "127.0.0.1").host("whole.example", "127.0.0.1");
    Scene { outgate: Outgate::run(folder(&pki), &text), target }
}

impl Scene {
    fn url(&self, host: &str, path: &str) -> String {
        format!("http://{host}:{}{path}", self.target.port())
    }

    fn post(&self, host: &str, path: &str) -> Response {
        self.outgate.post(&self.url(host, path), "", "{}")
    }
}

#[test]
fn ambiguous_path_with_different_routes_is_refused_as_malformed() {
    let scene = scene();
    for (path, refusal) in PATHS {
        let response = scene.post("hooks.example", path);
        assert_eq!(response.code(), *refusal, "{path}: {}", response.text());
        if *refusal == "request_malformed" {
            let problem = response.json();
            assert_eq!(
                (&problem["details"], &problem["blame"]),
                (&"ambiguous_path".into(), &"client".into()),
                "{path}"
            );
            assert!(problem["detail"].as_str().unwrap().starts_with("the path is ambiguous: "), "{problem}");
        }
    }
    let problem = scene.post("hooks.example", "/webhooks/../admin/x").json();
    let expected = "the path is ambiguous: with dot segments removed it is \"/admin/x\", which no route matches";
    assert_eq!(problem["detail"], expected);
    let sent: Vec<_> = PATHS.iter().filter(|(_, refusal)| refusal.is_empty()).map(|(path, _)| *path).collect();
    let received: Vec<_> =
        scene.target.requests().iter().map(|request| request.line.split(" ").nth(1).unwrap().to_owned()).collect();
    assert_eq!(received, sent, "what is delivered is forwarded byte for byte");
}

#[test]
fn dot_segments_pass_where_no_route_of_the_host_names_paths() {
    let scene = scene();
    for path in ["/in/../admin/x", "/%2e%2e/x", "//x"] {
        assert_eq!(scene.post("whole.example", path).status, 200, "{path}");
    }
}

#[test]
fn explain_gives_the_code_that_the_proxy_gives_for_ambiguous_paths() {
    let scene = scene();
    for (path, refusal) in PATHS {
        let explained = Command::new(env!("CARGO_BIN_EXE_outgate"))
            .args(["explain", "POST", &scene.url("hooks.example", path), "--json", "--config"])
            .arg(scene.outgate.folder.path("config.toml"))
            .output()
            .unwrap();
        let explanation: serde_json::Value = serde_json::from_slice(&explained.stdout).unwrap();
        assert_eq!(explanation["refusal"].as_str().unwrap_or_default(), *refusal, "{path}: {explanation}");
    }
}

#[test]
fn report_only_route_reports_ambiguous_paths_as_refused() {
    let scene = scene();
    let records = ["/in/x", "/in/%2e%2e/x"].map(|path| {
        let response = scene.post("whole.example", path);
        assert_eq!(response.status, 200, "{path}");
        scene.outgate.record_of(&response)
    });
    assert_eq!((&records[0]["would_take"], &records[0]["would_refuse"]), (&json!("trial"), &Value::Null));
    let refused = json!([{ "kind": "route", "name": "trial", "code": "request_malformed" }]);
    assert_eq!((&records[1]["would_take"], &records[1]["would_refuse"]), (&json!("trial"), &refused));
}

/// A path with more decodings than the limit is ambiguous only if a route of its host names paths.
#[test]
fn report_only_route_refuses_no_path_of_enforced_routes() {
    let scene = scene();
    let many = format!("%{}2e", "25".repeat(1000));
    let records = [format!("/{many}"), format!("/in/{many}")].map(|path| {
        let response = scene.post("whole.example", &path);
        assert_eq!(response.status, 200, "{}", response.text());
        scene.outgate.record_of(&response)
    });
    assert_eq!(scene.post("hooks.example", &format!("/webhooks/{many}")).code(), "request_malformed");
    assert_eq!((&records[0]["would_take"], &records[0]["would_refuse"]), (&Value::Null, &Value::Null));
    let refused = json!([{ "kind": "route", "name": "trial", "code": "request_malformed" }]);
    assert_eq!((&records[1]["would_take"], &records[1]["would_refuse"]), (&json!("trial"), &refused));
}

/// A path with characters that senders should have encoded, and the path that the target gets.
const UNENCODED: (&str, &str) =
    ("/webhooks/<>\"{}|^`%7b?q=<>\"{}|^`", "/webhooks/%3C%3E%22%7B%7D%7C%5E%60%7b?q=%3C%3E%22%7B%7D%7C%5E%60");

#[test]
fn unencoded_characters_of_a_url_are_percent_encoded_in_every_form() {
    let scene = scene();
    let (url, expected) = (scene.url("hooks.example", UNENCODED.0), format!(" {} HTTP/1.1", UNENCODED.1));
    let assert_target_line = |label: &str| {
        let line = scene.target.requests().pop().unwrap().line;
        assert!(line.ends_with(&expected), "{label}: {line}");
    };
    assert_eq!(scene.outgate.post(&url, "", "{}").status, 200);
    assert_target_line("absolute-form");
    assert_eq!(scene.outgate.post("/", &format!("Outgate-Target: {url}\r\n"), "{}").status, 200);
    assert_target_line("Outgate-Target");
    let proxy = format!("http://{}", scene.outgate.proxy);
    let file = scene.outgate.folder.path("config.toml").display().to_string();
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_outgate")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    run(&["send", &url, "-X", "PUT", "-d", "{}", "--proxy", &proxy]);
    assert_target_line("send through a proxy");
    run(&["send", &url, "-X", "PATCH", "-d", "{}", "--config", &file]);
    assert_target_line("send straight");
    let explained = run(&["explain", "POST", &url, "--config", &file]);
    assert!(explained.contains("hooks"), "{explained}");
}
