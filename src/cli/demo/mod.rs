//! `outgate demo`: the newcomer's first minute.
//! What does the whole product look like at work?

mod receiver;
mod receivers;
mod scenes;
mod sender;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::new_file::write_secret;
use crate::app::{Proxy, StartupConfig};
use crate::sysexits;
use receivers::Receivers;
use sender::DemoClient;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate demo             # a report, then the proxy stays up for curl until Ctrl-C
  outgate demo --once      # the report alone; exit code 0 only if everything went as it should
  outgate demo --receiver first    # only a customer's server, for a proxy that you configure and run yourself

Everything happens on loopback with certificates and keys that are thrown away: nothing leaves this host.")]
pub(super) struct Demo {
    /// Exit after the report
    #[arg(long)]
    once: bool,
    /// Run only a receiver that verifies webhooks, until Ctrl-C; its certificate authority and signing key are put into
    /// this new folder
    #[arg(long, value_name = "FOLDER", conflicts_with = "once")]
    receiver: Option<PathBuf>,
    /// Where the receiver listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8443", requires = "receiver")]
    listen: SocketAddr,
}

/// Removed when the demo ends.
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

/// Everything the scenes play with.
struct Demonstration {
    /// Of the client `billing`.
    token: String,
    folder: TempDir,
    receivers: Receivers,
    sender: DemoClient,
}

impl Demo {
    pub(super) fn run(self) -> ExitCode {
        let runtime = match tokio::runtime::Runtime::new() {
            Ok(runtime) => runtime,
            Err(fault) => return failed(&fault.to_string()),
        };
        runtime.block_on(async {
            if let Some(path) = self.receiver {
                return receiver::run(path, self.listen)
                    .await
                    .map_or_else(|fault| failed(&fault), |()| ExitCode::SUCCESS);
            }
            let path = std::env::temp_dir().join(format!("outgate-demo-{}", std::process::id()));
            let folder = match TempDir::new(path) {
                Ok(folder) => folder,
                Err(fault) => return failed(&fault.to_string()),
            };
            match self.play(folder).await {
                Ok(code) => code,
                Err(fault) => failed(&fault),
            }
        })
    }

    async fn play(self, folder: TempDir) -> Result<ExitCode, String> {
        let secret = crate::policy::sign::new_key("standard-webhooks", None).map_err(|fault| fault.to_string())?;
        let token = super::token::fresh();
        let receivers = Receivers::start(&secret).map_err(|fault| format!("no receivers: {fault}"))?;
        write(&folder.path("ca.pem"), &receivers.ca)?;
        write(&folder.path("key"), &secret)?;
        write(&folder.path("config.toml"), &scenes::configuration(&receivers, &token, scenes::LIMIT))?;
        let config = folder.path("config.toml");
        let valid = super::load(Some(&config)).map_err(|invalid| {
            super::print_problems(&invalid.problems, &invalid.sources);
            "the demo's configuration is not valid".to_owned()
        })?;
        let start =
            StartupConfig { path: valid.path, config: valid.config, plan: valid.plan, warnings: valid.warnings };
        let mut proxy = Proxy::start(start).await.map_err(|failed| failed.1)?;
        proxy.reload_on_change();
        let address =
            proxy.addresses.first().and_then(|address| address.parse().ok()).ok_or("the proxy has no address")?;

        println!("outgate {} on http://{address}, leaving from {}\n", env!("CARGO_PKG_VERSION"), scenes::POOL);
        let stage = Demonstration { token, folder, receivers, sender: DemoClient { proxy: address } };
        let (stage, passed) = tokio::task::spawn_blocking(move || {
            let passed = scenes::play(&stage);
            (stage, passed)
        })
        .await
        .map_err(|fault| format!("the demo broke off: {fault}"))?;

        show_evidence(&proxy, &stage);
        if self.once {
            proxy.stop().await;
            return Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        invite(&stage);
        Ok(proxy.until_told_to_stop().await)
    }
}

/// One record and one metric, of the many that a proxy writes.
fn show_evidence(proxy: &Proxy, stage: &Demonstration) {
    let (records, metrics) = (proxy.written_records(&stage.folder.path(scenes::RECORDS)), proxy.metrics());
    let is_delivered = |line: &&str| line.contains("\"code\":\"delivered\"") && line.contains("\"signatures\":[");
    if let Some(record) = records.lines().find(is_delivered) {
        println!("\nA record of a delivery, one of {}\n  {record}", records.lines().count());
    }
    let is_delivered = |line: &&str| line.starts_with("outgate_deliveries_total{") && line.contains("\"delivered\"");
    if let Some(metric) = metrics.lines().find(is_delivered) {
        println!("\nA metric, of those at /metrics of the admin listener\n  {metric}");
    }
}

fn invite(stage: &Demonstration) {
    let (proxy, port) = (stage.sender.proxy, stage.receivers.good.port());
    let config = stage.folder.path("config.toml");
    println!(
        "\nIt stays up until Ctrl-C. Try, in another terminal:

  # any client with an HTTP proxy setting; Outgate-TLS asks for https on the way out
  curl -i -x http://{proxy} -H 'Outgate-TLS: 1' -d '{{\"hello\":1}}' http://good.example:{port}/

  # a client without proxy support
  curl -i -H 'Outgate-Target: https://good.example:{port}/' -d '{{}}' http://{proxy}/

  # change it while it runs
  ${{EDITOR:-vi}} {}
",
        config.display()
    );
}

/// Writes a new file that this user alone can read: one of them is a key.
fn write(path: &Path, text: &str) -> Result<(), String> {
    write_secret(path, text).map_err(|fault| format!("cannot write {}: {fault}", path.display()))
}

fn failed(why: &str) -> ExitCode {
    eprintln!("outgate demo: {why}");
    ExitCode::from(sysexits::UNAVAILABLE)
}
