//! The series of deliveries: one set for each route that asks for its own, and one for all others.
//! To which counters and histograms does a delivery add?

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::histogram::DurationHistogram;
use super::labels::RouteLabel;
use crate::names::RouteName;
use crate::panics::RwLock;
use crate::policy::route::Route;
use crate::policy::trace::TraceId;

/// The values of the label `step`.
pub const STEPS: [&str; 8] = ["queue", "token", "body", "dns", "connect", "tls", "sign", "first_byte"];

/// The seconds of each of the [`STEPS`]. `None`: the delivery did not take the step.
pub type StepSeconds = [Option<f64>; STEPS.len()];

/// The series of one route, or of all routes that share them. A delivery keeps them from its routing to its end, so that
/// it looks up no labels when it ends.
#[derive(Debug)]
pub struct RouteSeries {
    pub(super) label: RouteLabel,
    /// Few: the codes of refusals, `delivered` and `client_gone`, the frequent ones first.
    outcomes: RwLock<Vec<OutcomeCounter>>,
    steps: [DurationHistogram; STEPS.len()],
    total: DurationHistogram,
}

#[derive(Debug)]
struct OutcomeCounter {
    code: &'static str,
    blame: &'static str,
    count: AtomicU64,
}

impl RouteSeries {
    fn new(label: RouteLabel) -> Arc<Self> {
        Arc::new(Self { label, outcomes: RwLock::default(), steps: Default::default(), total: Default::default() })
    }

    /// Counts a finished delivery. `total` is `None` for a tunnel, whose duration its client decides. `trace_id`: the trace
    /// of a sampled delivery.
    pub fn observe(
        &self,
        code: &'static str,
        blame: &'static str,
        steps: &StepSeconds,
        total: Option<f64>,
        trace_id: Option<TraceId>,
    ) {
        for (histogram, seconds) in self.steps.iter().zip(steps) {
            seconds.iter().for_each(|seconds| histogram.observe(*seconds, trace_id));
        }
        total.iter().for_each(|total| self.total.observe(*total, trace_id));
        let is_counted = |outcomes: &[OutcomeCounter]| {
            let counter = outcomes.iter().find(|outcome| (outcome.code, outcome.blame) == (code, blame));
            counter.map(|outcome| outcome.count.fetch_add(1, Ordering::Relaxed)).is_some()
        };
        if is_counted(&self.outcomes.read()) {
            return;
        }
        let mut outcomes = self.outcomes.write();
        // Another delivery may have added the counter meanwhile.
        if !is_counted(&outcomes) {
            outcomes.push(OutcomeCounter { code, blame, count: AtomicU64::new(1) });
        }
    }
}

/// The series of all routes.
#[derive(Debug)]
pub(super) struct RouteTable {
    /// The series of requests that were refused before they had a route.
    unrouted: Arc<RouteSeries>,
    shared: Arc<RouteSeries>,
    own: RwLock<BTreeMap<RouteName, Arc<RouteSeries>>>,
}

impl Default for RouteTable {
    fn default() -> Self {
        let [unrouted, shared] = [RouteLabel::Unrouted, RouteLabel::Shared].map(RouteSeries::new);
        Self { unrouted, shared, own: RwLock::default() }
    }
}

impl RouteTable {
    pub(super) fn series(&self, route: Option<&Route>) -> Arc<RouteSeries> {
        let Some(route) = route else { return Arc::clone(&self.unrouted) };
        if !route.has_own_series {
            return Arc::clone(&self.shared);
        }
        self.own(&route.name)
    }

    pub(super) fn own(&self, route: &RouteName) -> Arc<RouteSeries> {
        if let Some(series) = self.own.read().get(route) {
            return Arc::clone(series);
        }
        let new = || RouteSeries::new(RouteLabel::Own(route.clone()));
        Arc::clone(self.own.write().entry(route.clone()).or_insert_with(new))
    }

    /// Drops the series of the routes that are not in `routes`.
    pub(super) fn retain(&self, routes: &HashSet<&RouteName>) {
        self.own.write().retain(|route, _| routes.contains(route));
    }

    /// Writes the histograms of durations as OpenMetrics, which have exemplars.
    pub(super) fn write_durations(&self, text: &mut String) -> fmt::Result {
        let total = "outgate_delivery_duration_seconds";
        let help = "Duration of deliveries, from the head of the request to the last byte of the response";
        write_descriptor(text, total, help)?;
        for series in self.all().iter().filter(|series| !series.total.is_empty()) {
            series.total.write(text, total, &format!("route=\"{}\"", series.label.as_str()), true)?;
        }
        let name = "outgate_step_duration_seconds";
        write_descriptor(text, name, "Duration of each step that deliveries took")?;
        for series in self.all() {
            for (step, histogram) in STEPS.iter().zip(&series.steps).filter(|(_, histogram)| !histogram.is_empty()) {
                histogram.write(text, name, &format!("route=\"{}\",step=\"{step}\"", series.label.as_str()), false)?;
            }
        }
        Ok(())
    }

    fn all(&self) -> Vec<Arc<RouteSeries>> {
        let own = self.own.read();
        [&self.unrouted, &self.shared].into_iter().chain(own.values()).map(Arc::clone).collect()
    }
}

fn write_descriptor(text: &mut String, name: &str, help: &str) -> fmt::Result {
    writeln!(text, "# HELP {name} {help}.\n# TYPE {name} histogram\n# UNIT {name} seconds")
}

/// `outgate_deliveries_total`.
#[derive(Clone, Debug)]
pub(super) struct OutcomeFamily(pub(super) Arc<RouteTable>);

impl EncodeMetric for OutcomeFamily {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for series in self.0.all() {
            let read = |outcome: &OutcomeCounter| (outcome.code, outcome.blame, outcome.count.load(Ordering::Relaxed));
            let outcomes: Vec<_> = series.outcomes.read().iter().map(read).collect();
            for (code, blame, count) in outcomes {
                let labels = [("route", series.label.as_str()), ("code", code), ("blame", blame)];
                let mut family = encoder.encode_family(&labels)?;
                family.encode_counter::<NoLabelSet, u64, f64>(&count, None)?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}
