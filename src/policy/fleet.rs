//! The arithmetic of limits that a fleet shares: slices of a rate, and shares without the store. [`permits`] has leases.
//! How much of a rate may this instance use now, and how much should it ask for?
//!
//! Times are nanoseconds of the instance's monotonic clock, or microseconds of the store's clock. They are never compared:
//! a slice is valid for a duration from the moment at which the instance asked.

pub mod assignments;
pub mod lost;
pub mod permits;
pub mod status;

use std::num::NonZeroU32;
use std::time::Duration;

use crate::policy::limits::{Quota, saturating_nanos};

/// The longest time for which an instance holds tokens that the rate has just given.
const HOLD_MAX: Duration = Duration::from_millis(250);
/// The part of the burst, as a divisor, whose time an instance may hold tokens. That part is not available as a burst.
const HOLD_DIVISOR: u32 = 4;
/// The tokens that a request should get while the rate is used up.
const TOKENS_PER_REQUEST: u32 = 25;
/// The time after which instances no longer take care of each other's part.
const CONTENTION: Duration = Duration::from_secs(1);
/// The part of a slice's or a lease's time, as a divisor, that is left for clocks that run at different speeds.
const CLOCK_MARGIN: u64 = 128;
/// The least time between two looks for idle tokens.
const IDLE_LOOK_MIN: Duration = Duration::from_millis(20);

impl Quota {
    /// Returns the quota of one of `live` instances while the store is away.
    pub fn share(&self, live: u32) -> Self {
        let live = NonZeroU32::new(live).unwrap_or(NonZeroU32::MIN);
        let burst = NonZeroU32::new(self.burst.get() / live).unwrap_or(NonZeroU32::MIN);
        Self { count: self.count, period: self.period.saturating_mul(live.get()), burst }
    }

    /// Returns the time after which the whole burst is available again.
    pub fn burst_time(&self) -> Duration {
        self.interval().saturating_mul(self.burst.get())
    }

    /// Returns the time for which an instance may hold new tokens. It is within the time of the burst, so that tokens that
    /// are held and a burst together are not more than the burst.
    pub fn hold(&self) -> Duration {
        let tolerance = self.period.saturating_mul(self.burst.get() - 1) / self.count.get();
        (tolerance / HOLD_DIVISOR).min(HOLD_MAX)
    }

    /// Returns the time for whose deliveries an instance takes tokens at once.
    pub fn horizon(&self) -> Duration {
        self.hold() / 2
    }

    /// Returns the time between two requests of one of `live` instances while the rate is used up: long enough that a request
    /// gets several tokens, and short enough that an instance does not refuse for long what the fleet may admit again.
    fn pause(&self, live: u32) -> Duration {
        let several = self.interval().saturating_mul(TOKENS_PER_REQUEST.saturating_mul(live));
        several.min(self.hold()).max(self.horizon())
    }

    /// Returns the tokens that are left if the whole burst is available again after `micros`.
    fn left(&self, micros: i64) -> u32 {
        let whole = self.interval().saturating_mul(self.burst.get());
        let left = whole.saturating_sub(Duration::from_micros(u64::try_from(micros).unwrap_or_default()));
        u32::try_from(left.as_nanos() / self.interval().as_nanos().max(1)).unwrap_or(u32::MAX)
    }

    /// Returns the tokens that the rate gives one of `live` instances in a pause.
    fn fair_part(&self, live: u32) -> u32 {
        let tokens = self.pause(live).as_nanos() / self.share(live).interval().as_nanos().max(1);
        u32::try_from(tokens).unwrap_or(u32::MAX).max(1)
    }
}

/// Returns the time at which something ends that was valid for `nanos` when the instance asked for it, at `asked_at`.
fn end_of(asked_at: u64, nanos: u64) -> u64 {
    asked_at.saturating_add(nanos - nanos / CLOCK_MARGIN)
}

