//! `outgate fleet forget`: removes an instance that does not return from what the store remembers.
//! Which instances does the fleet no longer expect?

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::super::control::{AdminRequest, ProxySelector};
use super::super::escape_control_characters;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate fleet forget egress-2

The fleet remembers an instance that ended, and its ranges stay published, until it starts again or is forgotten. An instance
that starts again after that is known again.

Exit code 0: the fleet has forgotten the instance. 69: outgate is not running, has no [fleet], its store is away, or the
instance is live or unknown.")]
pub(in crate::cli) struct Forget {
    /// The instance, by its `fleet.instance`
    instance: String,
    #[command(flatten)]
    proxy: ProxySelector,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Forget {
    pub(super) fn run(self) -> Result<ExitCode, ExitCode> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("instance", &self.instance);
        let path = format!("/v1/fleet/forget?{}", query.finish());
        let forgotten: Value = self.proxy.send(&AdminRequest::post(&path, Vec::new()))?;
        if self.json {
            println!("{forgotten:#}");
            return Ok(ExitCode::SUCCESS);
        }
        let instance = escape_control_characters(&self.instance);
        println!("the fleet has forgotten {instance}");
        for range in forgotten["assigned"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            println!("{range} is still assigned to it: run `outgate fleet move {range}` with --to or --release");
        }
        Ok(ExitCode::SUCCESS)
    }
}
