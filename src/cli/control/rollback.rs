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

use super::super::{DEFAULT_PATH, show as show_problems};
use super::history::{Place, unread};
use super::socket::{Question, Socket, Unasked, ask};
use super::{Which, count, rejected, show};
use crate::config::difference::Difference;
use crate::config::journal::{self, Overlay};
use crate::config::{self, KeyDirs};
use crate::history::restore::{self, Begun};
use crate::history::{Entry, History};
use crate::live::configuration::{Outcome, Verdict};
use crate::policy;
use crate::sysexits;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate history
  outgate rollback 41 --dry-run
  outgate rollback 41
  outgate rollback --finish           # one that was broken off

Run it as root, or as who may write the configuration. The files that configuration had are written as they were; keys, certificates
and lists are used as they are today. What stands in their places and is different is kept beside them, as .NAME.before-rollback.
However it is broken off, what starts or reloads is the one configuration or the other, never a part of each.

Exit code 0: it is in force, or nothing would change. 1: --dry-run, and something would. 78: it would not be adopted today; nothing was
written.")]
pub(in crate::cli) struct Rollback {
    /// The number of the configuration, from `outgate history`
    #[arg(required_unless_present = "finish")]
    number: Option<u64>,
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    place: Place,
    /// Only show what would change
    #[arg(long)]
    dry_run: bool,
    /// Finish one that was broken off
    #[arg(long, conflicts_with_all = ["number", "dry_run"])]
    finish: bool,
}

impl Rollback {
    pub(in crate::cli) fn run(self) -> ExitCode {
        self.roll_back().unwrap_or_else(|code| code)
    }

    fn roll_back(&self) -> Result<ExitCode, ExitCode> {
        let sockets = self.which.sockets();
        let running: Option<Value> = ask(&sockets, &Question::get("/status")).ok();
        let main = self.main_file(running.as_ref());
        if !self.dry_run {
            finish_former(&main)?;
        }
        let Some(number) = self.number else { return tell(&sockets, running.is_some()) };
        let history = self.place.open(&self.which, running.as_ref());
        let entry = history.entry(number).map_err(|fault| no_entry(&history, number, &fault))?;
        let overlay = overlay(&history, &entry, &main)?;
        let outcome = judge(&sockets, running.is_some(), &main, &overlay, &history)?;
        let is_on_disk = outcome.outcome == Verdict::Unchanged && stands(&overlay);
        show(&outcome);
        if is_on_disk {
            eprintln!("nothing to do: configuration {number} is on disk, and in force");
            return Ok(ExitCode::SUCCESS);
        }
        if self.dry_run {
            eprintln!("{}, by a rollback to configuration {number}; nothing was written", count(&outcome));
            return Ok(ExitCode::FAILURE);
        }
        let begun = restore::begin(&main, overlay).map_err(|fault| unwritten(&main, &fault))?;
        if running.is_some() {
            // In force first, then in its places: what is read until then is the same.
            begun_is_in_force(&sockets, begun, &main)?;
        } else {
            begun.finish().map_err(|fault| unwritten(&main, &fault))?;
        }
        tell(&sockets, running.is_some())
    }

    fn main_file(&self, running: Option<&Value>) -> PathBuf {
        let named = self.which.config.clone();
        let running = || running.and_then(|running| running["configuration"]["file"].as_str()).map(PathBuf::from);
        journal::absolute(&named.or_else(running).unwrap_or_else(|| DEFAULT_PATH.into()))
    }
}

/// The files that are to be there, if they are of this configuration.
fn overlay(history: &History, entry: &Entry, main: &Path) -> Result<Overlay, ExitCode> {
    if entry.files.first().is_none_or(|file| file != main) {
        let file = entry.files.first().map_or_else(Default::default, |file| file.display().to_string());
        eprintln!("outgate: configuration {} is of {file}, not of {}", entry.number, main.display());
        return Err(ExitCode::from(sysexits::USAGE));
    }
    let written = history.written(entry).map_err(|fault| no_entry(history, entry.number, &fault))?;
    let overlay = restore::overlay(main, entry.number, &written);
    match restore::strangers(main, &overlay).first() {
        None => Ok(overlay),
        Some(stranger) => {
            eprintln!(
                "outgate: configuration {} has {}, which is neither below {} nor of the one on disk: put it back by hand",
                entry.number,
                stranger.display(),
                main.parent().unwrap_or(Path::new("/")).display()
            );
            Err(ExitCode::from(sysexits::CANNOT_CREATE))
        }
    }
}

