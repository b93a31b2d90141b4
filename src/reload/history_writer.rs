//! Stores each adopted configuration in the history, and gives it its number.
//! How does the history get an entry without delaying reloads?

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::warn;

use crate::config::difference::Difference;
use crate::config::pending_rollback::{self, Overlay};
use crate::config::{self, Config, Problem, SourceSnapshot};
use crate::history::{History, HistoryEntry, restore};
use crate::policy::egress::list::ListVersion;
use crate::policy::egress::notice::Announcements;
use crate::state::Runtime;
use crate::state::config::status::AdoptedConfig;
use crate::state::config::worker::BackgroundWorker;

/// systemd sets this variable for a unit with StateDirectory= (systemd.exec(5)). It is a list if there are several.
const STATE_DIRECTORY_VARIABLE: &str = "STATE_DIRECTORY";
/// The cause and the source of the first configuration.
const START: &str = "start";

/// Limits how long a reload waits for the disk. Within that time, the history contains the adopted configuration when
/// the reload returns.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// Limits how long a comparison with a history entry waits for the disk. No reload begins meanwhile.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Limits the configurations that wait in memory for a disk that hangs.
const PENDING_WRITES_MAX: usize = 10;

/// Writes the history on a thread of its own. Without a history folder, configurations are only numbered.
pub struct HistoryWriter {
    /// The history, set once the writer thread has opened the folder. `None` in it: there is no folder.
    history: Arc<OnceLock<Option<History>>>,
    max_entries: usize,
    /// The announcements on the disk.
    stored_announcements: Arc<Mutex<Arc<Announcements>>>,
    runtime: Arc<Runtime>,
    /// The configuration of the start, until the process listens.
    startup_config: Option<AdoptedConfig>,
    /// The only thread that accesses the folder: a disk that hangs delays nothing else.
    writer: BackgroundWorker,
    /// A permit for each configuration that may still wait for the disk.
    write_permits: Arc<Semaphore>,
}

impl HistoryWriter {
    fn new(runtime: &Arc<Runtime>, max_entries: usize) -> Self {
        let writer = BackgroundWorker::with_name("history");
        Self {
            history: Arc::default(),
            max_entries,
            stored_announcements: Arc::default(),
            runtime: Arc::clone(runtime),
            startup_config: None,
            writer,
            write_permits: Arc::new(Semaphore::new(PENDING_WRITES_MAX)),
        }
    }

    /// Opens the history, and returns the state of the configuration that the process starts with. A missing history or
    /// a slow disk does not prevent the start: the folder is opened when the disk responds. Without a configuration
    /// file (`has_file`), nothing is stored.
    pub async fn open(
        config: &Config,
        warnings: &[Problem],
        has_file: bool,
        runtime: &Arc<Runtime>,
    ) -> (Self, AdoptedConfig) {
        let state_directory =
            std::env::var_os(STATE_DIRECTORY_VARIABLE).and_then(|list| std::env::split_paths(&list).next());
        let state_directory = state_directory.filter(|path| path.is_absolute());
        let (configured, max_entries) = (config.server.state.clone(), config.server.history);
        let mut writer = Self::new(runtime, max_entries);
        restore_announcements(None, runtime); // until the disk responds
        let mut adopted = AdoptedConfig {
            number: 1,
            adopted_at: Timestamp::now(),
            adopted_by: START.to_owned(),
            cause: config.rollback.map_or_else(|| START.to_owned(), |number| format!("rollback to {number}")),
            snapshot: Arc::clone(&config.snapshot),
            list: list_version(runtime, &config.snapshot, None),
            warnings: config::to_log_lines(warnings, &config.sources),
            ..AdoptedConfig::default()
        };
        if !has_file {
            let _ = writer.history.set(None); // unset until here
            return (writer, adopted);
        }
        let (history, shared_runtime, mut numbered) =
            (Arc::clone(&writer.history), Arc::clone(runtime), adopted.clone());
        let opening = writer.writer.run(move || {
            let opened =
                History::open(configured.as_deref(), state_directory.as_deref(), max_entries).unwrap_or_else(|error| {
                    let state =
                        state_directory.as_deref().or(configured.as_deref()).unwrap_or(Path::new("server.state"));
                    report_result(
                        &shared_runtime,
                        Err(io::Error::new(error.kind(), format!("{}: {error}", state.display()))),
                    );
                    None
                });
            if let Some(history) = &opened {
                shared_runtime.config_status.set_history_dir(history.folder().to_owned());
            }
            if let Some(last) = opened.as_ref().and_then(History::last) {
                numbered.list = list_version(&shared_runtime, &numbered.snapshot, last.list.as_ref());
            }
            restore_announcements(opened.as_ref(), &shared_runtime);
            let is_new = opened.as_ref().is_some_and(|history| assign_number(history, &mut numbered));
            let _ = history.set(opened); // only this task sets it
            (numbered, is_new)
        });
        let is_new = match timeout(WRITE_TIMEOUT, opening).await {
            Ok(Ok((numbered, is_new))) => {
                adopted = numbered;
                is_new
            }
            Ok(Err(_)) => false,
            Err(_) => {
                report_result(
                    runtime,
                    Err(io::Error::other(format!("the disk did not respond within {WRITE_TIMEOUT:?}"))),
                );
                true
            }
        };
        writer.startup_config = is_new.then(|| adopted.clone());
        (writer, adopted)
    }

