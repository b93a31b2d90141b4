//! `outgate status`: shows the state of a running proxy.
//! Which configuration is active, since when, and what is wrong?

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::ProxySelector;
use super::admin_client::{AdminRequest, send};

#[derive(Args)]
#[command(after_help = "Examples:
  outgate status
  outgate status --json | jq .configuration.number

Exit code 0: outgate is ready and not degraded. 1: outgate is not ready, or degraded. 69: outgate is not running.")]
pub(in crate::cli) struct Status {
    #[command(flatten)]
    proxy: ProxySelector,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(in crate::cli) fn run(self) -> ExitCode {
        if let Err(code) = self.proxy.check() {
            return code;
        }
        let status: Value = match send(&self.proxy.sockets(), &AdminRequest::get("/v1/status")) {
            Ok(status) => status,
            Err(error) => return error.report(),
        };
        if self.json {
            println!("{status:#}");
        } else {
            status_lines(&status)
                .iter()
                .for_each(|(name, text)| println!("{name:<14} {}", super::super::escape_control_characters(text)));
        }
        let is_healthy = list(&status["blocked"]).chain(list(&status["degraded"])).next().is_none();
        if is_healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Returns the lines of the output, each with its name and text.
fn status_lines(status: &Value) -> Vec<(&'static str, String)> {
    let configuration = &status["configuration"];
    let digest: String = text(&configuration["digest"]).chars().take(12).collect();
    let mut lines = vec![
        ("outgate", format!("{}, started {}", text(&status["version"]), text(&status["started"]))),
        ("state", if status["ready"] == true { "ready".into() } else { "not ready".into() }),
        (
            "configuration",
            format!(
                "{} of {}, since {}, by {}, digest {digest}",
                configuration["number"],
                text(&configuration["file"]),
                text(&configuration["at"]),
                text(&configuration["by"]),
            ),
        ),
    ];
    lines.extend(list(&configuration["changes"]).map(|change| ("  changed", change)));
    if let Some(more @ 1..) = configuration["more"].as_u64() {
        lines.push(("  changed", format!("and {more} more")));
    }
    lines.extend(
        list(&configuration["restart"]).map(|key| ("  restart", format!("{key} takes effect at the next restart"))),
    );
    lines.extend(list(&configuration["warnings"]).map(|warning| ("  warning", warning)));
    if let rejected @ Value::Object(_) = &status["rejected"] {
        lines.push(("rejected", format!("at {}, by {}", text(&rejected["at"]), text(&rejected["by"]))));
        lines.extend(list(&rejected["problems"]).map(|problem| ("  problem", problem)));
    }
    lines.extend(list(&status["blocked"]).map(|reason| ("not ready", reason)));
    lines.extend(list(&status["degraded"]).map(|reason| ("degraded", reason)));
    lines.extend(list(&status["listeners"]["server"]).map(|name| ("listens", name)));
    lines.extend(list(&status["listeners"]["admin"]).map(|name| ("admin", name)));
    for pool in status["pools"].as_array().into_iter().flatten() {
        let (usable, configured) = (text(&pool["usable"]), text(&pool["configured"]));
        lines.push(("egress", format!("{}: {usable} usable of {configured} addresses", text(&pool["pool"]))));
    }
    let count = |name: &str| status[name].to_string();
    let (running, waiting) = (count("deliveries_in_flight"), count("deliveries_waiting"));
    lines.push(("deliveries", format!("{running} in flight, {waiting} waiting for admission")));
    let (clients, tunnels) = (count("client_connections"), count("tunnels"));
    let idle = count("idle_target_connections");
    lines.push(("connections", format!("{clients} from clients, {tunnels} tunnels, {idle} idle to targets")));
    lines
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> impl Iterator<Item = String> {
    value.as_array().into_iter().flatten().map(|value| text(value).to_owned())
}
