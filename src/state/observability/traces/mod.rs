//! The spans of sampled deliveries: a queue, and a task that sends them to the collector.
//! Which deliveries are sampled, and what happens to their spans while the collector is away?

mod export;
mod otlp;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderName;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use self::export::ExportError;
use crate::config::Traces;
use crate::http_message::Fields;
use crate::panics::Mutex;
use crate::policy::trace::{ParentSpan, TraceContext};
use crate::state::Runtime;
use crate::state::counters::PeriodCounter;
#[cfg(any(test, fuzzing))]
pub use otlp::otlp_responses;
pub use otlp::{Message, SpanKind};

pub static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// The deliveries whose spans wait. The spans of further ones are dropped and counted.
const QUEUE_MAX: usize = 2048;
/// The deliveries whose spans are one request.
const BATCH_MAX: usize = 256;
/// The longest wait of the spans of fewer deliveries.
const FLUSH_AFTER: Duration = Duration::from_secs(1);
/// The pause before a request is sent again. It doubles up to the maximum.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// The interval between two log lines about a collector that does not take spans.
const REPORT_EVERY: Duration = Duration::from_secs(60);

#[derive(Default)]
pub struct TraceExporter {
    /// The spans of one delivery each.
    queue: Mutex<VecDeque<Vec<Message>>>,
    /// Notified for the first delivery, for a whole batch, and for the close.
    wake: Notify,
    is_closed: AtomicBool,
    pub dropped: AtomicU64,
    /// The traces that callers have sampled, by the second of Unix time in which they began.
    callers: PeriodCounter,
}

impl TraceExporter {
    /// Returns the place of a delivery in the trace that its fields name, or in a new one. More than one `traceparent` is
    /// an invalid one.
    pub fn context(&self, settings: &Traces, fields: &Fields, random: [u64; 3]) -> TraceContext {
        let mut values = fields.get_all(&TRACEPARENT);
        let only = values.next().filter(|_| values.next().is_none());
        let parent = only.and_then(|value| ParentSpan::parse(value.to_str().ok()?));
        let is_sampled = match parent {
            Some(parent) => parent.is_sampled() && self.admits_caller(settings.callers_max),
            None => TraceContext::is_in_share(random, settings.sample),
        };
        TraceContext::new(parent, random, is_sampled)
    }

    /// Counts a trace that a caller has sampled. Returns `false` once this second has as many as it may.
    fn admits_caller(&self, max: u32) -> bool {
        self.callers.increment(Timestamp::now().as_second() as u32, max)
    }

    /// Queues the spans of a delivery. Never waits.
    pub fn push(&self, spans: Vec<Message>) {
        let mut queue = self.queue.lock();
        if queue.len() >= QUEUE_MAX {
            self.dropped.fetch_add(spans.len() as u64, Ordering::Relaxed);
            return;
        }
        queue.push_back(spans);
        if matches!(queue.len(), 1 | BATCH_MAX) {
            self.wake.notify_one();
        }
    }

    /// Sends what waits once, without waiting for more.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        self.wake.notify_one();
    }

    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed)
    }

    fn next_batch(&self) -> Option<Vec<Message>> {
        let mut queue = self.queue.lock();
        let count = queue.len().min(BATCH_MAX);
        (count > 0).then(|| queue.drain(..count).flatten().collect())
    }
}

/// Sends spans to the collector of the active configuration, until the exporter is closed.
pub async fn run(runtime: Arc<Runtime>) {
    let (exporter, mut reported) = (&runtime.traces, None);
    let mut is_closed = false;
    while !is_closed {
        exporter.wake.notified().await;
        if !exporter.is_closed() {
            let _ = timeout(FLUSH_AFTER, exporter.wake.notified()).await;
        }
        is_closed = exporter.is_closed(); // before the queue is read: what is pushed before the close is sent
        while let Some(spans) = exporter.next_batch() {
            let count = spans.len() as u64;
            let dropped = export(&runtime, &otlp::request(&spans), &mut reported).await.unwrap_or(count).min(count);
            exporter.dropped.fetch_add(dropped, Ordering::Relaxed);
            runtime.metrics.spans_exported.inc_by(count - dropped);
        }
    }
}

/// Sends spans until the collector has taken or refused them. Returns the number of spans that it rejected; `None`: all.
/// `reported`: the time of the last log line about it, while it does not take spans.
async fn export(runtime: &Runtime, message: &[u8], reported: &mut Option<Instant>) -> Option<u64> {
    let mut backoff = BACKOFF_MIN;
    loop {
        let active = runtime.active_config();
        // A reload may have switched traces off.
        let settings = active.plan.traces.as_ref()?;
        let url = &settings.endpoint.value;
        let sent = timeout(settings.timeout, export::send(&active, settings, message)).await;
        let late = || Err(std::io::Error::other(format!("no response within {:?}", settings.timeout)).into());
        let ExportError { reason, is_retryable, retry_after } = match sent.unwrap_or_else(|_| late()) {
            Ok(rejected) => {
                if reported.take().is_some() {
                    info!("the collector {url} takes spans again");
                }
                return Some(rejected);
            }
            Err(error) => error,
        };
        if reported.is_none_or(|reported| reported.elapsed() >= REPORT_EVERY) {
            *reported = Some(Instant::now());
            warn!(
                "cannot send spans to the collector {url}: {reason}; deliveries go on, and outgate drops spans while those \
                 of {QUEUE_MAX} deliveries wait (outgate_spans_dropped_total): check traces.endpoint and the collector"
            );
        }
        if !is_retryable || runtime.traces.is_closed() {
            return None;
        }
        sleep(retry_after.unwrap_or_default().max(backoff)).await;
        backoff = BACKOFF_MAX.min(2 * backoff);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_that_callers_sample_are_bounded_in_a_second() {
        let exporter = TraceExporter::default();
        let admitted = (0..1000).filter(|_| exporter.admits_caller(100)).count();
        // The second may change once meanwhile.
        assert!((100..=200).contains(&admitted), "{admitted}");
        assert!(!exporter.admits_caller(0));
    }

    #[test]
    fn trace_queue_is_bounded_and_counts_the_spans_that_it_drops() {
        let exporter = TraceExporter::default();
        let trace = TraceContext::new(None, [1, 2, 3], true);
        let spans = || (0..3).map(|n| Message::span(&trace, n, "x", SpanKind::Internal, (0, 0))).collect();
        (0..QUEUE_MAX + 2).for_each(|_| exporter.push(spans()));
        assert_eq!(
            (exporter.dropped.load(Ordering::Relaxed), exporter.next_batch().unwrap().len()),
            (6, 3 * BATCH_MAX)
        );
    }
}
