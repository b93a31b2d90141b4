//! `outgate check`: reports every problem and warning of a configuration.
//! Would outgate adopt this configuration?

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;

use super::service::{Account, Unit};
use super::{CONFIG_DIR, find_config, load_config, print_problems};
use crate::config::{self, BUNDLE_DIR, Bind, Config, DeliveryLog, Located, Problem, Severity};
use crate::history::History;
use crate::names::pluralize;
use crate::net::listen;
use crate::state::observability::records;
use crate::sysexits;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate check
  outgate check --config new.toml && cp new.toml /etc/outgate/config.toml
  outgate check --json | jq '.[].message'
  outgate check --config new.toml --as outgate

The command checks file permissions as the user of the service if root runs it, the configuration is below /etc/outgate
and outgate.service is installed.

Exit code 0: outgate would adopt the configuration, perhaps with warnings. 1: the configuration has problems, even if
only in one tenant's keys. 2: wrong usage.")]
pub(super) struct Check {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check file permissions as this user of the host; requires root. Default: the user of the service, see below
    #[arg(long = "as", value_name = "USER")]
    user: Option<String>,
    /// Print problems and warnings as a JSON array on stdout
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(super) fn run(self) -> ExitCode {
        let account = match self.assume_account() {
            Ok(account) => account,
            Err((code, reason)) => {
                eprintln!("outgate: {reason}");
                return ExitCode::from(code);
            }
        };
        let files = account.map_or(String::new(), |account| format!(", files checked as user {}", account.name));
        let (mut found, sources, acknowledged, config) = match load_config(self.config.as_deref()) {
            Ok(valid) => {
                let sources = valid.config.sources.clone();
                (valid.warnings, sources, valid.acknowledged, Some(Box::new(valid.config)))
            }
            Err(invalid) => (invalid.problems, invalid.sources, 0, invalid.partial),
        };
        found.extend(config.iter().flat_map(|config| host_problems(config)));
        let of_bundle = |path: &Path| path.parent().is_some_and(|folder| folder.ends_with(BUNDLE_DIR));
        let files = match sources.paths().filter(|path| of_bundle(path)).count() {
            0 => files,
            count => format!("{files}; {} of the bundle of the fleet", pluralize(count, "file")),
        };
        if self.json {
            println!("{:#}", config::to_json(&found, &sources));
        } else {
            print_problems(&found, &sources);
        }
        let count = |severity| found.iter().filter(|problem| problem.severity == severity).count();
        let [problems, contained, warnings] = [Severity::Problem, Severity::Contained, Severity::Warning].map(count);
        let acknowledged = match acknowledged {
            0 => String::new(),
            count => format!(" and {count} acknowledged"),
        };
        let warnings = format!("{}{acknowledged}{files}", pluralize(warnings, "warning"));
        match (problems, contained) {
            (0, 0) => eprintln!("valid, with {warnings}"),
            (0, _) => eprintln!("valid, except for single tenants: {}, {warnings}", pluralize(contained, "problem")),
            (_, _) => eprintln!("not valid: {}, {warnings}", pluralize(problems + contained, "problem")),
        }
        if problems + contained == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Assumes the account to check as, so that the kernel checks file permissions. `None`: the user who started the
    /// command.
    fn assume_account(&self) -> Result<Option<Account>, (u8, String)> {
        let is_root = rustix::process::geteuid().is_root();
        let unit = Unit::read();
        let account = if let Some(user) = &self.user {
            Account::find(user, unit.as_ref()).map_err(|reason| (sysexits::NO_USER, reason))?
        } else {
            let is_installed = find_config(self.config.as_deref())
                .and_then(|path| path.canonicalize().ok())
                .is_some_and(|path| path.starts_with(CONFIG_DIR));
            let user = unit.as_ref().and_then(|unit| unit.user.as_deref()).filter(|_| is_root && is_installed);
            let Some(user) = user else { return Ok(None) };
            match Account::find(user, unit.as_ref()) {
                Ok(account) => account,
                Err(reason) => {
                    eprintln!("outgate: checking file permissions as root, not as the user of the service: {reason}");
                    return Ok(None);
                }
            }
        };
        match () {
            () if account.is_current() && (!is_root || account.is_root()) => {}
            () if !is_root => {
                let reason = format!("only root can check as user {}: run this command with sudo", account.name);
                return Err((sysexits::NO_PERMISSION, reason));
            }
            () => account
                .assume()
                .map_err(|error| (sysexits::OS_ERROR, format!("cannot become user {}: {error}", account.name)))?,
        }
        Ok(Some(account))
    }
}

/// Returns the problems that the host and the state of the proxy make.
fn host_problems(config: &Config) -> Vec<Problem> {
    let log = delivery_log_problem(&config.log.deliveries).into_iter();
    let audit = config.audit.file.as_ref().and_then(audit_log_problem);
    log.chain(audit).chain(config.binds().filter_map(socket_fault)).chain(notice_problems(config)).collect()
}

/// Returns the ranges from which outgate would send without notice. The state of the proxy has their dates.
fn notice_problems(config: &Config) -> Vec<Problem> {
    match History::of_state(config.server.state.as_deref()).announcements() {
        Ok(Some(announcements)) => announcements.problems(config, Timestamp::now()),
        Ok(None) => Vec::new(),
        Err(error) => {
            eprintln!("outgate: {error}; so egress.*.notice is not checked");
            Vec::new()
        }
    }
}

/// Returns a problem that would end a start.
fn socket_fault(bind: &Located<Bind>) -> Option<Problem> {
    let error = listen::probe(bind).err()?;
    let problem = Problem::at(bind.span, format!("outgate cannot listen on {}", bind.address));
    let help = "create the directory, allow the user of outgate to write there, and name a group of this host";
    Some(problem.label(error.to_string()).help(help))
}

/// Returns a problem that would end a start.
fn delivery_log_problem(deliveries: &Located<DeliveryLog>) -> Option<Problem> {
    let error = records::probe(&deliveries.value).err()?;
    let problem = Problem::at(deliveries.span, "outgate cannot write the delivery log");
    Some(match &deliveries.value {
        DeliveryLog::File(path) => problem
            .label(format!("{}: {error}", path.display()))
            .help("create the directory and allow the user of outgate to write there; or write \"stdout\""),
        _ => {
            problem.label(error.to_string()).help("no journal listens on this host: write \"stdout\" or \"file:PATH\"")
        }
    })
}

/// Returns a problem because of which outgate would refuse every later change.
fn audit_log_problem(file: &Located<PathBuf>) -> Option<Problem> {
    let error = records::probe(&DeliveryLog::File(file.value.clone())).err()?;
    let problem = Problem::at(file.span, "outgate cannot write the audit log");
    let help = "create the directory and allow the user of outgate to write there";
    Some(problem.label(format!("{}: {error}", file.display())).help(help))
}
