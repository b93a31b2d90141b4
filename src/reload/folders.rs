//! Watches the folders of tenants' keys, of which there may be tens of thousands.
//! When has a tenant's key changed, and what if not all of them can be watched?
//!
//! By an inotify of our own: the one that watches the other files hears of each file that is opened, and reading ten
//! thousand folders would flood it.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tracing::{info, warn};

use super::{DEBOUNCE, LOOK, ReloadTrigger};
use crate::config::KeyDirs;

/// How long the thread that listens lives on when it is not needed any more.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

/// Of events: some hundreds at once.
const BUFFER: usize = 16 << 10;

pub(super) struct KeyFolderWatcher {
    trigger: ReloadTrigger,
    inotify: Option<Arc<OwnedFd>>,
    /// By inotify's numbers: it knows a folder again that is called otherwise now.
    watched: BTreeSet<i32>,
    /// How many are not, because this host allows no more.
    unwatched: usize,
}

impl KeyFolderWatcher {
    pub(super) fn new(trigger: ReloadTrigger) -> Self {
        Self { trigger, inotify: None, watched: BTreeSet::new(), unwatched: 0 }
    }

    /// Watches all of these, and nothing else. True if there is one among them that was not watched before.
    pub(super) async fn follow(&mut self, key_dirs: &KeyDirs) -> bool {
        let paths: Vec<PathBuf> = key_dirs.values().flat_map(|key_dir| key_dir.folder_paths()).collect();
        if paths.is_empty() && self.inotify.is_none() {
            return false;
        }
        let inotify = match self.open() {
            Ok(inotify) => inotify,
            Err(fault) => {
                self.tell(paths.len(), paths.len(), &fault.to_string());
                return false;
            }
        };
        let (before, count) = (std::mem::take(&mut self.watched), paths.len());
        // Away from the threads that carry traffic.
        let watching = tokio::task::spawn_blocking(move || {
            let (watched, missed) = watch(&inotify, &paths);
            for gone in before.difference(&watched) {
                let _ = inotify::remove_watch(&*inotify, *gone); // gone by itself, with its folder
            }
            (watched.is_subset(&before), watched, missed)
        });
        let Ok((is_no_wider, watched, missed)) = watching.await else { return true };
        self.watched = watched;
        self.tell(missed, count, "the limit fs.inotify.max_user_watches is reached");
        !is_no_wider
    }

    fn open(&mut self) -> std::io::Result<Arc<OwnedFd>> {
        if let Some(inotify) = &self.inotify {
            return Ok(Arc::clone(inotify));
        }
        let inotify = Arc::new(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?);
        let (theirs, trigger) = (Arc::clone(&inotify), self.trigger.clone());
        std::thread::Builder::new().name("key-folders".into()).spawn(move || listen(&theirs, &trigger))?;
        Ok(Arc::clone(self.inotify.insert(inotify)))
    }

    /// Once, not each time.
    fn tell(&mut self, missed: usize, count: usize, why: &str) {
        if missed > 0 && self.unwatched == 0 {
            warn!(
                "{missed} of {count} folders of keys are not watched: {why}; they are looked over every {LOOK:?} instead"
            );
        } else if missed == 0 && self.unwatched > 0 {
            info!("all {count} folders of keys are watched again");
        }
        self.unwatched = missed;
    }
}

/// The folders that could be watched, and how many more there are than may be.
fn watch(inotify: &OwnedFd, paths: &[PathBuf]) -> (BTreeSet<i32>, usize) {
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
            // Gone, or not to be read: the folder above it hears if that changes.
            Err(_) => {}
        }
    }
    (watched, missed)
}

/// Pulls the trigger when something has changed in a folder that is watched, and what changes together has changed. On a
/// thread of its own, until nobody is there to pull it for.
fn listen(inotify: &OwnedFd, trigger: &ReloadTrigger) {
    while !trigger.is_dead() {
        let mut wait = [PollFd::new(inotify, PollFlags::IN)];
        if poll(&mut wait, Some(&PATIENCE)).is_ok_and(|ready| ready > 0) {
            std::thread::sleep(DEBOUNCE);
            if drain(inotify) {
                trigger.request_reload();
            }
        }
    }
}

/// Reads all events there are: whether one of them is about a key.
fn drain(inotify: &OwnedFd) -> bool {
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut events = Reader::new(inotify, &mut buffer);
    let mut has_changed = false;
    while let Ok(event) = events.next() {
        let is_hidden = event.file_name().is_some_and(|name| name.to_bytes().starts_with(b"."));
        // Where events were lost, the kernel says that; that no watch is left is our own doing, or follows a deletion.
        has_changed |= !is_hidden && !event.events().contains(ReadFlags::IGNORED);
    }
    has_changed
}
