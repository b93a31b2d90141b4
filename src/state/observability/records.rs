//! The delivery log: lines in a buffer, which one thread writes to the destination, and in a ring.
//! How does a record reach the disk without delaying a delivery?

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tracing::warn;

use crate::config::{DeliveryLog, Log, SampleRate};
use crate::digest::{leading_number, sha256};
use crate::names::pluralize;
use crate::panics::Mutex;
use crate::state::observability::file_log::{self, FileLog, FileLogState};
use crate::state::observability::line_queue::{LineQueue, LineQueueConfig, LossReporting, Losses};
use crate::state::observability::line_sink::{self, JournalSink, LineSink, StreamSink};
use crate::state::observability::recent::RecentDeliveries;

/// The bytes that wait for a disk that hangs. Further records are lost, counted and reported.
const BACKLOG_MAX: usize = 64 * 1024 * 1024;
/// The writer writes waiting lines after this time, or as soon as [`FLUSH_SIZE`] bytes wait.
const FLUSH_AFTER: Duration = Duration::from_millis(50);
const FLUSH_SIZE: usize = 64 * 1024;
const QUEUE: LineQueueConfig =
    LineQueueConfig { backlog_max: BACKLOG_MAX, flush_size: FLUSH_SIZE, flush_after: FLUSH_AFTER };
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
    /// The records that this destination and former ones lost.
    losses: Arc<Losses>,
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
        let share = leading_number(&sha256(request_id.as_bytes())) % u64::from(SampleRate::ALL.0);
        Self { is_kept: share < u64::from(rate), rate: Some(f64::from(rate) / f64::from(SampleRate::ALL.0)) }
    }
}

/// The open sink of records.
pub struct RecordDestination {
    deliveries: DeliveryLog,
    /// `None`: the delivery log is off.
    lines: Option<LineQueue>,
    file: Arc<FileLogState>,
    losses: Arc<Losses>,
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
    pub async fn open(log: &Log, losses: Arc<Losses>) -> io::Result<Self> {
        let (deliveries, file) = (log.deliveries.value.clone(), Arc::<FileLogState>::default());
        file.set(log.rotate.as_ref());
        let sink: Box<dyn LineSink> = match &deliveries {
            DeliveryLog::Off => return Ok(Self { deliveries, lines: None, file, losses }),
            DeliveryLog::Stdout => Box::new(StreamSink::stdout()?),
            DeliveryLog::Journald => Box::new(JournalSink::default()),
            DeliveryLog::File(path) => Box::new(FileLog::new(path, Arc::clone(&file))),
        };
        let reporting = LossReporting::Gap { losses: Arc::clone(&losses), destination: destination_name(&deliveries) };
        let (lines, mut opened) = LineQueue::open("records", QUEUE, sink, reporting)?;
        let in_time = tokio::time::timeout(OPEN_PATIENCE, &mut opened).await;
        opened.close(); // an outcome that has arrived since can still be received
        match in_time.map_or_else(|_| opened.try_recv().ok(), Result::ok) {
            Some(result) => result?,
            None => warn!(
                "cannot open the delivery log {} yet: the disk has not responded for {} s; delivery records wait in \
                 memory, up to {} MiB",
                destination_name(&deliveries),
                OPEN_PATIENCE.as_secs(),
                BACKLOG_MAX >> 20
            ),
        }
        Ok(Self { deliveries, lines: Some(lines), file, losses })
    }
}

/// Returns the name of a destination in messages.
pub fn destination_name(deliveries: &DeliveryLog) -> String {
    match deliveries {
        DeliveryLog::File(path) => path.display().to_string(),
        DeliveryLog::Journald => "the journal".to_owned(),
        DeliveryLog::Stdout | DeliveryLog::Off => "stdout".to_owned(),
    }
}

impl Records {
    pub fn new(to: RecordDestination) -> Self {
        Self {
            losses: Arc::clone(&to.losses),
            to: ArcSwap::from_pointee(to),
            reported: Mutex::default(),
            sample: AtomicU32::new(SampleRate::ALL.0),
            recent: RecentDeliveries::default(),
        }
    }

    /// Adopts the settings that need no other destination.
    pub fn configure(&self, log: &Log) {
        self.sample.store(log.sample.0, Ordering::Relaxed);
        self.to.load().file.set(log.rotate.as_ref());
    }

