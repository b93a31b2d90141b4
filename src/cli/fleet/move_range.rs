//! `outgate fleet move`: assigns a published range to one instance, or ends the assignment.
//! Which instance alone may send from a range?

use std::process::ExitCode;

use clap::Args;
use ipnet::IpNet;
use serde_json::Value;

use super::super::control::{AdminRequest, ProxySelector};
use super::super::escape_control_characters;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate fleet move 198.51.100.16/28 --to egress-2
  outgate fleet move 198.51.100.16/28 --release

The other instances begin no new connection from the range; their deliveries in flight finish. The instance uses it when no
other one does, and only if its host has the addresses: docs/addresses.md says how a host gets them.

Exit code 0: the store has the assignment; `outgate fleet status` shows who follows it. 69: outgate is not running, has no
[fleet], or refused the assignment.")]
pub(in crate::cli) struct MoveRange {
    /// The range that customers see, or a part of it
    range: IpNet,
    /// The instance that may use the range
    #[arg(long, value_name = "INSTANCE", required_unless_present = "release", conflicts_with = "release")]
    to: Option<String>,
    /// End the assignment: each instance whose host has the addresses uses them
    #[arg(long)]
    release: bool,
    #[command(flatten)]
    proxy: ProxySelector,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl MoveRange {
    pub(super) fn run(self) -> Result<ExitCode, ExitCode> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("range", &self.range.to_string());
        if let Some(to) = &self.to {
            query.append_pair("to", to);
        }
        let path = format!("/v1/fleet/{}?{}", if self.to.is_some() { "move" } else { "release" }, query.finish());
        let assigned: Value = self.proxy.send(&AdminRequest::post(&path, Vec::new()))?;
        match &self.to {
            _ if self.json => println!("{assigned:#}"),
            Some(to) => println!("{} is assigned to {}", self.range, escape_control_characters(to)),
            None => println!("{} is no longer assigned", self.range),
        }
        Ok(ExitCode::SUCCESS)
    }
}
