//! The metrics that are read at a scrape: gauges of the state of the proxy, and counters that other modules keep.
//! What do the metrics say of pools, queues and outages?

use std::sync::atomic::Ordering;

use jiff::Timestamp;

use crate::state::Runtime;
use crate::state::observability::log;
use crate::state::upstreams::sources;

impl Runtime {
    /// Sets these metrics to their current values before a scrape.
    pub fn observe(&self) {
        let (now, view, active) = (Timestamp::now(), self.sources.view(), self.active_config());
        self.metrics.prune(&active.plan);
        for (name, pool) in &active.plan.pools {
            let ranges = pool.active_ranges(now);
            self.metrics.pool(name, sources::total(&ranges), view.count(&ranges));
        }
        self.metrics.tenants(
            active
                .plan
                .signers
                .iter()
                .filter_map(|(name, signer)| Some((name, signer.tenants()?, signer.broken_tenants().count()))),
        );
        self.metrics.expiries(&active.plan.expiries);
        let (in_flight, waiting) = self.admission.count();
        self.metrics.deliveries_in_flight.set(i64::try_from(in_flight).unwrap_or(i64::MAX));
        self.metrics.deliveries_waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.metrics.idle_target_connections.set(i64::try_from(self.connection_pool.kept()).unwrap_or(i64::MAX));
        self.metrics.dns_outage.set(i64::from(active.resolver.outage().is_some()));
        let counted = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.suspected_gaps.set(counted(self.source_health.gaps()));
        self.metrics.cut_off.set(counted(self.source_health.ejected().len()));
        self.metrics.circuits_open.set(counted(self.circuit_breakers.open()));
        // The maximum, as scrapes run at the same time and a counter never falls.
        self.metrics.records_lost.inner().fetch_max(self.records.lost_count(), Ordering::Relaxed);
        self.metrics.log_reopen_failed.set(i64::from(self.records.reopen_fault().is_some()));
        self.metrics.log_lines_lost.inner().fetch_max(log::lost_lines(), Ordering::Relaxed);
    }
}
