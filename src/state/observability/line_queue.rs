//! A bounded queue of text lines, which one thread writes to a file or a standard stream.
//! How does outgate write a line without a wait of the caller?
//!
//! The queue is lossy: where the disk hangs or the pipe is full, lines beyond the bound are dropped and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Access, access};
use tokio::sync::oneshot;
use tracing::{info, warn};

/// The capacity that the buffer keeps after a burst, in bytes.
const CAPACITY_KEPT: usize = 256 * 1024;

/// The bounds of the queue.
pub(in crate::state) struct LineQueueConfig {
    /// Bytes that may wait; further lines are dropped.
    pub(in crate::state) backlog_max: usize,
    /// Bytes that are written without waiting for more.
    pub(in crate::state) flush_size: usize,
    /// The longest wait of fewer bytes.
    pub(in crate::state) flush_after: Duration,
}

pub(in crate::state) struct LineQueue {
    shared: Arc<LineQueueInner>,
}

struct LineQueueInner {
    pace: LineQueueConfig,
    queue: Mutex<PendingLines>,
    wake: Condvar,
    /// Notified when the queue is empty and no write is under way.
    drained: Condvar,
    /// The sink has been open once.
    is_open: AtomicBool,
    lost: AtomicU64,
    /// The lines lost before the last write that succeeded: the writer has called `recovered` with their number.
    reported: AtomicU64,
    errors: Mutex<SinkErrors>,
}

/// Errors of the sink, in words.
#[derive(Default)]
struct SinkErrors {
    /// The write error of the last loss; `None`: the queue was full.
    write: Option<String>,
    /// The error while the open file is not the one at its path.
    reopen: Option<String>,
}

#[derive(Default)]
struct PendingLines {
    lines: Vec<u8>,
    is_writing: bool,
    /// Asks the writer to reopen the file, which was rotated.
    reopen: bool,
    closed: bool,
}

impl LineQueue {
    /// A queue without a writer: lines wait until [`LineQueue::drain`].
    pub(in crate::state) fn kept(pace: LineQueueConfig) -> Self {
        let (queue, wake, drained) = (Mutex::default(), Condvar::new(), Condvar::new());
        let (is_open, lost, reported) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        let errors = Mutex::default();
        Self { shared: Arc::new(LineQueueInner { pace, queue, wake, drained, is_open, lost, reported, errors }) }
    }

    /// Starts the writer, a thread called `name`. The writer opens the sink first, and the receiver gets the outcome. Once
    /// lines can be written again after a loss, the writer calls `recovered` with the number of lines lost since the last call.
    pub(in crate::state) fn open(
        name: &str,
        pace: LineQueueConfig,
        mut sink: LineSink,
        recovered: fn(u64),
    ) -> io::Result<(Self, oneshot::Receiver<io::Result<()>>)> {
        let lines = Self::kept(pace);
        let shared = Arc::clone(&lines.shared);
        let (outcome, opened) = oneshot::channel();
        let write = move || {
            let result = sink.open();
            let has_failed = result.is_err();
            match outcome.send(result) {
                Ok(()) if has_failed => return, // the receiver reports it
                Ok(()) => {}
                Err(late) => sink.report_late(&late),
            }
            shared.is_open.store(sink.is_open(), Ordering::Relaxed);
            shared.write_out(sink, recovered);
        };
        std::thread::Builder::new().name(name.into()).spawn(write)?;
        Ok((lines, opened))
    }

    /// Appends whole lines, each with its line feed, unless the queue is full. Never blocks on the sink.
    pub(in crate::state) fn push(&self, text: &[u8]) {
        let mut queue = self.shared.queue.lock();
        let before = queue.lines.len();
        if before > self.shared.pace.backlog_max {
            drop(queue);
            self.shared.errors.lock().write = None; // the sink may have failed before: this loss has another cause
            return self.count_lost(count_lines(text));
        }
        queue.lines.extend_from_slice(text);
        let is_due = before < self.shared.pace.flush_size && queue.lines.len() >= self.shared.pace.flush_size;
        drop(queue);
        if is_due {
            self.shared.wake.notify_one();
        }
    }

