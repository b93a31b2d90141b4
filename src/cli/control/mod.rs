//! The commands that talk to a running proxy, over the unix socket of its admin listener.
//! How do these commands report an outcome, and with which exit code?

mod admin_client;
pub(super) mod captures;
pub(super) mod deliveries;
pub(super) mod diff;
pub(super) mod drain;
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
pub(super) use admin_client::{AdminError, AdminRequest, AdminSocket, fetch};

/// The arguments that select a running proxy.
#[derive(Args)]
pub(super) struct ProxySelector {
    /// The configuration file; its admin.listen has the admin socket
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The admin socket, in place of that of the configuration
    #[arg(long, value_name = "unix:PATH")]
    admin: Option<AdminSocket>,
}

impl ProxySelector {
    /// Reports a missing configuration file, unless `--admin` names the proxy: the default socket may belong to
    /// another proxy.
    fn check(&self) -> Result<(), ExitCode> {
        if self.admin.is_some() { Ok(()) } else { file_exists(self.config.as_deref()) }
    }

    /// Sends a request to the proxy, and prints why there is no response.
    pub(super) fn send(&self, request: &AdminRequest) -> Result<Value, ExitCode> {
        self.check()?;
        self.try_send(request).map_err(AdminError::report)
    }

    pub(super) fn try_send(&self, request: &AdminRequest) -> Result<Value, AdminError> {
        admin_client::send(&self.sockets(), request)
    }

    fn sockets(&self) -> Vec<AdminSocket> {
        match &self.admin {
            Some(socket) => vec![socket.clone()],
            None => AdminSocket::from_config(self.config.as_deref()),
        }
    }
}

/// Asks a running proxy to explain its decisions about a webhook.
pub(super) fn explain(config: Option<PathBuf>, admin: Option<AdminSocket>, webhook: &Value) -> Result<Value, ExitCode> {
    let which = ProxySelector { config, admin };
    which.check()?;
    let sockets = which.sockets();
    let request = AdminRequest::post("/v1/explain", webhook.to_string().into_bytes());
    admin_client::send(&sockets, &request).map_err(AdminError::report)
}

/// Reports a configuration file that does not exist, as `explain` does.
fn file_exists(config: Option<&Path>) -> Result<(), ExitCode> {
    match config {
        Some(path) if path.try_exists().is_ok_and(|exists| !exists) => load_or_report(Some(path)).map(drop),
        _ => Ok(()),
    }
}

/// Prints the changes on stdout, and warnings and restart notes on stderr.
pub(super) fn print_outcome(outcome: &ReloadOutcome) {
    print!("{}", escape_control_characters(&outcome.difference.to_string()));
    for action in &outcome.customer_actions {
        println!("{}", escape_control_characters(action));
    }
    for warning in &outcome.warnings {
        eprintln!("warning: {}", escape_control_characters(warning));
    }
    for key in &outcome.restart {
        eprintln!("{key} takes effect at the next restart");
    }
}

/// Prints the problems as `check` does, and returns the exit code.
pub(super) fn print_rejection(outcome: &ReloadOutcome) -> ExitCode {
    eprint!("{}", escape_control_characters(&outcome.report));
    ExitCode::from(sysexits::CONFIG)
}

/// Returns whether both paths lead to the same file.
fn is_same_file(a: &Path, b: &Path) -> bool {
    a == b || a.canonicalize().ok() == b.canonicalize().ok()
}

fn describe_change_count(outcome: &ReloadOutcome) -> String {
    match outcome.difference.count() {
        0 => "nothing but comments, white space or order".to_owned(),
        1 => "1 change".to_owned(),
        count => format!("{count} changes"),
    }
}
