//! The metrics of a fleet.
//! Is the store of the fleet up, and which problems does its observer see?

use std::sync::atomic::Ordering;

use super::labels::{NoLabels, ProblemLabels};
use super::{Metrics, gauge};
use crate::policy::fleet::status::FLEET_PROBLEM_KINDS;

impl Metrics {
    /// Sets the state of the fleet's store: without a fleet, the metric has no series.
    pub fn fleet(&self, is_up: bool, live: u32, [calls, errors, shares, local_signatures]: [u64; 4]) {
        self.fleet_store_up.get(&NoLabels {}).set(is_up.into());
        self.fleet_instances.set(i64::from(live));
        self.fleet_store_calls.inner().fetch_max(calls, Ordering::Relaxed);
        self.fleet_share_deliveries.inner().fetch_max(shares, Ordering::Relaxed);
        self.fleet_local_signatures.inner().fetch_max(local_signatures, Ordering::Relaxed);
        self.fleet_store_errors.inner().fetch_max(errors, Ordering::Relaxed);
    }

    /// Sets the problems of the fleet. `None`: another instance observes it.
    pub fn fleet_problems(&self, counts: Option<[(&'static str, usize); FLEET_PROBLEM_KINDS]>) {
        self.fleet_problems.clear();
        counts.into_iter().flatten().for_each(|(problem, count)| {
            self.fleet_problems.get(&ProblemLabels { problem }).set(gauge(count));
        });
    }
}
