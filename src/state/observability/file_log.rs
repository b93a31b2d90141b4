//! The delivery log in a file: its rotation, and what outgate does if the file is cut, moved or deleted.
//! Which file does a record go to?
//!
//! `logroller` and `rolling-file` rotate without compression that survives a crash or without a limit of the total, and
//! `tracing-appender` rotates by time only.
//!
//! Each writer holds a shared lock of its file (flock(2)): during an upgrade, two processes write to one log. Who gets the
//! exclusive lock is alone.

#![expect(clippy::disallowed_methods, reason = "writes, moves and cuts the file of the delivery log")]

mod state;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::fs::{Access, CWD, RenameFlags, access};
use tracing::{info, warn};

pub(in crate::state) use self::state::FileLogState;
use crate::names::folder_of;
use crate::state::config::thread_priority::lower_thread_priority;
use crate::state::observability::archives::ArchiveNames;
use crate::state::observability::delivery_line::{Gap, GapLine, LINE_MAX, LogLine};
use crate::state::observability::line_sink::{LineSink, WriteError, whole_lines, write_all};

/// The interval between two looks at the file: at its place, its age, and the settings.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The pause after a rotation or a compression that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(60);
/// The interval between two deletions of old files while no file is finished.
const TIDY_INTERVAL: Duration = Duration::from_secs(3600);

pub(in crate::state) struct FileLog {
    path: PathBuf,
    state: Arc<FileLogState>,
    open: Option<OpenFile>,
    /// The folder existed once, so outgate may create it again.
    has_been_open: bool,
    /// `None`: a rotation has finished a file, whose compression is due.
    checked: Option<Instant>,
    rotation_failed: Option<Instant>,
    tidied: Option<Instant>,
    tidying: Option<JoinHandle<()>>,
}

struct OpenFile {
    file: File,
    /// `false`: a pipe or a device, which is neither rotated nor cut.
    is_regular: bool,
    size: u64,
    /// The time of the first record.
    began: Timestamp,
    /// A write has ended within a line, and the rest could not be cut.
    is_torn: bool,
}

impl FileLog {
    /// Returns a log that the writer opens: the disk may hang.
    pub(in crate::state) fn new(path: &Path, state: Arc<FileLogState>) -> Self {
        Self {
            path: path.to_owned(),
            state,
            open: None,
            has_been_open: false,
            checked: None,
            rotation_failed: None,
            tidied: None,
            tidying: None,
        }
    }

    /// Opens the file anew. A folder that has been deleted is created again.
    fn open_again(&mut self, flags: i32) -> io::Result<()> {
        let folder = self.path.parent().filter(|_| self.has_been_open);
        if let Some(folder) = folder.filter(|folder| !folder.exists()) {
            DirBuilder::new().recursive(true).mode(0o750).create(folder)?;
        }
        self.open = Some(OpenFile::open(&self.path, flags)?);
        self.has_been_open = true;
        Ok(())
    }

    fn reopen(&mut self) {
        // The open of a pipe without a reader would block this thread and all later lines.
        let error = self.open_again(libc::O_NONBLOCK).err().map(|error| error.to_string());
        let before = std::mem::replace(&mut *self.state.reopen_error.lock(), error.clone());
        let path = self.path.display();
        match (error, before) {
            (Some(error), before) if before.as_ref() != Some(&error) => {
                warn!("cannot reopen {path}: {error}; outgate still writes to the previous file");
            }
            (None, Some(_)) => info!("{path} is open again"),
            (None, None) => info!("{path} was reopened"),
            _ => {}
        }
    }

