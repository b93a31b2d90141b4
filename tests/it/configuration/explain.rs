//! `outgate explain`, as an operator runs it.
//! Does it show what the proxy would do?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::process::{Command, Output};

use serde_json::Value;
use support::Folder;
use support::scene::SECRET;

const CONFIG: &str = r#"
[server]
listen = ["127.0.0.1:0"]
[egress.default]
ranges = ["198.51.100.16/28"]
[egress.turns]
ranges = ["203.0.113.0/29"]
select = "spread"
[guard]
allow = ["203.0.113.9/32"]
deny = [{ cidr = "203.0.113.8/31", report_only = true }]
[resolver.hosts]
"hooks.acme.example" = ["203.0.113.9"]
"else.example" = ["203.0.113.9"]
"old.example" = ["203.0.113.9"]
"tried.example" = ["203.0.113.9"]
"new.example" = ["203.0.113.9"]
[clients.billing]
networks = ["127.0.0.0/8"]
tenants = ["acme"]
[clients.crm]
networks = ["10.0.0.0/8"]
[signers.platform]
scheme = "standard-webhooks"
keys = [{ id = "k1", secret = "file:{dir}/key" }]
[limits.gentle]
rate = "5/s"
per = ["tenant", "host"]
[[routes]]
name = "everybody"
hosts = ["*"]
egress = "turns"
[[routes]]
name = "acme"
hosts = ["*.acme.example"]
tenants = ["acme"]
sign = ["platform"]
limits = ["gentle"]
[[routes]]
name = "old"
hosts = ["old.example"]
plaintext = "upgrade"
[[routes]]
name = "old-deep"
hosts = ["old.example"]
paths = ["/deep/"]
plaintext = "upgrade"
[[routes]]
name = "old-acme"
hosts = ["old.example"]
tenants = ["acme"]
plaintext = "upgrade"
[[routes]]
name = "old-billing"
hosts = ["old.example"]
clients = ["billing"]
plaintext = "upgrade"
[[routes]]
name = "address"
hosts = ["10.0.0.1", "203.0.113.9"]
[[routes]]
name = "tried"
hosts = ["tried.example"]
split = { percent = 30.25, egress = "turns", sign = ["platform"] }
[[routes]]
name = "seen"
hosts = ["old.example"]
paths = ["/signed/"]
sign = ["platform"]
plaintext = "upgrade"
[[routes]]
name = "shadow"
hosts = ["new.example"]
report_only = true
"#;

