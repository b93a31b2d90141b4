//! The metrics that are read from the state of the proxy when a scrape asks for them.
//! What do the metrics say of pools, limits, keys and outages?

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use jiff::Timestamp;

use crate::names::PoolName;
use crate::net::socket_diag::{self, PortUsage};
use crate::policy::Plan;
use crate::policy::fleet::status::{FleetProblem, FleetProblemKind};
use crate::state::Runtime;
use crate::state::alerts::ALERT_KINDS;
use crate::state::drain::DrainStage;
use crate::state::observability::log;
use crate::state::observability::metrics::{SourceReport, gauge};

/// Returns all metrics as OpenMetrics.
pub fn render_metrics(runtime: &Runtime, now: Timestamp) -> String {
    update_gauges(runtime, now);
    runtime.metrics.render()
}

/// Sets the gauges, and the counters that other modules keep, to their current values.
fn update_gauges(runtime: &Runtime, now: Timestamp) {
    let (metrics, snapshot, active) = (&runtime.metrics, runtime.sources.snapshot(), runtime.active_config());
    let plan = &active.plan;
    metrics.prune(plan);
    metrics.pools(plan.pools.iter().map(|(name, pool)| (name, snapshot.count(pool, now))));
    update_sources(runtime, plan, now);
    metrics.limits(&runtime.limits.report(|limit| plan.limits.contains_key(limit)));
    metrics.signing_keys(plan.signers.iter().filter_map(|(name, signer)| Some((name, signer.next_gap(now)?))));
    metrics.tenants(
        plan.signers
            .iter()
            .filter_map(|(name, signer)| Some((name, signer.tenants()?, signer.broken_tenants().count()))),
    );
    metrics.expiries(&plan.expiries);
    let (in_flight, waiting) = runtime.admission.count();
    metrics.deliveries_in_flight.set(gauge(in_flight));
    metrics.deliveries_waiting.set(gauge(waiting));
    metrics.load(&runtime.load(now));
    metrics.client_streams.set(gauge(runtime.open_stream_count()));
    metrics.idle_target_connections.set(gauge(runtime.connection_pool.connection_count()));
    metrics.dns_outage.set(i64::from(active.resolver.outage().is_some()));
    metrics.suspected_allow_list_gaps.set(gauge(runtime.source_health.gap_count()));
    metrics.egress_addresses_cut_off.set(gauge(runtime.source_health.ejected().len()));
    metrics.circuits_open.set(gauge(runtime.circuit_breakers.open_count()));
    metrics.ready.set(i64::from(runtime.blocked(now).is_empty()));
    metrics.draining.set(i64::from(runtime.drain_stage() != DrainStage::Serving));
    metrics.config_adopted_timestamp.set(runtime.config_status.adopted().adopted_at.as_second());
    // The maximum, so that a counter never falls.
    metrics.records_lost.inner().fetch_max(runtime.records.lost_count(), Ordering::Relaxed);
    metrics.log_reopen_failed.set(i64::from(runtime.records.reopen_error().is_some()));
    metrics.log_lines_lost.inner().fetch_max(log::lost_lines(), Ordering::Relaxed);
    metrics.spans_dropped.inner().fetch_max(runtime.traces.dropped.load(Ordering::Relaxed), Ordering::Relaxed);
    let alerts = runtime.alerts.active();
    let count = |name| alerts.iter().filter(|alert| alert.kind.name == name).count();
    metrics.set_alerts(ALERT_KINDS.iter().map(|kind| (kind.name, count(kind.name))));
    update_audit(runtime);
    if let Some(fleet) = runtime.fleet.get() {
        let [calls, errors] = fleet.call_counts();
        let count = |problems: &[FleetProblem], kind| problems.iter().filter(|found| found.problem == kind).count();
        let counts = |problems: Vec<_>| FleetProblemKind::ALL.map(|(kind, name)| (name, count(&problems, kind)));
        metrics.fleet_problems(fleet.observed_problems().map(counts));
        metrics.fleet(fleet.is_up(), fleet.live(), [calls, errors, fleet.share_decisions(), fleet.local_signatures()]);
    }
}

/// Sets the metrics of the audit log and its sinks.
fn update_audit(runtime: &Runtime) {
    let (metrics, audit) = (&runtime.metrics, runtime.audit.status());
    metrics.set_audit_writable(audit.is_on().then(|| audit.error().is_none()));
    metrics.audit_records.inner().fetch_max(audit.written_count(), Ordering::Relaxed);
    metrics.audit_failures.inner().fetch_max(audit.failed_count(), Ordering::Relaxed);
    metrics.audit_events_lost.inner().fetch_max(audit.lost_count(), Ordering::Relaxed);
    metrics.audit_sinks(audit.sinks().iter().map(|sink| (sink.name.as_str(), sink.dropped_count())));
}

/// Sets the gauges of source addresses. They have no series where the kernel does not list its sockets.
fn update_sources(runtime: &Runtime, plan: &Plan, now: Timestamp) {
    let (port_count, sources) = source_reports(plan, now);
    runtime.metrics.egress_ports.set(i64::from(port_count));
    runtime.metrics.sources(sources.into_iter());
}

/// Returns the number of ports for outgoing connections, and the use of each source address of each pool, the fullest first.
pub(super) fn source_reports(plan: &Plan, now: Timestamp) -> (u32, Vec<(&PoolName, IpAddr, SourceReport)>) {
    let is_source = |address| plan.has_source(address, now);
    let PortUsage { available, sources } = socket_diag::port_usage(is_source).unwrap_or_default();
    let mut usage: Vec<_> = sources.into_iter().collect();
    // The number of series is bounded: the addresses with the fewest ports left come first.
    usage.sort_by_key(|(_, usage)| std::cmp::Reverse(usage.fullest_target));
    let of_pools = usage.iter().flat_map(|(address, usage)| {
        let ports_left = usage.ports_left(available);
        let report = SourceReport { open: usage.open, time_wait: usage.time_wait, ports_left };
        let pools = plan.pools.iter().filter(|(_, pool)| pool.contains(*address, now));
        pools.map(move |(name, _)| (name, *address, report))
    });
    (available, of_pools.collect())
}
