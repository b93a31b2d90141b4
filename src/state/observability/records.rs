//! The delivery log: lines in a buffer, which one thread writes to the destination, and in a ring.
//! How does a record reach the disk without delaying a delivery?

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Serialize;
use tracing::warn;

use crate::config::{DeliveryLog, Log, SampleRate};
use crate::state::observability::file_log::{self, FileLog, RotationState};
use crate::state::observability::line_queue::{LineQueue, LineQueueConfig, LossReporting};
use crate::state::observability::line_sink::{self, JournalSink, LineSink, StreamSink};
use crate::state::observability::recent::RecentDeliveries;

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
    /// The share of successes that the log has: a [`SampleRate`].
    sample: AtomicU32,
    pub recent: RecentDeliveries,
}

/// Whether the log has a record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    pub is_kept: bool,
    /// The share of records of this kind that the log has. `None`: it has all of them.
    pub rate: Option<f64>,
}

impl Sampling {
    /// The sampling of refusals and of deliveries that were not complete: the log has all of them.
    pub const ALWAYS: Self = Self { is_kept: true, rate: None };

    /// Decides by a hash of the request id: the same id is always in the same sample.
    fn of(request_id: &str, SampleRate(rate): SampleRate) -> Self {
        if rate == SampleRate::ALL.0 {
            return Self::ALWAYS;
        }
        // FNV-1a, mixed by the finalizer of MurmurHash3.
        let hash = request_id
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let share = (((hash ^ (hash >> 33)) >> 32) * u64::from(SampleRate::ALL.0)) >> 32;
        Self { is_kept: share < u64::from(rate), rate: Some(f64::from(rate) / f64::from(SampleRate::ALL.0)) }
    }
}

/// The open sink of records.
pub struct RecordDestination {
    deliveries: DeliveryLog,
    /// `None`: the delivery log is off.
    lines: Option<LineQueue>,
    rotation: Arc<RotationState>,
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
        DeliveryLog::File(path) => file_log::probe(path),
        DeliveryLog::Journald => line_sink::probe_journal(),
        DeliveryLog::Stdout | DeliveryLog::Off => Ok(()),
    }
}

impl RecordDestination {
    /// Opens the destination, and waits for it at most [`OPEN_PATIENCE`]. A slower disk does not delay the start: the
    /// records wait in the queue.
    pub async fn open(log: &Log) -> io::Result<Self> {
        let (deliveries, rotation) = (log.deliveries.value.clone(), Arc::<RotationState>::default());
        rotation.set(log.rotate.as_ref());
        let sink: Box<dyn LineSink> = match &deliveries {
            DeliveryLog::Off => return Ok(Self { deliveries, lines: None, rotation }),
            DeliveryLog::Stdout => Box::new(StreamSink::stdout()?),
            DeliveryLog::Journald => Box::new(JournalSink::default()),
            DeliveryLog::File(path) => Box::new(FileLog::new(path, Arc::clone(&rotation))),
        };
        let (lines, opened) = LineQueue::open("records", pace(), sink, LossReporting::Gap)?;
        let destination = Self { deliveries, lines: Some(lines), rotation };
        match tokio::time::timeout(OPEN_PATIENCE, opened).await {
            Ok(Ok(result)) => result?,
            Ok(Err(_)) => return Err(io::Error::other("its thread has ended")),
            Err(_) => warn!(
                "cannot open the delivery log {} yet: the disk has not responded for {} s; delivery records wait in \
                 memory, up to {} MiB",
                destination.name(),
                OPEN_PATIENCE.as_secs(),
                BACKLOG_MAX >> 20
            ),
        }
        Ok(destination)
    }

    fn name(&self) -> String {
        match &self.deliveries {
            DeliveryLog::File(path) => path.display().to_string(),
            DeliveryLog::Journald => "the journal".to_owned(),
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
            None => format!("does not accept them fast enough: more than {} MiB wait", BACKLOG_MAX >> 20),
        };
        format!("{more} delivery records were lost ({lost} since the start): {} {why}", self.name())
    }
}

impl Records {
    pub fn new(to: RecordDestination) -> Self {
        Self {
            to: ArcSwap::from_pointee(to),
            lost_before: AtomicU64::new(0),
            reported: Mutex::default(),
            sample: AtomicU32::new(SampleRate::ALL.0),
            recent: RecentDeliveries::default(),
        }
    }

    /// Adopts the settings that need no other destination.
    pub fn configure(&self, log: &Log) {
        self.sample.store(log.sample.0, Ordering::Relaxed);
        self.to.load().rotation.set(log.rotate.as_ref());
    }

    /// Returns whether the log has the record of a success.
    pub fn sample(&self, request_id: &str) -> Sampling {
        Sampling::of(request_id, SampleRate(self.sample.load(Ordering::Relaxed)))
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
        let (lines, rotation) = (Some(LineQueue::kept(pace())), Arc::default());
        Self::new(RecordDestination { deliveries: DeliveryLog::Stdout, lines, rotation })
    }

    /// Returns the waiting lines and removes them.
    pub fn drain(&self) -> Vec<u8> {
        self.to.load().lines.as_ref().map(LineQueue::drain).unwrap_or_default()
    }

    /// Writes a record to the ring and, if the sampling keeps it, to the log.
    pub fn write(&self, line: &impl Serialize, sampling: Sampling) {
        let to = self.to.load();
        // The line is serialised before a lock is taken, so other deliveries wait for one copy only.
        LINE.with_borrow_mut(|text| {
            text.clear();
            let written = serde_json::to_writer(&mut *text, line);
            text.push(b'\n');
            match (written, &to.lines) {
                (Ok(()), lines) => {
                    self.recent.push(text);
                    lines.iter().filter(|_| sampling.is_kept).for_each(|lines| lines.push(text));
                }
                (Err(error), Some(lines)) => lines.count_lost(error.to_string()),
                (Err(_), None) => {}
            }
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

    /// Returns the message for finished files of the log that are neither compressed nor deleted.
    pub fn rotation_error(&self) -> Option<String> {
        let to = self.to.load();
        let error = to.rotation.error()?;
        Some(format!("cannot rotate, compress or delete files of {}: {error}; records are still written", to.name()))
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
    fn sampling_keeps_its_share_of_ids_and_always_the_same_ones() {
        let kept = |rate: u32| {
            let ids = (0..20_000).map(|number: u64| format!("{:016x}{number:08x}", number.wrapping_mul(0x9e37_79b9)));
            ids.filter(|id| Sampling::of(id, SampleRate(rate)).is_kept).collect::<std::collections::BTreeSet<_>>()
        };
        let (none, tenth, half) = (kept(0), kept(1000), kept(5000));
        assert!(none.is_empty() && kept(10_000).len() == 20_000);
        assert!((1800..2200).contains(&tenth.len()), "{}", tenth.len());
        assert!(tenth.is_subset(&half) && (9500..10_500).contains(&half.len()), "{}", half.len());
        assert_eq!(Sampling::of("a", SampleRate(2500)).rate, Some(0.25));
        assert_eq!(Sampling::of("a", SampleRate::ALL), Sampling::ALWAYS);
    }

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
