//! `outgate egress probe`, as an operator runs it, against targets whose firewalls allow some sources.
//! Does it show the sources that a target answers, without sending a request?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::process::{Command, Output};

use serde_json::Value;
use support::Folder;
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{bad_receiver, folder};

/// A configuration with eight sources and the target `hook.example`.
struct Scene {
    folder: Folder,
    target: Receiver,
}

fn scene() -> Scene {
    let pki = Pki::new();
    let target = Receiver::tls(pki.leaf(&["hook.example"]), ok());
    scene_with(folder(&pki), target, "[\"127.0.7.0/29\"]", "")
}

fn scene_with(folder: Folder, target: Receiver, ranges: &str, route: &str) -> Scene {
    let dir = folder.path("").display().to_string();
    let config = format!(
        r#"
[server]
listen = ["127.0.0.1:0"]
[egress.default]
ranges = {ranges}
[egress.next]
ranges = ["127.0.8.0/31"]
[egress.absent]
ranges = ["203.0.113.0/30"]
[clients.billing]
networks = ["10.0.0.0/8"]
tenants = ["acme"]
[guard]
allow = ["127.0.0.0/8"]
[resolver]
hosts = {{ "hook.example" = ["127.0.0.1"], "two.example" = ["127.0.0.1", "127.0.0.2"], "private.example" = ["10.0.0.1"] }}
[trust.public]
roots = ["{dir}ca.pem"]
[[routes]]
name = "hooks"
hosts = ["hook.example", "two.example", "private.example"]
ports = [{port}]
timeouts = {{ connect = "5s", tls = "5s" }}
{route}
"#,
        port = target.port()
    );
    folder.write("config.toml", config);
    Scene { folder, target }
}

impl Scene {
    fn url(&self) -> String {
        format!("https://hook.example:{}/in?token=secret", self.target.port())
    }
    fn probe(&self, url: &str, arguments: &[&str]) -> Output {
        let outgate = env!("CARGO_BIN_EXE_outgate");
        let config = self.folder.path("config.toml");
        Command::new(outgate).args(["egress", "probe", url, "--config"]).arg(config).args(arguments).output().unwrap()
    }
    /// Returns the exit code and the JSON output.
    fn json(&self, url: &str, arguments: &[&str]) -> (i32, Value) {
        let output = self.probe(url, &[arguments, &["--json"]].concat());
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let json = serde_json::from_str(&text);
        (
            output.status.code().unwrap(),
            json.unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr))),
        )
    }
    fn text(&self, url: &str, arguments: &[&str]) -> String {
        String::from_utf8(self.probe(url, arguments).stdout).unwrap()
    }
}

fn list<'a>(value: &'a Value, key: &str) -> Vec<&'a str> {
    value.as_array().unwrap().iter().map(|item| item[key].as_str().unwrap_or_default()).collect()
}

#[test]
fn egress_probe_connects_from_every_source_and_sends_no_request() {
    let scene = scene();
    let (code, json) = scene.json(&scene.url(), &[]);
    assert_eq!(code, 0, "{json:#}");
    let sources: Vec<String> = (0..8).map(|last| format!("127.0.7.{last}")).collect();
    assert_eq!(list(&json["connections"], "source"), sources);
    assert_eq!((&json["usable"], &json["sampled"], &json["gaps"]), (&8.into(), &false.into(), &Value::Array(vec![])));
    assert_eq!((&json["route"], &json["pool"], &json["trust"]), (&"hooks".into(), &"default".into(), &"public".into()));
    for connection in json["connections"].as_array().unwrap() {
        assert!(
            connection["ms"]["connect"].as_f64().unwrap() > 0.0 && connection["ms"]["tls"].as_f64().unwrap() > 0.0,
            "{connection}"
        );
        assert!(connection["certificate"]["issuer"].as_str().unwrap().contains("CN=outgate test CA"), "{connection}");
        assert!(connection["certificate"]["expires"].as_str().unwrap().starts_with("4096-01-01"), "{connection}");
        assert_eq!((&connection["certificate"]["verified"], &connection["refusal"]), (&true.into(), &Value::Null));
    }
    scene.target.wait_until_closed(8);
    assert!(scene.target.requests().is_empty(), "no request was sent");
    let text = scene.text(&scene.url(), &[]);
    assert!(
        text.contains("sources  8, every usable address") && text.contains("8 of 8 connections succeeded."),
        "{text}"
    );
    let lines: Vec<_> = text.lines().skip_while(|line| !line.starts_with("SOURCE")).take(9).collect();
    let column = lines[0].find("RESULT").unwrap();
    assert!(lines[1..].iter().all(|line| line[column..].starts_with("ok ")), "{text}");
}

