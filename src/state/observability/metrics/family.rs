//! A family of metrics, one for each set of labels.
//! How does a scrape read the series without delaying a delivery?
//!
//! `prometheus_client`'s own family is one map behind one lock, which it holds for as long as it writes: with 20,000
//! routes half a second, during which a delivery that needs a new series waits, and behind it all others. Here each of
//! many shards is locked for as long as its entries are copied.

use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};

type MetricMap<L, M> = std::collections::HashMap<L, M, RandomState>;

/// The number of shards: with 100,000 series, the copy of one shard takes a fraction of a millisecond.
const SHARDS: usize = 256;

/// The most series of one family. Each takes at most some 250 bytes of a scrape, so a family takes 125 kB.
pub(super) const SERIES_MAX: usize = 500;

/// Labels of which a family has a bounded number.
pub(super) trait BoundedLabels: Clone + Eq + Hash {
    /// Returns the labels of the series that counts all further ones. Their number is bounded by the code.
    fn overflow(&self) -> Self;
}

/// A family of metrics in shards. Clones share the metrics.
pub(super) struct ShardedFamily<L, M> {
    shards: Arc<[Mutex<MetricMap<L, M>>]>,
    /// The number of series. Deliveries that add one at the same time may exceed the bound by their number.
    count: Arc<AtomicUsize>,
    random: RandomState,
}

impl<L, M> Default for ShardedFamily<L, M> {
    fn default() -> Self {
        let random = RandomState::new();
        let shards = (0..SHARDS).map(|_| Mutex::new(MetricMap::with_hasher(random.clone()))).collect();
        Self { shards, count: Arc::default(), random }
    }
}

impl<L: BoundedLabels, M: Clone + Default> ShardedFamily<L, M> {
    /// Returns the metric with these labels. A full family returns the one that counts all further labels.
    pub(super) fn get(&self, labels: &L) -> M {
        if let Some(metric) = self.shard(labels).lock().get(labels) {
            return metric.clone();
        }
        if self.count.load(Ordering::Relaxed) >= SERIES_MAX { self.add(&labels.overflow()) } else { self.add(labels) }
    }

    fn add(&self, labels: &L) -> M {
        let mut shard = self.shard(labels).lock();
        shard
            .entry(labels.clone())
            .or_insert_with(|| {
                self.count.fetch_add(1, Ordering::Relaxed);
                M::default()
            })
            .clone()
    }

    fn shard(&self, labels: &L) -> &Mutex<MetricMap<L, M>> {
        &self.shards[self.random.hash_one(labels) as usize % SHARDS]
    }

    /// Drops the series for whose labels `is_kept` returns false.
    pub(super) fn retain(&self, is_kept: impl Fn(&L) -> bool) {
        for shard in self.shards.iter() {
            let mut shard = shard.lock();
            let before = shard.len();
            shard.retain(|labels, _| is_kept(labels));
            self.count.fetch_sub(before - shard.len(), Ordering::Relaxed);
        }
    }
}

impl<L, M> Clone for ShardedFamily<L, M> {
    fn clone(&self) -> Self {
        Self { shards: Arc::clone(&self.shards), count: Arc::clone(&self.count), random: self.random.clone() }
    }
}

impl<L, M> fmt::Debug for ShardedFamily<L, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardedFamily").finish_non_exhaustive()
    }
}

impl<L: Clone + EncodeLabelSet, M: Clone + EncodeMetric + TypedMetric> EncodeMetric for ShardedFamily<L, M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for shard in self.shards.iter() {
            let entries: Vec<(L, M)> =
                shard.lock().iter().map(|(labels, metric)| (labels.clone(), metric.clone())).collect();
            for (labels, metric) in entries {
                metric.encode(encoder.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use prometheus_client::encoding::text::encode;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::registry::Registry;

    use super::*;

    type Labels = [(&'static str, String); 1];

    impl BoundedLabels for Labels {
        fn overflow(&self) -> Self {
            labels("*")
        }
    }

    fn labels(route: &str) -> Labels {
        [("route", route.to_owned())]
    }

    /// Creates another series while it is written, as a delivery may.
    #[derive(Clone, Debug, Default)]
    struct ReentrantCounter(Counter);

    static SERIES: OnceLock<ShardedFamily<Labels, ReentrantCounter>> = OnceLock::new();

    impl EncodeMetric for ReentrantCounter {
        fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
            let series = SERIES.get().ok_or(fmt::Error)?;
            for shard in series.shards.iter() {
                assert!(!shard.is_locked(), "a delivery would wait");
            }
            series.get(&labels("new")).0.inc();
            self.0.encode(encoder)
        }
        fn metric_type(&self) -> MetricType {
            MetricType::Counter
        }
    }

    impl TypedMetric for ReentrantCounter {
        const TYPE: MetricType = MetricType::Counter;
    }

    #[test]
    fn a_scrape_holds_no_lock_while_it_writes_and_pruned_series_are_gone() {
        let series = SERIES.get_or_init(ShardedFamily::default);
        let mut registry = Registry::default();
        registry.register("deliveries", "Deliveries", series.clone());
        let text = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text
        };
        assert_eq!(text(), "# HELP deliveries Deliveries.\n# TYPE deliveries counter\n# EOF\n");
        series.get(&labels("old")).0.inc();
        assert!(text().contains("deliveries_total{route=\"old\"} 1\n"));
        series.retain(|[(_, route)]| route == "new");
        let text = text();
        assert!(text.contains("route=\"new\"") && !text.contains("route=\"old\""), "{text}");
    }

    #[test]
    fn a_full_family_counts_further_labels_together_until_others_are_dropped() {
        let family: ShardedFamily<Labels, Counter> = ShardedFamily::default();
        for n in 0..SERIES_MAX + 3 {
            family.get(&labels(&n.to_string())).inc();
        }
        let count = || family.shards.iter().map(|shard| shard.lock().len()).sum::<usize>();
        assert_eq!((count(), family.get(&labels("*")).get()), (SERIES_MAX + 1, 3));
        family.retain(|[(_, route)]| route == "7");
        family.get(&labels("new")).inc();
        assert_eq!((count(), family.get(&labels("7")).get(), family.get(&labels("new")).get()), (2, 1, 1));
    }
}
