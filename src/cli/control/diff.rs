//! `outgate diff`: a change, before it is made.
//! What would be different from what runs?

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use super::super::load_or_report;
use super::admin_client::{AdminError, AdminRequest, AdminSocket, send};
use super::{describe_change_count, file_exists, print_outcome, print_rejection};
use crate::config::pending_rollback::absolute;
use crate::state::config::status::{ReloadOutcome, ReloadVerdict};
use crate::sysexits;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate diff                        # what `outgate reload` would change
  outgate diff --config new.toml && echo the same
  outgate diff --json | jq -r '.changes[]'

What differs is told by section and name and key; of secrets, only that they do. A running proxy takes up its files as soon as they
change, unless it has `watch = false` in [server]: then there is a difference to see, and `outgate reload` makes it.

Exit code 0: no difference. 1: differences. 78: would not be adopted; its problems are shown. 69: outgate does not run. Whether new listeners
can be opened is seen when they are.")]
pub(in crate::cli) struct Diff {
    /// The configuration to compare with what runs; its admin.listen says where that is. Default: the file of what runs
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The unix socket of what runs
    #[arg(long, value_name = "unix:PATH")]
    admin: Option<AdminSocket>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Diff {
    pub(in crate::cli) fn run(self) -> ExitCode {
        if let Err(code) = file_exists(self.config.as_deref()) {
            return code;
        }
        let sockets = match &self.admin {
            Some(socket) => vec![socket.clone()],
            None => AdminSocket::from_config(self.config.as_deref()),
        };
        let body = match self.file_to_compare(&sockets) {
            Ok(None) => Vec::new(),
            // Read by whoever asks: the proxy reads no file because somebody names it.
            Ok(Some(path)) => match load_or_report(Some(&absolute(path))) {
                Ok(valid) => json!(Arc::unwrap_or_clone(valid.config.snapshot)).to_string().into_bytes(),
                Err(code) => return code,
            },
            Err(error) => return error.report(),
        };
        let outcome: ReloadOutcome = match send(&sockets, &AdminRequest::post("/diff", body)) {
            Ok(outcome) => outcome,
            Err(error) => return error.report(),
        };
        if self.json {
            println!("{:#}", json!(outcome));
        }
        match outcome.outcome {
            ReloadVerdict::Rejected if self.json => ExitCode::from(sysexits::CONFIG),
            ReloadVerdict::Rejected => print_rejection(&outcome),
            ReloadVerdict::Unchanged | ReloadVerdict::Adopted => {
                if !self.json {
                    eprintln!("no difference to configuration {}", outcome.number);
                }
                ExitCode::SUCCESS
            }
            ReloadVerdict::Different => {
                if !self.json {
                    print_outcome(&outcome);
                    eprintln!("{} to configuration {}", describe_change_count(&outcome), outcome.number);
                }
                ExitCode::FAILURE
            }
        }
    }

    /// `None`: the file of what runs is meant, which the proxy reads as it would for a reload, with its own secrets.
    fn file_to_compare(&self, sockets: &[AdminSocket]) -> Result<Option<&Path>, AdminError> {
        let Some(path) = &self.config else { return Ok(None) };
        let status: Value = send(sockets, &AdminRequest::get("/status"))?;
        let running = status["configuration"]["file"].as_str().map(Path::new);
        let is_same_file = |a: &Path, b: &Path| a == b || a.canonicalize().ok() == b.canonicalize().ok();
        Ok((!running.is_some_and(|running| is_same_file(running, path))).then_some(path.as_path()))
    }
}
