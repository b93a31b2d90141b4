//! Where delivery records go: lines appended to a buffer that a thread of its own writes out.
//! How does evidence reach the disk without holding up a delivery?

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Serialize;
use tracing::warn;

use crate::config::DeliveryLog;
use crate::state::observability::line_queue::{self, LineQueue, LineQueueConfig, LineSink};

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

/// Between two lines of the log about lost records.
const REPORT_EVERY: Duration = Duration::from_secs(60);

thread_local! {
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub struct Records {
    to: ArcSwap<RecordDestination>,
    /// Records that were lost on their way to former destinations.
    lost_before: AtomicU64,
    reported: Mutex<LossReport>,
}

/// The open sink of records.
pub struct RecordDestination {
    deliveries: DeliveryLog,
    /// `None`: they are off.
    lines: Option<LineQueue>,
}

/// The lost records that the log has reported.
#[derive(Default)]
struct LossReport {
    lost: u64,
    at: Option<Instant>,
}

impl LossReport {
    /// How many more were lost, if that is to be reported now.
    fn due(&mut self, lost: u64, now: Instant) -> Option<u64> {
        let more = lost.saturating_sub(self.lost);
        let is_due = more > 0 && self.at.is_none_or(|at| now.duration_since(at) >= REPORT_EVERY);
        is_due.then(|| {
            *self = Self { lost, at: Some(now) };
            more
        })
    }
}

/// Whether records could be written; what is not there is not created.
pub fn probe(deliveries: &DeliveryLog) -> io::Result<()> {
    match deliveries {
        DeliveryLog::File(path) => line_queue::probe(path),
        DeliveryLog::Stdout | DeliveryLog::Off => Ok(()),
    }
}

impl RecordDestination {
    /// Waits for [`OPEN_PATIENCE`] until the file is open. A disk that takes longer holds up no start: the records wait
    /// for it in their backlog.
    pub async fn open(deliveries: &DeliveryLog) -> io::Result<Self> {
        let (sink, name) = match deliveries {
            DeliveryLog::Off => return Ok(Self { deliveries: DeliveryLog::Off, lines: None }),
            DeliveryLog::Stdout => (LineSink::stdout()?, "standard output".to_owned()),
            DeliveryLog::File(path) => (LineSink::append_to(path), path.display().to_string()),
        };
        let (lines, opened) = LineQueue::open("records", pace(), sink, |_| {})?;
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
        Ok(Self { deliveries: deliveries.clone(), lines: Some(lines) })
    }

    fn name(&self) -> String {
        match &self.deliveries {
            DeliveryLog::File(path) => path.display().to_string(),
            DeliveryLog::Stdout | DeliveryLog::Off => "stdout".to_owned(),
        }
    }

    fn lost(&self) -> u64 {
        self.lines.as_ref().map_or(0, LineQueue::lost_count)
    }

    /// Says that it has lost `more` records, of `lost` since the start.
    fn loss(&self, more: u64, lost: u64) -> String {
        let why = match self.lines.as_ref().and_then(LineQueue::write_fault) {
            Some(fault) => format!("cannot be written: {fault}"),
            None => format!("does not take them fast enough: more than {} MiB wait", BACKLOG_MAX >> 20),
        };
        format!("{more} delivery records were lost ({lost} since the start): {} {why}", self.name())
    }
}

impl Records {
    pub fn new(to: RecordDestination) -> Self {
        Self { to: ArcSwap::from_pointee(to), lost_before: AtomicU64::new(0), reported: Mutex::default() }
    }

    /// Writes to another destination from now on. Records that wait for the former one are still written there. Logs what
    /// the former one has lost, for later reports name the new one.
    pub fn replace(&self, to: RecordDestination) {
        // Locked first: a report meanwhile would blame the new destination.
        let mut reported = self.reported.lock();
        let former = self.to.swap(Arc::new(to));
        let lost = self.lost_before.fetch_add(former.lost(), Ordering::Relaxed) + former.lost();
        reported.at = None;
        if let Some(more) = reported.due(lost, Instant::now()) {
            warn!("{}", former.loss(more, lost));
        }
        reported.at = None;
    }

    pub fn go_to(&self, deliveries: &DeliveryLog) -> bool {
        self.to.load().deliveries == *deliveries
    }

    /// For a process that delivers by itself: lines wait until they are taken.
    pub fn kept() -> Self {
        Self::new(RecordDestination { deliveries: DeliveryLog::Stdout, lines: Some(LineQueue::kept(pace())) })
    }

    /// The lines that are kept and nobody has written out.
    pub fn drain(&self) -> Vec<u8> {
        self.to.load().lines.as_ref().map(LineQueue::drain).unwrap_or_default()
    }

    pub fn is_on(&self) -> bool {
        self.to.load().lines.is_some()
    }

    pub fn write(&self, line: &impl Serialize) {
        let to = self.to.load();
        let Some(lines) = &to.lines else { return };
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
        self.to.load().lines.as_ref().is_some_and(|lines| !lines.is_open())
    }

    /// Records that could not be kept.
    pub fn lost_count(&self) -> u64 {
        self.to.load().lost() + self.lost_before.load(Ordering::Relaxed)
    }

    /// Those of them that were lost since records could last be written where they go now.
    pub fn lost_since_recovery(&self) -> u64 {
        self.to.load().lines.as_ref().map_or(0, LineQueue::unreported)
    }

    /// Opens the file anew: it was rotated away.
    pub fn reopen(&self) {
        if let Some(lines) = &self.to.load().lines {
            lines.reopen();
        }
    }

    /// Tries again what failed.
    pub fn retry_reopen(&self) {
        if let Some(lines) = &self.to.load().lines {
            lines.retry_reopen();
        }
    }

    /// Says that records go to a file that is no longer at its path.
    pub fn reopen_fault(&self) -> Option<String> {
        let to = self.to.load();
        let (fault, path) = (to.lines.as_ref()?.reopen_fault()?, to.name());
        Some(format!("cannot reopen {path}: {fault}; delivery records still go to the file that was open before"))
    }

    /// The same at the end of the process, which does not wait for the minute.
    pub fn last_loss(&self) -> Option<String> {
        self.reported.lock().at = None;
        self.loss_due(Instant::now())
    }

    /// A line for the log, once a minute while records are lost.
    pub fn loss_due(&self, now: Instant) -> Option<String> {
        let mut reported = self.reported.lock();
        let lost = self.lost_count();
        let more = reported.due(lost, now)?;
        Some(self.to.load().loss(more, lost))
    }

    /// Waits until the records so far are written, for [`CLOSE_PATIENCE`] at most.
    pub fn flush(&self) {
        if let Some(lines) = &self.to.load().lines {
            lines.flush(CLOSE_PATIENCE);
        }
    }

    /// Writes out what is left. Later lines are lost.
    pub fn close(&self) {
        if let Some(lines) = &self.to.load().lines {
            lines.close(CLOSE_PATIENCE);
        }
    }
}

fn pace() -> LineQueueConfig {
    LineQueueConfig { backlog_max: BACKLOG_MAX, flush_size: FLUSH_SIZE, flush_after: FLUSH_AFTER }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_records_are_reported_once_a_minute_with_their_count() {
        let (mut reported, start) = (LossReport::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(reported.due(0, at(0)), None);
        assert_eq!(reported.due(3, at(1)), Some(3));
        assert_eq!(reported.due(5, at(6)), None);
        assert_eq!(reported.due(9, at(61)), Some(6));
        assert_eq!(reported.due(9, at(200)), None);
        assert_eq!(reported.due(10, at(205)), Some(1));
    }
}
