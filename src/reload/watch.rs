//! Watches the files of the configuration by the folders that they stand in.
//! When has one of them changed?

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use notify::RecursiveMode;
use notify_debouncer_full::{DebounceEventResult, DebouncedEvent, Debouncer, RecommendedCache, new_debouncer};
use tracing::warn;

use super::{DEBOUNCE, Trigger};
use crate::live::aside::Aside;

/// Watches the folders of files, not the files: an editor that renames, or a symlink that is swapped, puts another file
/// in the same place.
pub(super) struct Watch {
    debouncer: Option<Debouncer<notify::RecommendedWatcher, RecommendedCache>>,
    folders: BTreeSet<PathBuf>,
    /// What a change must be about: other files of a watched folder, such as a log, are none of our business.
    followed: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl Watch {
    pub(super) fn new(trigger: Trigger) -> Self {
        let followed: Arc<Mutex<BTreeSet<PathBuf>>> = Arc::default();
        let theirs = Arc::clone(&followed);
        let on_change = move |events: DebounceEventResult| {
            let followed = theirs.lock().unwrap_or_else(PoisonError::into_inner);
            let is_ours = |path: &PathBuf| {
                let is_in_followed_folder = path.parent().is_some_and(|folder| followed.contains(folder));
                // A symlink or a folder may be on the way to one of ours.
                followed.contains(path) || is_in_followed_folder || !path.is_file() || path.is_symlink()
            };
            let is_change = |event: &DebouncedEvent| !event.kind.is_access() && event.paths.iter().any(is_ours);
            if events.map_or(true, |events| events.iter().any(is_change)) {
                trigger.pull();
            }
        };
        let debouncer = new_debouncer(DEBOUNCE, None, on_change);
        if let Err(fault) = &debouncer {
            warn!("cannot watch for changes: {fault}; reload with SIGHUP");
        }
        Self { debouncer: debouncer.ok(), folders: BTreeSet::new(), followed }
    }

    /// True if there is a folder among theirs that was not watched before.
    pub(super) async fn follow(&mut self, files: &[PathBuf], aside: &Aside) -> bool {
        let Some(debouncer) = &mut self.debouncer else { return false };
        let files = files.to_vec();
        let Ok((followed, wanted)) = aside.run(move || places(&files)).await else { return false };
        *self.followed.lock().unwrap_or_else(PoisonError::into_inner) = followed;
        for gone in self.folders.difference(&wanted) {
            let _ = debouncer.unwatch(gone);
        }
        for new in wanted.difference(&self.folders) {
            if let Err(fault) = debouncer.watch(new, RecursiveMode::NonRecursive) {
                warn!("cannot watch {}: {fault}; reload with SIGHUP", new.display());
            }
        }
        let is_wider = !wanted.is_subset(&self.folders);
        self.folders = wanted;
        is_wider
    }
}

/// What files are called, also where a symlink leads, and the folders where these names stand. Of a folder that is looked
/// into, also itself: there may be no file in it yet.
fn places(files: &[PathBuf]) -> (BTreeSet<PathBuf>, BTreeSet<PathBuf>) {
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