    /// Returns why the open file is no longer the log, if it is not. Without rotation, a moved file stays the log until
    /// the signal of the program that moved it.
    fn displaced(&self) -> Option<&'static str> {
        let open = self.open.as_ref().filter(|open| open.is_regular)?;
        if open.is_deleted() {
            return Some("deleted");
        }
        self.state.get()?;
        let (own, found) = (open.file.metadata().ok()?, fs::metadata(&self.path));
        let is_same = found.is_ok_and(|found| (found.dev(), found.ino()) == (own.dev(), own.ino()));
        (!is_same).then_some("moved")
    }

    /// Opens the file again if it was deleted or moved. Returns whether it was.
    fn follow_path(&mut self) -> bool {
        let Some(how) = self.displaced() else { return false };
        self.open = None;
        let path = self.path.display().to_string();
        match self.open_again(0) {
            Ok(()) => info!("the delivery log {path} was {how}: records now go to the file at this path"),
            Err(error) => warn!(
                "the delivery log {path} was {how}, and cannot be opened again: {error}; delivery records are lost until \
                 it can: let the user that outgate runs as write there"
            ),
        }
        true
    }

    /// Begins a new file if the present one is too old, or too large for these bytes.
    fn rotate_if_due(&mut self, more: usize) {
        let (Some(rotate), Some(open)) = (self.state.get(), &mut self.open) else { return };
        let now = Timestamp::now();
        open.began = open.began.min(now); // the clock was set back
        let is_due =
            open.size + more as u64 > rotate.size || now.duration_since(open.began).unsigned_abs() >= rotate.age;
        let is_pausing = self.rotation_failed.is_some_and(|failed| failed.elapsed() < RETRY_PAUSE);
        if !is_due || !open.is_regular || open.size == 0 || is_pausing {
            return;
        }
        if self.follow_path() {
            return; // another process has rotated the file
        }
        let outcome = self.rotate(now);
        self.rotation_failed = outcome.is_err().then(Instant::now);
        match outcome {
            Ok(()) => (self.tidied, self.checked) = (None, None),
            Err(error) => self.state.set_error(&self.path, Some(error.to_string())),
        }
    }

    fn rotate(&mut self, now: Timestamp) -> io::Result<()> {
        let names = ArchiveNames::of(&self.path);
        let finished = names.next(now)?;
        // Another process may take the same name at the same time.
        rustix::fs::renameat_with(CWD, &names.log, CWD, &finished, RenameFlags::NOREPLACE)?;
        match OpenFile::open(&self.path, 0) {
            Ok(open) => self.open = Some(open),
            Err(error) => {
                fs::rename(&finished, &names.log)?; // records still go to it
                return Err(error);
            }
        }
        Ok(())
    }

    /// Compresses and deletes finished files on a thread of its own, whose priority is low.
    fn tidy_if_due(&mut self) {
        if !self.open.as_ref().is_some_and(|open| open.is_regular) {
            return;
        }
        let pause = if self.state.error.lock().is_some() { RETRY_PAUSE } else { TIDY_INTERVAL };
        let is_due = self.state.has_changed() || self.tidied.is_none_or(|tidied| tidied.elapsed() >= pause);
        if !is_due || self.tidying.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        let Some(rotate) = self.state.take() else { return };
        self.tidied = Some(Instant::now());
        let (path, state) = (self.path.clone(), Arc::clone(&self.state));
        let tidy = move || {
            let _ = lower_thread_priority(); // it only costs the traffic some time
            let outcome = ArchiveNames::of(&path).tidy(&rotate, Timestamp::now());
            state.set_error(&path, outcome.err().map(|error| error.to_string()));
        };
        match std::thread::Builder::new().name("archive".into()).spawn(tidy) {
            Ok(thread) => self.tidying = Some(thread),
            Err(error) => self.state.set_error(&self.path, Some(error.to_string())),
        }
    }

    fn append(&mut self, lines: &[u8]) -> Result<(), WriteError> {
        let missing = || WriteError::of_all(lines, io::ErrorKind::NotFound.into());
        self.open.as_mut().ok_or_else(missing)?.append(lines)
    }
}

impl LineSink for FileLog {
    fn open(&mut self) -> io::Result<()> {
        if self.open.is_none() {
            self.open_again(0)?;
        }
        Ok(())
    }

    fn is_open(&self) -> bool {
        self.open.is_some()
    }

    fn write(&mut self, lines: &[u8]) -> Result<(), WriteError> {
        self.open().map_err(|error| WriteError::of_all(lines, error))?;
        self.rotate_if_due(lines.len());
        self.append(lines)?;
        // Lines in a file without a name are lost, so they are written once more.
        if self.open.as_ref().is_some_and(|open| open.is_regular && open.is_deleted()) {
            self.follow_path();
            self.append(lines)?;
        }
        Ok(())
    }

    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn maintain(&mut self) {
        if self.state.reopen.swap(false, Ordering::Relaxed) {
            *self.state.reopen_error.lock() = None; // the log says it again
            self.reopen();
        }
        if self.checked.is_some_and(|checked| checked.elapsed() < CHECK_INTERVAL) {
            return;
        }
        self.checked = Some(Instant::now());
        if self.state.reopen_error().is_some() {
            self.reopen();
        }
        if let Some(open) = self.open.as_mut().filter(|open| open.is_regular) {
            // Another process may write to the file, too.
            open.size = open.file.metadata().map_or(open.size, |metadata| metadata.len());
            let _ = open.file.try_lock_shared(); // one that another process has prevented for a moment
        }
        self.follow_path();
        self.rotate_if_due(0);
        self.tidy_if_due();
    }
}

