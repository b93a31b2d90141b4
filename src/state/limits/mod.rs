//! The counters of every limit, which outlive reloads and are bounded in number.
//! Is there room for one more delivery, now?

pub mod admission;
pub mod bandwidth;
mod byte_bucket;
mod byte_queue;
mod limiter_state;
mod queue;
mod rate;
mod table;
mod wait_slots;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock, Reference};
use parking_lot::RwLock;
use tokio::task::yield_now;

use crate::names::LimitName;
use crate::policy::limits::{Limit, LimitDescriptor, LimitStatus, RateStatus};
use crate::state::limits::bandwidth::BandwidthLimiter;
use crate::state::limits::limiter_state::{ConcurrencyPermit, Exhausted, LimiterState};
use crate::state::limits::table::{LimitTable, SHARDS};
use crate::state::limits::wait_slots::{LimitWait, WAITING_MAX, WaitSlots};

/// Keys one limit counts apart. Clients choose keys (a tenant, a host), so there must be an end to them. This many fill
/// the hash tables of a limit to the brim (7 in 8 of 32,768 slots, 64 times): 160 MiB, or 92 bytes each.
pub const KEYS_MAX: usize = 64 * 28_672;

/// The state of all limits, by name and key. It knows no quota and no maximum: those come with each delivery, from the
/// plan that it runs under.
///
/// A limit goes by its name, and a key by what the limit counts by: under another name, or counted `per` something else,
/// a delivery counts anew.
pub struct Limits<C: Clock = DefaultClock> {
    tables: RwLock<HashMap<LimitName, LimitTable>>,
    clock: C,
    epoch: C::Instant,
    keys_max: usize,
    waiting: WaitSlots,
}

/// What one delivery holds of its limits, freed on drop: keep it until the last byte of the response.
pub struct LimitPermit {
    shares: Vec<LimitClaim>,
    /// What limits that only report would have said.
    would_refuse: Vec<(LimitKind, LimitName)>,
}

/// A delivery's share of one limit.
struct LimitClaim {
    standing: LimitStatus,
    bucket: Arc<LimiterState>,
    permit: Option<ConcurrencyPermit>,
}

/// Refused, and by what.
#[derive(Debug)]
pub struct LimitExceeded {
    pub kind: LimitKind,
    pub limit: LimitName,
    /// Before this time there is no room, as far as is known.
    pub retry_after: Duration,
    /// For [`headers`](crate::policy::limits::headers): what this delivery was let through, and what it was not.
    pub standings: Vec<LimitStatus>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitKind {
    Rate,
    Concurrency,
}

/// How full a limit is for one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitUsage {
    /// Where there is a rate.
    pub rate: Option<RateStatus>,
    pub in_flight: u32,
    pub maximum: Option<u32>,
    /// Held back, for a place or a token.
    pub waiting: usize,
}

impl fmt::Display for LimitExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            LimitKind::Rate => "rate",
            LimitKind::Concurrency => "concurrency",
        };
        write!(f, "{what} limit {} reached", self.limit)
    }
}

impl std::error::Error for LimitExceeded {}

impl LimitPermit {
    /// For [`headers`](crate::policy::limits::headers).
    pub fn standings(&self) -> impl Iterator<Item = &LimitStatus> {
        self.shares.iter().filter(|share| share.is_enforced()).map(|share| &share.standing)
    }

    /// What its bytes cost in one direction; `None`: nothing.
    pub fn tolls(&self) -> Option<BandwidthLimiter> {
        let mut paced = self.shares.iter().filter(|share| share.bandwidth().is_some()).peekable();
        paced.peek()?;
        Some(BandwidthLimiter::to(paced.map(|share| Arc::clone(&share.bucket))))
    }

    /// By which limits that only report it would have been refused.
    pub fn would_refuse(&self) -> &[(LimitKind, LimitName)] {
        &self.would_refuse
    }
}

impl Limits {
    pub fn new() -> Self {
        Self::with_clock(DefaultClock::default())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::new()
    }
}

