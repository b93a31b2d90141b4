//! A histogram of durations that takes no lock.
//! How many deliveries took how long?

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};

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
}

impl DurationHistogram {
    pub(super) fn observe(&self, seconds: f64) {
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((seconds * 1e9) as u64, Ordering::Relaxed);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.counts.iter().all(|count| count.load(Ordering::Relaxed) == 0)
    }

    /// Writes the series. The encoder takes exemplars as its last argument, and writes them for OpenMetrics only.
    pub(super) fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        // The sum of the counts that were read, so that the last bucket equals it while deliveries go on.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1e9;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
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
            histogram.observe(seconds);
        }
        let counts: Vec<u64> = histogram.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1]);
        assert_eq!(histogram.sum.load(Ordering::Relaxed), 246_001_100_000);
    }
}