    /// Announces the ranges of the active configuration, from now on.
    pub(super) async fn announce_ranges(&self) {
        let active = self.runtime.active_config();
        let adopt = |before: &Announcements| before.adopt(&active.plan.pools, Timestamp::now());
        self.runtime.config_status.update_announcements(adopt);
        self.store_announcements().await;
    }

    /// Stores the announcements if they have changed, and waits up to [`WRITE_TIMEOUT`]. Only one write waits for the disk.
    pub(super) async fn store_announcements(&self) {
        let (history, runtime) = (Arc::clone(&self.history), Arc::clone(&self.runtime));
        let stored = Arc::clone(&self.stored_announcements);
        let is_storing = Arc::strong_count(&stored) > 2; // a queued write is the third owner
        if matches!(history.get(), Some(None)) || is_storing {
            return;
        }
        let storing = self.writer.run(move || {
            let Some(history) = history.get().and_then(Option::as_ref) else { return };
            let (announcements, mut stored) = (runtime.config_status.announcements(), stored.lock());
            if *stored == announcements {
                return;
            }
            let status = &runtime.config_status;
            let error = history.store_announcements(&announcements).err().map(|error| error.to_string());
            match &error {
                None => *stored = announcements,
                Some(error) if status.announcements_error().as_ref() == Some(error) => {} // reported
                Some(error) => {
                    warn!("{error}: after a restart, the ranges that it lacks count as announced from then on")
                }
            }
            status.set_announcements_error(error);
        });
        let _ = timeout(WRITE_TIMEOUT, storing).await;
    }

    /// Stores the configuration of the start. It is called once the process listens: a start that failed is not stored.
    pub(super) async fn write_startup_config(&mut self) {
        self.store_announcements().await;
        if let Some(adopted) = self.startup_config.take() {
            self.write(adopted, true).await;
        }
    }

    pub(super) async fn write_adopted(&mut self, adopted: AdoptedConfig, max_entries: usize) {
        self.max_entries = max_entries;
        self.write(adopted, false).await;
    }

    /// Stores a configuration, and waits up to [`WRITE_TIMEOUT`]. If another process has used the number in the
    /// meantime, the active configuration gets the number of its entry. With `is_startup`, nothing is written if the
    /// last entry is equal.
    async fn write(&self, mut adopted: AdoptedConfig, is_startup: bool) {
        if matches!(self.history.get(), Some(None)) {
            return;
        }
        let Ok(permit) = Arc::clone(&self.write_permits).try_acquire_owned() else {
            return report_result(
                &self.runtime,
                Err(io::Error::other("the disk has not stored the previous configurations yet")),
            );
        };
        let (history, runtime) = (Arc::clone(&self.history), Arc::clone(&self.runtime));
        let max_entries = self.max_entries;
        let writing = self.writer.run(move || {
            if let Some(mut history) = history.get().cloned().flatten() {
                history.set_max_entries(max_entries);
                let provisional = adopted.number;
                let added = match is_startup && !assign_number(&history, &mut adopted) {
                    true => Ok(adopted.number),
                    false => add_entry(&history, &adopted),
                };
                if let Ok(number) = added {
                    runtime.config_status.set_number(provisional, number);
                }
                report_result(&runtime, added);
            }
            drop(permit);
        });
        let _ = timeout(WRITE_TIMEOUT, writing).await;
    }

