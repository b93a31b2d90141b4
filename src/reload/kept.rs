//! Every configuration that is adopted, kept: with the number that it is known by from then on.
//! Where is it recorded who changed what?

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;
use tracing::warn;

use crate::config::difference::Difference;
use crate::config::pending_rollback::{self, Overlay};
use crate::config::{self, Config, Problem};
use crate::history::{History, HistoryEntry, restore};
use crate::state::Runtime;
use crate::state::config::status::{AdoptedConfig, ReloadSource};
use crate::state::config::worker::BackgroundWorker;

/// Set by systemd for a unit with StateDirectory= (systemd.exec(5)); a list, where that names several.
const STATE: &str = "STATE_DIRECTORY";

/// As long as an answer waits for the disk: so whoever reads the history then finds what was adopted.
const PATIENCE: Duration = Duration::from_secs(1);
/// As long as an operator who compares with a kept configuration waits for the disk, and no reload begins.
const READ_PATIENCE: Duration = Duration::from_secs(10);
/// On a disk that hangs, so many are waited for in memory.
const WAITING_MAX: usize = 10;

/// Without a folder to keep them in, configurations are only counted.
pub struct HistoryWriter {
    /// Set by the writer when it has opened the folder; `None` in it: there is none.
    history: Arc<OnceLock<Option<History>>>,
    most: usize,
    runtime: Arc<Runtime>,
    /// The one that the process starts with, until it listens.
    first: Option<AdoptedConfig>,
    /// The only thread that touches the folder: a disk that hangs holds up nothing else.
    writer: BackgroundWorker,
    waiting: Arc<AtomicUsize>,
}

impl HistoryWriter {
    fn new(runtime: &Arc<Runtime>, most: usize) -> Self {
        let writer = BackgroundWorker::with_name("history");
        Self {
            history: Arc::default(),
            most,
            runtime: Arc::clone(runtime),
            first: None,
            writer,
            waiting: Arc::default(),
        }
    }

    /// Opens the history, and returns what is to be known of the configuration that the process starts with. That there is
    /// no history, or a disk that does not answer, keeps nothing from starting: the folder is opened when the disk answers.
    /// `has_file`: without a file there is nothing to keep.
    pub async fn open(
        config: &Config,
        warnings: &[Problem],
        has_file: bool,
        runtime: &Arc<Runtime>,
    ) -> (Self, AdoptedConfig) {
        let passed = std::env::var_os(STATE).and_then(|list| std::env::split_paths(&list).next());
        let passed = passed.filter(|path| path.is_absolute());
        let (state, most) = (config.server.state.clone(), config.server.history);
        let mut kept = Self::new(runtime, most);
        let mut adopted = AdoptedConfig {
            number: 1,
            at: Timestamp::now(),
            by: ReloadSource::Start.to_string(),
            cause: config
                .rollback
                .map_or_else(|| ReloadSource::Start.to_string(), |number| format!("rollback to {number}")),
            written: Arc::clone(&config.snapshot),
            warnings: config::to_log_lines(warnings, &config.sources),
            ..AdoptedConfig::default()
        };
        if !has_file {
            let _ = kept.history.set(None); // it is new
            return (kept, adopted);
        }
        let (history, theirs, mut found) = (Arc::clone(&kept.history), Arc::clone(runtime), adopted.clone());
        let opening = kept.writer.run(move || {
            let opened = History::open(state.as_deref(), passed.as_deref(), most).unwrap_or_else(|fault| {
                let state = passed.as_deref().or(state.as_deref()).unwrap_or(Path::new("server.state"));
                report_result(&theirs, Err(io::Error::new(fault.kind(), format!("{}: {fault}", state.display()))));
                None
            });
            if let Some(history) = &opened {
                theirs.config_status.keeps_history(history.folder().to_owned());
            }
            let is_new = opened.as_ref().is_some_and(|history| is_new(history, &mut found));
            let _ = history.set(opened); // this runs once
            (found, is_new)
        });
        let is_new = match timeout(PATIENCE, opening).await {
            Ok(Ok((found, is_new))) => {
                adopted = found;
                is_new
            }
            Ok(Err(_)) => false,
            Err(_) => {
                report_result(runtime, Err(io::Error::other(format!("the disk has not answered within {PATIENCE:?}"))));
                true
            }
        };
        kept.first = is_new.then(|| adopted.clone());
        (kept, adopted)
    }

