//! One key's counter of one limit: how many are under way, and how many more the rate allows.
//! Is there room for one more, and if not, when?

use std::cell::Cell;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::RateLimiter;
use governor::clock::{Clock, Reference};
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use crate::policy::admit::Quota;

/// Deliveries held back by one bucket for each of its two reasons; more are refused at once.
const WAITING_MAX: u32 = 1000;

/// What is not known is when others will end: ask again soon.
const CONCURRENCY_RETRY: Duration = Duration::from_secs(1);

pub(super) struct Bucket<I: Reference> {
    state: Mutex<State<I>>,
    /// Held by who waits first for a place; the mutex serves in order of arrival. A line of its own: those who wait
    /// for a token already hold a place, and must not stand behind those who wait for it.
    first_for_place: tokio::sync::Mutex<()>,
    /// A place came free; only the first in line listens.
    freed: Notify,
    /// Held by who waits first for a token.
    first_for_token: tokio::sync::Mutex<()>,
}

struct State<I: Reference> {
    in_flight: u32,
    /// As the newest arrival has it, so that after a reload it holds for those in line too.
    maximum: u32,
    waiting_for_place: u32,
    waiting_for_token: u32,
    /// Made by the first who asks for a token.
    meter: Option<Meter<I>>,
}

struct Meter<I: Reference> {
    quota: Quota,
    limiter: RateLimiter<NotKeyed, InMemoryState, Told<I>, StateInformationMiddleware>,
}

/// The time it was told: one clock serves all buckets, and a meter can be told of the past when it is made.
struct Told<I>(Cell<I>);

impl<I: Reference> Clock for Told<I> {
    type Instant = I;
    fn now(&self) -> I {
        self.0.get()
    }
}

/// One delivery under way; its drop makes room.
pub(super) struct Place<I: Reference>(Arc<Bucket<I>>);

impl<I: Reference> Drop for Place<I> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.in_flight -= 1;
        if state.waiting_for_place > 0 {
            self.0.freed.notify_one();
        }
    }
}

/// No room; perhaps after this time.
pub(super) struct Full(pub(super) Duration);

impl<I: Reference> Bucket<I> {
    pub(super) fn new() -> Self {
        let state = State { in_flight: 0, maximum: 0, waiting_for_place: 0, waiting_for_token: 0, meter: None };
        Self {
            state: Mutex::new(state),
            first_for_place: tokio::sync::Mutex::new(()),
            freed: Notify::new(),
            first_for_token: tokio::sync::Mutex::new(()),
        }
    }

    /// A place at once, and how many are left; nobody overtakes those in line.
    pub(super) fn enter(self: &Arc<Self>, maximum: u32) -> Result<(Place<I>, u32), Full> {
        let mut state = self.lock();
        if maximum > state.maximum && state.waiting_for_place > 0 {
            self.freed.notify_one();
        }
        state.maximum = maximum;
        if state.waiting_for_place == 0 { self.occupy(&mut state) } else { Err(Full(CONCURRENCY_RETRY)) }
    }

    /// A place by the deadline, in order of arrival.
    pub(super) async fn wait_to_enter(self: &Arc<Self>, deadline: Instant) -> Result<(Place<I>, u32), Full> {
        let in_line = || {
            let mut state = self.lock();
            let room = state.waiting_for_place < WAITING_MAX;
            state.waiting_for_place += u32::from(room);
            room.then(|| InLine { bucket: self, line: |state| &mut state.waiting_for_place })
        };
        let _in_line = in_line().ok_or(Full(CONCURRENCY_RETRY))?;
        let first_in_line = async {
            let _first = self.first_for_place.lock().await;
            loop {
                if let Ok(entered) = self.occupy(&mut self.lock()) {
                    return entered;
                }
                self.freed.notified().await;
            }
        };
        timeout_at(deadline, first_in_line).await.map_err(|_| Full(CONCURRENCY_RETRY))
    }

    fn occupy(self: &Arc<Self>, state: &mut State<I>) -> Result<(Place<I>, u32), Full> {
        if state.in_flight >= state.maximum {
            return Err(Full(CONCURRENCY_RETRY));
        }
        state.in_flight += 1;
        Ok((Place(self.clone()), state.maximum - state.in_flight))
    }

    /// A token at once, and how many are left; nobody overtakes those in line.
    pub(super) fn take(&self, quota: Quota, now: I) -> Result<u32, Full> {
        let mut state = self.lock();
        match state.waiting_for_token {
            0 => state.meter(quota, now).take(now),
            ahead => Err(Full(quota.interval() * (ahead + 1))),
        }
    }

