//! `outgate check`: what is wrong, before it is made to run.
//! Would this configuration be adopted?

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{load, show};
use crate::config::{self, Severity};

#[derive(Args)]
#[command(after_help = "Examples:
  outgate check
  outgate check --config new.toml && cp new.toml /etc/outgate/config.toml
  outgate check --json | jq '.[].message'

Exit code 0: would be adopted, perhaps with warnings. 1: has problems, and be they in one tenant's keys. 2: wrong usage.")]
pub(super) struct Check {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Problems and warnings as a JSON array on stdout
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(super) fn run(self) -> ExitCode {
        let (found, sources) = match load(self.config.as_deref()) {
            Ok(valid) => (valid.warnings, valid.config.sources),
            Err(invalid) => (invalid.problems, invalid.sources),
        };
        if self.json {
            println!("{:#}", config::to_json(&found, &sources));
        } else {
            show(&found, &sources);
        }
        let count = |severity| found.iter().filter(|problem| problem.severity == severity).count();
        let [problems, contained, warnings] = [Severity::Problem, Severity::Contained, Severity::Warning].map(count);
        match (problems, contained) {
            (0, 0) => eprintln!("valid, with {warnings} warnings"),
            (0, _) => eprintln!("valid but for single tenants: {contained} problems, {warnings} warnings"),
            (_, _) => eprintln!("not valid: {} problems, {warnings} warnings", problems + contained),
        }
        if problems + contained == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
