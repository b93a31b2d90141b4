//! `outgate explain`: the decisions about one webhook or tunnel, made without sending or opening it.
//! Which route would it take, and why?

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::local_runtime::{self, SenderArgs};
use super::{control, load_or_report};
use crate::delivery::{self, ExplainRequest};
use crate::names::TenantName;
use crate::policy::authn::ANONYMOUS;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate explain POST https://hooks.acme.example/in
  outgate explain POST https://hooks.acme.example/in --client billing --tenant acme --json
  outgate explain POST https://hooks.acme.example/in --client billing --running
  outgate explain CONNECT hooks.acme.example:443

The command sends nothing and resolves no name.

Exit code 0: outgate would send the webhook. 1: outgate would refuse it.")]
pub(super) struct Explain {
    method: Method,
    /// The target, an https or http URL; of a CONNECT, host and port
    url: String,
    #[command(flatten)]
    sender: SenderArgs,
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ask the proxy that runs with this configuration: also show what its limits, circuits and addresses allow now
    #[arg(long)]
    running: bool,
    /// The admin socket of the running proxy
    #[arg(long, value_name = "unix:PATH", requires = "running")]
    admin: Option<control::AdminSocket>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub(super) fn run(self) -> ExitCode {
        let explanation = if self.running { self.explain_running() } else { self.judge() };
        let explanation = match explanation {
            Ok(explanation) => explanation,
            Err(code) => return code,
        };
        if self.json {
            println!("{explanation:#}");
        } else {
            for step in explanation["steps"].as_array().into_iter().flatten() {
                let text = |key: &str| step[key].as_str().unwrap_or_default();
                println!("{:<10} {}", text("step"), text("what"));
            }
        }
        if explanation["refusal"].is_null() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Asks the running proxy, which explains by its active plan.
    fn explain_running(&self) -> Result<Value, ExitCode> {
        let (client, tenant) = (self.sender.client_name().unwrap_or(ANONYMOUS), self.sender.tenant());
        let tenant = tenant.as_ref().map(TenantName::as_str);
        let webhook = json!({ "method": self.method.as_str(), "url": self.url, "client": client, "tenant": tenant });
        control::explain(self.config.clone(), self.admin.clone(), &webhook)
    }

    fn judge(&self) -> Result<Value, ExitCode> {
        let valid = load_or_report(self.config.as_deref())?;
        let (client, tenant) = (self.sender.client(&valid.plan)?, self.sender.tenant());
        let (tenant, now) = (tenant.as_ref(), Timestamp::now());
        let question = ExplainRequest { method: &self.method, url: &self.url, client: &client, tenant, now };
        Ok(delivery::explain(&valid.plan, &question, &local_runtime::own_addresses(&valid.config)).as_json())
    }
}