    pub(in crate::state) fn count_lost(&self, lines: u64) {
        self.shared.lost.fetch_add(lines, Ordering::Relaxed);
    }

    /// Returns whether the sink has been open once. The queue of a process that takes the lines itself has none.
    pub(in crate::state) fn is_open(&self) -> bool {
        self.shared.is_open.load(Ordering::Relaxed)
    }

    /// Returns the number of lines that could not be written.
    pub(in crate::state) fn lost_count(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Returns the number of lines lost since the last write that succeeded.
    pub(in crate::state) fn unreported(&self) -> u64 {
        self.lost_count().saturating_sub(self.shared.reported.load(Ordering::Relaxed))
    }

    pub(in crate::state) fn drain(&self) -> Vec<u8> {
        std::mem::take(&mut self.shared.queue.lock().lines)
    }

    /// Reopens the file. If that fails, the queue keeps the old file; the log and [`LineQueue::reopen_error`] report it.
    pub(in crate::state) fn reopen(&self) {
        self.shared.errors.lock().reopen = None; // the log says it again
        self.shared.queue.lock().reopen = true;
    }

    /// Retries a reopening that failed.
    pub(in crate::state) fn retry_reopen(&self) {
        if self.reopen_error().is_some() {
            self.shared.queue.lock().reopen = true;
        }
    }

    /// Returns the error because of which the open file is not the one at its path.
    pub(in crate::state) fn reopen_error(&self) -> Option<String> {
        self.shared.errors.lock().reopen.clone()
    }

    /// Returns the write error of the last loss; `None`: lines came faster than the sink took them.
    pub(in crate::state) fn write_error(&self) -> Option<String> {
        self.shared.errors.lock().write.clone()
    }

    /// Waits until all lines are written, for at most `patience`.
    pub(in crate::state) fn flush(&self, patience: Duration) {
        let mut queue = self.shared.queue.lock();
        self.shared.wake.notify_one();
        let is_busy = |queue: &mut PendingLines| queue.is_writing || !queue.lines.is_empty();
        self.shared.drained.wait_while_for(&mut queue, is_busy, patience);
    }

    /// Writes the waiting lines, for at most `patience`. Later lines are lost.
    pub(in crate::state) fn close(&self, patience: Duration) {
        self.shared.queue.lock().closed = true;
        self.flush(patience);
    }
}

/// Dropping the queue makes the writer write the waiting lines and end.
impl Drop for LineQueue {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.wake.notify_one();
    }
}

impl LineQueueInner {
    fn write_out(&self, mut sink: LineSink, recovered: fn(u64)) {
        let mut lines = Vec::new();
        // A full disk has cut a line: a line feed keeps the next line from continuing it.
        let mut torn = false;
        loop {
            let mut queue = self.queue.lock();
            if !queue.closed && queue.lines.len() < self.pace.flush_size {
                self.wake.wait_for(&mut queue, self.pace.flush_after);
            }
            std::mem::swap(&mut lines, &mut queue.lines);
            let (reopen, closed) = (std::mem::take(&mut queue.reopen), queue.closed);
            queue.is_writing = !lines.is_empty();
            drop(queue);
            if reopen {
                self.reopen(&mut sink);
            }
            let written = match torn && !lines.is_empty() {
                true => sink.write(b"\n").and_then(|()| sink.write(&lines)),
                false => sink.write(&lines),
            };
            torn = torn && lines.is_empty() || written.is_err() && sink.is_open();
            if let Err(error) = written {
                self.errors.lock().write = Some(error.to_string());
                self.lost.fetch_add(count_lines(&lines), Ordering::Relaxed);
            } else if !lines.is_empty() {
                self.is_open.store(true, Ordering::Relaxed);
                self.report(recovered);
            }
            lines.clear();
            lines.shrink_to(CAPACITY_KEPT);
            let mut queue = self.queue.lock();
            queue.is_writing = false;
            if queue.lines.is_empty() {
                self.drained.notify_all();
            }
            if closed {
                return;
            }
        }
    }