    /// Returns whether the log has the record of a success.
    pub fn sample(&self, request_id: &str) -> Sampling {
        Sampling::of(request_id, SampleRate(self.sample.load(Ordering::Relaxed)))
    }

    /// Opens the destination that the configuration names; `None`: records go there already.
    pub async fn open_next(&self, log: &Log) -> io::Result<Option<RecordDestination>> {
        match self.to.load().deliveries == log.deliveries.value {
            true => Ok(None),
            false => RecordDestination::open(log, Arc::clone(&self.losses)).await.map(Some),
        }
    }

    /// Replaces the destination. Records that wait for the former one are still written there. Logs the losses so far,
    /// because later reports may name the new one.
    pub fn replace(&self, to: RecordDestination, now: Instant) {
        if let Some(loss) = self.last_loss(now) {
            warn!("{loss}");
        }
        self.to.store(Arc::new(to));
        self.reported.lock().at = None;
    }

    /// Returns the log of a command that delivers by itself: lines wait until [`Records::drain`].
    pub fn in_memory() -> Self {
        let (losses, destination) = (Arc::<Losses>::default(), "memory".to_owned());
        let lines = LineQueue::in_memory(QUEUE, LossReporting::Gap { losses: Arc::clone(&losses), destination });
        let (deliveries, file) = (DeliveryLog::Stdout, Arc::default());
        Self::new(RecordDestination { deliveries, lines: Some(lines), file, losses })
    }

    /// Returns the waiting lines and removes them.
    pub fn drain(&self) -> Vec<u8> {
        self.to.load().lines.as_ref().map(LineQueue::drain).unwrap_or_default()
    }

    /// Writes a record to the ring and, if the sampling keeps it, to the log. `append` appends the line without its line
    /// feed.
    pub fn write(&self, sampling: Sampling, append: impl FnOnce(&mut Vec<u8>)) {
        let to = self.to.load();
        // The line is written before a lock is taken, so other deliveries wait for one copy only.
        LINE.with_borrow_mut(|text| {
            text.clear();
            append(text);
            text.push(b'\n');
            self.recent.push(text);
            to.lines.iter().filter(|_| sampling.is_kept).for_each(|lines| lines.push(text));
        });
    }

    /// Returns whether the file has not been opened yet.
    pub fn is_waiting_for_file(&self) -> bool {
        self.to.load().lines.as_ref().is_some_and(|lines| !lines.is_open())
    }

    /// Returns the number of records lost since the start.
    pub fn lost_count(&self) -> u64 {
        self.losses.count()
    }

    /// Returns the number of records lost since the last write to the present destination that succeeded.
    pub fn lost_since_recovery(&self) -> u64 {
        self.to.load().lines.as_ref().map_or(0, LineQueue::unreported)
    }

    /// Reopens the file, which was rotated.
    pub fn reopen(&self) {
        self.to.load().file.reopen();
    }

    /// Returns the message for a file that is no longer at its path and could not be reopened.
    pub fn reopen_error(&self) -> Option<String> {
        let to = self.to.load();
        let (error, path) = (to.file.reopen_error()?, destination_name(&to.deliveries));
        Some(format!("cannot reopen {path}: {error}; delivery records still go to the file that was open before"))
    }

    /// Returns the message for finished files of the log that are neither compressed nor deleted.
    pub fn rotation_error(&self) -> Option<String> {
        let to = self.to.load();
        let error = to.file.error()?;
        let path = destination_name(&to.deliveries);
        Some(format!("cannot rotate, compress or delete files of {path}: {error}; records are still written"))
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
        let more = pluralize(more, "delivery record");
        Some(format!("lost {more} ({lost} since the start): {}", self.losses.cause()))
    }

    /// Waits until the records so far are written, for [`CLOSE_PATIENCE`] at most.
    pub fn flush(&self) {
        self.to.load().lines.iter().for_each(|lines| lines.flush(CLOSE_PATIENCE));
    }

    /// Writes the waiting records. Later records are lost.
    pub fn close(&self) {
        self.to.load().lines.iter().for_each(|lines| lines.close(CLOSE_PATIENCE));
    }
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