    /// Once the process listens: nothing is kept of a start that failed.
    pub(super) async fn keep_first(&mut self) {
        if let Some(first) = self.first.take() {
            self.write(first, true).await;
        }
    }

    pub(super) async fn write_adopted(&mut self, adopted: AdoptedConfig, most: usize) {
        self.most = most;
        self.write(adopted, false).await;
    }

    /// On disk, when this is over, unless the disk takes its time. Others may have counted on since the number was given:
    /// then the configuration in force gets the number that it is kept by. `is_first`: of a start; it is kept already
    /// if it is what the process ended with.
    async fn write(&self, mut adopted: AdoptedConfig, is_first: bool) {
        if matches!(self.history.get(), Some(None)) {
            return;
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return report_result(&self.runtime, Err(io::Error::other("the disk has not taken those before")));
        }
        let (history, runtime, waiting) =
            (Arc::clone(&self.history), Arc::clone(&self.runtime), Arc::clone(&self.waiting));
        let most = self.most;
        let writing = self.writer.run(move || {
            if let Some(mut history) = history.get().cloned().flatten() {
                history.keeps(most);
                let given = adopted.number;
                let added = match is_first && !is_new(&history, &mut adopted) {
                    true => Ok(adopted.number),
                    false => add(&history, &adopted),
                };
                if let Ok(number) = added {
                    runtime.config_status.renumber(given, number);
                }
                report_result(&runtime, added);
            }
            waiting.fetch_sub(1, Ordering::Relaxed);
        });
        let _ = timeout(PATIENCE, writing).await;
    }

    /// What a configuration that was kept would put in the place of what is on disk.
    pub(super) async fn overlay(&self, main: &Path, number: u64) -> Result<Overlay, String> {
        if matches!(self.history.get(), Some(None)) {
            return Err("no adopted configurations are kept: write server.state".to_owned());
        }
        let (history, main) = (Arc::clone(&self.history), main.to_owned());
        let reading = self.writer.run(move || {
            let history = history.get().cloned().flatten().ok_or("no adopted configurations are kept")?;
            let entry = history.entry(number).map_err(|fault| not_in_history(number, &fault))?;
            if entry.files.first() != Some(&pending_rollback::absolute(&main)) {
                return Err(format!("configuration {number} is of another file than {}", main.display()));
            }
            let written = history.written(&entry).map_err(|fault| not_in_history(number, &fault))?;
            Ok(restore::overlay(&main, &entry, &written))
        });
        match timeout(READ_PATIENCE, reading).await {
            Ok(read) => read.unwrap_or_else(|_| Err(format!("configuration {number} could not be read"))),
            Err(_) => Err(format!("configuration {number} could not be read within {READ_PATIENCE:?}: the disk hangs")),
        }
    }
}

/// Gives the configuration of a start its number, and what it changed. False: the process ended with it before.
fn is_new(history: &History, adopted: &mut AdoptedConfig) -> bool {
    let last = history.last();
    if let Some(last) = last.as_ref().filter(|last| history.is_same(last, &adopted.written)) {
        adopted.number = last.number;
        return false;
    }
    adopted.number = history.next().max(adopted.number);
    let Some(last) = last else { return true };
    adopted.difference = history.difference(&last, &adopted.written).unwrap_or_else(|fault| {
        let unknown = format!("cannot compare with configuration {}: {fault}", last.number);
        warn!("the changes of configuration {} are unknown: {unknown}", adopted.number);
        Difference { changes: vec![unknown], more: 0 }
    });
    true
}

fn not_in_history(number: u64, fault: &io::Error) -> String {
    format!("configuration {number} is not among those that are kept: {fault}")
}

fn add(history: &History, adopted: &AdoptedConfig) -> io::Result<u64> {
    let entry = HistoryEntry {
        number: adopted.number,
        at: adopted.at,
        by: adopted.by.clone(),
        how: adopted.cause.clone(),
        difference: adopted.difference.clone(),
        digest: adopted.written.digest.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        files: Vec::new(),
        modes: Vec::new(),
        texts: String::new(),
        contents: Default::default(),
        is_keyed: false,
        key_id: String::new(),
    };
    history.add(entry, &adopted.written)
}

fn report_result(runtime: &Runtime, added: io::Result<u64>) {
    let why = added.err().map(|fault| fault.to_string());
    if let Some(why) = &why {
        warn!("this configuration is not kept: {why}");
    }
    runtime.set_history_error(why);
}
