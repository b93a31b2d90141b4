//! A family of metrics, one for each set of labels.
//! How does a scrape read the series without delaying a delivery?
//!
//! `prometheus_client`'s own family holds its lock for as long as it writes, during which a delivery that needs a new
//! series waits, and behind it all others. Here the lock is held for as long as the entries are copied.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};

use crate::panics::Mutex;

/// The most series of one family, besides those for all further labels. Each takes at most some 250 bytes of a scrape, so
/// a family takes 125 kB.
pub(super) const SERIES_MAX: usize = 500;

/// Labels of which a family has a bounded number.
pub(super) trait BoundedLabels: Clone + Eq + Hash {
    /// Returns the labels of the series that counts all further ones. Their number is bounded by the code.
    fn overflow(&self) -> Self;
}

/// A family of metrics. Clones share the metrics.
#[derive(Clone, Debug)]
pub(super) struct BoundedFamily<L, M>(Arc<Mutex<HashMap<L, M>>>);

impl<L, M> Default for BoundedFamily<L, M> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<L: BoundedLabels, M: Clone + Default> BoundedFamily<L, M> {
    /// Returns the metric with these labels. A full family returns the one that counts all further labels.
    pub(super) fn get(&self, labels: &L) -> M {
        let mut series = self.0.lock();
        if let Some(metric) = series.get(labels) {
            return metric.clone();
        }
        let labels = if series.len() >= SERIES_MAX { labels.overflow() } else { labels.clone() };
        series.entry(labels).or_default().clone()
    }

    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }

    /// Drops the series for whose labels `is_kept` returns false. A family that is still full keeps the series that count
    /// further labels.
    pub(super) fn retain(&self, is_kept: impl Fn(&L) -> bool) {
        let mut series = self.0.lock();
        let is_full = series.keys().filter(|labels| is_kept(labels)).count() >= SERIES_MAX;
        series.retain(|labels, _| is_kept(labels) || is_full && *labels == labels.overflow());
    }
}

impl<L: Clone + EncodeLabelSet, M: Clone + EncodeMetric + TypedMetric> EncodeMetric for BoundedFamily<L, M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let series: Vec<(L, M)> =
            self.0.lock().iter().map(|(labels, metric)| (labels.clone(), metric.clone())).collect();
        series.into_iter().try_for_each(|(labels, metric)| metric.encode(encoder.encode_family(&labels)?))
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

    static SERIES: OnceLock<BoundedFamily<Labels, ReentrantCounter>> = OnceLock::new();

    impl EncodeMetric for ReentrantCounter {
        fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
            let series = SERIES.get().ok_or(fmt::Error)?;
            assert!(!series.0.is_locked(), "a delivery would wait");
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
        let series = SERIES.get_or_init(BoundedFamily::default);
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
        let family: BoundedFamily<Labels, Counter> = BoundedFamily::default();
        for n in 0..SERIES_MAX + 3 {
            family.get(&labels(&n.to_string())).inc();
        }
        let count = || family.0.lock().len();
        assert_eq!((count(), family.get(&labels("*")).get()), (SERIES_MAX + 1, 3));
        family.retain(|[(_, route)]| route != "*");
        assert_eq!((count(), family.get(&labels("*")).get()), (SERIES_MAX + 1, 3), "it is still full");
        family.retain(|[(_, route)]| route == "7");
        family.get(&labels("new")).inc();
        assert_eq!((count(), family.get(&labels("7")).get(), family.get(&labels("new")).get()), (2, 1, 1));
    }
}
