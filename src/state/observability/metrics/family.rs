//! A family of metrics, one for each set of labels.
//! How does a scrape read the series without delaying a delivery?
//!
//! `prometheus_client`'s own family is one map behind one lock, which it holds for as long as it writes: with 20,000
//! routes half a second, during which a delivery that needs a new series waits, and behind it all others. Here each of
//! many shards is locked for as long as its entries are copied.

use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};

type MetricMap<L, M> = std::collections::HashMap<L, M, RandomState>;

/// The number of shards: with 100,000 series, the copy of one shard takes a fraction of a millisecond.
const SHARDS: usize = 256;

/// A family of metrics in shards. Clones share the metrics.
pub(super) struct ShardedFamily<L, M> {
    shards: Arc<[Mutex<MetricMap<L, M>>]>,
    random: RandomState,
    new: fn() -> M,
}

impl<L, M> ShardedFamily<L, M> {
    pub(super) fn new(new: fn() -> M) -> Self {
        let random = RandomState::new();
        let shards = (0..SHARDS).map(|_| Mutex::new(MetricMap::with_hasher(random.clone()))).collect();
        Self { shards, random, new }
    }
}

impl<L: Clone + Eq + Hash, M: Clone> ShardedFamily<L, M> {
    pub(super) fn get(&self, labels: &L) -> M {
        let mut shard = self.shards[self.random.hash_one(labels) as usize % SHARDS].lock();
        if let Some(metric) = shard.get(labels) {
            return metric.clone();
        }
        let metric = (self.new)();
        shard.insert(labels.clone(), metric.clone());
        metric
    }

    /// Drops the series for whose labels `keep` returns false.
    pub(super) fn retain(&self, is_kept: impl Fn(&L) -> bool) {
        for shard in self.shards.iter() {
            shard.lock().retain(|labels, _| is_kept(labels));
        }
    }
}

impl<L, M> Clone for ShardedFamily<L, M> {
    fn clone(&self) -> Self {
        Self { shards: Arc::clone(&self.shards), random: self.random.clone(), new: self.new }
    }
}

impl<L, M> fmt::Debug for ShardedFamily<L, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Series").finish_non_exhaustive()
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

    fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| shard.lock().is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use prometheus_client::encoding::text::encode;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::registry::Registry;

    use super::*;

    type Labels = [(&'static str, &'static str); 1];

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
            series.get(&[("route", "new")]).0.inc();
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
        let series = SERIES.get_or_init(|| ShardedFamily::new(ReentrantCounter::default));
        let mut registry = Registry::default();
        registry.register("deliveries", "Deliveries", series.clone());
        let text = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text
        };
        assert_eq!(text(), "# EOF\n");
        series.get(&[("route", "old")]).0.inc();
        assert!(text().contains("deliveries_total{route=\"old\"} 1\n"));
        series.retain(|[(_, route)]| *route == "new");
        let text = text();
        assert!(text.contains("route=\"new\"") && !text.contains("route=\"old\""), "{text}");
    }
}
