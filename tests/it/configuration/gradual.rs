//! Gradual changes: split routes, and limits, routes and denials that only report.
//! Is a change observed for a part of the traffic before it applies to all of it?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::collections::BTreeMap;
use std::sync::Arc;

use support::configuration::{Config, Replace};
use support::receiver::{Reaction, Receiver, ok};
use support::scene::{Scene, config, scene, scene_with};
use support::tunnel_scene;
use support::{Folder, Outgate, eventually, signature};

/// A client that may send for every tenant.
const CLIENT: &str = "[clients.platform]\nnetworks = [\"127.0.0.0/8\"]\ntenants = [\"*\"]\n";

/// Sends for each of these tenants, and returns their source addresses.
fn sources(scene: &Scene, outgate: &Outgate, tenants: usize) -> BTreeMap<String, String> {
    let send = |n: usize| {
        let tenant = format!("t{n}");
        let response = outgate.post(&scene.plain_url(), &format!("Outgate-Tenant: {tenant}\r\n"), "x");
        assert_eq!(response.status, 200, "{response:?}");
        (tenant, response.field("outgate-egress").to_owned())
    };
    (0..tenants).map(send).collect()
}

/// Returns the configuration with a split of the route `plain`, whose other side uses 127.0.8.0/30 and signs.
fn split_text(scene: &Scene, percent: &str, more: &str) -> Config {
    let pool = "[egress.next]\nranges = [\"127.0.8.0/30\"]\nnotice = \"0s\"\n";
    let text = config(&scene.good, &scene.plain, &format!("{CLIENT}{pool}{more}"));
    let split = format!("split = {{ percent = {percent}, egress = \"next\", sign = [\"platform\"] }}");
    text.route("plain", &split)
}

fn is_next_pool(source: &str) -> bool {
    source.starts_with("127.0.8.")
}

