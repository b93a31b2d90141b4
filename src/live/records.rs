//! Where delivery records go: lines appended to a buffer that a thread of its own writes out.
//! How does evidence reach the disk without holding up a delivery?

use std::cell::RefCell;
use std::io;
use std::time::Duration;

use serde::Serialize;
use tracing::warn;

use super::lines::{Lines, Pace, Sink};
use crate::config::Deliveries;

/// What may wait for a disk that hangs; beyond it lines are lost, counted and reported.
const BACKLOG_MAX: usize = 64 * 1024 * 1024;
/// Lines are written out at the latest after this long, or when this much has gathered.
const FLUSH_AFTER: Duration = Duration::from_millis(50);
const FLUSH_SIZE: usize = 64 * 1024;
/// How long the start waits for the file to be opened.
const OPEN_PATIENCE: Duration = Duration::from_secs(1);
/// For the last lines to be written when the process ends: a reader that does not read, or a disk that hangs, must not
/// keep the process.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

thread_local! {
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// `None`: they are off.
pub struct Records(Option<Lines>);

impl Records {
    /// Waits for [`OPEN_PATIENCE`] until the file is open. A disk that takes longer holds up no start: the records wait
    /// for it in their backlog.
    pub async fn open(deliveries: &Deliveries) -> io::Result<Self> {
        let (sink, name) = match deliveries {
            Deliveries::Off => return Ok(Self(None)),
            Deliveries::Stdout => (Sink::stdout()?, "standard output".to_owned()),
            Deliveries::File(path) => (Sink::append_to(path), path.display().to_string()),
        };
        let (lines, opened) = Lines::open("records", pace(), sink, |_| {})?;
        match tokio::time::timeout(OPEN_PATIENCE, opened).await {
            Ok(Ok(result)) => result?,
            Ok(Err(_)) => return Err(io::Error::other("its thread has ended")),
            Err(_) => warn!(
                "cannot open the delivery log {name} yet: the disk has not answered for {} s; delivery records wait in \
                 memory, up to {} MiB",
                OPEN_PATIENCE.as_secs(),
                BACKLOG_MAX >> 20
            ),
        }
        Ok(Self(Some(lines)))
    }

    /// For a process that delivers by itself: lines wait until they are taken.
    pub fn kept() -> Self {
        Self(Some(Lines::kept(pace())))
    }

    /// The lines that are kept and nobody has written out.
    pub fn take(&self) -> Vec<u8> {
        self.0.as_ref().map(Lines::take).unwrap_or_default()
    }

    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    pub fn write(&self, line: &impl Serialize) {
        let Some(lines) = &self.0 else { return };
        // Written down before the lock is taken: what the others wait for is one copy.
        LINE.with_borrow_mut(|text| {
            text.clear();
            let is_written = serde_json::to_writer(&mut *text, line).is_ok();
            text.push(b'\n');
            if is_written { lines.push(text) } else { lines.count_lost(1) }
        });
    }

    /// Returns whether records have nowhere to go: the file has not been opened yet.
    pub fn is_waiting_for_file(&self) -> bool {
        self.0.as_ref().is_some_and(|lines| !lines.is_open())
    }

    /// Records that could not be kept.
    pub fn lost(&self) -> u64 {
        self.0.as_ref().map_or(0, Lines::lost)
    }

    pub fn reopen(&self) {
        if let Some(lines) = &self.0 {
            lines.reopen();
        }
    }

    /// Writes out what is left. Later lines are lost.
    pub fn close(&self) {
        if let Some(lines) = &self.0 {
            lines.close(CLOSE_PATIENCE);
        }
    }
}

fn pace() -> Pace {
    Pace { backlog_max: BACKLOG_MAX, flush_size: FLUSH_SIZE, flush_after: FLUSH_AFTER }
}