    /// A token by the deadline, in order of arrival. Who cannot get one in time is not made to wait for a refusal.
    pub(super) async fn wait_to_take<C: Clock<Instant = I>>(
        &self,
        quota: Quota,
        clock: &C,
        deadline: Instant,
    ) -> Result<u32, Full> {
        let interval = quota.interval();
        let in_line = || {
            let mut state = self.lock();
            let ahead = state.waiting_for_token;
            if ahead >= WAITING_MAX || Instant::now() + interval * ahead > deadline {
                return Err(Full(interval * (ahead + 1)));
            }
            state.waiting_for_token += 1;
            Ok(InLine { bucket: self, line: |state| &mut state.waiting_for_token })
        };
        let _in_line = in_line()?;
        let _first = timeout_at(deadline, self.first_for_token.lock()).await.map_err(|_| Full(interval))?;
        loop {
            let now = clock.now();
            let taken = self.lock().meter(quota, now).take(now);
            match taken {
                Err(Full(after)) if Instant::now() + after <= deadline => sleep(after).await,
                decided => return decided,
            }
        }
    }

    /// Nothing would be forgotten by dropping it: nobody is in it, and its rate is as if never used. To be asked of a
    /// bucket that is dropped if it is idle, for asking takes its tokens.
    pub(super) fn is_idle(&self, now: I) -> bool {
        let state = self.lock();
        state.in_flight == 0 && state.meter.as_ref().is_none_or(|meter| meter.take_all(now).is_ok())
    }

    fn lock(&self) -> MutexGuard<'_, State<I>> {
        // Nothing panics half-way through a change of the state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<I: Reference> State<I> {
    /// The meter at this quota.
    fn meter(&mut self, quota: Quota, now: I) -> &Meter<I> {
        let before = self.meter.take_if(|meter| meter.quota != quota);
        self.meter.get_or_insert_with(|| match before {
            None => Meter::new(quota, now, 0),
            Some(before) => before.succeeded_by(quota, now),
        })
    }
}

impl<I: Reference> Meter<I> {
    /// One that is full after so many nanoseconds.
    fn new(quota: Quota, now: I, debt: u128) -> Self {
        let interval = quota.interval().max(Duration::from_nanos(1));
        let tokens = debt.div_ceil(interval.as_nanos());
        // Whole tokens are taken out of it, so the last is taken a little earlier than now.
        let earlier = u64::try_from(tokens * interval.as_nanos() - debt).unwrap_or(0);
        let clock = Told(Cell::new(now.saturating_sub(Nanos::new(earlier))));
        let pace = governor::Quota::with_period(interval).expect("an interval of a nanosecond or more");
        let limiter = RateLimiter::direct_with_clock(pace.allow_burst(quota.burst), clock).with_middleware();
        if let Some(tokens) = u32::try_from(tokens).ok().and_then(NonZeroU32::new) {
            // A new limiter has a burst, and nobody owes more.
            let _taken = limiter.check_n(tokens);
        }
        Self { quota, limiter }
    }

    /// The quota of a limiter cannot change, so a changed quota needs another one. What was left of the old is left of
    /// the new, to the fraction of a token, up to the new burst: reloads neither refill nor starve, however often they
    /// come.
    fn succeeded_by(self, quota: Quota, now: I) -> Self {
        let [before, after] = [self.quota, quota].map(|quota| quota.interval().as_nanos().max(1));
        let full = |quota: Quota, interval| u128::from(quota.burst.get()) * interval;
        let debt = self.take_all(now).err().map_or(0, |full_after| full_after.as_nanos());
        let left = full(self.quota, before).saturating_sub(debt) * after / before;
        Self::new(quota, now, full(quota, after).saturating_sub(left))
    }

    fn take(&self, now: I) -> Result<u32, Full> {
        self.limiter.clock().0.set(now);
        match self.limiter.check() {
            Ok(left) => Ok(left.remaining_burst_capacity()),
            Err(until) => Err(Full(until.wait_time_from(now))),
        }
    }

    /// The whole burst, or the time until it is there: all that governor tells of a limiter's state.
    fn take_all(&self, now: I) -> Result<(), Duration> {
        self.limiter.clock().0.set(now);
        match self.limiter.check_n(self.quota.burst) {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(until)) => Err(until.wait_time_from(now)),
            Err(_) => Err(Duration::MAX),
        }
    }
}

/// Somebody waiting, counted until dropped.
struct InLine<'a, I: Reference> {
    bucket: &'a Bucket<I>,
    line: fn(&mut State<I>) -> &mut u32,
}

impl<I: Reference> Drop for InLine<'_, I> {
    fn drop(&mut self) {
        *(self.line)(&mut self.bucket.lock()) -= 1;
    }
}
