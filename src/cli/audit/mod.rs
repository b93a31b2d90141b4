//! `outgate audit`: verifies and shows the audit log, and prints the key that its checkpoints verify with.
//! Which files does a command about the audit log read?

mod show;
mod verify;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{DEFAULT_PATH, load_or_report};
use crate::audit::{self, Fault, FaultKind};
use crate::config::ControlPaths;
use crate::sysexits;

#[derive(Subcommand)]
pub(super) enum Audit {
    /// Verify the audit log, and name the first record that was changed, removed or added
    Verify(verify::Verify),
    /// Show who changed what, and which security events there were
    Show(show::Show),
    /// Print the public half of the checkpoint key
    Key(Key),
}

#[derive(Args)]
#[command(after_help = "Examples:
  outgate audit key
  outgate audit verify --checkpoint kept.checkpoint --key \"$(cat kept.key)\"

Keep the output on another host, with a checkpoint: `outgate audit verify` takes both. The form is NAME+ID+KEY of
c2sp.org/signed-note.")]
pub(super) struct Key {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Audit {
    pub(super) fn run(self) -> ExitCode {
        match self {
            Audit::Verify(verify) => verify.run(),
            Audit::Show(show) => show.run(),
            Audit::Key(key) => key.run(),
        }
    }
}

impl Key {
    fn run(self) -> ExitCode {
        let plan = match load_or_report(self.config.as_deref()) {
            Ok(valid) => valid.plan,
            Err(code) => return code,
        };
        match plan.audit.and_then(|plan| plan.settings.verifier()) {
            Some(verifier) => {
                println!("{verifier}");
                ExitCode::SUCCESS
            }
            None => {
                eprintln!("outgate: the configuration has no audit.checkpoint_key");
                ExitCode::from(sysexits::CONFIG)
            }
        }
    }
}

/// Returns the files that the operator gave, else those of the configuration's audit log.
fn find_files(given: &[PathBuf], config: Option<&Path>) -> Result<Vec<PathBuf>, ExitCode> {
    if !given.is_empty() {
        return Ok(given.to_vec());
    }
    let path = configured_log(config)?;
    match audit::files(&path) {
        Ok(files) if !files.is_empty() => Ok(files),
        Ok(_) => Err(report(sysexits::NO_INPUT, &format!("there is no audit log at {}", path.display()))),
        Err(error) => Err(report(sysexits::NO_INPUT, &format!("cannot list the files of {}: {error}", path.display()))),
    }
}

/// Returns `audit.file` of the configuration, even if the configuration has problems.
fn configured_log(config: Option<&Path>) -> Result<PathBuf, ExitCode> {
    let config = config.unwrap_or(Path::new(DEFAULT_PATH));
    ControlPaths::read(config).audit_file.ok_or_else(|| {
        report(sysexits::CONFIG, &format!("{} has no audit.file: name the files of the log", config.display()))
    })
}

/// Prints a fault, and returns its exit code.
fn report_fault(fault: &Fault) -> ExitCode {
    let code = match fault.kind {
        FaultKind::Unreadable => sysexits::NO_INPUT,
        FaultKind::Broken => sysexits::DATA,
    };
    report(code, &fault.to_string())
}

fn report(code: u8, reason: &str) -> ExitCode {
    eprintln!("outgate: {reason}");
    ExitCode::from(code)
}
