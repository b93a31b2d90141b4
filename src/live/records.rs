//! Where delivery records go: lines appended to a buffer that a thread of its own writes out.
//! How does evidence reach the disk without holding up a delivery?

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;

use crate::config::Deliveries;

/// What may wait for a disk that hangs; beyond it lines are lost, counted and reported.
const BACKLOG_MAX: usize = 64 * 1024 * 1024;
/// Lines are written out at the latest after this long, or when this much has gathered.
const FLUSH_AFTER: Duration = Duration::from_millis(50);
const FLUSH_SIZE: usize = 64 * 1024;
/// For the last lines to be written when the process ends.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

thread_local! {
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub struct Records {
    shared: Option<Arc<Shared>>,
    /// Hears of the writer's end: its side is dropped then.
    writer: Mutex<Option<Receiver<()>>>,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    lost: AtomicU64,
}

#[derive(Default)]
struct State {
    lines: Vec<u8>,
    /// Open the file anew: it was rotated away.
    reopen: bool,
    closed: bool,
}

impl Records {
    pub fn open(deliveries: &Deliveries) -> io::Result<Self> {
        let sink = match deliveries {
            Deliveries::Off => return Ok(Self { shared: None, writer: Mutex::new(None) }),
            Deliveries::Stdout => Sink::Stdout,
            Deliveries::File(path) => Sink::File(append_to(path)?, path.clone()),
        };
        let shared = Arc::new(Shared { state: Mutex::default(), wake: Condvar::new(), lost: AtomicU64::new(0) });
        let theirs = Arc::clone(&shared);
        let (ending, writer) = mpsc::channel();
        std::thread::Builder::new().name("records".into()).spawn(move || {
            theirs.write_out(sink);
            drop(ending);
        })?;
        Ok(Self { shared: Some(shared), writer: Mutex::new(Some(writer)) })
    }

    /// For a process that delivers by itself: lines wait until they are taken.
    pub fn kept() -> Self {
        let shared = Shared { state: Mutex::default(), wake: Condvar::new(), lost: AtomicU64::new(0) };
        Self { shared: Some(Arc::new(shared)), writer: Mutex::new(None) }
    }

    /// The lines that are kept and nobody has written out.
    pub fn take(&self) -> Vec<u8> {
        self.shared.as_ref().map(|shared| std::mem::take(&mut shared.lock().lines)).unwrap_or_default()
    }

    pub fn is_on(&self) -> bool {
        self.shared.is_some()
    }

    pub fn write(&self, line: &impl Serialize) {
        let Some(shared) = &self.shared else { return };
        // Written down before the lock is taken: what the others wait for is one copy.
        LINE.with_borrow_mut(|text| {
            text.clear();
            let is_written = serde_json::to_writer(&mut *text, line).is_ok();
            text.push(b'\n');
            let mut state = shared.lock();
            let before = state.lines.len();
            if !is_written || before > BACKLOG_MAX {
                shared.lost.fetch_add(1, Ordering::Relaxed);
                return;
            }
            state.lines.extend_from_slice(text);
            if before < FLUSH_SIZE && state.lines.len() >= FLUSH_SIZE {
                shared.wake.notify_one();
            }
        });
    }

    /// Records that could not be kept.
    pub fn lost(&self) -> u64 {
        self.shared.as_ref().map_or(0, |shared| shared.lost.load(Ordering::Relaxed))
    }

    pub fn reopen(&self) {
        if let Some(shared) = &self.shared {
            shared.lock().reopen = true;
        }
    }

    /// Writes out what is left. Later lines are lost.
    pub fn close(&self) {
        if let Some(shared) = &self.shared {
            shared.lock().closed = true;
            shared.wake.notify_one();
        }
        // A reader that does not read, or a disk that hangs, must not keep the process.
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let _ = writer.map(|ended| ended.recv_timeout(CLOSE_PATIENCE));
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_out(&self, mut sink: Sink) {
        let mut lines = Vec::new();
        // A disk that was full has torn a line: the next one does not continue it.
        let mut torn = false;
        loop {
            let mut state = self.lock();
            if !state.closed && state.lines.len() < FLUSH_SIZE {
                state = self.wake.wait_timeout(state, FLUSH_AFTER).unwrap_or_else(PoisonError::into_inner).0;
            }
            std::mem::swap(&mut lines, &mut state.lines);
            let (reopen, closed) = (std::mem::take(&mut state.reopen), state.closed);
            drop(state);
            if reopen {
                sink.reopen();
            }
            torn = torn && (lines.is_empty() || sink.write(b"\n").is_err());
            if torn || sink.write(&lines).is_err() {
                torn = true;
                let count = memchr::memchr_iter(b'\n', &lines).count() as u64;
                self.lost.fetch_add(count, Ordering::Relaxed);
            }
            lines.clear();
            lines.shrink_to(4 * FLUSH_SIZE);
            if closed {
                return;
            }
        }
    }
}

enum Sink {
    Stdout,
    File(File, PathBuf),
}

impl Sink {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Sink::Stdout => io::stdout().lock().write_all(lines).and_then(|()| io::stdout().flush()),
            Sink::File(file, _) => file.write_all(lines),
        }
    }

    /// Keeps the old file where the new one cannot be opened: no line is dropped for it.
    fn reopen(&mut self) {
        if let Sink::File(file, path) = self
            && let Ok(opened) = append_to(path)
        {
            *file = opened;
        }
    }
}

/// Records name clients and targets: nobody but the owner and the group reads them.
fn append_to(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}
