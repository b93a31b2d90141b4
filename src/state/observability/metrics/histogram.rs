//! A histogram of durations that takes no lock.
//! How many deliveries took how long?

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use data_encoding::HEXLOWER;
use jiff::Timestamp;

use crate::panics::Mutex;
use crate::policy::trace::TraceId;

/// The upper bounds of the buckets in seconds, for every step and the total.
///
/// One set for all keeps the number of series at steps times buckets. 0.5 ms is the time of a signature or a cached
/// name; the bounds up to 1 s grow by 2 to 2.5, so that a quantile is right within that factor; 5, 30 and 120 s are the
/// default timeouts of connect, response and total, so that the share of deliveries within each is exact.
pub(super) const BOUNDS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

#[derive(Debug, Default)]
pub(super) struct DurationHistogram {
    /// The observations of each bucket alone; the last is for those above all bounds.
    counts: [AtomicU64; BOUNDS.len() + 1],
    /// The sum of all observations in nanoseconds.
    sum: AtomicU64,
    /// The last sampled trace of each bucket; `None`: there is none. Only sampled deliveries and scrapes take the lock.
    exemplars: Mutex<Option<Box<Exemplars>>>,
}

type Exemplars = [Option<Exemplar>; BOUNDS.len() + 1];

/// A delivery that a bucket counts.
#[derive(Debug, Clone, Copy)]
struct Exemplar {
    trace_id: TraceId,
    seconds: f64,
    at: Timestamp,
}

impl DurationHistogram {
    /// Counts a duration. `trace_id`: the trace of a sampled delivery.
    pub(super) fn observe(&self, seconds: f64, trace_id: Option<TraceId>) {
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((seconds * 1e9) as u64, Ordering::Relaxed);
        if let Some(trace_id) = trace_id {
            let exemplar = Exemplar { trace_id, seconds, at: Timestamp::now() };
            self.exemplars.lock().get_or_insert_default()[bucket] = Some(exemplar);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.counts.iter().all(|count| count.load(Ordering::Relaxed) == 0)
    }

    /// Writes the series as OpenMetrics. The library's encoder takes no exemplars but those of its own histograms.
    /// `is_total`: each bucket has its exemplar. Otherwise the slowest alone, which bounds a scrape.
    pub(super) fn write(&self, text: &mut String, name: &str, labels: &str, is_total: bool) -> fmt::Result {
        let exemplars = self.exemplars.lock().clone().unwrap_or_default();
        let slowest = exemplars.iter().rposition(Option::is_some);
        // The last bucket equals the count while deliveries go on.
        let mut count = 0;
        for (bucket, exemplar) in exemplars.iter().enumerate() {
            count += self.counts[bucket].load(Ordering::Relaxed);
            let bound = BOUNDS.get(bucket).map_or("+Inf".to_owned(), |bound| format!("{bound:?}"));
            write!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}")?;
            if let Some(Exemplar { trace_id, seconds, at }) = exemplar.filter(|_| is_total || slowest == Some(bucket)) {
                let (id, at) = (HEXLOWER.encode(&trace_id), at.as_millisecond() as f64 / 1e3);
                write!(text, " # {{trace_id=\"{id}\"}} {seconds:?} {at:.3}")?;
            }
            text.push('\n');
        }
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1e9;
        writeln!(text, "{name}_count{{{labels}}} {count}\n{name}_sum{{{labels}}} {sum:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_counts_a_duration_in_the_first_bucket_that_holds_it() {
        let histogram = DurationHistogram::default();
        assert!(histogram.is_empty());
        for seconds in [0.0, 0.0005, 0.0006, 5.0, 120.0, 121.0] {
            histogram.observe(seconds, None);
        }
        let counts: Vec<u64> = histogram.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1]);
        assert_eq!(histogram.sum.load(Ordering::Relaxed), 246_001_100_000);
    }
}
