//! `outgate support-bundle`: one file for support, with everything that explains a fault, and without secrets.
//! What does support need to know about this host?

mod scrub;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::archive;
use super::control::{AdminSocket, fetch};
use super::doctor::{EGRESS_CHECKS, Examination, HOST_CHECKS, Host, tail};
use super::{InvalidConfig, ValidConfig, load_config, new_file};
use crate::config::{self, DeliveryLog};
use crate::sysexits;
use scrub::{Scrubber, sources};

#[derive(Args)]
#[command(after_help = "Examples:
  sudo outgate support-bundle
  sudo outgate support-bundle --out bundle.tar.gz --log /var/log/outgate/outgate.log

The bundle has the version, the findings of `outgate doctor`, the configuration, the status and metrics of the running
proxy, its last deliveries and log lines, and facts about the host. It has no keys, tokens, bodies, queries and comments,
and of the targets' paths nothing. Read it before you send it: `tar xzf FILE`.

Exit code 0: the bundle is written. 73: it cannot be written.")]
pub(super) struct SupportBundle {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The file to write. Default: outgate-support-TIME.tar.gz in this folder
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Read this log, in place of the journal
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

/// The last lines that the bundle takes from a log.
const LINES_MAX: usize = 2000;
/// Files of the system that name it.
const HOST_FILES: [&str; 6] =
    ["/etc/os-release", "/proc/version", "/proc/meminfo", "/proc/loadavg", "/proc/net/sockstat", "/proc/net/netstat"];
/// Commands that describe the network and the service. What is not installed is left out.
const HOST_COMMANDS: [&[&str]; 8] = [
    &["ip", "address"],
    &["ip", "rule"],
    &["ip", "route", "show", "table", "all"],
    &["ip", "-6", "route", "show", "table", "all"],
    &["nft", "list", "ruleset"],
    &["sysctl", "net.ipv4", "net.ipv6", "net.core", "net.netfilter", "fs"],
    &["systemctl", "status", "--no-pager", "--lines=0", "outgate"],
    &["timedatectl"],
];

impl SupportBundle {
    pub(super) fn run(self) -> ExitCode {
        let now = Timestamp::now();
        let name = format!("outgate-support-{}", now.strftime("%Y%m%dT%H%M%SZ"));
        let out = self.out.clone().unwrap_or_else(|| format!("{name}.tar.gz").into());
        let configuration = load_config(self.config.as_deref());
        let scrubber = Scrubber::new(configuration.as_ref().ok().map(|valid| &valid.config));
        let files = self.collect(&configuration, &scrubber);
        let files: Vec<_> = files.into_iter().map(|(name, content)| (name, scrubber.last(content))).collect();
        let written =
            archive::tar_gz(&name, &files, now.as_second()).and_then(|archive| new_file::write_secret(&out, archive));
        match written {
            Ok(()) => {
                println!("{}", out.display());
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("outgate: cannot write {}: {error}; name another file with --out", out.display());
                ExitCode::from(sysexits::CANNOT_CREATE)
            }
        }
    }

    /// Returns the files of the bundle. What cannot be had is named in `missing.txt`.
    fn collect(
        &self,
        configuration: &Result<ValidConfig, InvalidConfig>,
        scrubber: &Scrubber,
    ) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<(String, Vec<u8>)> = Vec::new();
        let mut missing = String::new();
        let version = json!({ "version": env!("CARGO_PKG_VERSION"), "arch": std::env::consts::ARCH });
        files.push(("version.json".to_owned(), format!("{version:#}\n").into_bytes()));
        let findings = {
            let subject = Examination::read(Host::new(None), configuration);
            [HOST_CHECKS, EGRESS_CHECKS].map(|checks| subject.run(checks)).concat()
        };
        files.push(("doctor.json".to_owned(), format!("{:#}\n", scrubber.json(json!(findings))).into_bytes()));
        let texts = match configuration {
            Ok(valid) => &valid.config.sources,
            Err(invalid) => &invalid.sources,
        };
        for (number, (path, text)) in sources(texts).enumerate() {
            let name = format!("config/{number}-{}", path.file_name().unwrap_or_default().to_string_lossy());
            files.push((name, scrubber.toml(text).into_bytes()));
        }
        if let Err(InvalidConfig { problems, sources, .. }) = configuration {
            let lines = config::to_log_lines(problems, sources).join("\n");
            files.push(("config/problems.txt".to_owned(), scrubber.lines(&lines).into_bytes()));
        }
        let sockets = AdminSocket::from_config(self.config.as_deref());
        for path in ["/v1/status", "/v1/deliveries", "/metrics"] {
            let name = path.rsplit('/').next().unwrap_or_default();
            match fetch(&sockets, path) {
                Ok(body) => files.push(match serde_json::from_slice::<Value>(&body) {
                    Ok(value) => (format!("{name}.json"), format!("{:#}\n", scrubber.json(value)).into_bytes()),
                    Err(_) => (format!("{name}.txt"), body),
                }),
                Err(error) => missing += &format!("{name}: {error}\n"),
            }
        }
        if let Some(DeliveryLog::File(path)) =
            configuration.as_ref().ok().map(|valid| &valid.config.log.deliveries.value)
        {
            match tail(path) {
                Some(text) => files.push(("deliveries.jsonl".to_owned(), last_lines(scrubber, &text))),
                None => missing += &format!("deliveries: cannot read {}\n", path.display()),
            }
        }
        match self.read_log() {
            Ok(text) => files.push(("log.txt".to_owned(), last_lines(scrubber, &text))),
            Err(reason) => missing += &format!("log: {reason}\n"),
        }
        files.extend(host_facts(scrubber));
        files.push(("missing.txt".to_owned(), scrubber.lines(&missing).into_bytes()));
        files
    }

    fn read_log(&self) -> Result<String, String> {
        if let Some(path) = &self.log {
            return tail(path).ok_or_else(|| format!("cannot read {}", path.display()));
        }
        let lines = format!("--lines={LINES_MAX}");
        output(&["journalctl", "--unit=outgate", "--no-pager", "--output=short-iso", &lines])
    }
}

fn last_lines(scrubber: &Scrubber, text: &str) -> Vec<u8> {
    let lines: Vec<&str> = text.lines().collect();
    scrubber.lines(&lines[lines.len().saturating_sub(LINES_MAX)..].join("\n")).into_bytes()
}

fn host_facts(scrubber: &Scrubber) -> Vec<(String, Vec<u8>)> {
    let host = Host::new(None);
    let files = HOST_FILES.iter().filter_map(|path| {
        let name = Path::new(path).file_name()?.to_string_lossy();
        Some((format!("host/{name}.txt"), host.text(path)?.into_bytes()))
    });
    let commands = HOST_COMMANDS.iter().filter_map(|command| {
        Some((format!("host/{}.txt", command.join("_").replace('/', "_")), output(command).ok()?.into_bytes()))
    });
    let unit = output(&["systemctl", "cat", "--no-pager", "outgate"]).ok();
    let unit = unit.map(|text| ("host/outgate.service.txt".to_owned(), scrubber.unit(&text).into_bytes()));
    files.chain(commands).chain(unit).collect()
}

/// Returns what a program prints.
fn output(command: &[&str]) -> Result<String, String> {
    let [program, arguments @ ..] = command else { return Err("no program".to_owned()) };
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim_end())),
    }
}