impl<C: Clock> Limits<C> {
    pub fn with_clock(clock: C) -> Self {
        let epoch = clock.now();
        Self { tables: RwLock::default(), clock, epoch, keys_max: KEYS_MAX, waiting: WaitSlots::new(WAITING_MAX) }
    }

    /// All of the limits or none. Places are taken first, since they can be given back; the tokens of a rate cannot,
    /// so where a later limit's rate refuses, those taken from an earlier one are spent. Limits that only report are
    /// asked last, of what the others let through, and never make it wait.
    ///
    /// Each limit may hold the delivery back for its own `wait` from now, so all together for the longest of them.
    /// Give limits in one order everywhere (a route has them by name): two deliveries that wait for a place which the
    /// other holds would wait in vain.
    pub async fn acquire(
        &self,
        limits: &[Arc<Limit>],
        who: &LimitDescriptor<'_>,
    ) -> Result<LimitPermit, LimitExceeded> {
        let mut shares: Vec<LimitClaim> = limits.iter().map(|limit| self.share(limit, who)).collect();
        let mut wait = LimitWait::new(&self.waiting, who.client);
        for share in shares.iter_mut().filter(|share| share.is_enforced()) {
            if let Err(Exhausted(after)) = share.acquire_permit(&mut wait).await {
                let limit = share.standing.limit.name.clone();
                return Err(LimitExceeded::new(LimitKind::Concurrency, limit, after, shares));
            }
        }
        for share in shares.iter_mut().filter(|share| share.is_enforced()) {
            if let Err(Exhausted(after)) = share.take_token(|| self.now(), &mut wait).await {
                let limit = share.standing.limit.name.clone();
                return Err(LimitExceeded::new(LimitKind::Rate, limit, after, shares));
            }
        }
        let reporting = shares.iter_mut().filter(|share| !share.is_enforced());
        let would_refuse = reporting.filter_map(|share| {
            let kind = share.judge(self.now()).err()?;
            Some((kind, share.standing.limit.name.clone()))
        });
        let would_refuse = would_refuse.collect();
        for share in &shares {
            share.bandwidth().into_iter().for_each(|bandwidth| share.bucket.open_flow(bandwidth));
        }
        Ok(LimitPermit { shares, would_refuse })
    }

    /// How full a limit is for a key, for who wants to know: nothing is taken, and no counter begun.
    pub fn fullness(&self, limit: &Limit, who: &LimitDescriptor<'_>) -> LimitUsage {
        let bucket = self.tables.read().get(&limit.name).map(|table| table.peek(limit.key(who))).unwrap_or_default();
        let level = bucket.level(limit.quota.as_ref(), self.now());
        LimitUsage { rate: level.rate, in_flight: level.in_flight, maximum: limit.concurrency, waiting: level.waiting }
    }

    /// Drops what is as if it had never been used. Call it from time to time: keys of limits that no plan names any
    /// more go this way too. Others get their turn between the parts of a large table.
    pub async fn sweep(&self) {
        for part in 0..SHARDS {
            let now = self.now();
            self.tables.read().values().for_each(|table| table.sweep(part, now));
            yield_now().await;
        }
        let now = self.now();
        self.tables.write().retain(|_, table| !table.is_idle(now));
    }

    /// How many keys are counted.
    pub fn keys(&self) -> usize {
        self.tables.read().values().map(LimitTable::keys).sum()
    }

    fn share(&self, limit: &Arc<Limit>, who: &LimitDescriptor<'_>) -> LimitClaim {
        let standing = LimitStatus { limit: limit.clone(), rate: None, concurrency_left: None };
        LimitClaim { standing, bucket: self.bucket(limit, who), permit: None }
    }

    fn bucket(&self, limit: &Limit, who: &LimitDescriptor<'_>) -> Arc<LimiterState> {
        let key = limit.key(who);
        if let Some(table) = self.tables.read().get(&limit.name) {
            return table.bucket(key, || self.now());
        }
        let mut tables = self.tables.write();
        let table = tables.entry(limit.name.clone()).or_insert_with(|| LimitTable::new(self.keys_max));
        table.bucket(key, || self.now())
    }

