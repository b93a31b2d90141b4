//! The audit log: an append-only chain of changes and security events, in files.
//! Who changed what and when, and was a record changed or removed afterwards?

mod chain;
mod file;
mod log;
mod note;
mod record;
mod tree;
mod verify;

pub use log::{AuditLog, WrittenRecord};
pub use note::{Checkpoint, NOTE_MAX, NoteError, Verifier, sign_note};
pub use record::*;
#[cfg(any(test, fuzzing))]
pub use verify::audit_logs;
pub use verify::{Fault, FaultKind, Summary, verify};

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::Ed25519KeyPair;

use crate::names::with_suffix;

/// The settings of an audit log: `[audit]`, compiled.
#[derive(Clone)]
pub struct AuditSettings {
    pub path: PathBuf,
    /// The name of the log, in its records and checkpoints.
    pub origin: String,
    /// The key that signs checkpoints. `None`: outgate writes no checkpoints.
    pub signer: Option<Arc<Ed25519KeyPair>>,
    /// The size in bytes at which the next file begins.
    pub file_size_max: u64,
    /// The age of its last record at which a file is deleted.
    pub keep: Duration,
}

impl AuditSettings {
    /// Returns the public half of the key that signs checkpoints.
    pub fn verifier(&self) -> Option<Verifier> {
        self.signer.as_ref().map(|signer| Verifier::of(&self.origin, signer))
    }
}

impl PartialEq for AuditSettings {
    fn eq(&self, other: &Self) -> bool {
        let values = |settings: &Self| (settings.path.clone(), settings.file_size_max, settings.keep);
        values(self) == values(other) && self.origin == other.origin && self.verifier() == other.verifier()
    }
}

impl fmt::Debug for AuditSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AuditSettings").field(&self.path).finish()
    }
}

/// Returns the files of a log, the oldest first: the closed ones, and the file at `path` if it exists.
pub fn files(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = file::closed_files(path)?;
    files.extend(path.exists().then(|| path.to_owned()));
    Ok(files)
}

/// Returns the path of the newest checkpoint of a log.
pub fn checkpoint_path(log: &Path) -> PathBuf {
    with_suffix(log, ".checkpoint")
}