/// Tokens that the store has granted together. Each is valid until its slot, the time at which the rate alone would give it.
#[derive(Clone, Copy, Debug, Default)]
struct Slice {
    granted: u32,
    left: u32,
    asked_at: u64,
    /// The nanoseconds from the request to the slot of the first token, and between two slots. Zero: all have the first.
    valid: u64,
    interval: u64,
    /// The slot of the first token, and the end of all, in microseconds of the store's clock.
    store_until: i64,
    store_arrival: i64,
}

impl Slice {
    /// Returns the nanoseconds from the first slot to that of the next token.
    fn offset(&self) -> u64 {
        u64::from(self.granted - self.left).saturating_mul(self.interval)
    }

    /// Drops the tokens whose slots are over.
    fn expire(&mut self, now: u64) {
        while self.left > 0 && end_of(self.asked_at, self.valid.saturating_add(self.offset())) <= now {
            self.left = if self.interval == 0 { 0 } else { self.left - 1 };
        }
    }

    /// Returns the slot of the next token, in microseconds of the store's clock.
    fn store_end(&self) -> i64 {
        self.store_until.saturating_add(i64::try_from(self.offset() / 1000).unwrap_or(i64::MAX))
    }
}

/// The tokens of one key that this instance may use.
#[derive(Debug, Default)]
pub struct TokenSlices {
    /// The slice in use, and the one that follows.
    slices: [Slice; 2],
    /// The store has no token before this time.
    none_until: u64,
    /// The deliveries since the last request, with those that were refused.
    demand: u32,
    /// The tokens that the deliveries of the next moments will take.
    expected: u32,
    /// The end of the competition: the store has lately had fewer tokens than a request wanted.
    contended_until: u64,
    /// The tokens that the store had left after the last request: those that other instances do not need.
    store_left: u32,
    /// Whether a delivery has come since the last look for idle tokens, and the time of the next look.
    is_in_use: bool,
    look_at: u64,
    /// The time of the last request. `None`: there was none, so the demand is not known yet.
    asked_at: Option<u64>,
    /// The tokens that deliveries took from the share, and that this instance has not reported to the store. At `owed_until`,
    /// the share has them again, and the instance reports them no longer.
    unsettled: u32,
    owed_until: u64,
    /// The tokens of the last report until the store answers it. The store may have counted them, and only its answer was lost.
    unanswered: u32,
    unanswered_until: u64,
    /// The number of the last report.
    report: u64,
}

/// A request to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    pub quota: Quota,
    pub wanted: u32,
    /// The least time to the first slot. Zero: a delivery waits for each token, so that the instance holds none.
    pub hold: Duration,
    /// Unused tokens, the slot of the first, and the end of the slice that they are the last of. Zero: of several slices.
    pub returned: u32,
    pub returned_until: i64,
    pub returned_arrival: i64,
    /// Tokens of the share that the store does not know of.
    pub used: u32,
    /// The number of the report of tokens that are returned or used, which the store counts once. Later reports of a process
    /// have higher numbers. 0: there is nothing to report.
    pub report: u64,
}

/// The answer of the store, in its own microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenGrant {
    pub tokens: u32,
    pub until: i64,
    pub now: i64,
    /// The time at which the whole burst is available again.
    pub arrival: i64,
    /// The time until a token is due, if there was none.
    pub wait: i64,
    /// Whether each token has a slot of its own. Otherwise, all have the first.
    pub is_spaced: bool,
}

impl TokenGrant {
    /// Returns the time at which the whole burst is available again, on the clock of the instance.
    pub fn arrival_after(&self, asked_at: u64) -> u64 {
        asked_at.saturating_add(micros_as_nanos(self.arrival.saturating_sub(self.now)))
    }
}

fn micros_as_nanos(micros: i64) -> u64 {
    u64::try_from(micros).unwrap_or_default().saturating_mul(1000)
}

