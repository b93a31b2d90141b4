//! The commands, one file each.
//! What can an operator ask of outgate?

#![expect(clippy::disallowed_methods, reason = "commands are programs: they use files, standard streams and sockets")]

#[macro_use]
mod print; // first: its `println!` hides std's in all that follows

mod archive;
mod audit;
mod backup;
mod ca;
mod check;
mod completions;
mod config_schema;
mod control;
mod demo;
mod doctor;
mod egress;
mod explain;
mod fleet;
mod help;
mod keys;
mod local_runtime;
mod new_file;
mod run;
mod send;
mod service;
mod support_bundle;
mod table;
mod token;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::WarningCode;
use crate::config::{self, Config, Problem, SourceMap};
use crate::names::escape_control_characters;
use crate::net::fd_limit;
use crate::net::resolve;
use crate::policy::{self, Plan};
use crate::state::observability::log;
use crate::sysexits;
#[cfg(any(test, fuzzing))]
pub use archive::archives;
#[cfg(any(test, fuzzing))]
pub use egress::probe_targets;

/// The directory of the service's configuration and keys.
const CONFIG_DIR: &str = "/etc/outgate";
/// The configuration file of the packages.
const DEFAULT_PATH: &str = "/etc/outgate/config.toml";

/// A static-egress webhook proxy: every webhook leaves from a fixed set of addresses, to a verified target.
#[derive(Parser)]
#[command(name = "outgate", version, arg_required_else_help = true, max_term_width = 120)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy
    Run(run::Run),
    /// Show every problem and warning of a configuration
    Check(check::Check),
    /// The JSON Schema of the configuration
    #[command(subcommand)]
    Config(config_schema::ConfigFormat),
    /// Show which route, pool, source address, trust, signers and limits a webhook would get, and why
    Explain(explain::Explain),
    /// Reload the configuration from disk, and show what changes
    Reload(control::reload::Reload),
    /// Show what a reload would change
    Diff(control::diff::Diff),
    /// List the adopted configurations: when, by whom and how each was adopted, and what it changed
    History(control::history::History),
    /// Restore a configuration that was adopted before
    Rollback(control::rollback::Rollback),
    /// Show the active configuration of a running proxy, who activated it and when, and whether the proxy is degraded
    Status(control::status::Status),
    /// Take a running proxy out of service: it refuses new deliveries, and those in flight finish
    Drain(control::drain::Drain),
    /// Bring a drained proxy back into service
    Undrain(control::drain::Undrain),
    /// Show what became of webhooks: from the delivery log, or from the running proxy
    Deliveries(control::deliveries::Deliveries),
    /// Verify or show the audit log
    #[command(subcommand)]
    Audit(audit::Audit),
    /// Store what this instance keeps, sealed to the operator's key: history, audit log, lists of captures
    Backup(backup::Backup),
    /// Open a backup, check all of it, and write its files to a folder
    Restore(backup::restore::Restore),
    /// Check this host: limits, clock, name servers, addresses, permissions, and what corrects each problem
    Doctor(doctor::Doctor),
    /// Write one file for support: version, findings, configuration, status, metrics, logs, without secrets
    SupportBundle(support_bundle::SupportBundle),
    /// Send one webhook now, and show every step
    Send(send::Send),
    /// Run outgate and receivers on loopback, with temporary certificates
    Demo(demo::Demo),
    /// List or verify the source addresses, or probe a target from them
    #[command(subcommand)]
    Egress(egress::Egress),
    /// Show the instances that share a store
    #[command(subcommand)]
    Fleet(fleet::FleetCommand),
    /// List, export or erase the sealed captures of webhooks
    #[command(subcommand)]
    Captures(control::captures::Captures),
    /// Tokens of clients and of users of the admin API
    #[command(subcommand)]
    Token(token::Token),
    /// The certificate authority of inspected tunnels
    #[command(subcommand)]
    Ca(ca::Ca),
    /// Signing keys
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Print the completion script of a shell
    Completions(completions::Completions),
}

impl Arguments {
    /// Returns the definition of all commands, for their help and the manual.
    pub fn definition() -> clap::Command {
        help::with_whole_paragraphs(Self::command())
    }

    /// Parses the arguments of this process. It prints help or a usage error, and ends the process, if they ask for it.
    pub fn of_process() -> Self {
        Self::from_arg_matches(&Self::definition().get_matches()).unwrap_or_else(|error| error.exit())
    }

    pub fn run(self) -> ExitCode {
        print::final_exit_code(self.command.run())
    }
}

