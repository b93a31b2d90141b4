//! `outgate diff`: compares a configuration with the active one.
//! What would a reload change?

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use super::super::load_or_report;
use super::admin_client::{AdminError, AdminRequest, AdminSocket, send};
use super::{describe_change_count, file_exists, is_same_file, print_outcome, print_rejection};
use crate::config::pending_rollback::absolute;
use crate::state::config::status::{ReloadOutcome, ReloadVerdict};
use crate::sysexits;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate diff                        # what `outgate reload` would change
  outgate diff --config new.toml && echo the same
  outgate diff --json | jq -r '.changes[]'

The output names the section, name and key of each change; for a secret, only that it changed. A running proxy reloads
its files when they change, unless [server] has `watch = false`: then `outgate reload` applies the differences.

Exit code 0: no difference. 1: differences. 78: outgate would reject the configuration; the output has its problems.
69: outgate is not running. The command does not check whether new listeners can be opened.")]
pub(in crate::cli) struct Diff {
    /// The configuration to compare with the active one; its admin.listen has the admin socket. Default: the proxy's file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The admin socket of the running proxy
    #[arg(long, value_name = "unix:PATH")]
    admin: Option<AdminSocket>,
    /// Print JSON
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
        let request = match self.file_to_compare(&sockets) {
            Ok(None) => AdminRequest::get("/v1/diff"),
            // The command reads the file itself: the proxy must not read a file because a client names it.
            Ok(Some(path)) => match load_or_report(Some(&absolute(path))) {
                Ok(valid) => {
                    let snapshot = json!(Arc::unwrap_or_clone(valid.config.snapshot));
                    AdminRequest::post("/v1/diff", snapshot.to_string().into_bytes())
                }
                Err(code) => return code,
            },
            Err(error) => return error.report(),
        };
        let outcome: ReloadOutcome = match send(&sockets, &request) {
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
                    eprintln!("no difference from configuration {}", outcome.number);
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

    /// Returns the file to compare. `None`: the proxy compares its own file, which it reads as for a reload, with its
    /// own secrets.
    fn file_to_compare(&self, sockets: &[AdminSocket]) -> Result<Option<&Path>, AdminError> {
        let Some(path) = &self.config else { return Ok(None) };
        let status: Value = send(sockets, &AdminRequest::get("/v1/status"))?;
        let running = status["configuration"]["file"].as_str().map(Path::new);
        Ok((!running.is_some_and(|running| is_same_file(running, path))).then_some(path.as_path()))
    }
}
