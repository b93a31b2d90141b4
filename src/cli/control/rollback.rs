//! `outgate rollback`: restores an adopted configuration on disk, and activates it.
//! What would a rollback change, is it valid today, and what is active afterwards?
//!
//! The proxy may not write its configuration; the user of this command may. The command asks the proxy whether it
//! would still adopt the old configuration, writes the files, and requests a reload.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::super::{DEFAULT_PATH, escape_control_characters, print_problems as show_problems};
use super::admin_client::{AdminError, AdminRequest, AdminSocket, send};
use super::history::{HistoryLocation, report_missing_entry};
use super::{ProxySelector, describe_change_count, is_same_file, print_outcome, print_rejection};
use crate::config::difference::Difference;
use crate::config::pending_rollback::{self, Overlay};
use crate::config::{self, KeyDirs};
use crate::history::restore::{self, PendingRollback, Unwritable};
use crate::history::{FolderLock, History, HistoryEntry};
use crate::policy;
use crate::state::config::status::{ReloadOutcome, ReloadVerdict};
use crate::sysexits;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate history
  outgate rollback 41 --dry-run
  outgate rollback 41
  outgate rollback --finish           # finish an interrupted rollback
  outgate rollback 41 --offline       # if outgate is not running

Run the command as root, or as a user who may write the configuration. It restores the files of that configuration;
keys, certificates and revocation lists stay as they are today. It keeps each replaced file beside the new one as
.NAME.before-rollback, or -2, -3 … if that name exists. If the rollback is interrupted at any point, the next start or
reload reads one whole configuration, the old or the new one.

Exit code 0: the configuration is active, or nothing would change. 1: --dry-run found changes. 69: outgate is not
running; nothing was written. 75: another rollback is running. 78: outgate would reject the configuration today; nothing
was written.")]
pub(in crate::cli) struct Rollback {
    /// The number of the configuration, from `outgate history`
    #[arg(required_unless_present = "finish")]
    number: Option<u64>,
    #[command(flatten)]
    proxy: ProxySelector,
    #[command(flatten)]
    location: HistoryLocation,
    /// Show what would change, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Contact no proxy, because outgate is not running
    #[arg(long, conflicts_with = "admin")]
    offline: bool,
    /// Finish an interrupted rollback
    #[arg(long, conflicts_with_all = ["number", "dry_run"])]
    finish: bool,
}

impl Rollback {
    pub(in crate::cli) fn run(self) -> ExitCode {
        self.roll_back().unwrap_or_else(|code| code)
    }

    fn roll_back(&self) -> Result<ExitCode, ExitCode> {
        self.proxy.check()?;
        // The path never comes from the proxy: an attacker who controls the proxy could choose what root writes.
        let main = pending_rollback::absolute(self.proxy.config.as_deref().unwrap_or(Path::new(DEFAULT_PATH)));
        let running = self.query_status(&main)?;
        let _lock = if self.dry_run { None } else { Some(lock_config_dir(&main)?) };
        if !self.dry_run {
            finish_interrupted(&main)?;
        }
        let Some(number) = self.number else {
            return report_active_config(&self.proxy.sockets(), running.is_some(), None);
        };
        let history = self.location.open(&self.proxy, running.as_ref());
        let entry = history.entry(number).map_err(|error| report_missing_entry(&history, number, &error))?;
        let overlay = load_overlay(&history, &entry, &main)?;
        let sockets = self.proxy.sockets();
        let outcome = check_adoptable(&sockets, running.is_some(), &main, &overlay, &history)?;
        let differing = differing_files(&overlay);
        print_outcome(&outcome);
        if outcome.outcome == ReloadVerdict::Unchanged && differing.is_empty() {
            eprintln!("nothing to do: configuration {number} is on disk and active");
            return Ok(ExitCode::SUCCESS);
        }
        if self.dry_run {
            differing.iter().for_each(|path| eprintln!("{} would change", path.display()));
            eprintln!(
                "{} by a rollback to configuration {number}; nothing was written",
                describe_change_count(&outcome)
            );
            return Ok(ExitCode::FAILURE);
        }
        let pending = restore::begin(&main, overlay).map_err(|error| report_write_error(&main, &error))?;
        if running.is_none() {
            put_in_place(pending).map_err(|error| report_write_error(&main, &error))?;
            return report_active_config(&[], false, None);
        }
        // Activated first, then moved into place: a load in between reads the same files.
        let adopted = activate(&sockets, pending, &main)?;
        // The restored configuration may have other admin sockets.
        report_active_config(&[self.proxy.sockets(), sockets].concat(), true, adopted)
    }

