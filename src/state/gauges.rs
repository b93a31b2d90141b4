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
        let (now, view, in_force) = (Timestamp::now(), self.sources.view(), self.in_force());
        self.meters.prune(&in_force.plan);
        for (name, pool) in &in_force.plan.pools {
            let ranges = pool.in_force(now);
            self.meters.pool(name, sources::total(&ranges), view.count(&ranges));
        }
        self.meters.tenants(
            in_force
                .plan
                .signers
                .iter()
                .filter_map(|(name, signer)| Some((name, signer.tenants()?, signer.broken_tenants().count()))),
        );
        self.meters.expiries(&in_force.plan.expiries);
        let (in_flight, waiting) = self.gate.count();
        self.meters.deliveries_in_flight.set(i64::try_from(in_flight).unwrap_or(i64::MAX));
        self.meters.deliveries_waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        self.meters.idle_target_connections.set(i64::try_from(self.reuse.kept()).unwrap_or(i64::MAX));
        self.meters.dns_outage.set(i64::from(in_force.resolver.outage().is_some()));
        let counted = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.meters.suspected_gaps.set(counted(self.reach.gaps()));
        self.meters.cut_off.set(counted(self.reach.ejected().len()));
        self.meters.circuits_open.set(counted(self.circuits.open()));
        // The maximum, as scrapes run at the same time and a counter never falls.
        self.meters.records_lost.inner().fetch_max(self.records.lost_count(), Ordering::Relaxed);
        self.meters.log_reopen_failed.set(i64::from(self.records.reopen_fault().is_some()));
        self.meters.log_lines_lost.inner().fetch_max(log::lost_lines(), Ordering::Relaxed);
    }
}
