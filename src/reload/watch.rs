//! Watches the files of the configuration by the folders that they stand in.
//! When has one of them changed?

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;
use tracing::warn;

use super::{DEBOUNCE, DEBOUNCE_MAX, ReloadTrigger};
use crate::state::config::worker::BackgroundWorker;

/// Watches the folders of files, not the files: an editor that renames, or a symlink that is swapped, puts another file
/// in the same place.
pub(super) struct FileWatcher {
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
    /// What a change must be about: other files of a watched folder, such as a log, are none of our business.
    followed: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl FileWatcher {
    pub(super) fn new(trigger: ReloadTrigger) -> Self {
        let followed: Arc<Mutex<BTreeSet<PathBuf>>> = Arc::default();
        let watcher = watch(Arc::clone(&followed), trigger);
        if let Err(fault) = &watcher {
            warn!("cannot watch for changes: {fault}; reload with SIGHUP");
        }
        Self { watcher: watcher.ok(), folders: BTreeSet::new(), followed }
    }

    /// True if there is a folder among theirs that was not watched before.
    pub(super) async fn follow(&mut self, files: &[PathBuf], aside: &BackgroundWorker) -> bool {
        let Some(watcher) = &mut self.watcher else { return false };
        let files = files.to_vec();
        let Ok((followed, wanted)) = aside.run(move || paths_and_folders(&files)).await else { return false };
        *self.followed.lock() = followed;
        for gone in self.folders.difference(&wanted) {
            let _ = watcher.unwatch(gone);
        }
        for new in wanted.difference(&self.folders) {
            if let Err(fault) = watcher.watch(new, RecursiveMode::NonRecursive) {
                warn!("cannot watch {}: {fault}; reload with SIGHUP", new.display());
            }
        }
        let is_wider = !wanted.is_subset(&self.folders);
        self.folders = wanted;
        is_wider
    }
}

/// Passes changes of what is followed on to a thread that gathers them.
fn watch(followed: Arc<Mutex<BTreeSet<PathBuf>>>, trigger: ReloadTrigger) -> notify::Result<RecommendedWatcher> {
    let (changed, changes) = sync_channel(1);
    std::thread::Builder::new().name("watch".into()).spawn(move || gather(&changes, &trigger))?;
    notify::recommended_watcher(move |event: notify::Result<Event>| {
        let followed = followed.lock();
        // Where events were lost, everything may have changed.
        if event.map_or(true, |event| event.need_rescan() || is_change(&event, &followed)) {
            note(&changed);
        }
    })
}

fn is_change(event: &Event, followed: &BTreeSet<PathBuf>) -> bool {
    let is_ours = |path: &PathBuf| {
        let is_in_followed_folder = path.parent().is_some_and(|folder: &Path| followed.contains(folder));
        // A symlink or a folder may be on the way to one of ours.
        followed.contains(path) || is_in_followed_folder || !path.is_file() || path.is_symlink()
    };
    !event.kind.is_access() && event.paths.iter().any(is_ours)
}

fn note(changed: &SyncSender<()>) {
    let _ = changed.try_send(()); // one that waits stands for all
}

/// Pulls the trigger [`DEBOUNCE`] after the last of several changes, and at the latest [`DEBOUNCE_MAX`] after the first:
/// a file that is rewritten all the time is read, too. Ends with the watcher.
fn gather(changes: &Receiver<()>, trigger: &ReloadTrigger) {
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

/// What files are called, also where a symlink leads, and the folders where these names stand. Of a folder that is looked
/// into, also itself: there may be no file in it yet.
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
