//! `outgate fleet status`: shows the fleet, as a running proxy reads it from the store.
//! Which instances are live, which ranges do they have, and what is wrong?

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::super::control::{AdminRequest, ProxySelector};
use super::super::escape_control_characters;
use super::super::table::format_table;

/// The digits of a digest in a row.
const DIGEST_SHOWN: usize = 12;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate fleet status
  outgate fleet status --json | jq '.problems[].what'

Exit code 0: there is no problem. 1: there is one. 69: outgate is not running, has no [fleet], or its store is away.")]
pub(in crate::cli) struct Status {
    #[command(flatten)]
    proxy: ProxySelector,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(self) -> Result<ExitCode, ExitCode> {
        let fleet: Value = self.proxy.send(&AdminRequest::get("/v1/fleet"))?;
        if self.json {
            println!("{fleet:#}");
        } else {
            print!("{}", escape_control_characters(&describe(&fleet)));
        }
        Ok(if items(&fleet["problems"]).is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Returns a value as text, without the quotes of JSON.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn describe(fleet: &Value) -> String {
    let instance = |found: &Value| {
        let limited = found["limited_by"].as_str().map(|by| format!(" ({by})")).unwrap_or_default();
        let offset = found["clock_offset_ms"].as_i64().map_or("-".to_owned(), |offset| format!("{offset} ms"));
        let ready = match found["blocked"].as_array().filter(|blocked| !blocked.is_empty()) {
            None => "yes".to_owned(),
            Some(blocked) => format!("no: {}", blocked.iter().map(text).collect::<Vec<_>>().join(", ")),
        };
        let digest = text(&found["digest"]).chars().take(DIGEST_SHOWN).collect();
        let [name, version, started] = ["instance", "version", "started"].map(|key| text(&found[key]));
        let started = started.split('.').next().unwrap_or_default().to_owned();
        vec![name, version, digest, started, format!("{}{limited}", found["weight"]), offset, ready]
    };
    let hosts = |found: &Value| {
        let host = |host: &Value| {
            let [name, state, usable, all] = ["instance", "state", "usable", "addresses"].map(|key| text(&host[key]));
            vec![text(&found["range"]), name, state, format!("{usable} of {all}")]
        };
        let rows: Vec<_> = items(&found["hosts"]).iter().map(host).collect();
        if rows.is_empty() { vec![vec![text(&found["range"]), "no instance".to_owned()]] } else { rows }
    };
    let head = |names: &[&str]| vec![names.iter().map(ToString::to_string).collect::<Vec<_>>()];
    let mut instances = head(&["instance", "version", "configuration", "started", "weight", "clock offset", "ready"]);
    instances.extend(items(&fleet["instances"]).iter().map(instance));
    let mut ranges = head(&["range", "instance", "state", "usable addresses"]);
    ranges.extend(items(&fleet["ranges"]).iter().flat_map(hosts));
    let mut shown = format!("{}\n{}", format_table(&instances), format_table(&ranges));
    for assigned in items(&fleet["assignments"]) {
        shown += &format!("assigned: {} to {}\n", text(&assigned["range"]), text(&assigned["instance"]));
    }
    let problems: String =
        items(&fleet["problems"]).iter().map(|problem| format!("problem: {}\n", text(&problem["what"]))).collect();
    if problems.is_empty() { shown } else { format!("{shown}\n{problems}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fleet_status_has_a_row_for_each_instance_and_each_host_of_a_range() {
        let fleet = json!({
            "instances": [
                { "instance": "egress-1", "version": "0.1.0", "digest": "0123456789abcdef", "weight": 60, "blocked": [],
                  "started": "2026-11-27T10:00:00.5Z", "limited_by": "ports", "clock_offset_ms": -3 },
                { "instance": "e2", "version": "0.1.0", "digest": "", "weight": 0, "blocked": ["draining"],
                  "started": "2026-11-27T10:00:00Z", "limited_by": null, "clock_offset_ms": null },
            ],
            "ranges": [
                { "range": "198.51.100.16/28", "hosts": [
                    { "instance": "egress-1", "state": "active", "usable": "12", "addresses": "16" }] },
                { "range": "198.51.100.32/28", "hosts": [] },
            ],
            "problems": [{ "what": "no instance has 198.51.100.32/28" }],
        });
        let expected = "\
instance  version  configuration  started               weight      clock offset  ready
egress-1  0.1.0    0123456789ab   2026-11-27T10:00:00   60 (ports)  -3 ms         yes
e2        0.1.0                   2026-11-27T10:00:00Z  0           -             no: draining

range             instance     state   usable addresses
198.51.100.16/28  egress-1     active  12 of 16
198.51.100.32/28  no instance

problem: no instance has 198.51.100.32/28
";
        assert_eq!(describe(&fleet), expected);
    }
}
