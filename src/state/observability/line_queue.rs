//! A bounded queue of text lines, which one thread writes to a destination.
//! How does outgate write a line without a wait of the caller?
//!
//! The queue is lossy: where the disk hangs or the pipe is full, lines beyond the bound are dropped and counted. The
//! destination gets one line about them once it can be written again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::panics::CriticalSection;
use crate::state::observability::delivery_line::{Gap, GapLine};
use crate::state::observability::line_sink::{LineSink, WriteError, count_lines};

/// The capacity that the buffer keeps after a burst, in bytes.
const CAPACITY_KEPT: usize = 256 * 1024;

/// The interval between two attempts to write a gap while no line waits.
const GAP_RETRY: Duration = Duration::from_secs(1);

/// The report of lost lines.
pub(in crate::state) enum LossReporting {
    /// Counts them with those of other destinations. Once lines can be written again, this destination gets a line of JSON
    /// about the gap.
    Gap { losses: Arc<Losses>, destination: String },
    /// Once lines can be written again, the writer calls this with the number of lines lost since the last call.
    Call(fn(u64)),
}

/// The lines that the successive destinations of one log have lost.
#[derive(Default)]
pub struct Losses(Mutex<LossSummary>);

#[derive(Default)]
struct LossSummary {
    count: u64,
    /// The cause of the last loss, after the name of its destination.
    cause: String,
}

impl Losses {
    pub(in crate::state) fn count(&self) -> u64 {
        self.0.lock().count
    }

    pub(in crate::state) fn cause(&self) -> String {
        self.0.lock().cause.clone()
    }
}

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
    config: LineQueueConfig,
    reporting: LossReporting,
    queue: Mutex<PendingLines>,
    wake: Condvar,
    /// Notified when the queue is empty and no write is under way.
    drained: Condvar,
    /// The sink has been open once.
    is_open: AtomicBool,
    losses: Mutex<QueueLosses>,
}

/// The lines that the queue has lost.
#[derive(Default)]
struct QueueLosses {
    count: u64,
    /// The lost lines that the destination has a gap for, or whose number the writer has reported.
    reported: u64,
    /// The write error of the last loss; `None`: the queue was full.
    error: Option<String>,
    /// The time of the first loss that is not reported.
    lost_since: Option<Timestamp>,
}

#[derive(Default)]
struct PendingLines {
    lines: Vec<u8>,
    is_writing: bool,
    closed: bool,
}