    fn reopen(&self, sink: &mut LineSink) {
        let LineSink::File(file, path) = sink else { return };
        // The open of a pipe without a reader would block this thread and all later lines.
        let error = match append_to(path, libc::O_NONBLOCK) {
            Ok(opened) => {
                *file = Some(opened);
                None
            }
            Err(error) => Some(error.to_string()),
        };
        let before = std::mem::replace(&mut self.errors.lock().reopen, error.clone());
        match (error, before) {
            (Some(error), before) if before.as_ref() != Some(&error) => {
                warn!("cannot reopen {}: {error}; lines still go to the file that was open before", path.display());
            }
            (None, Some(_)) => info!("{} is open again", path.display()),
            (None, None) => info!("{} was reopened", path.display()),
            _ => {}
        }
    }

    fn report(&self, recovered: fn(u64)) {
        let lost = self.lost.load(Ordering::Relaxed);
        let before = self.reported.swap(lost, Ordering::Relaxed);
        if lost > before {
            recovered(lost - before);
        }
    }
}

fn count_lines(text: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', text).count() as u64
}

/// The destination of the lines.
pub(in crate::state) enum LineSink {
    /// A duplicate of a standard stream's descriptor: the stream of std would buffer, lock, and flush at exit.
    Stream(File),
    /// `None`: not open yet.
    File(Option<File>, PathBuf),
}

impl LineSink {
    #[expect(clippy::disallowed_methods, reason = "duplicates the descriptor: no write passes through the stream")]
    pub(in crate::state) fn stdout() -> io::Result<Self> {
        Ok(Self::Stream(io::stdout().as_fd().try_clone_to_owned()?.into()))
    }

    #[expect(clippy::disallowed_methods, reason = "duplicates the descriptor: no write passes through the stream")]
    pub(in crate::state) fn stderr() -> io::Result<Self> {
        Ok(Self::Stream(io::stderr().as_fd().try_clone_to_owned()?.into()))
    }

    /// Returns a file that the writer opens: the disk may hang.
    pub(in crate::state) fn append_to(path: &Path) -> Self {
        Self::File(None, path.to_owned())
    }

    fn is_open(&self) -> bool {
        !matches!(self, Self::File(None, _))
    }

    fn open(&mut self) -> io::Result<()> {
        if let Self::File(file @ None, path) = self {
            *file = Some(append_to(path, 0)?);
        }
        Ok(())
    }

    /// Logs the outcome of an open for which the start did not wait.
    fn report_late(&self, opened: &io::Result<()>) {
        let Self::File(_, path) = self else { return };
        match opened {
            Ok(()) => info!("{} is open: delivery records are written", path.display()),
            Err(error) => warn!(
                "cannot open {}: {error}; delivery records are lost until it can be opened, and it is tried again for \
                 each batch",
                path.display()
            ),
        }
    }

    fn write(&mut self, mut lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        self.open()?;
        let (Self::Stream(file) | Self::File(Some(file), _)) = self else { return Err(io::ErrorKind::NotFound.into()) };
        while !lines.is_empty() {
            match file.write(lines) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => lines = &lines[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Another process may share the stream and have made it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(file, PollFlags::OUT)], None)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Opens a file that only its owner and group can read: records name clients and targets.
#[expect(clippy::disallowed_methods, reason = "appends records and log lines to a file")]
fn append_to(path: &Path, flags: i32) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).custom_flags(flags).open(path)
}

/// Returns whether lines can be appended to `path`. The file is not created, and nothing is written.
#[expect(clippy::disallowed_methods, reason = "appends records and log lines to a file")]
pub(in crate::state) fn probe(path: &Path) -> io::Result<()> {
    match OpenOptions::new().append(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(_) => Ok(()),
        // The pipe has no reader at the moment.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
            Ok(access(folder, Access::WRITE_OK | Access::EXEC_OK)?)
        }
        Err(error) => Err(error),
    }
}
