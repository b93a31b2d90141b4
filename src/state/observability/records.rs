//! The delivery log: lines in a buffer, which one thread writes to the destination.
//! How does a record reach the disk without delaying a delivery?

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

/// The bytes that wait for a disk that hangs. Further records are lost, counted and reported.
const BACKLOG_MAX: usize = 64 * 1024 * 1024;
/// The writer writes waiting lines after this time, or as soon as [`FLUSH_SIZE`] bytes wait.
const FLUSH_AFTER: Duration = Duration::from_millis(50);
const FLUSH_SIZE: usize = 64 * 1024;
/// The longest wait of the start for the file to open.
const OPEN_PATIENCE: Duration = Duration::from_secs(1);
/// The longest wait for the last lines when the process ends: a reader that does not read, or a disk that hangs, must
/// not keep the process alive.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// The interval between two log lines about lost records.
const REPORT_EVERY: Duration = Duration::from_secs(60);

thread_local! {
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub struct Records {
    to: ArcSwap<RecordDestination>,
    /// The number of records that former destinations lost.
    lost_before: AtomicU64,
    reported: Mutex<LossReport>,
}

/// The open sink of records.
pub struct RecordDestination {
    deliveries: DeliveryLog,
    /// `None`: the delivery log is off.
    lines: Option<LineQueue>,
}

/// The lost records that the log has reported.
#[derive(Default)]
struct LossReport {
    lost: u64,
    at: Option<Instant>,
}

impl LossReport {
    /// Returns the number of records lost since the last report, if a report is due.
    fn due(&mut self, lost: u64, now: Instant) -> Option<u64> {
        let more = lost.saturating_sub(self.lost);
        let is_due = more > 0 && self.at.is_none_or(|at| now.duration_since(at) >= REPORT_EVERY);
        is_due.then(|| {
            *self = Self { lost, at: Some(now) };
            more
        })
    }
}

/// Checks that records can be written. Creates nothing.
pub fn probe(deliveries: &DeliveryLog) -> io::Result<()> {
    match deliveries {
        DeliveryLog::File(path) => line_queue::probe(path),
        DeliveryLog::Stdout | DeliveryLog::Off => Ok(()),
    }
}

impl RecordDestination {
    /// Opens the destination, and waits for it at most [`OPEN_PATIENCE`]. A slower disk does not delay the start: the
    /// records wait in the queue.
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

    /// Returns the log line for `more` lost records, of `lost` since the start.
    fn loss(&self, more: u64, lost: u64) -> String {
        let why = match self.lines.as_ref().and_then(LineQueue::write_error) {
            Some(error) => format!("cannot be written: {error}"),
            None => format!("does not take them fast enough: more than {} MiB wait", BACKLOG_MAX >> 20),
        };
        format!("{more} delivery records were lost ({lost} since the start): {} {why}", self.name())
    }
}

impl Records {
    pub fn new(to: RecordDestination) -> Self {
        Self { to: ArcSwap::from_pointee(to), lost_before: AtomicU64::new(0), reported: Mutex::default() }
    }

    /// Replaces the destination. Records that wait for the former one are still written there. Logs the former one's
    /// losses, because later reports name the new one.
    pub fn replace(&self, to: RecordDestination, now: Instant) {
        // Locked first: a report meanwhile would blame the new destination.
        let mut reported = self.reported.lock();
        let former = self.to.swap(Arc::new(to));
        let lost_by_former = former.lost();
        let lost = self.lost_before.fetch_add(lost_by_former, Ordering::Relaxed) + lost_by_former;
        reported.at = None;
        if let Some(more) = reported.due(lost, now) {
            warn!("{}", former.loss(more, lost));
        }
        reported.at = None;
    }

    pub fn go_to(&self, deliveries: &DeliveryLog) -> bool {
        self.to.load().deliveries == *deliveries
    }

    /// Returns the log of a command that delivers by itself: lines wait until [`Records::drain`].
    pub fn kept() -> Self {
        Self::new(RecordDestination { deliveries: DeliveryLog::Stdout, lines: Some(LineQueue::kept(pace())) })
    }

    /// Returns the waiting lines and removes them.
    pub fn drain(&self) -> Vec<u8> {
        self.to.load().lines.as_ref().map(LineQueue::drain).unwrap_or_default()
    }

    pub fn is_on(&self) -> bool {
        self.to.load().lines.is_some()
    }

    pub fn write(&self, line: &impl Serialize) {
        let to = self.to.load();
        let Some(lines) = &to.lines else { return };
        // The line is serialised before the lock is taken, so other deliveries wait for one copy only.
        LINE.with_borrow_mut(|text| {
            text.clear();
            let is_written = serde_json::to_writer(&mut *text, line).is_ok();
            text.push(b'\n');
            if is_written { lines.push(text) } else { lines.count_lost(1) }
        });
    }

    /// Returns whether the file has not been opened yet.
    pub fn is_waiting_for_file(&self) -> bool {
        self.to.load().lines.as_ref().is_some_and(|lines| !lines.is_open())
    }

    /// Returns the number of records lost since the start.
    pub fn lost_count(&self) -> u64 {
        self.to.load().lost() + self.lost_before.load(Ordering::Relaxed)
    }

    /// Returns the number of records lost since the last write to the present destination that succeeded.
    pub fn lost_since_recovery(&self) -> u64 {
        self.to.load().lines.as_ref().map_or(0, LineQueue::unreported)
    }

    /// Reopens the file, which was rotated.
    pub fn reopen(&self) {
        if let Some(lines) = &self.to.load().lines {
            lines.reopen();
        }
    }

    /// Retries a reopening that failed.
    pub fn retry_reopen(&self) {
        if let Some(lines) = &self.to.load().lines {
            lines.retry_reopen();
        }
    }

    /// Returns the message for a file that is no longer at its path and could not be reopened.
    pub fn reopen_error(&self) -> Option<String> {
        let to = self.to.load();
        let (error, path) = (to.lines.as_ref()?.reopen_error()?, to.name());
        Some(format!("cannot reopen {path}: {error}; delivery records still go to the file that was open before"))
    }

    /// Returns the last report of lost records when the process ends, without waiting for the interval.
    pub fn last_loss(&self, now: Instant) -> Option<String> {
        self.reported.lock().at = None;
        self.loss_due(now)
    }

    /// Returns a report of lost records, at most once in [`REPORT_EVERY`].
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

    /// Writes the waiting records. Later records are lost.
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