impl LineQueue {
    /// A queue without a writer: lines wait until [`LineQueue::drain`].
    pub(in crate::state) fn in_memory(config: LineQueueConfig, reporting: LossReporting) -> Self {
        let shared = LineQueueInner {
            config,
            reporting,
            queue: Mutex::default(),
            wake: Condvar::new(),
            drained: Condvar::new(),
            is_open: AtomicBool::new(false),
            losses: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Starts the writer, a thread called `name`. The writer opens the sink first, and the receiver gets the outcome. After
    /// an error, the writer tries again for each batch, until the queue is dropped.
    pub(in crate::state) fn open(
        name: &str,
        config: LineQueueConfig,
        mut sink: Box<dyn LineSink>,
        reporting: LossReporting,
    ) -> io::Result<(Self, oneshot::Receiver<io::Result<()>>)> {
        let lines = Self::in_memory(config, reporting);
        let shared = Arc::clone(&lines.shared);
        let (outcome, opened) = oneshot::channel();
        let write = move || {
            if let Err(late) = outcome.send(sink.open()) {
                report_late(&*sink, &late);
            }
            shared.is_open.store(sink.is_open(), Ordering::Relaxed);
            shared.write_out(sink);
        };
        std::thread::Builder::new().name(name.into()).spawn(write)?;
        Ok((lines, opened))
    }

    /// Appends whole lines, each with its line feed, unless the queue is full. Never blocks on the sink.
    pub(in crate::state) fn push(&self, text: &[u8]) {
        let _section = CriticalSection::enter();
        let mut queue = self.shared.queue.lock();
        let (before, config) = (queue.lines.len(), &self.shared.config);
        if queue.closed || before > config.backlog_max {
            let error = queue.closed.then(|| "it was closed".to_owned());
            drop(queue);
            return self.shared.lose(error, count_lines(text));
        }
        queue.lines.extend_from_slice(text);
        let is_due = before < config.flush_size && queue.lines.len() >= config.flush_size;
        drop(queue);
        if is_due {
            self.shared.wake.notify_one();
        }
    }

    /// Returns whether the sink has been open once. The queue of a process that takes the lines itself has none.
    pub(in crate::state) fn is_open(&self) -> bool {
        self.shared.is_open.load(Ordering::Relaxed)
    }

    /// Returns the number of lines that could not be written.
    pub(in crate::state) fn lost_count(&self) -> u64 {
        self.shared.losses.lock().count
    }

    /// Returns the number of lines lost since lines were written again.
    pub(in crate::state) fn unreported(&self) -> u64 {
        let losses = self.shared.losses.lock();
        losses.count - losses.reported
    }

    pub(in crate::state) fn drain(&self) -> Vec<u8> {
        std::mem::take(&mut self.shared.queue.lock().lines)
    }

    /// Waits until all lines are written, for at most `patience`.
    pub(in crate::state) fn flush(&self, patience: Duration) {
        self.shared.wait_until_drained(self.shared.queue.lock(), patience);
    }

    /// Appends the last line of a process that a panic ends, and waits until all lines are written. Returns `false` if they
    /// are not: the thread that panicked may hold the lock of the queue, or be its writer.
    pub(in crate::state) fn push_last(&self, line: &[u8], patience: Duration) -> bool {
        let Some(mut queue) = self.shared.queue.try_lock_for(patience) else { return false };
        queue.lines.extend_from_slice(line);
        self.shared.wait_until_drained(queue, patience)
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
    /// Waits until all lines are written, for at most `patience`. Returns whether they are.
    fn wait_until_drained(&self, mut queue: MutexGuard<'_, PendingLines>, patience: Duration) -> bool {
        self.wake.notify_one();
        let is_busy = |queue: &mut PendingLines| queue.is_writing || !queue.lines.is_empty();
        !self.drained.wait_while_for(&mut queue, is_busy, patience).timed_out()
    }

    fn write_out(&self, mut sink: Box<dyn LineSink>) {
        let mut lines = Vec::new();
        let mut gap_due = Instant::now();
        loop {
            let mut queue = self.queue.lock();
            if !queue.closed && queue.lines.len() < self.config.flush_size {
                self.wake.wait_for(&mut queue, self.config.flush_after);
            }
            std::mem::swap(&mut lines, &mut queue.lines);
            let closed = queue.closed;
            queue.is_writing = !lines.is_empty();
            drop(queue);
            sink.maintain();
            let mut written = Ok(());
            let has_gaps = matches!(self.reporting, LossReporting::Gap { .. });
            if has_gaps && (!lines.is_empty() || closed || Instant::now() >= gap_due) {
                gap_due = Instant::now() + GAP_RETRY;
                written = self.write_gap(&mut *sink).map_err(|error| WriteError::of_all(&lines, error));
            }
            if written.is_ok() && !lines.is_empty() {
                written = sink.write(&lines);
                self.is_open.fetch_or(written.is_ok(), Ordering::Relaxed);
                if let (LossReporting::Call(report), Ok(())) = (&self.reporting, &written) {
                    self.report(*report);
                }
            }
            if let Err(WriteError { error, lost }) = written {
                self.lose(Some(error.to_string()), lost);
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

    /// Counts lost lines. `error`: the sink could not be written; otherwise the queue was full.
    fn lose(&self, error: Option<String>, lines: u64) {
        let mut own = self.losses.lock();
        if lines > 0 {
            own.lost_since.get_or_insert_with(Timestamp::now);
            own.count += lines;
        }
        if let (LossReporting::Gap { losses, destination }, true) = (&self.reporting, lines > 0) {
            let mut all = losses.0.lock();
            all.count += lines;
            all.cause = match &error {
                Some(error) => format!("{destination} cannot be written: {error}"),
                None => format!(
                    "{destination} does not accept them fast enough: more than {} MiB wait",
                    self.config.backlog_max >> 20
                ),
            };
        }
        own.error = error; // the sink may have failed before: this loss may have another cause
    }

    /// Writes a line about the lost lines, if there are any that the destination has no such line for.
    fn write_gap(&self, sink: &mut dyn LineSink) -> io::Result<()> {
        let (lost, gap, now) = {
            let losses = self.losses.lock();
            let more = losses.count - losses.reported;
            if more == 0 {
                return Ok(());
            }
            let now = Timestamp::now();
            let why = losses.error.clone().unwrap_or_else(|| {
                format!("records came faster than they could be written: {} MiB waited", self.config.backlog_max >> 20)
            });
            (losses.count, Gap { lost: more, since: losses.lost_since.unwrap_or(now), until: now, why }, now)
        };
        sink.write(&GapLine { time: now, gap }.to_line()?).map_err(|failed| failed.error)?;
        let mut losses = self.losses.lock();
        losses.reported = lost;
        losses.lost_since = (losses.count > lost).then_some(now);
        Ok(())
    }

    fn report(&self, report: fn(u64)) {
        let mut losses = self.losses.lock();
        let more = losses.count - losses.reported;
        losses.reported = losses.count;
        drop(losses);
        if more > 0 {
            report(more);
        }
    }
}

/// Logs the outcome of an open for which the start did not wait.
fn report_late(sink: &dyn LineSink, opened: &io::Result<()>) {
    let Some(path) = sink.path() else { return };
    match opened {
        Ok(()) => info!("{} is open: delivery records are written", path.display()),
        Err(error) => warn!(
            "cannot open {}: {error}; delivery records are lost until outgate can open it, and outgate tries again \
             for each batch",
            path.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sink that cannot be opened or written.
    struct BrokenSink;

    impl LineSink for BrokenSink {
        fn open(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
        fn is_open(&self) -> bool {
            false
        }
        fn write(&mut self, lines: &[u8]) -> Result<(), WriteError> {
            Err(WriteError::of_all(lines, io::ErrorKind::PermissionDenied.into()))
        }
    }

    const CONFIG: fn() -> LineQueueConfig =
        || LineQueueConfig { backlog_max: 1 << 20, flush_size: 1, flush_after: Duration::from_millis(1) };

    fn reporting(losses: &Arc<Losses>, destination: &str) -> LossReporting {
        LossReporting::Gap { losses: Arc::clone(losses), destination: destination.to_owned() }
    }

    #[test]
    fn line_queue_counts_lines_that_are_pushed_after_the_close_as_lost() {
        let losses = Arc::default();
        let lines = LineQueue::in_memory(CONFIG(), reporting(&losses, "a"));
        lines.push(b"written\n");
        lines.close(Duration::ZERO);
        lines.push(b"one\ntwo\n");
        assert_eq!((lines.lost_count(), losses.count(), lines.drain()), (2, 2, b"written\n".to_vec()));
        assert_eq!(losses.cause(), "a cannot be written: it was closed");
    }

    /// The wait for the outcome may end at the moment in which the outcome arrives.
    #[test]
    fn line_queue_whose_outcome_of_opening_is_not_read_counts_its_losses() {
        let losses = Arc::default();
        let (lines, _unread) =
            LineQueue::open("test", CONFIG(), Box::new(BrokenSink), reporting(&losses, "a")).unwrap();
        lines.push(b"one\n");
        lines.flush(Duration::from_secs(60));
        assert_eq!((lines.lost_count(), losses.cause()), (1, "a cannot be written: permission denied".to_owned()));
    }

    #[test]
    fn losses_of_a_replaced_destination_count_after_the_replacement() {
        let losses = Arc::default();
        let queues = ["a", "b"].map(|name| LineQueue::in_memory(CONFIG(), reporting(&losses, name)));
        queues[1].shared.lose(Some("no space".to_owned()), 1);
        queues[0].shared.lose(Some("no space".to_owned()), 1);
        assert_eq!((losses.count(), losses.cause()), (2, "a cannot be written: no space".to_owned()));
    }
}
