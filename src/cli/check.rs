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

Exit code 0: would be adopted, perhaps with warnings. 1: has problems. 2: wrong usage.")]
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
        let problems = found.iter().filter(|problem| problem.severity == Severity::Problem).count();
        let warnings = found.len() - problems;
        if problems == 0 {
            eprintln!("valid, with {warnings} warnings");
            ExitCode::SUCCESS
        } else {
            eprintln!("not valid: {problems} problems, {warnings} warnings");
            ExitCode::FAILURE
        }
    }
}
