//! `outgate run`: starts the proxy.
//! Which configuration does the proxy start with?

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tracing::{Level, warn};

use super::{InvalidConfig, ValidConfig, load_config};
use crate::app::{self, StartupConfig};
use crate::config::pending_rollback::absolute;
use crate::config::{Problem, SourceMap, render, summarize};
use crate::net::listen::ReservedPorts;
use crate::sandbox::Sandbox;
use crate::state::observability::log;
use crate::sysexits;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate run --config /etc/outgate/config.toml
  outgate run                     # /etc/outgate/config.toml, else a built-in loopback proxy

Without a file, outgate listens on 127.0.0.1:4750 for every client of this host, uses the host's global addresses as the
pool `default`, and routes every public host. SIGHUP reloads; SIGTERM drains and exits with 0.")]
pub(super) struct Run {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Run {
    pub(super) fn run(self) -> ExitCode {
        // Threads inherit the restrictions, so the first of them, which writes the log, starts after.
        let mut sandbox = Sandbox::enter();
        // The admin listener shows the path, and its clients may have another working directory.
        let path = self.config.as_deref().map(absolute);
        let loaded = load_config(path.as_deref());
        let reserved_ports = loaded.as_ref().map_or_else(|_| Default::default(), |valid| sandbox.close(&valid.config));
        // From here on, only the log thread writes to stderr: a full pipe must not delay the start.
        if let Err(error) = log::start() {
            eprintln!("outgate: cannot start the thread that writes the log: {error}");
            return ExitCode::from(sysexits::OS_ERROR);
        }
        log::find_style();
        let code = serve(loaded, &sandbox, reserved_ports);
        log::flush();
        code
    }
}

fn serve(loaded: Result<ValidConfig, InvalidConfig>, sandbox: &Sandbox, reserved_ports: ReservedPorts) -> ExitCode {
    let valid = match loaded {
        Ok(valid) => valid,
        Err(InvalidConfig { problems, sources, .. }) => {
            log_problems(Level::ERROR, &problems, &sources);
            return ExitCode::from(sysexits::CONFIG);
        }
    };
    log::configure(&valid.config.log);
    log_problems(Level::WARN, &valid.warnings, &valid.config.sources);
    if valid.path.is_none() {
        warn!("no configuration file: using the built-in configuration, which serves only this host");
    }
    sandbox.announce();
    let ValidConfig { path, config, plan, warnings, .. } = valid;
    app::run(StartupConfig { path, config, plan, warnings, reserved_ports })
}

fn log_problems(level: Level, problems: &[Problem], sources: &SourceMap) {
    if !problems.is_empty() {
        log::text(level, &render(&summarize(problems), sources, log::has_colours() && !log::is_formatted()));
    }
}
