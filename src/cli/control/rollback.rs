//! `outgate rollback`: an adopted configuration, back on disk and in force.
//! What would change, may it, and what came of it?
//!
//! The proxy has no right to write its configuration. Whoever runs this has: it asks the proxy whether the old one would still be
//! adopted, writes the files, and asks for a reload.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::super::{DEFAULT_PATH, escape_control_characters, print_problems as show_problems};
use super::admin_client::{AdminError, AdminRequest, AdminSocket, send};
use super::history::{HistoryLocation, report_missing_entry};
use super::{ProxySelector, describe_change_count, print_outcome, print_rejection};
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
  outgate rollback --finish           # one that was broken off
  outgate rollback 41 --offline       # where outgate does not run

Run it as root, or as who may write the configuration. The files that configuration had are written as they were; keys, certificates
and lists are used as they are today. Files that differ are kept beside them as .NAME.before-rollback, or -2, -3 … where that name is taken.
If it is interrupted at any point, a start or reload reads one whole configuration, the old or the new one.

Exit code 0: it is in force, or nothing would change. 1: --dry-run, and something would. 69: outgate does not run; nothing was written. 75:
another one is under way. 78: it would not be adopted today; nothing was written.")]
pub(in crate::cli) struct Rollback {
    /// The number of the configuration, from `outgate history`
    #[arg(required_unless_present = "finish")]
    number: Option<u64>,
    #[command(flatten)]
    proxy: ProxySelector,
    #[command(flatten)]
    location: HistoryLocation,
    /// Only show what would change
    #[arg(long)]
    dry_run: bool,
    /// Ask no proxy: for one that does not run
    #[arg(long, conflicts_with = "admin")]
    offline: bool,
    /// Finish one that was broken off
    #[arg(long, conflicts_with_all = ["number", "dry_run"])]
    finish: bool,
}

impl Rollback {
    pub(in crate::cli) fn run(self) -> ExitCode {
        self.roll_back().unwrap_or_else(|code| code)
    }

    fn roll_back(&self) -> Result<ExitCode, ExitCode> {
        self.proxy.check()?;
        // Never by the word of who answers: whoever took over the proxy would choose what root writes.
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
            eprintln!("nothing to do: configuration {number} is on disk, and in force");
            return Ok(ExitCode::SUCCESS);
        }
        if self.dry_run {
            differing.iter().for_each(|path| eprintln!("{} would change", path.display()));
            eprintln!(
                "{}, by a rollback to configuration {number}; nothing was written",
                describe_change_count(&outcome)
            );
            return Ok(ExitCode::FAILURE);
        }
        let pending = restore::begin(&main, overlay).map_err(|error| report_write_error(&main, &error))?;
        if running.is_none() {
            put_in_place(pending).map_err(|error| report_write_error(&main, &error))?;
            return report_active_config(&[], false, None);
        }
        // In force first, then in its places: what is read until then is the same.
        let adopted = activate(&sockets, pending, &main)?;
        // What is in force now may listen elsewhere.
        report_active_config(&[self.proxy.sockets(), sockets].concat(), true, adopted)
    }

    /// What the proxy says of itself, which must be the one of this file. `None`: it is not to be asked.
    fn query_status(&self, main: &Path) -> Result<Option<Value>, ExitCode> {
        if self.offline {
            return Ok(None);
        }
        let running: Value = match send(&self.proxy.sockets(), &AdminRequest::get("/status")) {
            Ok(running) => running,
            // Nothing depends on its word: nothing is written, or what is counts already.
            Err(AdminError::NotListening(_)) if self.dry_run || self.finish => return Ok(None),
            Err(error) => {
                let code = error.report();
                eprintln!("nothing was written: outgate does not run; --offline writes the files without asking it");
                return Err(code);
            }
        };
        let file = running["configuration"]["file"].as_str().map(Path::new);
        let is_same_file = |file: &Path| file == main || file.canonicalize().ok() == main.canonicalize().ok();
        if file.is_none_or(is_same_file) {
            return Ok(Some(running));
        }
        eprintln!(
            "outgate: what runs is of {}, not of {}: name the one that is meant with --config",
            escape_control_characters(&file.unwrap_or(Path::new("")).display().to_string()),
            main.display()
        );
        Err(ExitCode::from(sysexits::USAGE))
    }
}

/// The folder of the main file, in which nobody else may write, and nobody else does meanwhile.
fn lock_config_dir(main: &Path) -> Result<FolderLock, ExitCode> {
    let config_dir = main.parent().unwrap_or(Path::new("/"));
    let pending_dir = pending_rollback::path(main);
    let folders = [Some(config_dir), pending_dir.symlink_metadata().is_ok().then_some(pending_dir.as_path())];
    for folder in folders.into_iter().flatten() {
        restore::check_folder(folder).map_err(|error| report_write_error(main, &error))?;
    }
    restore::lock(main).map_err(|error| report_write_error(main, &error))?.ok_or_else(|| {
        eprintln!("outgate: another rollback of {} is under way", main.display());
        ExitCode::from(sysexits::TEMPORARY)
    })
}