impl OpenFile {
    /// Opens a file that only its owner and group can read: records name clients and targets.
    fn open(path: &Path, flags: i32) -> io::Result<Self> {
        let is_regular = fs::metadata(path).map_or(true, |metadata| metadata.is_file());
        let mut options = OpenOptions::new();
        options.create(true).append(true).read(is_regular).mode(0o640).custom_flags(flags);
        let file = options.open(path)?;
        let metadata = file.metadata()?;
        let (size, modified) = (metadata.len(), metadata.modified().ok().and_then(|time| time.try_into().ok()));
        let modified = modified.unwrap_or_else(Timestamp::now);
        let mut open = Self { file, is_regular, size, began: modified, is_torn: false };
        if is_regular && size > 0 {
            open.cut_unfinished_line(path, modified)?;
            open.began = first_time(&open.file).unwrap_or(modified);
        } else {
            open.began = Timestamp::now();
        }
        if is_regular {
            let _ = open.file.try_lock_shared(); // a filesystem without locks has no upgrade of two processes
        }
        Ok(open)
    }

    fn is_deleted(&self) -> bool {
        self.file.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
    }

    /// Writes lines. If the disk is full, the file ends with the last whole line.
    fn append(&mut self, lines: &[u8]) -> Result<(), WriteError> {
        if self.is_torn {
            write_all(&mut self.file, b"\n").map_err(|(error, _)| WriteError::of_all(lines, error))?;
            self.is_torn = false;
        }
        let Err((error, written)) = write_all(&mut self.file, lines) else {
            self.size += lines.len() as u64;
            return Ok(());
        };
        let whole = whole_lines(&lines[..written]);
        self.size += written as u64;
        if whole < written {
            self.is_torn = !self.is_regular || self.cut_tail((written - whole) as u64).is_err();
        }
        Err(WriteError::of_all(&lines[whole..], error))
    }

    /// Cuts bytes from the end, if no other process writes to the file.
    fn cut_tail(&mut self, bytes: u64) -> io::Result<()> {
        let cut = self.file.try_lock().map_err(io::Error::from).and_then(|()| {
            self.size = self.file.metadata()?.len().saturating_sub(bytes);
            self.file.set_len(self.size)
        });
        let _ = self.file.try_lock_shared();
        cut
    }

    /// Cuts a line that a former process has not finished, and writes a gap in its place. A text that is no record is
    /// ended with a line feed instead.
    fn cut_unfinished_line(&mut self, path: &Path, modified: Timestamp) -> io::Result<()> {
        let length = self.size.min(LINE_MAX as u64);
        let mut end = vec![0; length as usize];
        self.file.read_exact_at(&mut end, self.size - length)?;
        let rest = &end[whole_lines(&end)..];
        if rest.is_empty() {
            return Ok(());
        }
        if !rest.starts_with(b"{") || self.cut_tail(rest.len() as u64).is_err() {
            self.is_torn = true;
            return Ok(());
        }
        warn!(
            "the delivery log {} ended within a record: outgate cut its {} bytes and wrote a gap",
            path.display(),
            rest.len()
        );
        let (now, why) = (Timestamp::now(), "a former process ended while it wrote a record".to_owned());
        let gap = GapLine { time: now, gap: Gap { lost: 1, since: modified, until: now, why } };
        self.append(&gap.to_line()?).map_err(|failed| failed.error)
    }
}

/// Returns the time of the first line.
fn first_time(file: &File) -> Option<Timestamp> {
    let mut line = Vec::new();
    let mut start = vec![0; 64 * 1024];
    let count = file.read_at(&mut start, 0).ok()?;
    BufReader::new(&start[..count]).read_until(b'\n', &mut line).ok()?;
    match LogLine::parse(&line)? {
        LogLine::Delivery(delivery) => Some(delivery.time),
        LogLine::Gap(gap) => Some(gap.time),
    }
}

/// Returns whether lines can be appended to `path`. The file is not created, and nothing is written.
pub(in crate::state) fn probe(path: &Path) -> io::Result<()> {
    match OpenOptions::new().append(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(_) => Ok(()),
        // The pipe has no reader at the moment.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(access(folder_of(path), Access::WRITE_OK | Access::EXEC_OK)?)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rotate;

    #[test]
    fn file_log_looks_at_its_place_once_a_second_without_rotation_too() {
        let path = std::env::temp_dir().join(format!("outgate-file-log-{}", std::process::id()));
        for rotate in [None, Some(Rotate::default())] {
            let state = Arc::<FileLogState>::default();
            state.set(rotate.as_ref());
            let mut log = FileLog::new(&path, state);
            log.open().unwrap();
            log.maintain();
            let looked = Instant::now();
            fs::remove_file(&path).unwrap();
            log.maintain();
            assert!(!path.exists() || looked.elapsed() >= CHECK_INTERVAL, "{rotate:?}");
        }
    }
}