    fn now(&self) -> u64 {
        self.clock.now().duration_since(self.epoch).as_u64()
    }
}

impl LimitClaim {
    fn is_enforced(&self) -> bool {
        !self.standing.limit.report_only
    }

    /// A limit that only reports makes nobody slower.
    fn bandwidth(&self) -> Option<u64> {
        self.standing.limit.bandwidth.filter(|_| self.is_enforced())
    }

    /// A place by the limit's concurrency.
    async fn acquire_permit(&mut self, wait: &mut LimitWait<'_>) -> Result<(), Exhausted> {
        let Some(maximum) = self.standing.limit.concurrency else { return Ok(()) };
        let entered = match self.bucket.try_acquire_permit(maximum) {
            Err(full) => match wait.deadline(self.standing.limit.wait) {
                Some(deadline) => self.bucket.wait_to_enter(deadline).await,
                None => Err(full),
            },
            entered => entered,
        };
        self.standing.concurrency_left = Some(entered.as_ref().map_or(0, |(_, left)| *left));
        self.permit = Some(entered?.0);
        Ok(())
    }

    /// A token by the limit's rate.
    async fn take_token(&mut self, now: impl Fn() -> u64, wait: &mut LimitWait<'_>) -> Result<(), Exhausted> {
        let limit = &self.standing.limit;
        let Some(quota) = &limit.quota else { return Ok(()) };
        let taken = match self.bucket.try_take_token(quota, now()) {
            Err(full) => match wait.deadline(limit.wait) {
                Some(deadline) => self.bucket.wait_to_take(quota, now, deadline).await,
                None => Err(full),
            },
            taken => taken,
        };
        let left = match &taken {
            Ok(remaining) => RateStatus { remaining: *remaining, next: quota.interval() },
            Err(Exhausted(after)) => RateStatus { remaining: 0, next: *after },
        };
        self.standing.rate = Some(left);
        taken.map(drop)
    }

    /// As if it were enforced, but for its `wait`.
    fn judge(&mut self, now: u64) -> Result<(), LimitKind> {
        let limit = &self.standing.limit;
        if let Some(maximum) = limit.concurrency {
            self.permit = Some(self.bucket.try_acquire_permit(maximum).map_err(|_| LimitKind::Concurrency)?.0);
        }
        if let Some(quota) = &limit.quota
            && self.bucket.try_take_token(quota, now).is_err()
        {
            self.permit = None; // what is refused takes no room
            return Err(LimitKind::Rate);
        }
        Ok(())
    }
}

