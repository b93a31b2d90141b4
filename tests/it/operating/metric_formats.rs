//! The two formats of `/metrics`, and what ships with them: the dashboard, the rules and the alerts.
//! Do Prometheus and its tools read the metrics, and does each query name a metric that outgate serves?
//!
//! Some tests need promtool, or what `tests/clients/install` installs: skipped where it is missing, required with
//! `OUTGATE_TEST_ALL=1`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use support::clients::InstalledClients;
use support::scene::{Scene, scene_of};
use support::scrape::{Scrape, promtool};
use support::{Client, Folder, Outgate};

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging")
}

/// A proxy with a series in most metrics.
fn busy_scene() -> Scene {
    let scene = scene_of(&|config| {
        let limit = "[limits.per-host]\nrate = \"1000/s\"\nburst = 1000\nconcurrency = 100\nper = [\"host\"]\n";
        config.and(limit).add("routes.plain.limits", ["per-host"]).add("routes.plain.metrics", "own")
    });
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    assert_eq!(scene.outgate.post("http://nowhere.example/in", "", "x").code(), "no_route");
    scene.outgate.records(3);
    scene
}

fn openmetrics(outgate: &Outgate) -> String {
    let mut client = Client::connect(outgate.admin);
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    client.send(format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"));
    let answer = client.response();
    assert_eq!(answer.field("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    answer.text()
}

#[test]
fn metrics_in_the_text_format_pass_promtool() {
    let scene = busy_scene();
    let answer = scene.outgate.admin("/metrics");
    assert_eq!(answer.field("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let folder = Folder::new();
    let Some(said) = promtool(&["check", "metrics"], &folder.path(""), &answer.text()) else { return };
    assert_eq!(said.trim(), "", "promtool finds nothing to improve");
}

#[test]
fn metrics_in_openmetrics_pass_the_parser_of_the_prometheus_project() {
    let Some(clients) = InstalledClients::open() else { return };
    let scene = busy_scene();
    let text = openmetrics(&scene.outgate);
    assert!(text.ends_with("\n# EOF\n"), "{text}");
    let mut command = clients.python("openmetrics");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{text}");
    let families: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Both formats describe the same metrics and samples.
    let scrape = Scrape::of(&scene.outgate);
    let name = |family: &Value| {
        let suffix = if family["type"] == "counter" { "_total" } else { "" };
        format!("{}{suffix}", family["name"].as_str().unwrap())
    };
    assert_eq!(families.iter().map(name).collect::<BTreeSet<_>>(), scrape.types.keys().cloned().collect());
    let samples: usize = families.iter().map(|family| family["samples"].as_array().unwrap().len()).sum();
    assert_eq!(samples, scrape.samples.len());
}

/// The names of metrics in a query.
fn metrics_of(query: &str) -> impl Iterator<Item = &str> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    words.filter(|word| word.starts_with("outgate") || word.starts_with("process_"))
}

/// Every query of the dashboard, with values in place of Grafana's variables.
fn dashboard_queries() -> Vec<String> {
    fn collect(value: &Value, queries: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| match (name.as_str(), value) {
                ("expr", Value::String(query)) => queries.push(query.clone()),
                ("query" | "definition", Value::String(query)) if query.starts_with("label_values(") => {
                    let (metric, _) = query["label_values(".len()..].rsplit_once(',').unwrap();
                    queries.push(metric.to_owned());
                }
                (_, value) => collect(value, queries),
            }),
            Value::Array(values) => values.iter().for_each(|value| collect(value, queries)),
            _ => {}
        }
    }
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(packaging().join("grafana/outgate.json")).unwrap()).unwrap();
    let variables: Vec<&str> =
        dashboard["templating"]["list"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(variables, ["datasource", "instance", "route"]);
    let mut queries = Vec::new();
    collect(&dashboard, &mut queries);
    let values = [("$__rate_interval", "5m"), ("$instance", ".*"), ("$route", ".*")];
    let filled = |query: &String| {
        values.iter().fold(query.clone(), |query, (name, value)| query.split(name).collect::<Vec<_>>().join(value))
    };
    queries.iter().map(filled).collect()
}

#[test]
fn queries_of_the_dashboard_and_the_rules_name_metrics_that_outgate_serves() {
    let scene = busy_scene();
    let scrape = Scrape::of(&scene.outgate);
    let served = scrape.names();
    let rules = ["rules.yml", "alerts.yml"].map(|name| fs::read_to_string(packaging().join("prometheus").join(name)));
    let rules = rules.map(Result::unwrap).concat();
    let recorded: BTreeSet<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).collect();
    let dashboard = dashboard_queries();
    assert!(dashboard.len() > 50 && recorded.len() > 5, "{} queries, {recorded:?}", dashboard.len());
    let named = dashboard.iter().flat_map(|query| metrics_of(query)).chain(metrics_of(&rules));
    // The job and the groups of rules are called so.
    let is_word = |name: &&str| *name == "outgate";
    let unknown: BTreeSet<&str> =
        named.filter(|name| !is_word(name) && !served.contains(*name) && !recorded.contains(name)).collect();
    assert_eq!(unknown, BTreeSet::new());
    // The dashboard shows every metric of outgate but those that are parts of others.
    let shown: BTreeSet<&str> = dashboard.iter().flat_map(|query| metrics_of(query)).collect();
    let is_shown = |name: &&String| {
        shown.contains(name.as_str())
            || ["_bucket", "_sum", "_count"].iter().any(|suffix| shown.contains(&*format!("{name}{suffix}")))
    };
    let hidden: Vec<&String> =
        scrape.types.keys().filter(|name| name.starts_with("outgate_")).filter(|name| !is_shown(name)).collect();
    assert_eq!(hidden, [""; 0]);
}

#[test]
fn queries_of_the_dashboard_and_the_rules_pass_promtool() {
    let folder = Folder::new();
    let mut rules = String::from("groups:\n  - name: dashboard\n    rules:\n");
    for (number, query) in dashboard_queries().iter().enumerate() {
        rules += &format!("      - record: query:{number}\n        expr: {}\n", Value::from(query.as_str()));
    }
    folder.write("dashboard.yml", rules);
    let Some(_) = promtool(&["check", "rules", "dashboard.yml"], &folder.path(""), "") else { return };
    let prometheus = packaging().join("prometheus");
    promtool(&["check", "rules", "rules.yml", "alerts.yml"], &prometheus, "");
    promtool(&["test", "rules", "alerts_test.yml"], &prometheus, "");
}

#[test]
fn every_alert_has_a_test_that_it_fires_and_one_that_it_is_quiet() {
    let read = |name: &str| fs::read_to_string(packaging().join("prometheus").join(name)).unwrap();
    let (alerts, tests) = (read("alerts.yml"), read("alerts_test.yml"));
    let alerts: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 15, "{alerts:?}");
    for alert in alerts {
        for state in ["fires", "is quiet"] {
            assert!(tests.contains(&format!("- name: {alert} {state}\n")), "{alert} {state}");
        }
    }
}