/// Whether it would be adopted today: by the word of the one that runs, which has its own secrets, else by ours.
fn judge(
    sockets: &[Socket],
    is_running: bool,
    main: &Path,
    overlay: &Overlay,
    history: &History,
) -> Result<Outcome, ExitCode> {
    if is_running {
        let question = Question::post(&format!("/diff?entry={}", overlay.number), Vec::new());
        let outcome: Outcome = ask(sockets, &question).map_err(Unasked::say)?;
        return match outcome.outcome {
            Verdict::Rejected => {
                let code = rejected(&outcome);
                eprintln!("not put back: configuration {} would not be adopted today", overlay.number);
                Err(code)
            }
            Verdict::Adopted | Verdict::Unchanged | Verdict::Different => Ok(outcome),
        };
    }
    let now = jiff::Timestamp::now();
    let loaded = config::load_over(main, &KeyDirs::new(), overlay.clone());
    let compiled = match loaded {
        Ok(loaded) => match policy::compile(&loaded.config, now) {
            Ok(_) => Ok(loaded.config.written),
            Err(problems) => Err((problems, loaded.config.sources)),
        },
        Err(found) => Err(policy::every_problem(found, now)),
    };
    let written = compiled.map_err(|(problems, sources)| {
        show_problems(&problems, &sources);
        eprintln!(
            "not put back: configuration {} would not be adopted today (nobody runs here who could say it better)",
            overlay.number
        );
        ExitCode::from(sysexits::CONFIG)
    })?;
    let last = history.last().and_then(|last| history.written(&last).ok()).unwrap_or_default();
    let difference = Difference::between(&last, &written);
    let outcome = if difference.is_empty() { Verdict::Unchanged } else { Verdict::Different };
    Ok(Outcome { outcome, difference, ..Outcome::default() })
}

/// Whether all of it is on disk already.
fn stands(overlay: &Overlay) -> bool {
    let same = |(path, text): (&PathBuf, &Vec<u8>)| std::fs::read(path).is_ok_and(|found| found == *text);
    overlay.removed.is_empty() && overlay.texts.iter().all(same)
}

fn begun_is_in_force(sockets: &[Socket], begun: Begun, main: &Path) -> Result<(), ExitCode> {
    let taken: Result<Outcome, Unasked> = ask(sockets, &Question::post("/reload", Vec::new()));
    match taken {
        Ok(outcome) if outcome.outcome == Verdict::Rejected => {
            begun.give_up().map_err(|fault| unwritten(main, &fault))?;
            let code = rejected(&outcome);
            eprintln!("not put back: configuration {} stays in force, and on disk", outcome.number);
            Err(code)
        }
        // Whoever ran is gone by now: the next start finds it.
        Ok(_) | Err(_) => begun.finish().map_err(|fault| unwritten(main, &fault)),
    }
}

fn finish_former(main: &Path) -> Result<(), ExitCode> {
    let begun = restore::begun(main).map_err(|unreadable| {
        eprintln!("outgate: a rollback that was broken off: {unreadable}");
        ExitCode::from(sysexits::NO_INPUT)
    })?;
    let Some(begun) = begun else { return Ok(()) };
    let number = begun.number();
    begun.finish().map_err(|fault| unwritten(main, &fault))?;
    eprintln!("the rollback to configuration {number} that was broken off is finished");
    Ok(())
}

/// What is in force in the end.
fn tell(sockets: &[Socket], is_running: bool) -> Result<ExitCode, ExitCode> {
    if !is_running {
        eprintln!("nobody runs here: what is on disk is in force from the next start");
        return Ok(ExitCode::SUCCESS);
    }
    let outcome: Outcome = ask(sockets, &Question::post("/reload", Vec::new())).map_err(Unasked::say)?;
    if outcome.outcome == Verdict::Rejected {
        return Ok(rejected(&outcome));
    }
    eprintln!(
        "configuration {} is in force since {:.0}: {}, by {}",
        outcome.number, outcome.at, outcome.how, outcome.by
    );
    Ok(ExitCode::SUCCESS)
}

fn no_entry(history: &History, number: u64, fault: &io::Error) -> ExitCode {
    if fault.kind() == io::ErrorKind::NotFound && history.entries().is_ok() {
        eprintln!("outgate: there is no configuration {number}: `outgate history` lists them");
        return ExitCode::from(sysexits::USAGE);
    }
    unread(history, fault)
}

fn unwritten(main: &Path, fault: &io::Error) -> ExitCode {
    eprintln!("outgate: cannot write beside {}: {fault}", main.display());
    ExitCode::from(sysexits::CANNOT_CREATE)
}