impl LimitExceeded {
    fn new(kind: LimitKind, limit: LimitName, retry_after: Duration, shares: Vec<LimitClaim>) -> Self {
        let enforced = shares.into_iter().filter(LimitClaim::is_enforced);
        Self { kind, limit, retry_after, standings: enforced.map(|share| share.standing).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LimitScope;
    use crate::names::{ClientName, Host, PoolName, RouteName};
    use crate::policy::limits::Quota;
    use governor::clock::FakeRelativeClock;
    use std::num::NonZeroU32;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    const HOUR: Duration = Duration::from_secs(3600);

    /// Nothing here waits for a timer, so no runtime is needed.
    fn done<T>(future: impl Future<Output = T>) -> T {
        let (mut future, mut context) = (pin!(future), Context::from_waker(Waker::noop()));
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
        }
    }

    fn with_host<T>(host: usize, then: impl FnOnce(&LimitDescriptor<'_>) -> T) -> T {
        let (client, route, egress) = (ClientName::new("c"), RouteName::new("r"), PoolName::new("e"));
        let host = Host::Name(host.to_string().into());
        then(&LimitDescriptor { client: &client, tenant: None, route: &route, host: &host, egress: &egress })
    }

    fn acquire(
        limits: &Limits<FakeRelativeClock>,
        limit: &Arc<Limit>,
        host: usize,
    ) -> Result<LimitPermit, LimitExceeded> {
        with_host(host, |who| done(limits.acquire(std::slice::from_ref(limit), who)))
    }

    fn limit(count: u32, burst: u32, concurrency: u32) -> Arc<Limit> {
        let [count, burst] = [count, burst].map(|n| NonZeroU32::new(n).unwrap());
        Arc::new(Limit {
            name: LimitName::new("l"),
            quota: Some(Quota { count, period: HOUR, burst }),
            concurrency: Some(concurrency),
            per: vec![LimitScope::Host],
            wait: Duration::ZERO,
            bandwidth: None,
            report_only: false,
        })
    }

    #[test]
    fn keys_are_bounded_and_no_newcomer_resets_anyone() {
        let clock = FakeRelativeClock::default();
        let limits = Limits { keys_max: SHARDS, ..Limits::with_clock(clock.clone()) };
        let limit = limit(1, 1, 1);
        let admitted = |host| acquire(&limits, &limit, host).is_ok();
        let flood = (0..5000).filter(|&host| admitted(host)).count();
        assert_eq!((limits.keys(), flood), (SHARDS, 2 * SHARDS), "one each, and one for all others together");
        assert!(!admitted(0), "the first key still knows what it used");
        assert!(!admitted(9000), "and so do newcomers");

        // An hour later nobody owes anything, and old keys make room for new ones.
        clock.advance(HOUR);
        let again = (5000..10_000).filter(|&host| admitted(host)).count();
        assert_eq!((limits.keys(), again), (SHARDS, 2 * SHARDS));

        done(limits.sweep());
        assert_eq!(limits.keys(), SHARDS, "not one of them is idle");
        clock.advance(HOUR);
        done(limits.sweep());
        assert_eq!((limits.keys(), limits.tables.read().len()), (0, 0));
    }

    /// A key that counted among the others, for want of room, does not begin anew when it gets its own counter.
    #[test]
    fn room_resets_nobody() {
        let clock = FakeRelativeClock::default();
        let limits = Limits { keys_max: SHARDS, ..Limits::with_clock(clock.clone()) };
        let limit = limit(10, 10, 2000);
        let left = || with_host(5000, |who| limits.fullness(&limit, who).rate.unwrap().remaining);
        (0..5000).for_each(|host| drop(acquire(&limits, &limit, host)));
        assert_eq!((limits.keys(), left()), (SHARDS, 0), "the others have used up what they have together");
        // One token comes back to everybody: those with a counter of their own have used no more.
        clock.advance(HOUR / 10);
        done(limits.sweep());
        assert_eq!((limits.keys(), left()), (0, 1));
        let used = (0..10).filter(|_| acquire(&limits, &limit, 5000).is_ok()).count();
        assert_eq!((limits.keys(), used), (1, 1));
    }

    #[test]
    fn fullness_is_told_and_begins_no_counter() {
        let clock = FakeRelativeClock::default();
        let limits = Limits::with_clock(clock.clone());
        let limit = limit(2, 3, 2);
        let fullness = |host| with_host(host, |who| limits.fullness(&limit, who));
        let fresh = RateStatus { remaining: 3, next: Duration::ZERO };
        let unused = LimitUsage { rate: Some(fresh), in_flight: 0, maximum: Some(2), waiting: 0 };
        assert_eq!((fullness(1), limits.keys()), (unused, 0));
        let held = acquire(&limits, &limit, 1);
        let rate = Some(RateStatus { remaining: 2, next: HOUR / 2 });
        assert_eq!(fullness(1), LimitUsage { rate, in_flight: 1, ..unused });
        assert_eq!((fullness(2), limits.keys()), (unused, 1));
        drop(held);
        clock.advance(HOUR / 4);
        let rate = Some(RateStatus { remaining: 2, next: HOUR / 4 });
        assert_eq!(fullness(1), LimitUsage { rate, ..unused });
    }
}
