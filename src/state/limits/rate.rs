//! One key's rate: what governor's algorithm (GCRA) remembers of it, one number, and the quota that it counts under.
//! Is a token due now, and if not, when?

use std::cell::Cell;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota as Pace, RateLimiter};

use crate::policy::limits::{Quota, RateStatus};

/// Times are nanoseconds since the limits began.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::state) struct GcraState {
    /// When the whole burst is there again, if nothing more is taken: the "theoretical arrival time" of GCRA.
    full_at: u64,
    /// Nanoseconds a token; zero before there was a quota.
    interval: u64,
    burst: u32,
}

impl GcraState {
    /// Goes on under this quota; whether it is another than before.
    ///
    /// What was left of the old is left of the new, to the fraction of a token, up to the new burst: reloads neither
    /// refill nor starve, however often they come.
    pub(in crate::state) fn adopt(&mut self, quota: &Quota, now: u64) -> bool {
        let (interval, burst) = (nanoseconds(quota.interval()).max(1), quota.burst.get());
        if (interval, burst) == (self.interval, self.burst) {
            return false;
        }
        let before = std::mem::replace(self, Self { interval, burst, ..*self });
        if before.interval > 0 {
            let left = before.whole().saturating_sub(before.debt(now)) * u128::from(interval);
            let debt = self.whole().saturating_sub(left / u128::from(before.interval));
            self.full_at = now.saturating_add(u64::try_from(debt).unwrap_or(u64::MAX));
        }
        true
    }

    /// One token, and how many are left; or the time until there is one.
    pub(in crate::state) fn try_take(&mut self, now: u64) -> Result<u32, Duration> {
        let (Some(burst), Some(pace)) =
            (NonZeroU32::new(self.burst), Pace::with_period(Duration::from_nanos(self.interval)))
        else {
            return Ok(u32::MAX); // there is no quota
        };
        let (state, clock) = (SingleKeyStore(Cell::new(self.full_at)), FixedClock(Cell::new(Nanos::new(0))));
        let limiter = RateLimiter::<_, _, _, StateInformationMiddleware>::new(pace.allow_burst(burst), state, clock);
        limiter.clock().0.set(Nanos::new(now));
        let checked = limiter.check();
        self.full_at = limiter.into_state_store().0.get();
        match checked {
            Ok(left) => Ok(left.remaining_burst_capacity()),
            Err(until) => Err(until.wait_time_from(Nanos::new(now))),
        }
    }

    /// How many tokens there are, and within what time there is one more; nothing to wait for if all of them are.
    pub(in crate::state) fn left(&self, now: u64) -> RateStatus {
        let (whole, debt, interval) = (self.whole(), self.debt(now), u128::from(self.interval.max(1)));
        let remaining = whole.saturating_sub(debt) / interval;
        let next = if debt == 0 { 0 } else { debt - (whole - (remaining + 1) * interval) };
        let next = Duration::from_nanos(u64::try_from(next).unwrap_or(u64::MAX));
        RateStatus { remaining: u32::try_from(remaining).unwrap_or(u32::MAX), next }
    }

    /// As if it had never been used.
    pub(in crate::state) fn is_full(&self, now: u64) -> bool {
        self.full_at <= now
    }

    /// The whole burst as time.
    fn whole(&self) -> u128 {
        u128::from(self.burst) * u128::from(self.interval)
    }

    /// What was taken and has not come back, as time.
    fn debt(&self, now: u64) -> u128 {
        u128::from(self.full_at.saturating_sub(now))
    }
}

pub(in crate::state) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The state that governor keeps of a key, taken out of it.
struct SingleKeyStore(Cell<u64>);

impl StateStore for SingleKeyStore {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (outcome, full_at) = measure(Some(Nanos::new(self.0.get())))?;
        self.0.set(full_at.into());
        Ok(outcome)
    }
}

/// The time it was told: governor counts from what it hears first.
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

    #[test]
    fn what_is_left_is_told_without_taking_it() {
        let mut rate = GcraState::default();
        rate.adopt(&quota(2, 1, 3), SECOND);
        let left = |rate: &GcraState, now| (rate.left(now).remaining, rate.left(now).next.as_millis());
        assert_eq!(left(&rate, SECOND), (3, 0));
        assert_eq!(rate.try_take(SECOND), Ok(2));
        assert_eq!(left(&rate, SECOND), (2, 500));
        assert_eq!(left(&rate, SECOND + SECOND / 5), (2, 300));
        assert_eq!((rate.try_take(SECOND), rate.try_take(SECOND)), (Ok(1), Ok(0)));
        assert_eq!(rate.try_take(SECOND), Err(Duration::from_millis(500)));
        assert_eq!(left(&rate, SECOND), (0, 500));
        assert_eq!(left(&rate, SECOND + SECOND / 5), (0, 300));
        assert_eq!(left(&rate, 2 * SECOND), (2, 500));
        assert_eq!(left(&rate, 5 * SECOND), (3, 0));
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing_twice() {
        let mut rate = GcraState::default();
        rate.adopt(&quota(1, 1, 2), 10 * SECOND);
        assert_eq!((rate.try_take(10 * SECOND), rate.try_take(10 * SECOND)), (Ok(1), Ok(0)));
        assert_eq!(rate.try_take(5 * SECOND), Err(Duration::from_secs(6)));
        assert_eq!(rate.try_take(11 * SECOND), Ok(0));
        assert!(!rate.is_full(0));
    }
}
