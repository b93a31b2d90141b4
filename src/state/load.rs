//! The load of this instance: what it uses of each of its bounds.
//! Which facts decide how much traffic a load balancer should send here?

use jiff::Timestamp;
use tokio::sync::Semaphore;

use super::Runtime;
use super::drain::DrainStage;
use crate::net::fd_limit;
use crate::net::socket_diag::PortUsage;
use crate::policy::load::{Load, Usage};

/// Returns the tunnels that the process can hold.
pub(super) fn tunnels_max() -> usize {
    fd_limit::connections_max().min(Semaphore::MAX_PERMITS)
}

impl Runtime {
    /// Returns the load now. The use of ports is that of the last [`Runtime::note_ports`]. It makes no system call that takes
    /// long, so that a load balancer may ask several times a second.
    pub fn load(&self, now: Timestamp) -> Load {
        let (snapshot, active) = (self.sources.snapshot(), self.active_config());
        let shares = active.plan.pools.values().filter_map(|pool| snapshot.usable_share(pool, now));
        let (in_flight, waiting) = self.admission.count();
        let tunnels_max = tunnels_max();
        let tunnels = tunnels_max.saturating_sub(self.tunnel_permits.available_permits());
        Load {
            is_draining: self.drain_stage() != DrainStage::Serving,
            lacks_bundle: self.lacks_bundle(),
            deliveries: Usage::new(in_flight + waiting, active.plan.max_deliveries),
            tunnels: Usage::new(tunnels, tunnels_max),
            memory: self.body_memory.usage(),
            ports: *self.ports_used.lock(),
            addresses: shares.fold(1.0, f64::min),
        }
    }

    /// Returns the reasons why a load balancer should send traffic elsewhere. It examines no keys: tens of thousands of
    /// tenants may have some.
    pub fn blocked(&self, now: Timestamp) -> Vec<String> {
        let lacking = self.lacks_bundle().then(|| {
            "this host has no bundle of the fleet yet, and its own files have no route: `outgate fleet rollout --status` \
             shows what its adoption waits for"
                .to_owned()
        });
        self.impaired(now).into_iter().chain(lacking).collect()
    }

    /// Returns whether the routes are in a bundle that this host has not adopted yet. An instance with routes of its own, or
    /// with any bundle, serves.
    fn lacks_bundle(&self) -> bool {
        let active = self.active_config();
        let has_no_route = || active.plan.routes.enforced().next().is_none();
        let has_bundle = || self.fleet.get().is_some_and(|fleet| fleet.rollout().state.has_bundle());
        !active.plan.operators.is_empty() && has_no_route() && !has_bundle()
    }

    /// Returns the reasons why this instance must adopt no bundle. A host that waits for its first one is none.
    pub fn impaired(&self, now: Timestamp) -> Vec<String> {
        let (snapshot, active) = (self.sources.snapshot(), self.active_config());
        let has_source = active.plan.pools.values().any(|pool| snapshot.count(pool, now).usable > 0);
        let is_serving = self.drain_stage() == DrainStage::Serving;
        let draining = (!is_serving).then(|| "draining".to_owned());
        draining.into_iter().chain((!has_source).then(|| "no source address is usable".to_owned())).collect()
    }

    /// Notes the use of ports, which only a list of the host's sockets shows.
    pub fn note_ports(&self, ports: &PortUsage) {
        let fullest = ports.sources.values().map(|source| source.fullest_target).max();
        *self.ports_used.lock() = Usage { used: fullest.unwrap_or(0).into(), max: ports.available.into() };
    }
}