#[test]
fn egress_probe_names_the_sources_that_an_allow_list_lacks() {
    let scene = scene();
    scene.target.drop_packets_from(&["127.0.7.2"]);
    let (code, json) = scene.json(&scene.url(), &["--timeout", "2s"]);
    assert_eq!(code, 69);
    let host = format!("hook.example:{}", scene.target.port());
    assert_eq!(
        json["gaps"][0]["words"],
        format!(
            "{host} responds to 127.0.7.0/31, 127.0.7.3 and 127.0.7.4/30, but not to 127.0.7.2: its allow-list may \
             lack that address"
        )
    );
    assert_eq!(json["gaps"][0]["lacks"], serde_json::json!(["127.0.7.2"]));
    let connection = &json["connections"][2];
    assert_eq!((&connection["refusal"]["code"], &connection["ms"]["tls"]), (&"connect_timeout".into(), &Value::Null));
    assert!(connection["ms"]["connect"].as_f64().unwrap() >= 2000.0, "{connection}");

    scene.target.drop_packets_from(&["127.0.7.4", "127.0.7.5", "127.0.7.6", "127.0.7.7"]);
    let text = scene.text(&scene.url(), &["--timeout", "2s"]);
    let words =
        format!("{host} responds to 127.0.7.0/30, but not to 127.0.7.4/30: its allow-list may lack those addresses");
    assert!(text.lines().any(|line| line == words), "{text}");
    assert!(text.contains("4 of 8 connections succeeded."), "{text}");
}

/// A load balancer may accept every connection and then close those from sources that are not allowed.
#[test]
fn egress_probe_names_the_sources_whose_connections_the_target_closes() {
    let pki = Pki::new();
    let target = Receiver::tls_unless(pki.leaf(&["hook.example"]), ok(), "127.0.7.1");
    let scene = scene_with(folder(&pki), target, "[\"127.0.7.0/31\"]", "");
    let (code, json) = scene.json(&scene.url(), &[]);
    assert_eq!((code, &json["connections"][1]["refusal"]["code"]), (69, &"connection_lost".into()));
    assert_eq!(json["gaps"][0]["lacks"], serde_json::json!(["127.0.7.1"]));
}

#[test]
fn egress_probe_reports_no_gap_for_a_target_that_no_source_reaches() {
    let scene = scene();
    scene.target.drop_packets_from(&["127.0.7.0", "127.0.7.1"]);
    let (code, json) = scene.json(&scene.url(), &["--timeout", "1s", "--sample", "1"]);
    assert_eq!((code, json["gaps"].as_array().unwrap().len()), (69, 0));
    // The certificate is invalid for every source.
    let scene = scene_with(folder(&Pki::new()), bad_receiver(&["hook.example"]), "[\"127.0.7.0/30\"]", "");
    let (code, json) = scene.json(&scene.url(), &[]);
    assert_eq!((code, json["gaps"].as_array().unwrap().len()), (69, 0));
    for connection in json["connections"].as_array().unwrap() {
        assert_eq!(
            (&connection["refusal"]["code"], &connection["refusal"]["details"]),
            (&"certificate_untrusted".into(), &"self_signed".into())
        );
    }
    assert!(scene.text(&scene.url(), &[]).contains("certificate_untrusted: self_signed"));
}