    /// Returns the files of history entry `number`, as an overlay over those on disk.
    pub(super) async fn overlay(&self, main: &Path, number: u64) -> Result<Overlay, String> {
        if matches!(self.history.get(), Some(None)) {
            return Err("outgate stores no history: set server.state to a folder".to_owned());
        }
        let (history, main) = (Arc::clone(&self.history), main.to_owned());
        let reading = self.writer.run(move || {
            let history = history.get().cloned().flatten().ok_or("outgate stores no history")?;
            let entry = history.entry(number).map_err(|error| unreadable_entry(number, &error))?;
            if entry.files.first() != Some(&pending_rollback::absolute(&main)) {
                return Err(format!("configuration {number} does not belong to {}", main.display()));
            }
            let snapshot = history.snapshot(&entry).map_err(|error| unreadable_entry(number, &error))?;
            Ok(restore::overlay(&main, &entry, &snapshot))
        });
        match timeout(READ_TIMEOUT, reading).await {
            Ok(read) => read.unwrap_or_else(|_| Err(format!("configuration {number} could not be read"))),
            Err(_) => Err(format!(
                "configuration {number} could not be read within {READ_TIMEOUT:?}: the disk does not respond"
            )),
        }
    }
}

/// Returns the version of the ranges that the process starts with.
fn list_version(runtime: &Runtime, snapshot: &SourceSnapshot, former: Option<&ListVersion>) -> ListVersion {
    let now = Timestamp::now();
    runtime.active_config().plan.list_version(former, snapshot.modified_at().unwrap_or(now), now)
}

/// Sets since when the ranges of the start are announced. Without a file of a former process, customers know them.
fn restore_announcements(history: Option<&History>, runtime: &Runtime) {
    let (active, now) = (runtime.active_config(), Timestamp::now());
    let stored = history.map_or(Ok(None), History::announcements).unwrap_or_else(|error| {
        warn!("{error}; outgate takes the ranges of its configuration for announced");
        if let (io::ErrorKind::InvalidData, Some(history)) = (error.kind(), history) {
            let _ = history.set_announcements_aside(); // the next write would replace it
        }
        None
    });
    runtime.config_status.update_announcements(|_| match &stored {
        Some(stored) => stored.adopt(&active.plan.pools, now),
        None => Announcements::known(&active.plan.pools, now),
    });
}

/// Sets the number and the difference of the configuration of a start. Returns false if it equals the last entry.
fn assign_number(history: &History, adopted: &mut AdoptedConfig) -> bool {
    let last = history.last();
    if let Some(last) = last.as_ref().filter(|last| history.is_same(last, &adopted.snapshot)) {
        adopted.number = last.number;
        return false;
    }
    adopted.number = history.next_number().max(adopted.number);
    let Some(last) = last else { return true };
    adopted.difference = history.difference(&last, &adopted.snapshot).unwrap_or_else(|error| {
        let unknown = format!("cannot compare with configuration {}: {error}", last.number);
        warn!("the changes of configuration {} are unknown: {unknown}", adopted.number);
        Difference { changes: vec![unknown], ..Difference::default() }
    });
    true
}

fn unreadable_entry(number: u64, error: &io::Error) -> String {
    format!("cannot read configuration {number} from the history: {error}")
}

fn add_entry(history: &History, adopted: &AdoptedConfig) -> io::Result<u64> {
    let entry = HistoryEntry {
        number: adopted.number,
        at: adopted.adopted_at,
        by: adopted.adopted_by.clone(),
        how: adopted.cause.clone(),
        difference: adopted.difference.clone(),
        digest: adopted.snapshot.digest.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        files: Vec::new(),
        modes: Vec::new(),
        texts: String::new(),
        contents: Default::default(),
        is_keyed: false,
        key_id: String::new(),
        list: Some(adopted.list.clone()),
    };
    history.add(entry, &adopted.snapshot)
}

fn report_result(runtime: &Runtime, result: io::Result<u64>) {
    let reason = result.err().map(|error| error.to_string());
    if let Some(reason) = &reason {
        warn!("the history does not contain the active configuration, so a rollback cannot restore it: {reason}");
    }
    runtime.set_history_error(reason);
}
