//! The commands that ask a running proxy, over the unix socket of its admin listener.
//! What is said where, and with which exit code does it end?

mod admin_client;
pub(super) mod diff;
pub(super) mod history;
pub(super) mod reload;
pub(super) mod rollback;
pub(super) mod status;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::{escape_control_characters, load_or_report};
use crate::state::config::status::ReloadOutcome;
use crate::sysexits;
use admin_client::AdminRequest;
pub(super) use admin_client::AdminSocket;

/// Which proxy is meant.
#[derive(Args)]
pub(super) struct ProxySelector {
    /// The configuration file: its admin.listen says where the proxy can be asked
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The unix socket itself
    #[arg(long, value_name = "unix:PATH")]
    admin: Option<AdminSocket>,
}

impl ProxySelector {
    /// Shows that the configuration file does not exist, unless `--admin` names the proxy. The default socket may be another
    /// proxy's.
    fn check(&self) -> Result<(), ExitCode> {
        if self.admin.is_some() { Ok(()) } else { file_exists(self.config.as_deref()) }
    }

    fn sockets(&self) -> Vec<AdminSocket> {
        match &self.admin {
            Some(socket) => vec![socket.clone()],
            None => AdminSocket::from_config(self.config.as_deref()),
        }
    }
}

/// What a running proxy says of a webhook.
pub(super) fn explain(config: Option<PathBuf>, admin: Option<AdminSocket>, webhook: &Value) -> Result<Value, ExitCode> {
    let which = ProxySelector { config, admin };
    which.check()?;
    let sockets = which.sockets();
    let request = AdminRequest::post("/explain", webhook.to_string().into_bytes());
    admin_client::send(&sockets, &request).map_err(admin_client::AdminError::report)
}

/// Shows that a file that is named does not exist, as `explain` does.
fn file_exists(config: Option<&Path>) -> Result<(), ExitCode> {
    match config {
        Some(path) if path.try_exists().is_ok_and(|exists| !exists) => load_or_report(Some(path)).map(drop),
        _ => Ok(()),
    }
}

/// Changes, and what is to be said beside them.
fn print_outcome(outcome: &ReloadOutcome) {
    print!("{}", escape_control_characters(&outcome.difference.to_string()));
    for warning in &outcome.warnings {
        eprintln!("warning: {}", escape_control_characters(warning));
    }
    for key in &outcome.restart {
        eprintln!("{key} waits for a restart");
    }
}

/// As `check` shows them, and the exit code for it.
fn print_rejection(outcome: &ReloadOutcome) -> ExitCode {
    eprint!("{}", escape_control_characters(&outcome.report));
    ExitCode::from(sysexits::CONFIG)
}

fn describe_change_count(outcome: &ReloadOutcome) -> String {
    match outcome.difference.changes.len() + outcome.difference.more {
        0 => "nothing but comments, white space or order".to_owned(),
        1 => "1 change".to_owned(),
        count => format!("{count} changes"),
    }
}