fn explain(arguments: &[&str]) -> Output {
    let folder = Folder::new();
    let key = folder.write("key", SECRET);
    std::fs::set_permissions(key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let file = folder.write_config("config.toml", CONFIG);
    let outgate = env!("CARGO_BIN_EXE_outgate");
    Command::new(outgate).arg("explain").args(arguments).arg("--config").arg(file).output().unwrap()
}

/// Returns the exit code, the refusal and the steps with their names.
fn explain_json(arguments: &[&str]) -> (i32, Value, Vec<(String, String)>) {
    let output = explain(&[arguments, &["--json"]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let steps = json["steps"].as_array().unwrap().iter().map(|step| (text(&step["step"]), text(&step["what"])));
    (output.status.code().unwrap(), json["refusal"].clone(), steps.collect())
}

fn step<'a>(steps: &'a [(String, String)], name: &str) -> &'a str {
    steps.iter().find(|(step, _)| step == name).map_or("", |(_, text)| text)
}

#[test]
fn explain_names_the_winning_route_and_its_rule() {
    for (url, client_arguments, expected) in [
        ("https://old.example/", &["--client", "crm"][..], "old: more specific than everybody, by its host"),
        (
            "https://old.example/",
            &["--client", "billing"],
            "old-billing: more specific than old, before everybody, because it names the client",
        ),
        (
            "https://old.example/",
            &["--client", "billing", "--tenant", "acme"],
            "old-acme: more specific than old-billing, before old, before everybody, because it names the tenant",
        ),
        (
            "https://old.example/deep/x",
            &["--client", "crm"],
            "old-deep: more specific than old, before everybody, by its longer path",
        ),
    ] {
        let (_, _, steps) = explain_json(&[&["POST", url], client_arguments].concat());
        assert!(step(&steps, "route").starts_with(expected), "{url} {client_arguments:?}: {steps:?}");
    }
}

#[test]
fn explain_shows_the_route_and_every_step() {
    let url = "https://hooks.acme.example/in";
    let (code, refusal, steps) = explain_json(&["POST", url, "--client", "billing", "--tenant", "acme"]);
    assert_eq!((code, &refusal), (0, &Value::Null), "{steps:?}");
    assert_eq!((step(&steps, "client"), step(&steps, "tenant")), ("billing: authenticated by network", "acme"));
    assert!(step(&steps, "route").starts_with("acme: more specific than everybody, by its host"), "{steps:?}");
    assert_eq!(step(&steps, "target"), "https://hooks.acme.example", "{steps:?}");
    assert!(step(&steps, "limit").starts_with("gentle: 5 per 1s"), "{steps:?}");
    assert!(step(&steps, "egress").starts_with("pool default, always 198.51.100."), "{steps:?}");
    assert!(step(&steps, "trust").contains("certificates are verified"), "{steps:?}");
    assert_eq!(step(&steps, "sign"), "platform: standard-webhooks with k1", "{steps:?}");

    let (code, _, steps) = explain_json(&["POST", "https://else.example/", "--client", "billing"]);
    assert_eq!(code, 0);
    assert_eq!(step(&steps, "route"), "everybody: the only route that matches");
    assert_eq!(step(&steps, "egress"), "pool turns, each in turn");
    assert_eq!(step(&steps, "sign"), "unsigned: the body streams");

    let (_, _, steps) = explain_json(&["POST", "http://old.example/", "--client", "billing"]);
    assert_eq!(step(&steps, "target"), "https://old.example");
}

#[test]
fn explain_shows_the_side_of_a_split() {
    let mut sides = Vec::new();
    for client_arguments in [&["--client", "billing"][..], &["--client", "billing", "--tenant", "acme"]] {
        let (code, _, steps) = explain_json(&[&["POST", "https://tried.example/"], client_arguments].concat());
        assert_eq!(
            (code, step(&steps, "route")),
            (
                0,
                "tried: more specific than everybody, by its host: an exact name precedes a wildcard, a longer \
                 wildcard precedes a shorter one, \"*\" is last"
            )
        );
        let split = step(&steps, "split");
        let percentile = split
            .strip_prefix("30.25 %: this tenant and host, at ")
            .and_then(|rest| rest.split_once(" % of all, are "));
        let (percentile, side) = percentile.unwrap_or_else(|| panic!("{split}"));
        let is_other = percentile.parse::<f64>().unwrap() < 30.25;
        assert_eq!(side.starts_with("on the split side"), is_other, "{split}");
        assert_eq!(step(&steps, "egress").starts_with("pool turns"), is_other, "{steps:?}");
        assert_eq!(step(&steps, "sign").starts_with("platform"), is_other, "{steps:?}");
        sides.push(is_other);
    }
    assert_eq!(sides, SIDES, "for ever");
    let (_, _, steps) = explain_json(&["POST", "https://else.example/", "--client", "billing"]);
    assert_eq!(step(&steps, "split"), "");
}

/// Whether tried.example is on the other side, without a tenant and for acme.
const SIDES: [bool; 2] = [false, true];

#[test]
fn explain_shows_what_report_only_would_refuse() {
    let (code, _, steps) = explain_json(&["POST", "https://new.example/", "--client", "billing"]);
    assert_eq!((code, step(&steps, "shadow")), (0, "shadow would match, but is report_only"), "{steps:?}");
    assert_eq!(step(&steps, "route"), "everybody: the only route that matches");
    let (_, _, steps) = explain_json(&["POST", "http://new.example/", "--client", "billing"]);
    let expected = "shadow would match, but is report_only; it would refuse the request as plaintext_forbidden";
    assert_eq!(step(&steps, "shadow"), expected);
    let (code, _, steps) = explain_json(&["POST", "https://203.0.113.9/", "--client", "billing"]);
    assert_eq!(
        (code, step(&steps, "guard")),
        (0, "203.0.113.8/31 would deny the target, but is report_only"),
        "{steps:?}"
    );
}

#[test]
fn explain_of_a_connect_lists_every_route_inside_the_tunnel() {
    let connect = |target| explain_json(&["CONNECT", target, "--client", "billing"]);
    let (code, _, steps) = connect("tried.example:443");
    assert_eq!((code, step(&steps, "target")), (0, "https://tried.example"), "{steps:?}");
    assert!(step(&steps, "route").starts_with("tried: more specific than everybody, by its host"), "{steps:?}");
    assert!(step(&steps, "tunnel").starts_with("opened once the certificate of the target is verified"), "{steps:?}");
    assert!(step(&steps, "timeouts").contains("tunnel "), "{steps:?}");
    assert_eq!((step(&steps, "sign"), step(&steps, "body")), ("", ""), "nothing of it applies");

    let (code, refusal, steps) = connect("old.example:443");
    assert_eq!((code, &refusal), (1, &"tunnel_forbidden".into()), "{steps:?}");
    let expected = "seen: a request inside the tunnel could match this route, which refuses tunnels, so old-billing \
                    alone does not decide";
    assert_eq!(step(&steps, "route"), expected);

    let (_, _, steps) = connect("new.example:443");
    assert_eq!(step(&steps, "shadow"), "shadow would match, but is report_only");
    for (target, refusal) in [
        ("https://tried.example/", "request_malformed"),
        ("tried.example", "request_malformed"),
        ("tried.example:22", "target_port_forbidden"),
        ("localhost:443", "target_forbidden"),
        ("10.0.0.1:443", "target_forbidden"),
    ] {
        assert_eq!(connect(target).1, refusal, "{target}");
    }
    assert_eq!(explain_json(&["TRACE", "https://tried.example/", "--client", "billing"]).1, "client_forbidden");
}

#[test]
fn explain_shows_a_refusal_at_its_step() {
    for (url, client, refusal) in [
        ("https://10.0.0.1/", "billing", "target_forbidden"),
        // The guard refuses the address independently of the pool's selection.
        ("https://[::1]/", "billing", "target_forbidden"),
        ("https://localhost/", "billing", "target_forbidden"),
        ("https://else.example:22/", "billing", "target_port_forbidden"),
        ("http://else.example/", "billing", "plaintext_forbidden"),
        ("https://127.1/", "billing", "request_malformed"),
        ("else.example", "billing", "request_malformed"),
        ("https://else.example/", "", "client_unauthenticated"),
    ] {
        let mut arguments = vec!["POST", url];
        if !client.is_empty() {
            arguments.extend(["--client", client]);
        }
        let (code, refused, steps) = explain_json(&arguments);
        assert_eq!((code, &refused), (1, &refusal.into()), "{url}: {steps:?}");
        let (name, text) = steps.last().unwrap();
        assert!(name == "refused" && text.contains(refusal), "{url}: {steps:?}");
    }
    let (_, _, steps) = explain_json(&["POST", "https://else.example/"]);
    assert!(steps.last().unwrap().1.contains("name a client (--client)"), "{steps:?}");
    let (_, refusal, _) =
        explain_json(&["POST", "https://x.acme.example/", "--client", "billing", "--tenant", "other"]);
    assert_eq!(refusal, "client_forbidden");
    // `explain` honours an exception of the guard.
    let (code, _, steps) = explain_json(&["POST", "https://203.0.113.9/", "--client", "billing"]);
    assert_eq!(code, 0, "{steps:?}");
}

#[test]
fn explain_writes_lines_to_stdout_and_errors_to_stderr() {
    let output = explain(&["POST", "https://10.0.0.1/", "--client", "billing"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("route      address: ")), "{text}");
    assert!(text.lines().last().unwrap().starts_with("refused    502 target_forbidden: "), "{text}");
    for arguments in [&["POST", "https://else.example/", "--client", "nobody"][..], &["POST"], &["P T", "https://x/"]] {
        let output = explain(arguments);
        assert!(output.status.code() == Some(2), "{arguments:?}: {:?}", output.status);
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
}
