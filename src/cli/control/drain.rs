//! `outgate drain` and `outgate undrain`: take a running proxy out of service, and bring it back.
//! Have all deliveries finished, so that the host can be restarted?

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use super::super::escape_control_characters;
use super::ProxySelector;
use super::admin_client::AdminRequest;
use crate::config::duration_argument;
use crate::names::pluralize;
use crate::sysexits;

/// The interval between two looks at the deliveries in flight.
const POLL: Duration = Duration::from_millis(500);

#[derive(Args)]
#[command(after_help = "Examples:
  outgate drain --wait && apt upgrade
  outgate drain --grace 0s
  outgate drain --wait --timeout 10m

/readyz answers 503 from now on, so that load balancers send no new clients. After the grace time outgate refuses new
deliveries as `draining` (503, retryable). Deliveries in flight finish. `outgate undrain` ends the drain at any time.

Exit code 0: the drain was requested; with --wait, all deliveries and tunnels have ended. 75: some had not ended within
the timeout. 69: outgate is not running.")]
pub(in crate::cli) struct Drain {
    #[command(flatten)]
    proxy: ProxySelector,
    /// The time until new deliveries are refused: 0s, 30s, 5m. Default: server.drain_grace
    #[arg(long, value_name = "TIME")]
    grace: Option<String>,
    /// Wait until new deliveries are refused, and until no delivery and no tunnel is open
    #[arg(long)]
    wait: bool,
    /// Wait no longer than this
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = duration_argument)]
    timeout: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:
  outgate undrain

Exit code 0: outgate accepts new deliveries. 69: outgate is not running, or it stops already.")]
pub(in crate::cli) struct Undrain {
    #[command(flatten)]
    proxy: ProxySelector,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Drain {
    pub(in crate::cli) fn run(self) -> ExitCode {
        let query = self
            .grace
            .as_ref()
            .map(|grace| form_urlencoded::Serializer::new(String::from("?")).append_pair("grace", grace).finish());
        let path = format!("/v1/drain{}", query.unwrap_or_default());
        let mut status = match self.proxy.send(&AdminRequest::post(&path, Vec::new())) {
            Ok(status) => status,
            Err(code) => return code,
        };
        let until = self.timeout.map(|timeout| Instant::now() + timeout);
        while self.wait && !is_drained(&status) {
            if until.is_some_and(|until| Instant::now() >= until) {
                print(&status, self.json);
                eprintln!("outgate: the drain has not ended within {:?}", self.timeout.unwrap_or_default());
                return ExitCode::from(sysexits::TEMPORARY);
            }
            std::thread::sleep(POLL);
            status = match self.proxy.send(&AdminRequest::get("/v1/status")) {
                Ok(status) => status,
                Err(code) => return code,
            };
            if status["drain"]["stage"] == "serving" {
                eprintln!("outgate: another operator has ended the drain");
                return ExitCode::FAILURE;
            }
        }
        print(&status, self.json);
        ExitCode::SUCCESS
    }
}

impl Undrain {
    pub(in crate::cli) fn run(self) -> ExitCode {
        match self.proxy.send(&AdminRequest::post("/v1/undrain", Vec::new())) {
            Ok(status) => {
                print(&status, self.json);
                ExitCode::SUCCESS
            }
            Err(code) => code,
        }
    }
}

fn is_drained(status: &Value) -> bool {
    let is_refusing = status["drain"]["stage"] == "refusing" || status["drain"]["stage"] == "stopping";
    is_refusing && ["deliveries_in_flight", "deliveries_waiting", "tunnels"].iter().all(|name| status[name] == 0)
}

fn print(status: &Value, is_json: bool) {
    let members = ["drain", "deliveries_in_flight", "deliveries_waiting", "tunnels"];
    if is_json {
        let shown = members.iter().map(|name| ((*name).to_owned(), status[name].clone()));
        return println!("{:#}", Value::Object(shown.collect()));
    }
    println!("{}", escape_control_characters(&describe(status)));
}

/// Describes the stage of the drain, and what it waits for.
pub(super) fn describe(status: &Value) -> String {
    let drain = &status["drain"];
    let by = drain["by"].as_str().map(|by| format!(", requested by {by}")).unwrap_or_default();
    let count = |key: &str, noun| pluralize(status[key].as_u64().unwrap_or_default(), noun);
    let left = format!("{} in flight, {}", count("deliveries_in_flight", "delivery"), count("tunnels", "tunnel"));
    match drain["stage"].as_str() {
        Some("announced") => {
            let from = drain["refuses_from"].as_str().unwrap_or("-");
            format!("draining: not ready, refuses new deliveries from {from}{by}; {left}")
        }
        Some("refusing") => format!("draining: refuses new deliveries{by}; {left}"),
        Some("stopping") => format!("stopping; {left}"),
        _ => format!("serving; {left}"),
    }
}
