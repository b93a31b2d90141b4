//! `outgate keys new`: a signing key.
//! What does the receiver verify with?

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::policy::sign;
use crate::sysexits;

#[derive(Subcommand)]
pub(super) enum Keys {
    /// Make a signing key
    New(New),
}

#[derive(Args)]
#[command(after_help = "Examples:
  outgate keys new > /etc/outgate/keys/platform-2026-11
  outgate keys new --scheme standard-webhooks --out /etc/outgate/keys/platform-2026-11

The receiver gets the same text (standard-webhooks v1 is symmetric). Name it in `[signers.NAME] keys` as
`secret = \"file:/etc/outgate/keys/platform-2026-11\"`, or hand it over as a systemd credential.")]
pub(super) struct New {
    /// The signing scheme
    #[arg(long, default_value = "standard-webhooks")]
    scheme: String,
    /// Write to a new file, readable by its owner alone, instead of stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Keys {
    pub(super) fn run(self) -> ExitCode {
        let Keys::New(new) = self;
        let key = match sign::new_key(&new.scheme) {
            Ok(key) => key,
            Err(fault) => {
                eprintln!("outgate: {fault}");
                return ExitCode::from(sysexits::USAGE);
            }
        };
        let Some(path) = new.out else {
            println!("{key}");
            return ExitCode::SUCCESS;
        };
        // Never over a key that is there: its signatures would fail from that moment.
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{key}"));
        match written {
            Ok(()) => ExitCode::SUCCESS,
            Err(fault) => {
                eprintln!("outgate: cannot write {}: {fault}", path.display());
                ExitCode::from(sysexits::CANNOT_CREATE)
            }
        }
    }
}
