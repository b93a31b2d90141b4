//! `outgate run`: the proxy.
//! With which configuration does it start?

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tracing::warn;
use tracing_subscriber::EnvFilter;

use super::{load_or_say, show};
use crate::app::{self, Start};
use crate::config::journal::absolute;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate run --config /etc/outgate/config.toml
  outgate run                     # /etc/outgate/config.toml, else a built-in loopback proxy

Without any file: a listener on 127.0.0.1:4750 for anyone on this host, the host's own global addresses as the pool
`default`, every public host routed. SIGHUP reloads, SIGTERM drains and exits 0.")]
pub(super) struct Run {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Run {
    pub(super) fn run(self) -> ExitCode {
        // Whoever asks what runs may stand in another folder.
        let path = self.config.as_deref().map(absolute);
        let valid = match load_or_say(path.as_deref()) {
            Ok(valid) => valid,
            Err(code) => return code,
        };
        log_to_stderr(&valid.config.log.level);
        show(&valid.warnings, &valid.config.sources);
        if valid.path.is_none() {
            warn!("no configuration file: the built-in one serves this host alone");
        }
        app::run(Start { path: valid.path, config: valid.config, plan: valid.plan, warnings: valid.warnings })
    }
}

/// Under systemd the journal adds the time.
fn log_to_stderr(level: &str) {
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().with_ansi(false).init();
    } else {
        log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init();
    }
}