/// The files that are to be there, if they are of this configuration.
fn load_overlay(history: &History, entry: &HistoryEntry, main: &Path) -> Result<Overlay, ExitCode> {
    if entry.files.first().is_none_or(|file| file != main) {
        let file = entry.files.first().map_or_else(Default::default, |file| file.display().to_string());
        eprintln!("outgate: configuration {} is of {file}, not of {}", entry.number, main.display());
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
        Unwritable::Folder(error) => eprintln!("outgate: configuration {} is not put back: {error}", overlay.number),
        Unwritable::Foreign(stranger) => eprintln!(
            "outgate: configuration {} has {}, which is not of it, or neither below {} nor of the one on disk: put it back by hand",
            overlay.number,
            escape_control_characters(&stranger.display().to_string()),
            main.parent().unwrap_or(Path::new("/")).display()
        ),
    }
    Err(ExitCode::from(sysexits::CANNOT_CREATE))
}

/// Whether it would be adopted today: by the word of the one that runs, which has its own secrets, else by ours.
fn check_adoptable(
    sockets: &[AdminSocket],
    is_running: bool,
    main: &Path,
    overlay: &Overlay,
    history: &History,
) -> Result<ReloadOutcome, ExitCode> {
    if is_running {
        let request = AdminRequest::post(&format!("/diff?entry={}", overlay.number), Vec::new());
        let outcome: ReloadOutcome = send(sockets, &request).map_err(AdminError::report)?;
        return match outcome.outcome {
            ReloadVerdict::Rejected => {
                let code = print_rejection(&outcome);
                eprintln!("not put back: configuration {} would not be adopted today", overlay.number);
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
        Err(load_error) => Err(policy::all_problems(load_error, now)),
    };
    let snapshot = compiled.map_err(|(problems, sources)| {
        show_problems(&problems, &sources);
        eprintln!(
            "not put back: configuration {} would not be adopted today (nobody runs here who could say it better)",
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

/// The files that are not on disk as they would be.
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

/// What came of it, if anybody was there to take it.
fn activate(sockets: &[AdminSocket], begun: PendingRollback, main: &Path) -> Result<Option<ReloadOutcome>, ExitCode> {
    let number = begun.overlay().number;
    let result: Result<ReloadOutcome, AdminError> = send(sockets, &AdminRequest::post("/reload", Vec::new()));
    let finish = |pending: PendingRollback| {
        put_in_place(pending).map_err(|error| {
            let code = report_write_error(main, &error);
            eprintln!(
                "configuration {number} counts, and is not whole in its places: `outgate rollback --finish` goes on"
            );
            code
        })
    };
    match result {
        Ok(outcome) if outcome.outcome == ReloadVerdict::Rejected => {
            begun.abort().map_err(|error| report_write_error(main, &error))?;
            let code = print_rejection(&outcome);
            eprintln!("not put back: configuration {} stays in force, and on disk", outcome.number);
            Err(code)
        }
        Ok(outcome) => finish(begun).map(|()| Some(outcome)),
        // Whoever ran is gone by now: the next start finds it.
        Err(AdminError::NotListening(_)) => finish(begun).map(|()| None),
        Err(error) => {
            let code = error.report();
            eprintln!(
                "configuration {number} counts from the next reading: `outgate rollback --finish` puts it in its places"
            );
            Err(code)
        }
    }
}

/// Finishes a rollback, and names the files that keep what stood in the places of its own.
fn put_in_place(begun: PendingRollback) -> io::Result<()> {
    begun.finish()?.iter().for_each(|saved| eprintln!("kept as {}: what stood in its place", saved.display()));
    Ok(())
}

fn finish_interrupted(main: &Path) -> Result<(), ExitCode> {
    let pending = restore::find_pending(main).map_err(|unreadable| {
        eprintln!("outgate: a rollback that was broken off: {unreadable}");
        ExitCode::from(sysexits::NO_INPUT)
    })?;
    let Some(pending) = pending else { return Ok(()) };
    refuse_foreign_files(main, pending.overlay())?;
    let number = pending.overlay().number;
    put_in_place(pending).map_err(|error| report_write_error(main, &error))?;
    eprintln!("the rollback to configuration {number} that was broken off is finished");
    Ok(())
}

/// What is in force in the end; `taken`: as it was before the files were in their places.
fn report_active_config(
    sockets: &[AdminSocket],
    is_running: bool,
    earlier_outcome: Option<ReloadOutcome>,
) -> Result<ExitCode, ExitCode> {
    if !is_running {
        eprintln!("outgate was not asked: the configuration on disk is active from the next start or reload");
        return Ok(ExitCode::SUCCESS);
    }
    let outcome: ReloadOutcome = match (send(sockets, &AdminRequest::post("/reload", Vec::new())), earlier_outcome) {
        (Ok(outcome), _) | (Err(_), Some(outcome)) => outcome,
        (Err(error), None) => return Err(error.report()),
    };
    if outcome.outcome == ReloadVerdict::Rejected {
        return Ok(print_rejection(&outcome));
    }
    eprintln!(
        "configuration {} is in force since {:.0}: {}, by {}",
        outcome.number,
        outcome.at,
        escape_control_characters(&outcome.how),
        escape_control_characters(&outcome.by)
    );
    Ok(ExitCode::SUCCESS)
}

fn report_write_error(main: &Path, error: &io::Error) -> ExitCode {
    eprintln!("outgate: cannot write beside {}: {error}", main.display());
    ExitCode::from(sysexits::CANNOT_CREATE)
}
