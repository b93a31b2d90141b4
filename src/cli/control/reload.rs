//! `outgate reload`: makes a running proxy reload its configuration.
//! What did the reload change, or why was it rejected?

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::super::escape_control_characters;
use super::admin_client::{AdminRequest, send};
use super::{ProxySelector, describe_change_count, print_outcome, print_rejection};
use crate::state::config::status::{ReloadOutcome, ReloadVerdict};
use crate::sysexits;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate diff && echo nothing to do
  outgate reload
  outgate reload --admin unix:/run/outgate/admin.sock --json

Exit code 0: the configuration on disk is active. 78: it has problems; the active configuration stays. 69: outgate is
not running.")]
pub(in crate::cli) struct Reload {
    #[command(flatten)]
    proxy: ProxySelector,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Reload {
    pub(in crate::cli) fn run(self) -> ExitCode {
        if let Err(code) = self.proxy.check() {
            return code;
        }
        let outcome: ReloadOutcome = match send(&self.proxy.sockets(), &AdminRequest::post("/v1/reload", Vec::new())) {
            Ok(outcome) => outcome,
            Err(error) => return error.report(),
        };
        if self.json {
            println!("{:#}", json!(outcome));
            let has_failed = outcome.outcome == ReloadVerdict::Rejected;
            return if has_failed { ExitCode::from(sysexits::CONFIG) } else { ExitCode::SUCCESS };
        }
        let ReloadOutcome { number, at, by, .. } = &outcome;
        match outcome.outcome {
            ReloadVerdict::Rejected => {
                let code = print_rejection(&outcome);
                eprintln!("rejected: configuration {number} stays active");
                code
            }
            ReloadVerdict::Adopted => {
                print_outcome(&outcome);
                eprintln!("configuration {number} is active: {}", describe_change_count(&outcome));
                ExitCode::SUCCESS
            }
            ReloadVerdict::Unchanged | ReloadVerdict::Different => {
                print_outcome(&outcome);
                eprintln!(
                    "unchanged: configuration {number} is active since {at}, by {}",
                    escape_control_characters(by)
                );
                ExitCode::SUCCESS
            }
        }
    }
}
