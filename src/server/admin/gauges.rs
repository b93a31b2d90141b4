//! The metrics that are read from the state of the proxy when a scrape asks for them.
//! What do the metrics say of pools, queues and outages?

use std::sync::atomic::Ordering;

use jiff::Timestamp;

use crate::state::Runtime;
use crate::state::observability::log;

/// Returns all metrics as OpenMetrics, and the media type.
pub fn render_metrics(runtime: &Runtime, now: Timestamp) -> (String, &'static str) {
    update_gauges(runtime, now);
    runtime.metrics.render()
}

/// Sets the gauges, and the counters that other modules keep, to their current values.
fn update_gauges(runtime: &Runtime, now: Timestamp) {
    let (metrics, snapshot, active) = (&runtime.metrics, runtime.sources.snapshot(), runtime.active_config());
    metrics.prune(&active.plan);
    for (name, pool) in &active.plan.pools {
        metrics.pool(name, snapshot.count(pool, now));
    }
    metrics.tenants(
        active
            .plan
            .signers
            .iter()
            .filter_map(|(name, signer)| Some((name, signer.tenants()?, signer.broken_tenants().count()))),
    );
    metrics.expiries(&active.plan.expiries);
    let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let (in_flight, waiting) = runtime.admission.count();
    metrics.deliveries_in_flight.set(gauge(in_flight));
    metrics.deliveries_waiting.set(gauge(waiting));
    metrics.idle_target_connections.set(gauge(runtime.connection_pool.connection_count()));
    metrics.dns_outage.set(i64::from(active.resolver.outage().is_some()));
    metrics.suspected_gaps.set(gauge(runtime.source_health.gap_count()));
    metrics.cut_off.set(gauge(runtime.source_health.ejected().len()));
    metrics.circuits_open.set(gauge(runtime.circuit_breakers.open_count()));
    // The maximum, as scrapes run at the same time and a counter never falls.
    metrics.records_lost.inner().fetch_max(runtime.records.lost_count(), Ordering::Relaxed);
    metrics.log_reopen_failed.set(i64::from(runtime.records.reopen_error().is_some()));
    metrics.log_lines_lost.inner().fetch_max(log::lost_lines(), Ordering::Relaxed);
}