#[test]
fn egress_probe_samples_a_large_pool_and_states_it() {
    let pki = Pki::new();
    let target = Receiver::tls(pki.leaf(&["hook.example"]), ok());
    let scene = scene_with(folder(&pki), target, "[\"127.0.7.0/30\", \"127.1.0.0/16\"]", "");
    scene.target.drop_packets_from(&["127.1.255.255", "127.0.7.3"]);
    let (code, json) = scene.json(&scene.url(), &["--sample", "8", "--timeout", "2s"]);
    assert_eq!(
        (code, &json["usable"], &json["probed"], &json["sampled"]),
        (69, &65540.into(), &8.into(), &true.into())
    );
    let sources = list(&json["connections"], "source");
    let expected = [
        "127.0.7.0",
        "127.0.7.1",
        "127.0.7.2",
        "127.0.7.3",
        "127.1.0.0",
        "127.1.85.85",
        "127.1.170.170",
        "127.1.255.255",
    ];
    assert_eq!(sources, expected);
    assert_eq!(json["gaps"][0]["lacks"], serde_json::json!(["127.0.7.3", "127.1.255.255"]));
    assert_eq!(json["gaps"][0]["answers"], serde_json::json!(["127.0.7.0 to 127.0.7.2", "127.1.0.0 to 127.1.170.170"]));
    let text = scene.text(&scene.url(), &["--sample", "8", "--timeout", "2s"]);
    assert!(text.contains("8 of 65540 usable addresses, a sample spread over the ranges"), "{text}");
}

#[test]
fn egress_probe_tries_each_address_of_a_name() {
    let scene = scene();
    let url = format!("https://two.example:{}/", scene.target.port());
    let (code, json) = scene.json(&url, &["--pool", "next"]);
    let connections = &json["connections"];
    assert_eq!((code, list(connections, "source")), (69, vec!["127.0.8.0", "127.0.8.0", "127.0.8.1", "127.0.8.1"]));
    let codes: Vec<_> =
        connections.as_array().unwrap().iter().map(|connection| connection["refusal"]["code"].as_str()).collect();
    // The receiver listens on the first address, and its certificate is for another name.
    let (name, refused) = (Some("certificate_untrusted"), Some("connect_refused"));
    assert_eq!(codes, [name, refused, name, refused]);
    assert_eq!(json["gaps"], Value::Array(vec![]), "{json:#}");
}

#[test]
fn egress_probe_obeys_the_guard_and_the_routes() {
    let scene = scene();
    let port = scene.target.port();
    let refused = |url: String, arguments: &[&str], code: &str| {
        let (exit, json) = scene.json(&url, arguments);
        assert_eq!((exit, json["refusal"]["code"].as_str().unwrap()), (69, code), "{url}");
        assert!(scene.text(&url, arguments).contains(code));
    };
    refused(format!("https://private.example:{port}/"), &[], "target_forbidden");
    refused("https://hook.example:22/".into(), &[], "target_port_forbidden");
    refused(format!("http://hook.example:{port}/"), &[], "plaintext_forbidden");
    refused("https://elsewhere.example/".into(), &[], "no_route");
    refused(scene.url(), &["--client", "billing", "--tenant", "globex"], "client_forbidden");
    refused(scene.url(), &["--pool", "absent"], "no_egress");
    assert_eq!(scene.target.connections(), 0);
    assert_eq!(scene.json(&scene.url(), &["--client", "billing", "--tenant", "acme"]).0, 0);
}

#[test]
fn egress_probe_exit_codes_distinguish_usage_from_configuration() {
    let scene = scene();
    let code = |url: &str, arguments: &[&str]| scene.probe(url, arguments).status.code().unwrap();
    assert_eq!(code("hook.example", &[]), 2);
    assert_eq!(code(&scene.url(), &["--pool", "none"]), 2);
    assert_eq!(code(&scene.url(), &["--client", "nobody"]), 2);
    assert_eq!(code(&scene.url(), &["--sample", "0"]), 2);
    assert_eq!(code(&scene.url(), &["--timeout", "0s"]), 2);
    scene.folder.write("config.toml", "[egress.default]\nranges = 1");
    assert_eq!(code(&scene.url(), &[]), 78);
}

#[test]
fn egress_probe_of_a_plaintext_target_only_connects() {
    let target = Receiver::plain(ok());
    let scene = scene_with(folder(&Pki::new()), target, "[\"127.0.7.0/31\"]", "plaintext = \"allow\"");
    let url = format!("http://hook.example:{}/", scene.target.port());
    let (code, json) = scene.json(&url, &[]);
    assert_eq!((code, &json["connections"][0]["ms"]["tls"]), (0, &Value::Null));
    assert!(scene.text(&url, &[]).contains("none: plaintext"));
    scene.target.wait_until_closed(2);
    assert!(scene.target.requests().is_empty());
}
