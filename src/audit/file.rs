//! The files of an audit log: their names, and how their lines are read and written.
//! Which files belong to a log, and which lines are whole?

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::names::{folder_of, with_suffix};

/// The longest line, in bytes. outgate writes no longer one.
const LINE_MAX: u64 = 1 << 20;
/// The digits in the name of a closed file: the number of records up to its end.
const NAME_DIGITS: usize = 12;

/// Opens the file at `path` for appending, and creates it for its owner and group if it is missing.
#[expect(clippy::disallowed_methods, reason = "the audit log")]
pub(super) fn open_for_appending(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).append(true).create(true).mode(0o640).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

#[expect(clippy::disallowed_methods, reason = "the audit log")]
pub(super) fn open_for_reading(path: &Path) -> io::Result<File> {
    File::open(path)
}

/// Syncs the entries of the folder of `path` to the disk.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    open_for_reading(folder_of(path))?.sync_all()
}

/// Locks a log against other processes until the value is dropped. The lock is on a file of its own, because the log's
/// file is renamed, and `outgate rollback` may hold a lock on the folder.
pub(super) struct LogLock(File);

impl LogLock {
    /// Waits until no other process holds the lock.
    pub(super) fn acquire(log: &Path) -> io::Result<Self> {
        let file = open_for_appending(&with_suffix(log, ".lock"))?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(Self(file))
    }
}

impl Drop for LogLock {
    /// Unlocks explicitly: a child between fork and exec has a copy of the descriptor, so closing it releases no lock.
    fn drop(&mut self) {
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Replaces a file as a whole.
#[expect(clippy::disallowed_methods, reason = "the checkpoint beside the audit log")]
pub(super) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let temporary = with_suffix(path, ".new");
    fs::write(&temporary, text)?;
    fs::rename(&temporary, path)
}

#[expect(clippy::disallowed_methods, reason = "closes a file of the audit log")]
pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

#[expect(clippy::disallowed_methods, reason = "deletes a file of the audit log whose time has passed")]
pub(super) fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)
}

/// Returns whether the open file is the one at `path`.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match fs::metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the name of the file at `path` once it is closed after this many records.
pub(super) fn closed_name(path: &Path, records: u64) -> PathBuf {
    with_suffix(path, &format!(".{records:0NAME_DIGITS$}"))
}

/// Returns the closed files of the log at `path`, the oldest first.
#[expect(clippy::disallowed_methods, reason = "lists the files of the audit log")]
pub(super) fn closed_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let prefix = format!("{}.", path.file_name().unwrap_or_default().to_string_lossy());
    let is_closed = |found: &PathBuf| {
        let name = found.file_name().unwrap_or_default().to_string_lossy();
        let digits = name.strip_prefix(&prefix);
        digits.is_some_and(|digits| digits.len() >= NAME_DIGITS && digits.bytes().all(|digit| digit.is_ascii_digit()))
    };
    let entries = fs::read_dir(folder_of(path))?.map(|entry| entry.map(|entry| entry.path()));
    let mut files = entries.collect::<io::Result<Vec<_>>>()?;
    files.retain(is_closed);
    files.sort();
    Ok(files)
}

/// The lines of a file that end in a line feed.
pub(super) struct Lines {
    reader: BufReader<File>,
    /// The bytes of the lines that were returned.
    pub(super) length: u64,
    /// The bytes after the last line feed: a write that was cut off.
    pub(super) partial: u64,
}

impl Lines {
    /// Reads the lines after the first `from` bytes.
    pub(super) fn new(mut file: File, from: u64) -> io::Result<Self> {
        file.seek(SeekFrom::Start(from))?;
        Ok(Self { reader: BufReader::new(file), length: from, partial: 0 })
    }

    /// Returns the next line, without its line feed.
    pub(super) fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let read = (&mut self.reader).take(LINE_MAX).read_until(b'\n', &mut line)? as u64;
        if line.pop() != Some(b'\n') {
            if read == LINE_MAX {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a line is longer than any that outgate writes",
                ));
            }
            self.partial = read;
            return Ok(None);
        }
        self.length += read;
        Ok(Some(line))
    }
}
