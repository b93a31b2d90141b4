//! Watches the files of the configuration, by watching their folders.
//! How is a change of a file noticed?

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;
use tracing::warn;

use super::{DEBOUNCE, DEBOUNCE_MAX, POLL_INTERVAL, ReloadTrigger};
use crate::state::config::worker::BackgroundWorker;

/// Watches the folders of files instead of the files. An editor that renames, or a symlink that is swapped, puts
/// another file in the same place.
pub(super) struct FileWatcher {
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
    /// The paths whose changes count. Other files in a watched folder, such as a log, are ignored.
    watched_paths: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl FileWatcher {
    pub(super) fn new(trigger: ReloadTrigger) -> Self {
        let watched_paths: Arc<Mutex<BTreeSet<PathBuf>>> = Arc::default();
        let watcher = new_watcher(Arc::clone(&watched_paths), trigger);
        if let Err(error) = &watcher {
            warn!("cannot watch the configuration files: {error}; outgate polls them every {POLL_INTERVAL:?} instead");
        }
        Self { watcher: watcher.ok(), folders: BTreeSet::new(), watched_paths }
    }

    /// Watches the folders of these files. Returns whether a folder is newly watched.
    pub(super) async fn update(&mut self, files: &[PathBuf], worker: &BackgroundWorker) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        let files = files.to_vec();
        let Ok((watched_paths, wanted_folders)) = worker.run(move || paths_and_folders(&files)).await else {
            return false;
        };
        *self.watched_paths.lock() = watched_paths;
        for gone in self.folders.difference(&wanted_folders) {
            let _ = watcher.unwatch(gone);
        }
        for new in wanted_folders.difference(&self.folders) {
            if let Err(error) = watcher.watch(new, RecursiveMode::NonRecursive) {
                let folder = new.display();
                warn!("cannot watch {folder}: {error}; outgate polls its files every {POLL_INTERVAL:?} instead");
            }
        }
        let is_extended = !wanted_folders.is_subset(&self.folders);
        self.folders = wanted_folders;
        is_extended
    }
}

/// Creates the watcher, and the thread that debounces its events.
fn new_watcher(
    watched_paths: Arc<Mutex<BTreeSet<PathBuf>>>,
    trigger: ReloadTrigger,
) -> notify::Result<RecommendedWatcher> {
    let (changed, changes) = sync_channel(1);
    std::thread::Builder::new().name("watch".into()).spawn(move || debounce(&changes, &trigger))?;
    notify::recommended_watcher(move |event: notify::Result<Event>| {
        let watched_paths = watched_paths.lock();
        // After a loss of events, any file may have changed.
        if event.map_or(true, |event| event.need_rescan() || is_change(&event, &watched_paths)) {
            signal_change(&changed);
        }
    })
}

fn is_change(event: &Event, watched_paths: &BTreeSet<PathBuf>) -> bool {
    let is_relevant = |path: &PathBuf| {
        let is_in_watched_folder = path.parent().is_some_and(|folder: &Path| watched_paths.contains(folder));
        // A symlink or a folder may be a part of a watched path.
        watched_paths.contains(path) || is_in_watched_folder || !path.is_file() || path.is_symlink()
    };
    !event.kind.is_access() && event.paths.iter().any(is_relevant)
}

fn signal_change(changed: &SyncSender<()>) {
    let _ = changed.try_send(()); // a pending signal covers this one, too
}

/// Requests a reload [`DEBOUNCE`] after the last of several changes, and at the latest [`DEBOUNCE_MAX`] after the
/// first: a file that changes constantly is read, too. Ends with the watcher.
fn debounce(changes: &Receiver<()>, trigger: &ReloadTrigger) {
    while changes.recv().is_ok() {
        let end = Instant::now() + DEBOUNCE_MAX;
        while changes.recv_timeout(DEBOUNCE.min(end.saturating_duration_since(Instant::now()))).is_ok() {
            if Instant::now() >= end {
                break;
            }
        }
        trigger.request_reload();
    }
}

/// Returns the paths of the files, also behind symlinks, and the folders that contain these paths. A path that is
/// itself a folder is included, because it may be empty still.
fn paths_and_folders(files: &[PathBuf]) -> (BTreeSet<PathBuf>, BTreeSet<PathBuf>) {
    let (mut names, mut folders) = (BTreeSet::new(), BTreeSet::new());
    for file in files {
        let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        for name in [absolute.canonicalize().ok(), Some(absolute)].into_iter().flatten() {
            folders.insert(name.parent().unwrap_or(&name).to_owned());
            if name.is_dir() {
                folders.insert(name.clone());
            }
            names.insert(name);
        }
    }
    (names, folders)
}