impl Command {
    fn run(self) -> ExitCode {
        match self {
            Command::Run(run) => run.run(),
            Command::Check(check) => check.run(),
            Command::Config(config) => config.run(),
            Command::Explain(explain) => explain.run(),
            Command::Reload(reload) => reload.run(),
            Command::Diff(diff) => diff.run(),
            Command::History(history) => history.run(),
            Command::Rollback(rollback) => rollback.run(),
            Command::Status(status) => status.run(),
            Command::Drain(drain) => drain.run(),
            Command::Undrain(undrain) => undrain.run(),
            Command::Deliveries(deliveries) => deliveries.run(),
            Command::Audit(audit) => audit.run(),
            Command::Backup(backup) => backup.run(),
            Command::Restore(restore) => restore.run(),
            Command::Send(send) => send.run(),
            Command::Demo(demo) => demo.run(),
            Command::Doctor(doctor) => doctor.run(),
            Command::Egress(egress) => egress.run(),
            Command::Fleet(fleet) => fleet.run(),
            Command::Captures(captures) => captures.run(),
            Command::SupportBundle(bundle) => bundle.run(),
            Command::Token(token) => token.run(),
            Command::Ca(ca) => ca.run(),
            Command::Keys(keys) => keys.run(),
            Command::Completions(completions) => completions.run(),
        }
    }
}

/// Returns the path that the operator gave, else the installed file if it exists. `None`: outgate uses the built-in
/// configuration.
fn find_config(explicit_path: Option<&Path>) -> Option<PathBuf> {
    match explicit_path {
        Some(path) => Some(path.to_owned()),
        None => Some(PathBuf::from(DEFAULT_PATH)).filter(|path| path.exists()),
    }
}

/// A valid configuration, with its warnings and the problems of single tenants.
struct ValidConfig {
    path: Option<PathBuf>,
    config: Config,
    plan: Plan,
    warnings: Vec<Problem>,
    /// The number of acknowledged warnings, which `warnings` does not have.
    acknowledged: usize,
}

/// The problems of an invalid configuration.
struct InvalidConfig {
    problems: Vec<Problem>,
    sources: SourceMap,
    /// The parts that could be read. `None`: a file has a syntax error.
    partial: Option<Box<Config>>,
}

fn load_config(explicit_path: Option<&Path>) -> Result<ValidConfig, InvalidConfig> {
    let path = find_config(explicit_path);
    let now = jiff::Timestamp::now();
    let loaded = match &path {
        Some(path) => config::load(path),
        None => config::builtin(&crate::net::local::global_addresses().unwrap_or_default()),
    };
    match loaded {
        Ok(config::Loaded { config, mut warnings }) => match policy::compile(&config, now) {
            Ok((plan, more)) => {
                warnings.extend(config.rollback.map(unfinished_rollback_warning));
                warnings.extend(more);
                warnings.extend(fd_limit::warning(&config));
                warnings.extend(resolve::warnings(&config.resolver));
                let (warnings, acknowledged) = config::apply_acknowledgements(warnings, &config.acknowledge);
                Ok(ValidConfig { path, config, plan, warnings, acknowledged })
            }
            Err(problems) => {
                warnings.extend(problems);
                let warnings = config::remove_acknowledged(warnings, &config.acknowledge);
                let sources = config.sources.clone();
                Err(InvalidConfig { problems: warnings, sources, partial: Some(Box::new(config)) })
            }
        },
        Err(rejected) => {
            let problems = policy::all_problems(&rejected, now);
            Err(InvalidConfig { problems, sources: rejected.sources, partial: rejected.partial })
        }
    }
}

/// Returns the warning that an unfinished rollback replaces the files on disk.
fn unfinished_rollback_warning(rollback: u64) -> Problem {
    let message = format!(
        "the rollback to configuration {rollback} is unfinished: outgate reads the files of configuration {rollback} \
         instead of those on disk"
    );
    Problem::warning(WarningCode::UnfinishedRollback, None, message).help("run `outgate rollback --finish`")
}

/// Loads a valid configuration. Prints the problems of an invalid one and returns the exit code.
fn load_or_report(explicit_path: Option<&Path>) -> Result<ValidConfig, ExitCode> {
    load_config(explicit_path).map_err(|invalid| {
        print_problems(&invalid.problems, &invalid.sources);
        ExitCode::from(sysexits::CONFIG)
    })
}

fn print_problems(problems: &[Problem], sources: &SourceMap) {
    if !problems.is_empty() {
        eprintln!("{}", config::render(&config::summarize(problems), sources, log::has_colours()));
    }
}

/// Returns random bytes from the operating system.
fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the operating system has random bytes");
    bytes
}

/// Converts a count to a JSON number. A count above 64 bits, as of an IPv6 pool, becomes a float.
fn json_number(count: u128) -> serde_json::Value {
    u64::try_from(count).map_or_else(|_| (count as f64).into(), Into::into)
}
