//! The state of the delivery log in a file that its writer shares with the rest of the process.
//! How does the file rotate, and which of its errors last?

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{info, warn};

use crate::config::Rotate;
use crate::panics::Mutex;

/// The settings of the rotation, which a reload changes, and what the log shows of the file.
#[derive(Default)]
pub(in crate::state) struct FileLogState {
    rotate: Mutex<RotateSetting>,
    /// The error of the last compression or deletion.
    pub(super) error: Mutex<Option<String>>,
    /// Another program has moved the file: the writer opens it again.
    pub(super) reopen: AtomicBool,
    /// The error while the open file is not the one at its path.
    pub(super) reopen_error: Mutex<Option<String>>,
}

#[derive(Default)]
struct RotateSetting {
    value: Option<Rotate>,
    /// The value has changed since [`FileLogState::take`].
    has_changed: bool,
}

impl FileLogState {
    pub(in crate::state) fn set(&self, rotate: Option<&Rotate>) {
        let mut current = self.rotate.lock();
        if current.value.as_ref() != rotate {
            *current = RotateSetting { value: rotate.cloned(), has_changed: true };
        }
    }

    /// Returns why finished files are neither compressed nor deleted.
    pub(in crate::state) fn error(&self) -> Option<String> {
        self.error.lock().clone()
    }

    /// Reopens the file. If that fails, records go to the former file, and the log and [`FileLogState::reopen_error`]
    /// report it.
    pub(in crate::state) fn reopen(&self) {
        self.reopen.store(true, Ordering::Relaxed);
    }

    pub(in crate::state) fn reopen_error(&self) -> Option<String> {
        self.reopen_error.lock().clone()
    }

    pub(super) fn get(&self) -> Option<Rotate> {
        self.rotate.lock().value.clone()
    }

    pub(super) fn has_changed(&self) -> bool {
        self.rotate.lock().has_changed
    }

    /// Returns the current value, which has not changed from now on.
    pub(super) fn take(&self) -> Option<Rotate> {
        let mut current = self.rotate.lock();
        current.has_changed = false;
        current.value.clone()
    }

    pub(super) fn set_error(&self, path: &Path, error: Option<String>) {
        let before = std::mem::replace(&mut *self.error.lock(), error.clone());
        match (error, before) {
            (Some(error), before) if before.as_ref() != Some(&error) => warn!(
                "cannot rotate, compress or delete files of the delivery log {}: {error}; records are still written, and \
                 outgate tries again every minute",
                path.display()
            ),
            (None, Some(_)) => info!("files of the delivery log {} are rotated again", path.display()),
            _ => {}
        }
    }
}
