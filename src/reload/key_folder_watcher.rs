//! Watches the folders of tenants' keys, of which there may be tens of thousands.
//! How is a change of a tenant's key noticed, also if not all folders can be watched?
//!
//! This module has its own inotify instance. The one for the other files reports each file that is opened, so a read of
//! ten thousand folders would flood it.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tracing::{info, warn};

use super::{DEBOUNCE, POLL_INTERVAL, ReloadTrigger};
use crate::config::KeyDirs;

/// The time after which the event thread notices that it is no longer needed.
const POLL_TIMEOUT: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// The size of the event buffer in bytes: some hundreds of events.
const EVENT_BUFFER_SIZE: usize = 16 << 10;

/// Watches key folders, and triggers a reload when a key changes.
pub(super) struct KeyFolderWatcher {
    trigger: ReloadTrigger,
    inotify: Option<Arc<OwnedFd>>,
    /// The watch descriptors. They identify a folder even after it was renamed.
    watched: BTreeSet<i32>,
    /// The number of folders that are not watched, because the host allows no more watches.
    unwatched: usize,
}

impl KeyFolderWatcher {
    pub(super) fn new(trigger: ReloadTrigger) -> Self {
        Self { trigger, inotify: None, watched: BTreeSet::new(), unwatched: 0 }
    }

    /// Watches exactly these folders. Returns whether a folder is newly watched.
    pub(super) async fn update(&mut self, key_dirs: &KeyDirs) -> bool {
        let paths: Vec<PathBuf> = key_dirs.values().flat_map(|key_dir| key_dir.folder_paths()).collect();
        if paths.is_empty() && self.inotify.is_none() {
            return false;
        }
        let inotify = match self.open() {
            Ok(inotify) => inotify,
            Err(error) => {
                self.log_unwatched(paths.len(), paths.len(), &error.to_string());
                return false;
            }
        };
        let (before, count) = (std::mem::take(&mut self.watched), paths.len());
        // On a blocking thread, because tens of thousands of system calls would delay traffic.
        let watching = tokio::task::spawn_blocking(move || {
            let (watched, missed) = add_watches(&inotify, &paths);
            for gone in before.difference(&watched) {
                let _ = inotify::remove_watch(&*inotify, *gone); // fails for a folder that was deleted
            }
            (watched.is_subset(&before), watched, missed)
        });
        let Ok((is_subset, watched, missed)) = watching.await else { return true };
        self.watched = watched;
        self.log_unwatched(missed, count, "the limit fs.inotify.max_user_watches is reached");
        !is_subset
    }

    fn open(&mut self) -> std::io::Result<Arc<OwnedFd>> {
        if let Some(inotify) = &self.inotify {
            return Ok(Arc::clone(inotify));
        }
        let inotify = Arc::new(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?);
        let (thread_inotify, trigger) = (Arc::clone(&inotify), self.trigger.clone());
        std::thread::Builder::new()
            .name("key-folders".into())
            .spawn(move || run_event_loop(&thread_inotify, &trigger))?;
        Ok(Arc::clone(self.inotify.insert(inotify)))
    }

    /// Logs when folders become unwatched, and when all are watched again.
    fn log_unwatched(&mut self, missed: usize, count: usize, reason: &str) {
        if missed > 0 && self.unwatched == 0 {
            warn!(
                "{missed} of {count} folders of keys are not watched: {reason}; \
                 outgate polls them every {POLL_INTERVAL:?} instead"
            );
        } else if missed == 0 && self.unwatched > 0 {
            info!("all {count} folders of keys are watched again");
        }
        self.unwatched = missed;
    }
}

/// Adds watches. Returns their descriptors, and the number of folders for which the host allows no watch.
fn add_watches(inotify: &OwnedFd, paths: &[PathBuf]) -> (BTreeSet<i32>, usize) {
    let flags = WatchFlags::ONLYDIR
        | WatchFlags::EXCL_UNLINK
        | WatchFlags::ATTRIB
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MODIFY
        | WatchFlags::MOVE
        | WatchFlags::MOVE_SELF;
    let (mut watched, mut missed) = (BTreeSet::new(), 0);
    for path in paths {
        match inotify::add_watch(inotify, path.as_path(), flags) {
            Ok(number) => drop(watched.insert(number)),
            Err(Errno::NOSPC | Errno::NOMEM) => missed += 1,
            // The folder is gone or unreadable. The watch of its parent folder reports when that changes.
            Err(_) => {}
        }
    }
    (watched, missed)
}

/// Requests a reload after each change in a watched folder, once the change is complete. Runs on its own thread until
/// the reloader is gone.
fn run_event_loop(inotify: &OwnedFd, trigger: &ReloadTrigger) {
    while !trigger.is_closed() {
        let mut wait = [PollFd::new(inotify, PollFlags::IN)];
        if poll(&mut wait, Some(&POLL_TIMEOUT)).is_ok_and(|ready| ready > 0) {
            std::thread::sleep(DEBOUNCE);
            if drain_events(inotify) {
                trigger.request_reload();
            }
        }
    }
}

/// Reads all pending events. Returns whether one of them is about a key.
fn drain_events(inotify: &OwnedFd) -> bool {
    let mut buffer = [MaybeUninit::uninit(); EVENT_BUFFER_SIZE];
    let mut events = Reader::new(inotify, &mut buffer);
    let mut has_changed = false;
    while let Ok(event) = events.next() {
        let is_hidden = event.file_name().is_some_and(|name| name.to_bytes().starts_with(b"."));
        // An overflow event counts as a change. IGNORED follows a removed watch or a deletion, and is none.
        has_changed |= !is_hidden && !event.events().contains(ReadFlags::IGNORED);
    }
    has_changed
}
