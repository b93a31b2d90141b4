//! The state of every limit, which outlives reloads and is bounded in number.
//! Do the limits of a route allow one more delivery now?

pub mod admission;
pub mod bandwidth;
mod byte_bucket;
mod byte_queue;
mod decisions;
mod fleet_key;
mod fleet_limiter;
mod fleet_rate;
mod limiter_state;
pub mod memory_budget;
pub mod rate;
mod table;
mod token_queue;
mod wait_queue;
mod wait_slots;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use governor::clock::{Clock, Reference};
use smallvec::SmallVec;
use tokio::task::yield_now;

use crate::names::LimitName;
use crate::panics::RwLock;
use crate::policy::limits::{Limit, LimitDescriptor, LimitStatus, RateStatus};
use crate::state::fleet::Fleet;
use crate::state::limits::bandwidth::BandwidthLimiter;
pub use crate::state::limits::decisions::LimitReport;
use crate::state::limits::decisions::{DecisionTable, LimitDecisions};
use crate::state::limits::limiter_state::{ConcurrencyPermit, Exhausted, LimiterState, LimiterUsage};
use crate::state::limits::table::{LimitTable, SHARDS};
use crate::state::limits::wait_slots::{LimitWait, WaitSlots};

/// The clock of the limits. It reads the processor's counter, which the simulation cannot set.
#[cfg(not(test))]
type LimitsClock = governor::clock::DefaultClock;
#[cfg(test)]
type LimitsClock = governor::clock::MonotonicClock;

/// The number of keys that one limit counts separately. Clients choose the keys (a tenant, a host), so their number must be
/// bounded. This many fill the hash tables of a limit completely (7 in 8 of 32,768 slots, 64 times): 160 MiB, or 92 bytes
/// each.
pub const KEYS_MAX: usize = SHARDS * 28_672;

/// The state of all limits, by name and key. It keeps the quota, the maximum and the bandwidth of the newest arrival:
/// each delivery brings those of its plan, so a reload applies to the deliveries that wait, too.
///
/// A limit that gets another name, or counts `per` something else, starts with new state. The clock is a parameter, so that
/// tests set the time.
pub struct Limits<C: Clock = LimitsClock> {
    tables: RwLock<HashMap<LimitName, LimitTable>>,
    decisions: DecisionTable,
    clock: C,
    epoch: C::Instant,
    keys_max: usize,
    wait_slots: WaitSlots,
    /// Empty: this process belongs to no fleet, and each limit is its own.
    fleet: OnceLock<Arc<Fleet>>,
}

/// The permits of one delivery under all of its limits. Keep it until the last byte of the response: dropping it frees them.
pub struct LimitPermit {
    claims: LimitClaims,
    /// The limits that only report, and that would have refused the delivery.
    would_refuse: Vec<(LimitKind, LimitName)>,
}

/// The claims of one delivery. Most routes have one limit or none.
type LimitClaims = SmallVec<[LimitClaim; 1]>;

/// The claim of one delivery on one limit.
struct LimitClaim {
    status: LimitStatus,
    limiter: Arc<LimiterState>,
    /// `None`: this host alone counts.
    fleet: Option<Arc<Fleet>>,
    decisions: Arc<LimitDecisions>,
    permit: Option<ConcurrencyPermit>,
    /// The limit has delayed the delivery.
    has_waited: bool,
}

/// The refusal of a delivery by one of its limits.
#[derive(Debug)]
pub struct LimitExceeded {
    pub kind: LimitKind,
    pub limit: LimitName,
    /// The earliest time at which a retry may succeed.
    pub retry_after: Duration,
    /// The status of each enforced limit, for [`rate_limit_headers`](crate::policy::limits::rate_limit_headers).
    pub statuses: Vec<LimitStatus>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitKind {
    Rate,
    Concurrency,
}

/// The usage of a limit by one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitUsage {
    /// `None`: the limit has no rate.
    pub rate: Option<RateStatus>,
    pub in_flight: u32,
    pub max_in_flight: Option<u32>,
    /// The deliveries that wait for a permit or a token.
    pub waiting: usize,
}

impl fmt::Display for LimitExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            LimitKind::Rate => "rate",
            LimitKind::Concurrency => "concurrency",
        };
        write!(f, "{kind} limit {} reached", self.limit)
    }
}

impl std::error::Error for LimitExceeded {}

impl LimitPermit {
    /// Returns the status of each enforced limit, for [`rate_limit_headers`](crate::policy::limits::rate_limit_headers).
    pub fn statuses(&self) -> impl Iterator<Item = &LimitStatus> {
        self.claims.iter().filter(|claim| claim.is_enforced()).map(|claim| &claim.status)
    }

    /// Returns the bandwidth limiter for one direction. `None`: no limit restricts the bandwidth.
    pub fn bandwidth_limiter(&self) -> Option<BandwidthLimiter> {
        let mut limited = self.claims.iter().filter(|claim| claim.bandwidth().is_some()).peekable();
        limited.peek()?;
        Some(BandwidthLimiter::new(limited.map(|claim| Arc::clone(&claim.limiter))))
    }

