//! The decisions of each limit, counted for the metrics.
//! How often did a limit allow, delay or refuse a delivery?

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::names::LimitName;
use crate::panics::RwLock;

/// The decisions of one limit so far, and its keys now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitReport {
    /// Deliveries that the limit allowed at once.
    pub allowed: u64,
    /// Deliveries that the limit delayed and allowed.
    pub paced: u64,
    pub refused: u64,
    pub keys: usize,
    /// Keys whose burst or concurrency was nearly used up at the last sweep.
    pub keys_near_full: usize,
}

/// The decisions of one limit that is enforced. They outlive the limit's keys, which a sweep drops.
#[derive(Debug, Default)]
pub(super) struct LimitDecisions {
    allowed: AtomicU64,
    paced: AtomicU64,
    refused: AtomicU64,
}

impl LimitDecisions {
    /// Counts a delivery that all limits allowed. `has_waited`: this limit has delayed it.
    pub(super) fn allow(&self, has_waited: bool) {
        let counter = if has_waited { &self.paced } else { &self.allowed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many deliveries were allowed at once, allowed after a wait, and refused.
    pub(super) fn read(&self) -> [u64; 3] {
        [&self.allowed, &self.paced, &self.refused].map(|counter| counter.load(Ordering::Relaxed))
    }
}

/// The decisions of all limits.
#[derive(Debug, Default)]
pub(super) struct DecisionTable(RwLock<BTreeMap<LimitName, Arc<LimitDecisions>>>);

impl DecisionTable {
    pub(super) fn of(&self, limit: &LimitName) -> Arc<LimitDecisions> {
        if let Some(decisions) = self.0.read().get(limit) {
            return Arc::clone(decisions);
        }
        Arc::clone(self.0.write().entry(limit.clone()).or_default())
    }

    /// Forgets the limits that are neither kept nor in use, and reads the kept ones.
    pub(super) fn retain_and_read<T>(
        &self,
        is_kept: impl Fn(&LimitName) -> bool,
        read: impl Fn(&LimitName, [u64; 3]) -> T,
    ) -> Vec<T> {
        let mut limits = self.0.write();
        // The keys of a limit hold its decisions until a sweep drops them.
        limits.retain(|limit, decisions| is_kept(limit) || Arc::strong_count(decisions) > 1);
        let kept = limits.iter().filter(|(limit, _)| is_kept(limit));
        kept.map(|(limit, decisions)| read(limit, decisions.read())).collect()
    }
}
