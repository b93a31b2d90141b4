//! The rate of one key: the state of governor's algorithm (GCRA), which is one number, and the quota.
//! Is a token due now, and if not, when?

use std::cell::Cell;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota as Pace, RateLimiter};

use crate::policy::limits::{Quota, RateStatus, saturating_nanos};

/// The state of GCRA. Times are nanoseconds since the epoch of the limits.
#[derive(Clone, Copy, Debug, Default)]
pub struct GcraState {
    /// The time at which the whole burst is available again: the "theoretical arrival time" of GCRA.
    theoretical_arrival: u64,
    /// The interval of a token in nanoseconds. Zero: no quota was set yet.
    interval: u64,
    burst: u32,
}

impl GcraState {
    /// Sets the quota, and returns whether it has changed.
    ///
    /// The tokens left stay, to the fraction of a token, up to the new burst. So reloads neither refill nor starve a key.
    pub(in crate::state) fn set_quota(&mut self, quota: &Quota, now: u64) -> bool {
        let (interval, burst) = (saturating_nanos(quota.interval()).max(1), quota.burst.get());
        if (interval, burst) == (self.interval, self.burst) {
            return false;
        }
        let before = std::mem::replace(self, Self { interval, burst, ..*self });
        if before.interval > 0 {
            let left = before.burst_time().saturating_sub(before.debt(now)) * u128::from(interval);
            let debt = self.burst_time().saturating_sub(left / u128::from(before.interval));
            self.theoretical_arrival = now.saturating_add(u64::try_from(debt).unwrap_or(u64::MAX));
        }
        true
    }

    /// Sets the quota, and keeps the time at which the whole burst is available again: the same part of the burst stays used.
    pub fn set_limits(&mut self, quota: &Quota) {
        (self.interval, self.burst) = (saturating_nanos(quota.interval()).max(1), quota.burst.get());
    }

    /// Sets the time at which the whole burst is available again.
    pub fn set_arrival(&mut self, arrival: u64) {
        self.theoretical_arrival = arrival;
    }

    /// Takes one token, and returns the status after it. The error is the time until there is one.
    pub fn try_take(&mut self, now: u64) -> Result<RateStatus, Duration> {
        let (Some(burst), Some(pace)) =
            (NonZeroU32::new(self.burst), Pace::with_period(Duration::from_nanos(self.interval)))
        else {
            return Ok(RateStatus { remaining: u32::MAX, retry_after: Duration::ZERO }); // there is no quota
        };
        let (state, clock) =
            (SingleKeyStore(Cell::new(self.theoretical_arrival)), FixedClock(Cell::new(Nanos::new(0))));
        let limiter = RateLimiter::<_, _, _, StateInformationMiddleware>::new(pace.allow_burst(burst), state, clock);
        limiter.clock().0.set(Nanos::new(now));
        let checked = limiter.check();
        self.theoretical_arrival = limiter.into_state_store().0.get();
        match checked {
            Ok(_) => Ok(self.status(now)),
            Err(until) => Err(until.wait_time_from(Nanos::new(now))),
        }
    }

    /// Returns the number of tokens, and the time until there is another; zero if the burst is full.
    pub(in crate::state) fn status(&self, now: u64) -> RateStatus {
        let (whole, debt, interval) = (self.burst_time(), self.debt(now), u128::from(self.interval.max(1)));
        let remaining = whole.saturating_sub(debt) / interval;
        let next = if debt == 0 { 0 } else { debt - (whole - (remaining + 1) * interval) };
        let next = Duration::from_nanos(u64::try_from(next).unwrap_or(u64::MAX));
        RateStatus { remaining: u32::try_from(remaining).unwrap_or(u32::MAX), retry_after: next }
    }

    /// Returns whether this part of the burst, or more, is in use.
    pub(in crate::state) fn is_used(&self, percent: u32, now: u64) -> bool {
        self.interval > 0 && self.debt(now) * 100 >= self.burst_time() * u128::from(percent)
    }

    /// Returns whether the state is as if it had never been used.
    pub(in crate::state) fn is_full(&self, now: u64) -> bool {
        self.theoretical_arrival <= now
    }

    /// Returns the time that the whole burst takes to refill.
    fn burst_time(&self) -> u128 {
        u128::from(self.burst) * u128::from(self.interval)
    }

    /// Returns the time that the tokens taken take to refill.
    fn debt(&self, now: u64) -> u128 {
        u128::from(self.theoretical_arrival.saturating_sub(now))
    }
}

/// A store of governor for the state of one key.
struct SingleKeyStore(Cell<u64>);

impl StateStore for SingleKeyStore {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (outcome, theoretical_arrival) = measure(Some(Nanos::new(self.0.get())))?;
        self.0.set(theoretical_arrival.into());
        Ok(outcome)
    }
}

/// A clock that stands still. Governor counts from the first time that it reads.
struct FixedClock(Cell<Nanos>);

impl Clock for FixedClock {
    type Instant = Nanos;
    fn now(&self) -> Nanos {
        self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn quota(count: u32, seconds: u64, burst: u32) -> Quota {
        let [count, burst] = [count, burst].map(|n| NonZeroU32::new(n).unwrap());
        Quota { count, period: Duration::from_secs(seconds), burst }
    }

    fn remaining(taken: Result<RateStatus, Duration>) -> Result<u32, Duration> {
        taken.map(|status| status.remaining)
    }

    #[test]
    fn gcra_take_tells_the_time_to_the_next_token() {
        let mut rate = GcraState::default();
        rate.set_quota(&quota(2, 1, 3), SECOND);
        assert!(rate.try_take(SECOND).is_ok());
        let status = RateStatus { remaining: 1, retry_after: Duration::from_millis(300) };
        assert_eq!(rate.try_take(SECOND + SECOND / 5), Ok(status), "500 ms after the first take");
    }

    #[test]
    fn gcra_status_takes_no_token() {
        let mut rate = GcraState::default();
        rate.set_quota(&quota(2, 1, 3), SECOND);
        let left = |rate: &GcraState, now| (rate.status(now).remaining, rate.status(now).retry_after.as_millis());
        assert_eq!(left(&rate, SECOND), (3, 0));
        assert_eq!(remaining(rate.try_take(SECOND)), Ok(2));
        assert_eq!(left(&rate, SECOND), (2, 500));
        assert_eq!(left(&rate, SECOND + SECOND / 5), (2, 300));
        assert_eq!(remaining(rate.try_take(SECOND)), Ok(1));
        assert_eq!(remaining(rate.try_take(SECOND)), Ok(0));
        assert_eq!(remaining(rate.try_take(SECOND)), Err(Duration::from_millis(500)));
        assert_eq!(left(&rate, SECOND), (0, 500));
        assert_eq!(left(&rate, SECOND + SECOND / 5), (0, 300));
        assert_eq!(left(&rate, 2 * SECOND), (2, 500));
        assert_eq!(left(&rate, 5 * SECOND), (3, 0));
    }

    #[test]
    fn gcra_gives_no_token_twice_when_the_clock_goes_back() {
        let mut rate = GcraState::default();
        rate.set_quota(&quota(1, 1, 2), 10 * SECOND);
        assert_eq!(remaining(rate.try_take(10 * SECOND)), Ok(1));
        assert_eq!(remaining(rate.try_take(10 * SECOND)), Ok(0));
        assert_eq!(remaining(rate.try_take(5 * SECOND)), Err(Duration::from_secs(6)));
        assert_eq!(remaining(rate.try_take(11 * SECOND)), Ok(0));
        assert!(!rate.is_full(0));
    }
}