    /// Returns the limits that only report, and that would have refused the delivery.
    pub fn would_refuse(&self) -> &[(LimitKind, LimitName)] {
        &self.would_refuse
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::with_clock(LimitsClock::default())
    }
}

impl<C: Clock> Limits<C> {
    pub fn with_clock(clock: C) -> Self {
        let epoch = clock.now();
        Self {
            tables: RwLock::default(),
            decisions: DecisionTable::default(),
            clock,
            epoch,
            keys_max: KEYS_MAX,
            wait_slots: WaitSlots::default(),
            fleet: OnceLock::new(),
        }
    }

    /// Shares the limits of the fleet with its other instances, from now on.
    pub fn join_fleet(&self, fleet: &Arc<Fleet>) {
        let _ = self.fleet.set(Arc::clone(fleet));
    }

    /// Acquires all of the limits. A refusal returns the permits, and not the tokens.
    ///
    /// The order has reasons. Permits come first, since they can be returned. Tokens cannot: if the rate of a later limit
    /// refuses, the tokens of the earlier ones are spent. Limits that only report come last; they count the deliveries that
    /// the others allow, and never make one wait.
    ///
    /// Each limit may delay the delivery by its own `wait` from now, so all together by the longest of them. All callers
    /// must pass the limits in the same order (a route has them by name): otherwise two deliveries could each hold the
    /// permit that the other waits for.
    pub async fn acquire(
        &self,
        limits: &[Arc<Limit>],
        descriptor: &LimitDescriptor<'_>,
    ) -> Result<LimitPermit, LimitExceeded> {
        let mut claims: LimitClaims = limits.iter().map(|limit| self.claim(limit, descriptor)).collect();
        let mut wait = LimitWait::new(&self.wait_slots, descriptor.client);
        for claim in claims.iter_mut().filter(|claim| claim.is_enforced()) {
            if let Err(Exhausted(retry_after)) = claim.acquire_permit(&mut wait).await {
                claim.decisions.refuse();
                let limit = claim.status.limit.name.clone();
                return Err(LimitExceeded::new(LimitKind::Concurrency, limit, retry_after, claims));
            }
        }
        for claim in claims.iter_mut().filter(|claim| claim.is_enforced()) {
            if let Err(Exhausted(retry_after)) = claim.take_token(|| self.now(), &mut wait).await {
                claim.decisions.refuse();
                let limit = claim.status.limit.name.clone();
                return Err(LimitExceeded::new(LimitKind::Rate, limit, retry_after, claims));
            }
        }
        let reporting = claims.iter_mut().filter(|claim| !claim.is_enforced());
        let would_refuse = reporting.filter_map(|claim| {
            let kind = claim.try_acquire(self.now()).err()?;
            Some((kind, claim.status.limit.name.clone()))
        });
        let would_refuse = would_refuse.collect();
        for claim in claims.iter().filter(|claim| claim.is_enforced()) {
            claim.decisions.allow(claim.has_waited);
            claim.bandwidth().into_iter().for_each(|bandwidth| claim.limiter.set_bandwidth(bandwidth));
        }
        Ok(LimitPermit { claims, would_refuse })
    }

    /// Returns the usage of a limit by a key. It takes nothing, and adds no key.
    pub fn usage(&self, limit: &Limit, descriptor: &LimitDescriptor<'_>) -> LimitUsage {
        let table_peek = |table: &LimitTable| table.peek(limit.key(descriptor));
        let limiter = self.tables.read().get(&limit.name).map(table_peek).unwrap_or_default();
        let LimiterUsage { rate, in_flight, waiting } = limiter.usage(limit.quota.as_ref(), self.now());
        LimitUsage { rate, in_flight, max_in_flight: limit.concurrency, waiting }
    }

    /// Drops the state that is as if it had never been used, including that of limits that no plan names any more. Call it
    /// periodically. It yields between the shards of a large table.
    pub async fn sweep(&self) {
        for shard in 0..SHARDS {
            let now = self.now();
            self.tables.read().values().for_each(|table| table.sweep(shard, now));
            yield_now().await;
        }
        let now = self.now();
        self.tables.write().retain(|_, table| !table.is_idle(now));
    }

    /// Returns the decisions and the keys of the limits that `is_configured` accepts, in the order of their names. It forgets
    /// the decisions of the others.
    pub fn report(&self, is_configured: impl Fn(&LimitName) -> bool) -> Vec<(LimitName, LimitReport)> {
        let tables = self.tables.read();
        let report = |limit: &LimitName, [allowed, paced, refused]: [u64; 3]| {
            let (keys, keys_near_full) = tables.get(limit).map(LimitTable::count).unwrap_or_default();
            (limit.clone(), LimitReport { allowed, paced, refused, keys, keys_near_full })
        };
        self.decisions.retain_and_read(is_configured, report)
    }

    /// Returns the number of keys of all limits.
    pub fn key_count(&self) -> usize {
        self.tables.read().values().map(LimitTable::len).sum()
    }

    /// Returns the number of deliveries that wait for a limit.
    #[cfg(test)]
    pub fn waiting_count(&self) -> usize {
        self.wait_slots.count()
    }