/// The decision of the slices about one delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SliceDecision {
    /// The delivery has taken a token.
    Taken,
    /// The store has no token for this long.
    Exhausted(Duration),
    /// Only the store knows.
    Ask,
}

impl TokenSlices {
    /// Takes a token for a delivery.
    pub fn take(&mut self, now: u64) -> SliceDecision {
        self.demand = self.demand.saturating_add(1);
        self.is_in_use = true;
        self.expire(now);
        match &mut self.slices[0] {
            slice if slice.left > 0 => {
                slice.left -= 1;
                SliceDecision::Taken
            }
            _ if now < self.none_until => SliceDecision::Exhausted(Duration::from_nanos(self.none_until - now)),
            _ => SliceDecision::Ask,
        }
    }

    fn expire(&mut self, now: u64) {
        self.slices.iter_mut().for_each(|slice| slice.expire(now));
        if self.slices[0].left == 0 {
            self.slices.swap(0, 1);
        }
    }

    /// Returns the tokens that are left.
    pub fn left(&self) -> u32 {
        self.slices[0].left.saturating_add(self.slices[1].left)
    }

    /// Returns the time for which neither this instance nor the store has a token.
    pub fn time_without(&self, now: u64) -> Option<Duration> {
        let is_empty = self.left() == 0 && now < self.none_until;
        is_empty.then(|| Duration::from_nanos(self.none_until - now))
    }

    /// Returns whether the slice in use is half empty, and no other follows.
    pub fn needs_refill(&self, now: u64) -> bool {
        let [current, next] = &self.slices;
        current.granted > 1 && current.left <= current.granted / 2 && next.left == 0 && now >= self.none_until
    }

    /// Forgets that the store had no token: it may have one of another quota.
    pub fn quota_changed(&mut self) {
        (self.none_until, self.contended_until) = (0, 0);
    }

    /// Counts a token of the share, which the store must learn of.
    pub fn use_share(&mut self, share: &Quota, now: u64) {
        self.forget_replaced(now);
        let most = share.burst.get().saturating_sub(self.unanswered);
        self.unsettled = self.unsettled.saturating_add(1).min(most);
        self.owed_until = now.saturating_add(saturating_nanos(share.burst_time()));
    }

    /// Returns whether the store must learn of tokens of the share: until the share has replaced them.
    pub fn owes(&self, now: u64) -> bool {
        self.unsettled > 0 && now < self.owed_until || self.unanswered > 0 && now < self.unanswered_until
    }

    /// Forgets the tokens of the share that it has replaced.
    fn forget_replaced(&mut self, now: u64) {
        if now >= self.owed_until {
            self.unsettled = 0;
        }
        if now >= self.unanswered_until {
            self.unanswered = 0;
        }
    }

    /// Returns the number of a new report: the time in microseconds, so that it is higher than those of the same key before this
    /// instance forgot the key.
    fn next_report(&mut self, now: u64) -> u64 {
        self.report = (now / 1000).max(self.report + 1);
        self.report
    }

    /// Makes the request for the deliveries that wait for its answer and those of the next moments. `queued` deliveries wait
    /// behind them.
    pub fn request(&mut self, quota: Quota, live: u32, [waiting, queued]: [u32; 2], now: u64) -> TokenRequest {
        let lately = self.asked_at.map_or(0, |asked_at| {
            let period = now.saturating_sub(asked_at).max(1);
            u128::from(self.demand) * quota.horizon().as_nanos() / u128::from(period)
        });
        // The instance that asks first must not take what the others need. While they compete, each has its part. Otherwise,
        // a quarter of what the store had left is little enough: not all instances use each key.
        let most = match now < self.contended_until {
            true => quota.fair_part(live).saturating_add(self.store_left / 2),
            false => (quota.burst.get() / (2 * live.max(1))).max(self.store_left / 4).max(1),
        };
        let lately = u32::try_from(lately).unwrap_or(u32::MAX).max(queued).min(most);
        // The mean with the estimates before, so that two deliveries side by side are no high rate.
        self.expected = self.expected.min(most).midpoint(lately);
        let wanted = waiting.saturating_add(self.expected).clamp(1, quota.burst.get());
        (self.demand, self.asked_at) = (0, Some(now));
        let hold = if wanted > waiting { quota.hold() } else { Duration::ZERO };
        TokenRequest { wanted, hold, ..self.settlement(quota, now) }
    }

