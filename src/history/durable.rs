//! Files and folders that are there as a whole or not at all, also after the power was cut.
//! When is it safe to say that it is written?

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// For our own user, and with all that lead to it.
pub(super) fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// A new file for our own user, on the disk.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A file of ours, and no link to somebody else's: the folder belongs to the user that the proxy runs as, and root reads it.
pub(super) fn read(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} is no file of ours", path.display())));
    }
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Keeps other processes from locking a folder, until it is dropped.
pub struct FolderLock(File);

impl FolderLock {
    /// Waits until no other process holds the lock.
    pub(super) fn acquire(folder: &Path) -> io::Result<Self> {
        let folder = File::open(folder)?;
        rustix::fs::flock(&folder, FlockOperation::LockExclusive)?;
        Ok(Self(folder))
    }

    /// `None`: another process holds the lock.
    pub(super) fn try_acquire(folder: &Path) -> io::Result<Option<Self>> {
        let folder = File::open(folder)?;
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self(folder))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(fault) => Err(fault.into()),
        }
    }
}

impl Drop for FolderLock {
    /// A child that is between fork and exec has a copy of the descriptor: closing ours would not release the lock.
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// What a folder says of its files, on the disk.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Gives a file, or a folder with its files, another name, in one step.
pub(super) fn put_in_place(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_dir() {
        sync_folder(from)?;
    }
    fs::rename(from, to)?;
    sync_folder(to.parent().unwrap_or(Path::new("/")))
}

pub(super) fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(fault) if fault.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