    fn claim(&self, limit: &Arc<Limit>, descriptor: &LimitDescriptor<'_>) -> LimitClaim {
        let status = LimitStatus { limit: limit.clone(), rate: None, concurrency_left: None };
        let (limiter, overflow, decisions) = self.limiter(limit, descriptor);
        let fleet = if limit.is_fleet_wide { self.fleet.get().cloned() } else { None };
        if fleet.is_some() {
            limiter.join_fleet(limit, || match overflow {
                Some(number) => limit.fleet_overflow_key(number),
                None => limit.fleet_key(descriptor),
            });
        }
        LimitClaim { status, limiter, fleet, decisions, permit: None, has_waited: false }
    }

    /// Returns the limiter of a delivery, its number if it is an overflow limiter, and where its decisions are counted.
    fn limiter(
        &self,
        limit: &Limit,
        descriptor: &LimitDescriptor<'_>,
    ) -> (Arc<LimiterState>, Option<usize>, Arc<LimitDecisions>) {
        let limiter = |table: &LimitTable| {
            let (limiter, overflow) = table.limiter(limit.key(descriptor), || self.now());
            (limiter, overflow, Arc::clone(table.decisions()))
        };
        if let Some(table) = self.tables.read().get(&limit.name) {
            return limiter(table);
        }
        let mut tables = self.tables.write();
        let new = || LimitTable::new(self.keys_max, self.decisions.of(&limit.name));
        limiter(tables.entry(limit.name.clone()).or_insert_with(new))
    }

    /// Returns the nanoseconds since the start. In a fleet, they are those of its clock: the state of a key has one clock.
    fn now(&self) -> u64 {
        match self.fleet.get() {
            Some(fleet) => fleet.now(),
            None => self.clock.now().duration_since(self.epoch).as_u64(),
        }
    }
}

impl LimitClaim {
    fn is_enforced(&self) -> bool {
        !self.status.limit.report_only
    }

    /// Returns the bandwidth to enforce. A limit that only reports has none.
    fn bandwidth(&self) -> Option<u64> {
        self.status.limit.bandwidth.filter(|_| self.is_enforced())
    }

    /// Takes a permit if the limit has a concurrency.
    async fn acquire_permit(&mut self, wait: &mut LimitWait<'_>) -> Result<(), Exhausted> {
        let Some(max_in_flight) = self.status.limit.concurrency else { return Ok(()) };
        let max_wait = self.status.limit.wait;
        let acquired = match &self.fleet {
            Some(fleet) => self.limiter.acquire_fleet_permit(fleet, wait, max_wait, &mut self.has_waited).await,
            None => match self.limiter.try_acquire_permit(max_in_flight) {
                Err(exhausted) => match wait.deadline(max_wait) {
                    Some(deadline) => {
                        self.has_waited = true;
                        self.limiter.acquire_permit(deadline).await
                    }
                    None => Err(exhausted),
                },
                acquired => acquired,
            },
        };
        self.status.concurrency_left = Some(acquired.as_ref().map_or(0, |(_, left)| *left));
        self.permit = Some(acquired?.0);
        Ok(())
    }

    /// Takes a token if the limit has a rate.
    async fn take_token(&mut self, now: impl Fn() -> u64, wait: &mut LimitWait<'_>) -> Result<(), Exhausted> {
        let limit = &self.status.limit;
        let Some(quota) = &limit.quota else { return Ok(()) };
        let taken = match &self.fleet {
            Some(fleet) => self.limiter.take_fleet_token(fleet, quota, wait, limit.wait, &mut self.has_waited).await,
            None => match self.limiter.try_take_token(quota, now()) {
                Err(exhausted) => match wait.deadline(limit.wait) {
                    Some(deadline) => {
                        self.has_waited = true;
                        self.limiter.take_token(quota, now, deadline).await
                    }
                    None => Err(exhausted),
                },
                taken => taken,
            },
        };
        let status = match &taken {
            Ok(status) => *status,
            Err(Exhausted(retry_after)) => RateStatus { remaining: 0, retry_after: *retry_after },
        };
        self.status.rate = Some(status);
        taken.map(drop)
    }

    /// Takes a permit and a token without waiting. The error says which of them there is none of.
    fn try_acquire(&mut self, now: u64) -> Result<(), LimitKind> {
        let limit = &self.status.limit;
        if let Some(max_in_flight) = limit.concurrency {
            let acquired = self.limiter.try_acquire_permit(max_in_flight);
            self.permit = Some(acquired.map_err(|_| LimitKind::Concurrency)?.0);
        }
        if let Some(quota) = &limit.quota
            && self.limiter.try_take_token(quota, now).is_err()
        {
            self.permit = None; // a delivery that the limit would refuse takes no permit
            return Err(LimitKind::Rate);
        }
        Ok(())
    }
}

impl LimitExceeded {
    fn new(kind: LimitKind, limit: LimitName, retry_after: Duration, claims: LimitClaims) -> Self {
        let enforced = claims.into_iter().filter(LimitClaim::is_enforced);
        Self { kind, limit, retry_after, statuses: enforced.map(|claim| claim.status).collect() }
    }
}

#[cfg(test)]
mod tests;
