//! Writes files and folders so that they exist completely or not at all, even after a power failure.
//! When is a write safely on the disk?

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::names::with_suffix;

/// Creates a folder, and all folders above it, for outgate's own user only.
pub(super) fn create_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a new file for outgate's own user only, and syncs it to the disk.
pub(super) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Replaces a file of at most `max` bytes: it has the former bytes or the next ones.
pub(super) fn replace(path: &Path, bytes: &[u8], max: u64) -> io::Result<()> {
    if bytes.len() as u64 > max {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let unfinished = with_suffix(path, ".tmp");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {} // a process that was killed has left it
    }
    write_new(&unfinished, bytes)?;
    rename_durably(&unfinished, path)
}

/// Names the file in an error.
pub(super) fn with_path(action: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {action} {}: {error}", path.display()))
}

/// Reads a file of at most `max` bytes, and follows no link: root may read the folder, which the proxy's user may
/// write.
pub(super) fn read(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > max {
        let message = format!("{} is not a file that outgate has written", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Locks a folder against other processes until the value is dropped.
pub struct FolderLock(File);

impl FolderLock {
    /// Waits until no other process holds the lock.
    pub(super) fn acquire(folder: &Path) -> io::Result<Self> {
        let folder = File::open(folder)?;
        rustix::fs::flock(&folder, FlockOperation::LockExclusive)?;
        Ok(Self(folder))
    }

    /// Returns `None` if another process holds the lock.
    pub(super) fn try_acquire(folder: &Path) -> io::Result<Option<Self>> {
        let folder = File::open(folder)?;
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(folder))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for FolderLock {
    /// Unlocks explicitly: a child between fork and exec has a copy of the descriptor, so closing it releases no lock.
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Syncs the entries of a folder to the disk.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Renames a file, or a folder with its files, atomically, and syncs the rename to the disk.
pub(super) fn rename_durably(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_dir() {
        sync_dir(from)?;
    }
    fs::rename(from, to)?;
    sync_dir(to.parent().unwrap_or(Path::new("/")))
}

pub(super) fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
