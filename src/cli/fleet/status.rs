//! `outgate fleet status`: shows the fleet, as a running proxy reads it from the store.
//! Which instances are live?

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::super::control::{AdminRequest, ProxySelector};
use super::super::escape_control_characters;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate fleet status
  outgate fleet status --json

Exit code 0: the store answers. 69: outgate is not running, has no [fleet], or its store is away.")]
pub(in crate::cli) struct Status {
    #[command(flatten)]
    proxy: ProxySelector,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(self) -> ExitCode {
        let fleet: Value = match self.proxy.send(&AdminRequest::get("/v1/fleet")) {
            Ok(fleet) => fleet,
            Err(code) => return code,
        };
        if self.json {
            println!("{fleet:#}");
        } else {
            let text = format!("this instance: {}\nlive instances: {}", fleet["instance"], fleet["live"]);
            println!("{}", escape_control_characters(&text));
        }
        ExitCode::SUCCESS
    }
}
