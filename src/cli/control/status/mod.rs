//! `outgate status`: shows the state of a running proxy, once or as a live view.
//! Which configuration is active, since when, what is wrong, and how much traffic is there?

mod lines;
mod watch;

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::ProxySelector;
use super::admin_client::{AdminError, AdminRequest, send};
use crate::config::duration_argument;
use lines::{Style, status_lines};

#[derive(Args)]
#[command(after_help = "Examples:
  outgate status
  outgate status --watch
  outgate status --watch=5s | tee -a status.log
  outgate status --json | jq .configuration.number
  outgate status --ready > /dev/null    # the health check of a container

Exit code 0: outgate is ready and not degraded. 1: outgate is not ready, or degraded; with --ready, only if it is not
ready. 69: outgate is not running. With --watch, Ctrl-C ends the view with exit code 0. NO_COLOR turns colours off.")]
pub(in crate::cli) struct Status {
    #[command(flatten)]
    proxy: ProxySelector,
    /// Print JSON; with --watch, one line for each sample
    #[arg(long)]
    json: bool,
    /// Exit with 0 if outgate is ready, also if it is degraded
    #[arg(long, conflicts_with = "watch")]
    ready: bool,
    /// Show the state and the rates again after this interval: 1s if none is written
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "1s",
          value_parser = duration_argument)]
    watch: Option<Duration>,
}

impl Status {
    pub(in crate::cli) fn run(self) -> ExitCode {
        if let Err(code) = self.proxy.check() {
            return code;
        }
        if let Some(interval) = self.watch {
            return self.watch(interval);
        }
        let status = match self.sample() {
            Ok(status) => status,
            Err(error) => return error.report(),
        };
        if self.json {
            println!("{status:#}");
        } else {
            let style = Style::of_stdout();
            status_lines(&status).iter().for_each(|line| line.render(&style).iter().for_each(|row| println!("{row}")));
        }
        let is_ready = list(&status["blocked"]).next().is_none();
        let is_degraded = list(&status["degraded"]).next().is_some();
        if is_ready && (self.ready || !is_degraded) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn sample(&self) -> Result<Value, AdminError> {
        send(&self.proxy.sockets(), &AdminRequest::get("/v1/status"))
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> impl Iterator<Item = String> {
    value.as_array().into_iter().flatten().map(|value| text(value).to_owned())
}