    /// Returns the time until the next look for idle tokens. `None`: the instance holds no token.
    pub fn next_look(&self, now: u64) -> Option<Duration> {
        (self.left() > 0).then(|| Duration::from_nanos(self.look_at.saturating_sub(now)))
    }

    /// Makes the request that returns idle tokens. `None`: there are none, the key is in use, the last look was just now, or the
    /// store must learn of tokens of the share first.
    pub fn return_if_idle(&mut self, quota: Quota, now: u64) -> Option<TokenRequest> {
        self.expire(now);
        if now < self.look_at || self.left() == 0 || self.owes(now) {
            return None;
        }
        self.look_at = now.saturating_add(saturating_nanos(quota.horizon().max(IDLE_LOOK_MIN)));
        if std::mem::take(&mut self.is_in_use) {
            return None;
        }
        let slices = std::mem::take(&mut self.slices);
        let [current, next] = slices;
        let (returned_until, returned_arrival) = match next.left {
            0 => (current.store_end(), current.store_arrival),
            _ => (current.store_end().min(next.store_end()), 0),
        };
        let returned = current.left.saturating_add(next.left);
        let report = self.next_report(now);
        Some(TokenRequest { returned, returned_until, returned_arrival, report, ..self.settlement(quota, now) })
    }

    /// Makes the request that only tells the store of the tokens of the share. A report without an answer is told again first.
    pub fn settlement(&mut self, quota: Quota, now: u64) -> TokenRequest {
        self.forget_replaced(now);
        if self.unanswered == 0 && self.unsettled > 0 {
            (self.unanswered, self.unanswered_until) = (std::mem::take(&mut self.unsettled), self.owed_until);
            self.next_report(now);
        }
        let used = self.unanswered;
        let report = if used > 0 { self.report } else { 0 };
        TokenRequest {
            quota,
            wanted: 0,
            hold: Duration::ZERO,
            returned: 0,
            returned_until: 0,
            returned_arrival: 0,
            used,
            report,
        }
    }

    /// Takes the answer to a request that was made at `asked_at`: `handed_out` of its tokens went to deliveries that waited.
    pub fn granted(
        &mut self,
        request: &TokenRequest,
        grant: &TokenGrant,
        handed_out: u32,
        live: u32,
        [asked_at, now]: [u64; 2],
    ) {
        if request.used > 0 {
            self.unanswered = 0;
        }
        self.expire(now);
        let left = grant.tokens.saturating_sub(handed_out);
        let interval = saturating_nanos(request.quota.period / request.quota.count.get());
        let mut slice = Slice {
            granted: grant.tokens,
            left,
            asked_at,
            valid: micros_as_nanos(grant.until.saturating_sub(grant.now)),
            interval: if grant.is_spaced { interval } else { 0 },
            store_until: grant.until,
            store_arrival: grant.arrival,
        };
        slice.expire(now);
        if slice.left > 0 {
            self.slices[usize::from(self.slices[0].left > 0)] = slice;
        }
        self.store_left = request.quota.left(grant.arrival.saturating_sub(grant.now));
        if grant.tokens < request.wanted {
            self.contended_until = now.saturating_add(saturating_nanos(CONTENTION));
        }
        if now < self.contended_until && request.wanted > 0 {
            let pause = micros_as_nanos(grant.wait).max(saturating_nanos(request.quota.pause(live)));
            self.none_until = now.saturating_add(pause);
        }
    }
}

#[cfg(test)]
mod tests;