#[test]
fn split_puts_the_same_percentage_of_tenants_on_the_other_side() {
    const TENANTS: usize = 400;
    let mut scene = scene_with(ok(), CLIENT);
    let before = sources(&scene, &scene.outgate, TENANTS);
    assert!(before.values().all(|source| source.starts_with("127.0.7.")));
    scene.outgate.reconfigure(&split_text(&scene, "25", ""));
    let quarter = sources(&scene, &scene.outgate, TENANTS);
    let moved = quarter.values().filter(|source| is_next_pool(source)).count();
    // 100 plus or minus five standard deviations.
    assert!((57..=143).contains(&moved), "{moved} of {TENANTS}");
    assert!(
        quarter.iter().all(|(tenant, source)| is_next_pool(source) || before[tenant] == *source),
        "the others do not move"
    );
    // Only the webhooks on the other side are signed.
    for record_of in scene.plain.requests().iter().skip(TENANTS) {
        assert_eq!(
            signature::verifies(record_of, support::scene::SECRET),
            is_next_pool(&record_of.from.to_string()),
            "{record_of:?}"
        );
    }
    let record = scene.outgate.records(2 * TENANTS).pop().unwrap();
    let side = if is_next_pool(record["source"].as_str().unwrap()) { "split" } else { "main" };
    assert_eq!((&record["route"], &record["side"]), (&"plain".into(), &side.into()), "{record}");
    let metrics = scene.outgate.admin("/metrics").text();
    for (side, count) in [("split", moved), ("main", TENANTS - moved)] {
        let line =
            format!("outgate_split_deliveries_total{{route=\"*\",side=\"{side}\",code=\"delivered\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }

    scene.outgate = scene.outgate.restarted();
    assert_eq!(sources(&scene, &scene.outgate, TENANTS), quarter, "a restart changes no side");
    scene.outgate.reconfigure(&split_text(&scene, "50.5", ""));
    let half = sources(&scene, &scene.outgate, TENANTS);
    assert!(
        quarter.iter().all(|(tenant, source)| !is_next_pool(source) || half[tenant] == *source),
        "a larger percentage keeps the tenants of the other side"
    );
    assert!(half.values().filter(|source| is_next_pool(source)).count() > moved);
    for (percent, all) in [("0", false), ("100", true)] {
        scene.outgate.reconfigure(&split_text(&scene, percent, ""));
        let sources = sources(&scene, &scene.outgate, 50);
        assert!(sources.values().all(|source| is_next_pool(source) == all), "{percent}");
    }
    let text = split_text(&scene, "25", "");
    scene.outgate.reconfigure(&text);
    assert_eq!(
        sources(&scene, &scene.outgate, TENANTS),
        quarter,
        "the smaller percentage has the same tenants as before"
    );
}

/// If the other side fails, only its tenants are affected.
#[test]
fn split_that_breaks_receivers_opens_no_circuit_of_the_other_side() {
    let reaction: Reaction = Arc::new(|record_of| match record_of.field("webhook-signature") {
        "" => (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec(), true),
        _ => (Vec::new(), false),
    });
    let scene = scene_with(reaction, CLIENT);
    let circuit = "[circuit]\nfailures = 3\nwindow = \"10m\"\nopen = \"1h\"\nopen_max = \"1h\"\n";
    // Both sides use the same pool and differ only in the signature.
    scene.outgate.reconfigure(&split_text(&scene, "50", circuit).remove("routes.plain.split.egress"));
    let send = |n: usize| {
        let response = scene.outgate.post(&scene.plain_url(), &format!("Outgate-Tenant: t{n}\r\n"), "x");
        if response.status == 200 { "200".to_owned() } else { response.code().to_owned() }
    };
    let first: Vec<String> = (0..20).map(send).collect();
    let (trial, other) = (first.iter().position(|code| code != "200"), first.iter().position(|code| code == "200"));
    let (trial, other) = (trial.unwrap(), other.unwrap());
    eventually("its circuit opens", || send(trial) == "target_circuit_open");
    assert_eq!(send(other), "200");
    assert_eq!(send(trial), "target_circuit_open", "a success of another tenant does not close the circuit");
    scene.outgate.log.wait_for("the log line", |lines| {
        let is_reported =
            |line: &String| line.contains("on the split side of route plain") && line.contains("circuit is open");
        lines.iter().any(is_reported).then_some(())
    });
}

/// A split opens no tunnel past a signature that its route would refuse.
#[test]
fn a_split_opens_no_tunnel_that_its_route_refuses() {
    let scene = tunnel_scene::scene();
    let authority = format!("signed.example:{}", scene.port());
    let text = tunnel_scene::config(scene.port(), "").remove("routes.signed.sign");
    let tunnel = |config: &Config| {
        scene.outgate.reconfigure(config);
        scene.outgate.tunnel(&authority, "").1.code().to_owned()
    };
    // The target has no certificate for this name, so this code shows that the route allowed the tunnel.
    let open = "certificate_untrusted";
    let signs = "sign = [\"platform\"]";
    let split = |split: &str| text.route("signed", split);
    assert_eq!(tunnel(&split(&format!("split = {{ percent = 0, {signs} }}"))), open);
    assert_eq!(tunnel(&split(&format!("split = {{ percent = 100, {signs} }}"))), "tunnel_forbidden");
    let unsigned = split(&format!("{signs}\nsplit = {{ percent = 100, sign = [] }}"));
    assert_eq!(tunnel(&unsigned), "tunnel_forbidden");
    let record = scene.record(3);
    assert_eq!((&record["route"], &record["side"]), (&"signed".into(), &"split".into()), "{record}");
    // The route covers one path, and another route covers all paths and allows tunnels.
    let all = format!("[[routes]]\nname = \"all\"\nhosts = [\"signed.example\"]\nports = [{}]", scene.port());
    assert_eq!(tunnel(&unsigned.add("routes.signed.paths", ["/in"]).and(&all)), "tunnel_forbidden");
}

fn would_refuse<'a>(record: &'a serde_json::Value) -> Vec<(&'a str, &'a str, &'a str)> {
    let list = record["would_refuse"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |entry: &'a serde_json::Value, key: &str| entry[key].as_str().unwrap();
    list.iter().map(|entry| (text(entry, "kind"), text(entry, "name"), text(entry, "code"))).collect()
}

#[test]
fn report_only_guard_deny_is_recorded_and_refuses_nothing() {
    let scene = scene();
    let text = config(&scene.good, &scene.plain, "");
    let deny = |entries: &str| scene.outgate.reconfigure(&text.and(&format!("[guard]\ndeny = [{entries}]\n")));
    deny("\"192.0.2.0/24\", { cidr = \"127.0.0.1/32\", report_only = true }");
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    let record = scene.outgate.records(1).pop().unwrap();
    assert_eq!(would_refuse(&record), [("guard", "127.0.0.1/32", "target_forbidden")], "{record}");
    let metrics = scene.outgate.admin("/metrics").text();
    let line = "outgate_report_only_total{kind=\"guard\",name=\"127.0.0.1/32\",code=\"target_forbidden\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    deny("{ cidr = \"127.0.0.1/32\" }");
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").code(), "target_forbidden");
}

/// Adds a report-only route to the usual configuration.
fn add_shadow_route(scene: &Scene, shadow: &str) {
    let shadow = format!("[[routes]]\nname = \"shadow\"\nreport_only = true\n{shadow}\n");
    scene.outgate.reconfigure(&config(&scene.good, &scene.plain, "").and(&shadow));
}

#[test]
fn report_only_route_takes_nothing_and_records_what_it_would_take() {
    let scene = scene();
    let good: &Receiver = &scene.good;
    let ports = format!("ports = [{}, {}]", good.port(), scene.plain.port());
    add_shadow_route(&scene, &format!("hosts = [\"hook.example\"]\npaths = [\"/in\"]\nsign = []\n{ports}"));
    let response = scene.outgate.post(&scene.good_url(), "", "x");
    let record = scene.outgate.record_of(&response);
    assert_eq!((response.status, &record["route"], &record["would_take"]), (200, &"signed".into(), &"shadow".into()));
    assert!(would_refuse(&record).is_empty(), "{record}");
    signature::verify(&good.requests()[0], support::scene::SECRET);
    let response = scene.outgate.post(&scene.good_url().replace_one("/in", "/out"), "", "x");
    assert_eq!(scene.outgate.record_of(&response)["would_take"], serde_json::Value::Null, "another path");
    let metrics = scene.outgate.admin("/metrics").text();
    assert!(metrics.contains("outgate_shadowed_deliveries_total{route=\"*\"} 1"), "{metrics}");

    // A less specific route than the one that matched would not have matched.
    add_shadow_route(&scene, &format!("hosts = [\"*\"]\n{ports}"));
    let response = scene.outgate.post(&scene.good_url(), "", "x");
    assert_eq!(scene.outgate.record_of(&response)["would_take"], serde_json::Value::Null);
    let response = scene.outgate.post("https://nobody.example/", "", "x");
    assert_eq!((response.code(), &scene.outgate.record_of(&response)["would_take"]), ("no_route", &"shadow".into()));

    // The record has the refusal that an enforced route would cause.
    add_shadow_route(&scene, "hosts = [\"plain.example\"]\nbody_max = \"10 B\"");
    let response = scene.outgate.post(&scene.plain_url(), "", "x");
    assert_eq!(
        (response.status, would_refuse(&scene.outgate.record_of(&response))),
        (200, vec![("route", "shadow", "plaintext_forbidden")])
    );
    add_shadow_route(&scene, &format!("hosts = [\"hook.example\"]\nbody_max = \"10 B\"\n{ports}"));
    let response = scene.outgate.post(&scene.good_url(), "", "more than ten bytes");
    assert_eq!(
        (response.status, would_refuse(&scene.outgate.record_of(&response))),
        (200, vec![("route", "shadow", "body_too_large")])
    );
    for (more, code) in [("", "target_port_forbidden"), (ports.as_str(), "tunnel_forbidden")] {
        add_shadow_route(&scene, &format!("hosts = [\"hook.example\"]\nconnect = \"refuse\"\n{more}"));
        let (_, response) = scene.outgate.tunnel(&format!("hook.example:{}", good.port()), "");
        assert_eq!(would_refuse(&scene.outgate.record_of(&response)), [("route", "shadow", code)]);
    }
}

/// Enforced and report-only routes have the same rules.
#[test]
fn report_only_route_records_missing_keys_and_malformed_webhook_ids() {
    let scene = scene();
    std::fs::create_dir(scene.outgate.folder.path("keys")).unwrap();
    let own = "[signers.own]\nscheme = \"standard-webhooks\"\nkey_dir = \"{dir}/keys\"\n";
    let route = format!("hosts = [\"plain.example\"]\nplaintext = \"allow\"\nports = [{}]", scene.plain.port());
    let odd = "Webhook-Id: not an id\r\n";
    for (sign, fields, code) in
        [("platform", "", None), ("own", "", Some("client_forbidden")), ("platform", odd, Some("request_malformed"))]
    {
        add_shadow_route(&scene, &format!("{route}\nsign = [\"{sign}\"]\n{own}"));
        let response = scene.outgate.post(&scene.plain_url(), fields, "x");
        let record = scene.outgate.record_of(&response);
        let expected: Vec<_> = code.into_iter().map(|code| ("route", "shadow", code)).collect();
        assert_eq!((response.status, would_refuse(&record)), (200, expected), "{record}");
    }
}

/// Customers' firewalls must allow a range before its first use and until its last.
#[test]
fn egress_list_shows_ranges_before_their_from_and_until_their_until() {
    let folder = Folder::new();
    let at = |hours: i64| (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours)).to_string();
    let text = format!(
        "[egress.default]\nranges = [\"198.51.100.0/28\", {{ cidr = \"198.51.100.16/28\", from = \"{}\" }}, \
         {{ cidr = \"198.51.100.32/28\", until = \"{}\" }}, {{ cidr = \"198.51.100.48/28\", until = \"{}\" }}, \
         {{ cidr = \"198.51.100.64/28\", until = \"{}\" }}]\n\
         [[routes]]\nname = \"r\"\nhosts = [\"a.com\"]\ntimeouts = {{ tunnel = \"2h\" }}\n",
        at(24),
        at(24),
        at(-1),
        at(-3)
    );
    let file = folder.write("config.toml", text);
    let list = std::process::Command::new(env!("CARGO_BIN_EXE_outgate"))
        .args(["egress", "list", "--format", "json", "--config"])
        .arg(file)
        .output()
        .unwrap();
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    let ranges = list["prefixes"].as_array().unwrap().iter();
    let ranges: Vec<_> =
        ranges.map(|range| (range["ipv4Prefix"].as_str().unwrap(), range["state"].as_str().unwrap())).collect();
    let expected = [
        ("198.51.100.0/28", "active"),
        ("198.51.100.16/28", "announced"),
        ("198.51.100.32/28", "retiring"),
        ("198.51.100.48/28", "retiring"),
    ];
    assert_eq!(ranges, expected);
}
