//! `outgate audit verify`: verifies the chain of the audit log, and compares it with a checkpoint.
//! Was a record changed, removed or added?

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use data_encoding::BASE64;
use serde_json::{Value, json};

use super::{configured_log, find_files, report, report_fault};
use crate::audit::{self, Checkpoint, Fault, FaultKind, NOTE_MAX, Summary, Verifier};
use crate::names::pluralize;
use crate::sysexits;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate audit verify
  outgate audit verify audit.jsonl audit.jsonl.0*
  outgate audit verify --checkpoint kept.checkpoint --key 'egress-1/outgate+9d3fd8a2+AQ…'

Without FILE it verifies all files of audit.file, and compares them with the newest checkpoint beside them. That finds
every change, except one by a user who can write both. A checkpoint that another host keeps finds such a change, too, and
records that were cut off at the end. --key verifies the signature of the checkpoint.

Exit code 0: every record is as it was written. 65: a record was changed, removed or added; the output names the first.
66: a file is missing or unreadable. 2: wrong usage.")]
pub(in crate::cli) struct Verify {
    /// The files, in any order. Default: those of audit.file
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A checkpoint that the log must still contain
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// The key that signed the checkpoint, as `outgate audit key` prints it
    #[arg(long, value_name = "VERIFIER")]
    key: Option<String>,
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A checkpoint to compare with, and whether its signature was verified.
struct KeptCheckpoint {
    path: PathBuf,
    checkpoint: Checkpoint,
    is_signed: bool,
}

impl Verify {
    pub(super) fn run(self) -> ExitCode {
        let files = match find_files(&self.files, self.config.as_deref()) {
            Ok(files) => files,
            Err(code) => return code,
        };
        let kept = match self.kept_checkpoint() {
            Ok(kept) => kept,
            Err(code) => return code,
        };
        match audit::verify(&files, kept.as_ref().map(|kept| &kept.checkpoint), drop) {
            Ok(summary) => self.print_summary(&summary, kept.as_ref()),
            Err(fault) => {
                if self.json {
                    println!("{:#}", fault_json(&fault));
                }
                report_fault(&fault)
            }
        }
    }

    /// Reads the checkpoint that the operator gave, else the newest one beside the log.
    fn kept_checkpoint(&self) -> Result<Option<KeptCheckpoint>, ExitCode> {
        let (path, is_given) = match &self.checkpoint {
            Some(path) => (path.clone(), true),
            None if self.files.is_empty() => (audit::checkpoint_path(&configured_log(self.config.as_deref())?), false),
            None if self.key.is_some() => {
                return Err(report(sysexits::USAGE, "--key needs --checkpoint, because the files are given"));
            }
            None => return Ok(None),
        };
        if !is_given && self.key.is_none() && !path.exists() {
            return Ok(None);
        }
        let unreadable = |error| report(sysexits::NO_INPUT, &format!("cannot read {}: {error}", path.display()));
        if fs::metadata(&path).map_err(unreadable)?.len() > NOTE_MAX as u64 {
            return Err(report(sysexits::DATA, &format!("{} is too large for a checkpoint", path.display())));
        }
        let note = fs::read_to_string(&path).map_err(unreadable)?;
        let checkpoint = match &self.key {
            None => Checkpoint::parse(&note),
            Some(key) => {
                let verifier =
                    Verifier::parse(key).map_err(|error| report(sysexits::USAGE, &format!("--key: {error}")))?;
                verifier.open(&note)
            }
        };
        let checkpoint = checkpoint.map_err(|error| report(sysexits::DATA, &format!("{}: {error}", path.display())))?;
        Ok(Some(KeptCheckpoint { path, checkpoint, is_signed: self.key.is_some() }))
    }

    fn print_summary(&self, summary: &Summary, kept: Option<&KeptCheckpoint>) -> ExitCode {
        let Summary { files, first, checkpoint, partial } = summary;
        if self.json {
            let files = files.iter().map(|(path, records)| json!({ "file": path, "records": records }));
            let kept = kept.map(
                |kept| json!({ "file": kept.path, "size": kept.checkpoint.size, "signature_verified": kept.is_signed }),
            );
            println!(
                "{:#}",
                json!({
                    "ok": true, "files": files.collect::<Vec<_>>(), "first_seq": first, "size": checkpoint.size,
                    "root": BASE64.encode(&checkpoint.root), "origin": checkpoint.origin, "checkpoint": kept,
                    "partial_bytes": partial,
                })
            );
            return ExitCode::SUCCESS;
        }
        for (path, records) in files {
            println!("{}: {}", path.display(), pluralize(*records, "record"));
        }
        let count = checkpoint.size - first;
        println!(
            "{} verify: the root of {} is {}",
            pluralize(count, "record"),
            checkpoint.size,
            BASE64.encode(&checkpoint.root)
        );
        match kept {
            Some(KeptCheckpoint { path, checkpoint, is_signed }) => {
                let signature =
                    if *is_signed { "its signature verifies" } else { "its signature was not verified (--key)" };
                println!(
                    "the log contains the checkpoint {} of {}; {signature}",
                    path.display(),
                    pluralize(checkpoint.size, "record")
                );
            }
            None => eprintln!(
                "outgate: without a checkpoint, records that were cut off at the end do not show: --checkpoint"
            ),
        }
        if *first > 0 {
            eprintln!("outgate: the log begins at record {first}: the files before are not among these");
        }
        if *partial > 0 {
            eprintln!(
                "outgate: the log ends in {partial} bytes of a record that is not written to its end; \
                 outgate removes them when it appends"
            );
        }
        ExitCode::SUCCESS
    }
}

fn fault_json(fault: &Fault) -> Value {
    let Fault { kind, path, line, seq, what } = fault;
    let is_broken = *kind == FaultKind::Broken;
    json!({ "ok": false, "broken": is_broken, "file": path, "line": line, "seq": seq, "what": what })
}
