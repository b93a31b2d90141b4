//! `outgate reload`: what is on disk, in force now.
//! What changed by it, or why did nothing?

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

Exit code 0: it is active, or was already. 78: it has problems, which are shown; the active configuration stays. 69: outgate does not run.")]
pub(in crate::cli) struct Reload {
    #[command(flatten)]
    proxy: ProxySelector,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Reload {
    pub(in crate::cli) fn run(self) -> ExitCode {
        if let Err(code) = self.proxy.check() {
            return code;
        }
        let outcome: ReloadOutcome = match send(&self.proxy.sockets(), &AdminRequest::post("/reload", Vec::new())) {
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
                eprintln!("not adopted: configuration {number} stays in force");
                code
            }
            ReloadVerdict::Adopted => {
                print_outcome(&outcome);
                eprintln!("configuration {number} is in force: {}", describe_change_count(&outcome));
                ExitCode::SUCCESS
            }
            ReloadVerdict::Unchanged | ReloadVerdict::Different => {
                print_outcome(&outcome);
                eprintln!(
                    "unchanged: configuration {number} is in force since {at}, by {}",
                    escape_control_characters(by)
                );
                ExitCode::SUCCESS
            }
        }
    }
}