    /// Returns the status of the running proxy, which must have this configuration file. `None`: the command does not
    /// contact a proxy.
    fn query_status(&self, main: &Path) -> Result<Option<Value>, ExitCode> {
        if self.offline {
            return Ok(None);
        }
        let running: Value = match send(&self.proxy.sockets(), &AdminRequest::get("/v1/status")) {
            Ok(running) => running,
            // The status is not needed: the command writes nothing, or the pending rollback is already the
            // configuration.
            Err(AdminError::NotListening(_)) if self.dry_run || self.finish => return Ok(None),
            Err(error) => {
                let code = error.report();
                eprintln!("nothing was written: if outgate is not running, --offline writes the files without it");
                return Err(code);
            }
        };
        let file = running["configuration"]["file"].as_str().map(Path::new);
        if file.is_none_or(|file| is_same_file(file, main)) {
            return Ok(Some(running));
        }
        eprintln!(
            "outgate: the running proxy uses {}, not {}: select the file with --config",
            escape_control_characters(&file.unwrap_or(Path::new("")).display().to_string()),
            main.display()
        );
        Err(ExitCode::from(sysexits::USAGE))
    }
}

/// Locks the directory of the main file, after a check that no other user may write to it.
fn lock_config_dir(main: &Path) -> Result<FolderLock, ExitCode> {
    let config_dir = main.parent().unwrap_or(Path::new("/"));
    let pending_dir = pending_rollback::path(main);
    let folders = [Some(config_dir), pending_dir.symlink_metadata().is_ok().then_some(pending_dir.as_path())];
    for folder in folders.into_iter().flatten() {
        restore::check_folder(folder).map_err(|error| report_write_error(main, &error))?;
    }
    restore::lock(main).map_err(|error| report_write_error(main, &error))?.ok_or_else(|| {
        eprintln!("outgate: another rollback of {} is running; try again when it has finished", main.display());
        ExitCode::from(sysexits::TEMPORARY)
    })
}

/// Returns the files to restore, if the entry belongs to this main file.
fn load_overlay(history: &History, entry: &HistoryEntry, main: &Path) -> Result<Overlay, ExitCode> {
    if entry.files.first().is_none_or(|file| file != main) {
        let file = entry.files.first().map_or_else(Default::default, |file| file.display().to_string());
        eprintln!(
            "outgate: configuration {} belongs to {file}, not to {}: select the file with --config",
            entry.number,
            main.display()
        );
        return Err(ExitCode::from(sysexits::USAGE));
    }
    let snapshot = history.snapshot(entry).map_err(|error| report_missing_entry(history, entry.number, &error))?;
    let overlay = restore::overlay(main, entry, &snapshot);
    refuse_foreign_files(main, &overlay)?;
    Ok(overlay)
}

fn refuse_foreign_files(main: &Path, overlay: &Overlay) -> Result<(), ExitCode> {
    let Err(unwritable) = restore::check(main, overlay) else { return Ok(()) };
    match unwritable {
        Unwritable::Folder(error) => eprintln!("outgate: configuration {} was not restored: {error}", overlay.number),
        Unwritable::Foreign(file) => eprintln!(
            "outgate: configuration {} has the file {}, which the restored configuration does not read, or which is \
             neither below {} nor part of the configuration on disk: restore the file by hand",
            overlay.number,
            escape_control_characters(&file.display().to_string()),
            main.parent().unwrap_or(Path::new("/")).display()
        ),
    }
    Err(ExitCode::from(sysexits::CANNOT_CREATE))
}

/// Checks whether outgate would adopt the configuration today. The running proxy decides, with its own secrets;
/// without one, this command does.
fn check_adoptable(
    sockets: &[AdminSocket],
    is_running: bool,
    main: &Path,
    overlay: &Overlay,
    history: &History,
) -> Result<ReloadOutcome, ExitCode> {
    if is_running {
        let request = AdminRequest::get(&format!("/v1/diff?number={}", overlay.number));
        let outcome: ReloadOutcome = send(sockets, &request).map_err(AdminError::report)?;
        return match outcome.outcome {
            ReloadVerdict::Rejected => {
                let code = print_rejection(&outcome);
                eprintln!("not restored: outgate would reject configuration {} today", overlay.number);
                Err(code)
            }
            ReloadVerdict::Adopted | ReloadVerdict::Unchanged | ReloadVerdict::Different => Ok(outcome),
        };
    }
    let now = jiff::Timestamp::now();
    let loaded = config::load_with_overlay(main, &KeyDirs::new(), overlay.clone());
    let compiled = match loaded {
        Ok(loaded) => match policy::compile(&loaded.config, now) {
            Ok(_) => Ok(loaded.config.snapshot),
            Err(problems) => Err((problems, loaded.config.sources)),
        },
        Err(rejected) => Err((policy::all_problems(&rejected, now), rejected.sources)),
    };
    let snapshot = compiled.map_err(|(problems, sources)| {
        show_problems(&problems, &sources);
        eprintln!(
            "not restored: outgate would reject configuration {} today (checked without a running proxy)",
            overlay.number
        );
        ExitCode::from(sysexits::CONFIG)
    })?;
    let difference = history.last().and_then(|last| {
        let compared = history.difference(&last, &snapshot);
        compared.inspect_err(|error| eprintln!("cannot compare with configuration {}: {error}", last.number)).ok()
    });
    let difference = difference.unwrap_or_else(|| Difference::between(&config::SourceSnapshot::default(), &snapshot));
    let outcome = if difference.is_empty() { ReloadVerdict::Unchanged } else { ReloadVerdict::Different };
    Ok(ReloadOutcome { outcome, difference, ..ReloadOutcome::default() })
}

