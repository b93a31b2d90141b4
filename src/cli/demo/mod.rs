//! `outgate demo`: runs the whole product on loopback and reports on each scenario.
//! What does outgate do, and does it work on this host?

mod client;
mod receiver;
mod receivers;
mod scenarios;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::new_file::write_secret;
use crate::app::{Proxy, StartupConfig};
use crate::sysexits;
use client::DemoClient;
use receivers::Receivers;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate demo             # a report, then the proxy runs until Ctrl-C, for curl
  outgate demo --once      # only the report; exit code 0 if every scenario passed
  outgate demo --receiver first    # only a receiver, for a proxy that you configure and run yourself

The demo uses loopback addresses and temporary certificates and keys: no packet leaves this host.")]
pub(super) struct Demo {
    /// Exit after the report
    #[arg(long)]
    once: bool,
    /// Run only a receiver that verifies webhooks, until Ctrl-C; this new directory gets its CA certificate and signing
    /// key
    #[arg(long, value_name = "FOLDER", conflicts_with = "once")]
    receiver: Option<PathBuf>,
    /// The address of the receiver
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8443", requires = "receiver")]
    listen: SocketAddr,
}

/// A directory that is removed when the demo ends.
struct TempDir(PathBuf);

impl TempDir {
    fn new(path: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The state that the scenarios share.
struct Demonstration {
    /// The token of the client `billing`.
    token: String,
    dir: TempDir,
    receivers: Receivers,
    client: DemoClient,
}

impl Demo {
    pub(super) fn run(self) -> ExitCode {
        let runtime = match tokio::runtime::Runtime::new() {
            Ok(runtime) => runtime,
            Err(error) => return exit_with_error(&error.to_string()),
        };
        runtime.block_on(async {
            if let Some(path) = self.receiver {
                return receiver::run(path, self.listen)
                    .await
                    .map_or_else(|error| exit_with_error(&error), |()| ExitCode::SUCCESS);
            }
            let path = std::env::temp_dir().join(format!("outgate-demo-{}", std::process::id()));
            let folder = match TempDir::new(path) {
                Ok(folder) => folder,
                Err(error) => return exit_with_error(&error.to_string()),
            };
            match self.run_scenarios(folder).await {
                Ok(code) => code,
                Err(error) => exit_with_error(&error),
            }
        })
    }

    async fn run_scenarios(self, folder: TempDir) -> Result<ExitCode, String> {
        let secret = crate::policy::sign::new_key("standard-webhooks", None).map_err(|error| error.to_string())?;
        let token = super::token::generate_token();
        let receivers = Receivers::start(&secret).map_err(|error| format!("cannot start the receivers: {error}"))?;
        write_private_file(&folder.path("ca.pem"), &receivers.ca)?;
        write_private_file(&folder.path("key"), &secret)?;
        write_private_file(
            &folder.path("config.toml"),
            &scenarios::configuration(&receivers, &token, scenarios::LIMIT),
        )?;
        let config = folder.path("config.toml");
        let valid = super::load_config(Some(&config)).map_err(|invalid| {
            super::print_problems(&invalid.problems, &invalid.sources);
            "the demo's configuration is not valid".to_owned()
        })?;
        let super::ValidConfig { path, config, plan, warnings, .. } = valid;
        let start = StartupConfig { path, config, plan, warnings, reserved_ports: Default::default() };
        let mut proxy = Proxy::start(start).await.map_err(|failed| failed.1)?;
        proxy.reload_on_change();
        let address =
            proxy.addresses.first().and_then(|address| address.parse().ok()).ok_or("the proxy has no address")?;

        println!(
            "outgate {} listens on http://{address} and sends from {}\n",
            env!("CARGO_PKG_VERSION"),
            scenarios::POOL
        );
        let demo = Demonstration { token, dir: folder, receivers, client: DemoClient { proxy: address } };
        let (demo, passed) = tokio::task::spawn_blocking(move || {
            let passed = scenarios::run_all(&demo);
            (demo, passed)
        })
        .await
        .map_err(|error| format!("the demo was aborted: {error}"))?;

        print_sample_record_and_metric(&proxy, &demo);
        if self.once {
            proxy.stop().await;
            return Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        print_next_steps(&demo);
        Ok(proxy.run_until_signal().await)
    }
}

/// Prints one record and one metric of those that the proxy wrote.
fn print_sample_record_and_metric(proxy: &Proxy, demo: &Demonstration) {
    let (records, metrics) = (proxy.written_records(&demo.dir.path(scenarios::RECORDS)), proxy.metrics());
    let is_delivered = |line: &&str| line.contains("\"code\":\"delivered\"") && line.contains("\"signatures\":[");
    if let Some(record) = records.lines().find(is_delivered) {
        println!("\nOne delivery record, of {}\n  {record}", records.lines().count());
    }
    let is_delivered = |line: &&str| line.starts_with("outgate_deliveries_total{") && line.contains("\"delivered\"");
    if let Some(metric) = metrics.lines().find(is_delivered) {
        println!("\nOne metric, from /metrics of the admin listener\n  {metric}");
    }
}

fn print_next_steps(demo: &Demonstration) {
    let (proxy, port) = (demo.client.proxy, demo.receivers.valid.port());
    let config = demo.dir.path("config.toml");
    println!(
        "\nThe proxy runs until Ctrl-C. Try these commands in another terminal:

  # any client with an HTTP proxy setting; Outgate-TLS requests https to the target
  curl -i -x http://{proxy} -H 'Outgate-TLS: 1' -d '{{\"hello\":1}}' http://good.example:{port}/

  # a client without proxy support
  curl -i -H 'Outgate-Target: https://good.example:{port}/' -d '{{}}' http://{proxy}/

  # change the configuration while the proxy runs
  ${{EDITOR:-vi}} {}
",
        config.display()
    );
}

/// Writes a new file that only this user can read: one of the files is a key.
fn write_private_file(path: &Path, text: &str) -> Result<(), String> {
    write_secret(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

fn exit_with_error(reason: &str) -> ExitCode {
    eprintln!("outgate demo: {reason}");
    ExitCode::from(sysexits::UNAVAILABLE)
}
