//! `outgate reload`: what is on disk, in force now.
//! What changed by it, or why did nothing?

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::super::visible;
use super::socket::{Question, ask};
use super::{Which, count, rejected, show};
use crate::live::configuration::{Outcome, Verdict};
use crate::sysexits;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate diff && echo nothing to do
  outgate reload
  outgate reload --admin unix:/run/outgate/admin.sock --json

Exit code 0: in force, or it already was. 78: has problems, which are shown; what ran runs on. 69: nobody to ask.")]
pub(in crate::cli) struct Reload {
    #[command(flatten)]
    which: Which,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Reload {
    pub(in crate::cli) fn run(self) -> ExitCode {
        if let Err(code) = self.which.check() {
            return code;
        }
        let outcome: Outcome = match ask(&self.which.sockets(), &Question::post("/reload", Vec::new())) {
            Ok(outcome) => outcome,
            Err(unasked) => return unasked.say(),
        };
        if self.json {
            println!("{:#}", json!(outcome));
            let has_failed = outcome.outcome == Verdict::Rejected;
            return if has_failed { ExitCode::from(sysexits::CONFIG) } else { ExitCode::SUCCESS };
        }
        let Outcome { number, at, by, .. } = &outcome;
        match outcome.outcome {
            Verdict::Rejected => {
                let code = rejected(&outcome);
                eprintln!("not adopted: configuration {number} stays in force");
                code
            }
            Verdict::Adopted => {
                show(&outcome);
                eprintln!("configuration {number} is in force: {}", count(&outcome));
                ExitCode::SUCCESS
            }
            Verdict::Unchanged | Verdict::Different => {
                show(&outcome);
                eprintln!("unchanged: configuration {number} is in force since {at}, by {}", visible(by));
                ExitCode::SUCCESS
            }
        }
    }
}