/// Returns the files on disk that the rollback would change.
fn differing_files(overlay: &Overlay) -> Vec<&Path> {
    let is_different = |(path, text): &(&PathBuf, &Vec<u8>)| std::fs::read(path).ok().as_ref() != Some(text);
    overlay
        .texts
        .iter()
        .filter(is_different)
        .map(|(path, _)| path)
        .chain(&overlay.removed)
        .map(PathBuf::as_path)
        .collect()
}

/// Activates the pending rollback with a reload, and finishes it. `None`: no proxy runs.
fn activate(sockets: &[AdminSocket], pending: PendingRollback, main: &Path) -> Result<Option<ReloadOutcome>, ExitCode> {
    let number = pending.overlay().number;
    let result: Result<ReloadOutcome, AdminError> = send(sockets, &AdminRequest::post("/v1/reload", Vec::new()));
    let finish = |pending: PendingRollback| {
        put_in_place(pending).map_err(|error| {
            let code = report_write_error(main, &error);
            eprintln!(
                "configuration {number} is active, but not all its files are in place: run `outgate rollback --finish`"
            );
            code
        })
    };
    match result {
        Ok(outcome) if outcome.outcome == ReloadVerdict::Rejected => {
            pending.abort().map_err(|error| report_write_error(main, &error))?;
            let code = print_rejection(&outcome);
            eprintln!("not restored: configuration {} stays active and on disk", outcome.number);
            Err(code)
        }
        Ok(outcome) => finish(pending).map(|()| Some(outcome)),
        // The proxy has stopped meanwhile: the next start reads the files.
        Err(AdminError::NotListening(_)) => finish(pending).map(|()| None),
        Err(error) => {
            let code = error.report();
            eprintln!(
                "the next start or reload reads configuration {number}: run `outgate rollback --finish` to put its files in place"
            );
            Err(code)
        }
    }
}

/// Finishes a rollback, and prints the names of the backups of replaced files.
fn put_in_place(pending: PendingRollback) -> io::Result<()> {
    pending.finish()?.iter().for_each(|saved| eprintln!("saved the replaced file as {}", saved.display()));
    Ok(())
}

fn finish_interrupted(main: &Path) -> Result<(), ExitCode> {
    let pending = restore::find_pending(main).map_err(|unreadable| {
        eprintln!("outgate: cannot read the interrupted rollback: {unreadable}");
        ExitCode::from(sysexits::NO_INPUT)
    })?;
    let Some(pending) = pending else { return Ok(()) };
    refuse_foreign_files(main, pending.overlay())?;
    let number = pending.overlay().number;
    put_in_place(pending).map_err(|error| report_write_error(main, &error))?;
    eprintln!("finished the interrupted rollback to configuration {number}");
    Ok(())
}

/// Reports the active configuration. `earlier_outcome` is that of the reload before the files were in place.
fn report_active_config(
    sockets: &[AdminSocket],
    is_running: bool,
    earlier_outcome: Option<ReloadOutcome>,
) -> Result<ExitCode, ExitCode> {
    if !is_running {
        eprintln!("no running proxy was contacted: the next start or reload activates the configuration on disk");
        return Ok(ExitCode::SUCCESS);
    }
    let outcome: ReloadOutcome = match (send(sockets, &AdminRequest::post("/v1/reload", Vec::new())), earlier_outcome) {
        (Ok(outcome), _) | (Err(_), Some(outcome)) => outcome,
        (Err(error), None) => return Err(error.report()),
    };
    if outcome.outcome == ReloadVerdict::Rejected {
        return Ok(print_rejection(&outcome));
    }
    eprintln!(
        "configuration {} is active since {:.0}: {}, by {}",
        outcome.number,
        outcome.at,
        escape_control_characters(&outcome.how),
        escape_control_characters(&outcome.by)
    );
    Ok(ExitCode::SUCCESS)
}

fn report_write_error(main: &Path, error: &io::Error) -> ExitCode {
    eprintln!("outgate: cannot write to the directory of {}: {error}", main.display());
    ExitCode::from(sysexits::CANNOT_CREATE)
}
