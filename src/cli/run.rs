//! `outgate run`: the proxy.
//! With which configuration does it start?

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tracing::{Level, warn};

use super::{InvalidConfig, load_config};
use crate::app::{self, StartupConfig};
use crate::config::pending_rollback::absolute;
use crate::config::{Problem, SourceMap, render, summarize};
use crate::state::observability::log;
use crate::sysexits;

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
        // From here on stderr is the log's alone: a full pipe must not delay the start either.
        if let Err(error) = log::start() {
            eprintln!("outgate: cannot start the thread that writes the log: {error}");
            return ExitCode::from(sysexits::OS_ERROR);
        }
        log::find_style();
        let code = self.serve();
        log::flush();
        code
    }

    fn serve(self) -> ExitCode {
        // Whoever asks what runs may stand in another folder.
        let path = self.config.as_deref().map(absolute);
        let valid = match load_config(path.as_deref()) {
            Ok(valid) => valid,
            Err(InvalidConfig { problems, sources }) => {
                log_problems(Level::ERROR, &problems, &sources);
                return ExitCode::from(sysexits::CONFIG);
            }
        };
        log::configure(&valid.config.log);
        log_problems(Level::WARN, &valid.warnings, &valid.config.sources);
        if valid.path.is_none() {
            warn!("no configuration file: the built-in one serves this host alone");
        }
        app::run(StartupConfig { path: valid.path, config: valid.config, plan: valid.plan, warnings: valid.warnings })
    }
}

fn log_problems(level: Level, problems: &[Problem], sources: &SourceMap) {
    if !problems.is_empty() {
        log::text(level, &render(&summarize(problems), sources, log::has_colours() && !log::is_formatted()));
    }
}
