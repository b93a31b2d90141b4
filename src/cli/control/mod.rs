//! The commands that ask a running proxy, over the unix socket of its admin listener.
//! What is said where, and with which exit code does it end?

pub(super) mod diff;
pub(super) mod history;
pub(super) mod reload;
pub(super) mod rollback;
mod socket;
pub(super) mod status;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::{load_or_say, visible};
use crate::state::config::status::ReloadOutcome;
use crate::sysexits;
use socket::AdminRequest;
pub(super) use socket::AdminSocket;

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
            None => AdminSocket::of(self.config.as_deref()),
        }
    }
}

/// What a running proxy says of a webhook.
pub(super) fn explain(config: Option<PathBuf>, admin: Option<AdminSocket>, webhook: &Value) -> Result<Value, ExitCode> {
    let which = ProxySelector { config, admin };
    which.check()?;
    let sockets = which.sockets();
    let question = AdminRequest::post("/explain", webhook.to_string().into_bytes());
    socket::send(&sockets, &question).map_err(socket::AdminError::say)
}

/// Shows that a file that is named does not exist, as `explain` does.
fn file_exists(config: Option<&Path>) -> Result<(), ExitCode> {
    match config {
        Some(path) if path.try_exists().is_ok_and(|exists| !exists) => load_or_say(Some(path)).map(drop),
        _ => Ok(()),
    }
}

/// Changes, and what is to be said beside them.
fn print_outcome(outcome: &ReloadOutcome) {
    print!("{}", visible(&outcome.difference.to_string()));
    for warning in &outcome.warnings {
        eprintln!("warning: {}", visible(warning));
    }
    for key in &outcome.restart {
        eprintln!("{key} waits for a restart");
    }
}

/// As `check` shows them, and the exit code for it.
fn rejected(outcome: &ReloadOutcome) -> ExitCode {
    eprint!("{}", visible(&outcome.report));
    ExitCode::from(sysexits::CONFIG)
}

fn count(outcome: &ReloadOutcome) -> String {
    match outcome.difference.changes.len() + outcome.difference.more {
        0 => "nothing but comments, white space or order".to_owned(),
        1 => "1 change".to_owned(),
        count => format!("{count} changes"),
    }
}
