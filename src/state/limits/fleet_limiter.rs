//! The decisions about a key that the fleet counts, and the task that leases its tokens and permits from the store.
//! Is there room for another delivery in the whole fleet?

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use crate::net::store::StoreError;
use crate::policy::fleet::permits::{PermitGrant, PermitRequest};
use crate::policy::fleet::{SliceDecision, TokenGrant, TokenRequest};
use crate::policy::limits::{Limit, Quota, RateStatus};
use crate::state::fleet::Fleet;
use crate::state::limits::fleet_key::{FleetKey, TokenAnswer};
use crate::state::limits::limiter_state::{
    CONCURRENCY_RETRY, ConcurrencyPermit, Exhausted, LimiterInner, LimiterState, WAITING_PER_KEY_MAX, time_of_tokens,
};
use crate::state::limits::wait_queue::Ticket;
use crate::state::limits::wait_slots::LimitWait;

/// The pause of the task while the store is away, and the one of a task that only has to tell the store of tokens.
const AWAY_PAUSE: Duration = Duration::from_millis(200);
const IDLE_AWAY_PAUSE: Duration = Duration::from_secs(5);

/// The next action of the task that serves a key.
enum LeaseStep {
    TakeTokens(Arc<str>, TokenRequest),
    LeasePermits(Arc<str>, PermitRequest),
    Sleep(Arc<Notify>, Duration),
    /// The same, or until the store answers again.
    AwaitStore(Arc<Notify>, Duration),
    End,
}

impl LimiterState {
    /// Makes the key one of the fleet, with the rate and the concurrency of this arrival.
    pub(in crate::state) fn join_fleet(&self, limit: &Limit, name: impl FnOnce() -> String) {
        let mut inner = self.0.lock();
        let extras = inner.extras.get_or_insert_default();
        let new = || Box::new(FleetKey { name: name().into(), ..FleetKey::default() });
        let key = extras.fleet.get_or_insert_with(new);
        if key.quota != limit.quota {
            key.tokens.quota_changed();
        }
        (key.quota, key.max_in_flight) = (limit.quota, limit.concurrency.unwrap_or_default());
    }

    /// Takes a permit of the fleet. It waits for the store for as long as a delivery may, and then for as long as the limit
    /// allows: then the limit has delayed the delivery. Also returns the number of permits left.
    pub(in crate::state) async fn acquire_fleet_permit(
        self: &Arc<Self>,
        fleet: &Arc<Fleet>,
        wait: &mut LimitWait<'_>,
        max_wait: Duration,
        has_waited: &mut bool,
    ) -> Result<(ConcurrencyPermit, u32), Exhausted> {
        let permit = |left| (ConcurrencyPermit(Arc::clone(self)), left);
        let granted = || {
            if !fleet.is_up() {
                fleet.count_share_decision();
            }
            permit(self.0.lock().permits_left())
        };
        let asked_at = fleet.now();
        let (first, is_exhausted) = {
            let mut inner = self.0.lock();
            let first = inner.try_fleet_permit(fleet, None);
            (first, inner.is_exhausted(fleet, asked_at))
        };
        if first.is_ok() || is_exhausted && max_wait.is_zero() {
            return first.map(permit);
        }
        let mut waiter = self.join_permit_queue()?;
        self.wake(fleet);
        // The ticket of a permit that was granted is used up: dropping the waiter leaves the permit.
        if timeout_at(wait.store_deadline(fleet.wait), &mut waiter.ticket).await.is_ok_and(|granted| granted.is_some())
        {
            return Ok(granted());
        }
        let Some(deadline) = wait.deadline(max_wait) else {
            drop(waiter); // leaves the queue before the last attempt
            return self.0.lock().try_fleet_permit(fleet, Some(asked_at)).map(permit);
        };
        *has_waited = true;
        let is_granted = timeout_at(deadline, &mut waiter.ticket).await.is_ok_and(|granted| granted.is_some());
        drop(waiter);
        if is_granted {
            return Ok(granted());
        }
        self.0.lock().try_fleet_permit(fleet, Some(asked_at)).map(permit)
    }

    /// Takes a token of the fleet, as [`Self::acquire_fleet_permit`] does a permit.
    pub(in crate::state) async fn take_fleet_token(
        self: &Arc<Self>,
        fleet: &Arc<Fleet>,
        quota: &Quota,
        wait: &mut LimitWait<'_>,
        max_wait: Duration,
        has_waited: &mut bool,
    ) -> Result<RateStatus, Exhausted> {
        let share = quota.share(fleet.live());
        let ahead = self.0.lock().waiting_for_token();
        let taken = match ahead {
            0 => self.try_fleet_token(fleet, || wait.store_deadline(fleet.wait)).await,
            ahead => Err(Exhausted(time_of_tokens(&share, ahead + 1))),
        };
        match taken {
            Err(exhausted) => match wait.deadline(max_wait) {
                Some(deadline) => {
                    *has_waited = true;
                    self.wait_for_fleet_token(fleet, quota, deadline).await
                }
                None => Err(exhausted),
            },
            taken => taken,
        }
    }

    /// Waits for a token until the deadline, in order of arrival.
    async fn wait_for_fleet_token(
        self: &Arc<Self>,
        fleet: &Arc<Fleet>,
        quota: &Quota,
        deadline: Instant,
    ) -> Result<RateStatus, Exhausted> {
        // Of a key that the others do not use, this instance gets the whole rate.
        let waiter = self.join_token_queue(quota, deadline)?;
        let share = quota.share(fleet.live());
        let _turn = timeout_at(deadline, waiter.turns.turn()).await.map_err(|_| Exhausted(share.interval()))?;
        loop {
            match self.try_fleet_token(fleet, || Instant::now() + fleet.wait).await {
                Err(Exhausted(wait)) if Instant::now() + wait <= deadline => sleep(wait).await,
                decided => return decided,
            }
        }
    }

    /// Takes a token of a slice, or asks the store for one. Without an answer in time, the share decides.
    async fn try_fleet_token(
        self: &Arc<Self>,
        fleet: &Arc<Fleet>,
        answer_by: impl FnOnce() -> Instant,
    ) -> Result<RateStatus, Exhausted> {
        let ticket = {
            let mut inner = self.0.lock();
            match inner.try_slices(fleet) {
                SliceDecision::Taken => {
                    let needs_refill = inner.key().is_some_and(|key| key.tokens.needs_refill(fleet.now()));
                    let status = inner.fleet_status(fleet);
                    drop(inner);
                    if needs_refill && fleet.is_up() {
                        self.wake(fleet);
                    }
                    return Ok(status);
                }
                SliceDecision::Exhausted(wait) if fleet.is_up() => return Err(Exhausted(wait)),
                _ if !fleet.is_up() => {
                    let (taken, is_served) = (inner.take_share(fleet), inner.key_mut().is_served);
                    drop(inner);
                    // The task will tell the store.
                    if taken.is_ok() && !is_served {
                        self.wake(fleet);
                    }
                    return taken;
                }
                _ if inner.key().is_none_or(|key| key.asks.len() >= WAITING_PER_KEY_MAX) => {
                    return inner.take_share(fleet);
                }
                _ => inner.key_mut().asks.join(()),
            }
        };
        self.wake(fleet);
        let mut ask = TokenAsk { limiter: self, ticket };
        match timeout_at(answer_by(), &mut ask.ticket).await {
            Ok(Some(TokenAnswer::Taken)) => Ok(self.0.lock().fleet_status(fleet)),
            Ok(Some(TokenAnswer::Exhausted(wait))) => Err(Exhausted(wait)),
            Ok(Some(TokenAnswer::Away) | None) | Err(_) => self.0.lock().take_share(fleet),
        }
    }

    /// Wakes the task that serves the key, and starts it if none runs.
    fn wake(self: &Arc<Self>, fleet: &Arc<Fleet>) {
        let mut inner = self.0.lock();
        let key = inner.key_mut();
        key.wake.notify_one();
        if !std::mem::replace(&mut key.is_served, true) {
            tokio::spawn(Arc::clone(self).serve_fleet(Arc::clone(fleet)));
        }
    }

    /// Leases tokens and permits, and returns them, until the key is not in use.
    async fn serve_fleet(self: Arc<Self>, fleet: Arc<Fleet>) {
        loop {
            let returned = fleet.next_return();
            let (step, asked_at) = {
                let mut inner = self.0.lock();
                (inner.next_step(&fleet), fleet.now())
            };
            match step {
                LeaseStep::TakeTokens(name, request) => {
                    let answer = fleet.take_tokens(&name, &request).await;
                    self.0.lock().tokens_answered(&fleet, &request, answer, asked_at);
                }
                LeaseStep::LeasePermits(name, request) => {
                    let answer = fleet.lease_permits(&name, &request).await;
                    self.0.lock().permits_answered(&fleet, &request, answer, asked_at);
                }
                LeaseStep::Sleep(wake, time) => tokio::select! {
                    () = wake.notified() => {}
                    () = returned => {}
                    () = sleep(time) => {}
                },
                LeaseStep::AwaitStore(wake, time) => tokio::select! {
                    () = wake.notified() => {}
                    () = fleet.answer() => {}
                    () = sleep(time) => {}
                },
                LeaseStep::End => return,
            }
        }
    }
}

impl LimiterInner {
    fn key(&self) -> Option<&FleetKey> {
        self.extras.as_ref().and_then(|extras| extras.fleet.as_deref())
    }

    /// Returns the key, which [`LimiterState::join_fleet`] has made.
    fn key_mut(&mut self) -> &mut FleetKey {
        let extras = self.extras.get_or_insert_default();
        extras.fleet.get_or_insert_default()
    }

    /// Returns the permits of the fleet that are left, as far as this instance knows.
    fn permits_left(&self) -> u32 {
        self.key().map_or(0, |key| key.permits.left(key.max_in_flight, self.in_flight))
    }

    /// Returns whether the fleet has no permit left: this instance uses all, or the store has refused more after this time or
    /// just before it.
    fn is_exhausted(&self, fleet: &Fleet, since: u64) -> bool {
        let is_exhausted = |key: &FleetKey| key.permits.has_refused_since(since) || self.in_flight >= key.max_in_flight;
        fleet.is_up() && self.key().is_some_and(is_exhausted)
    }

    /// Takes a permit without waiting. `asked_at`: the time since which the delivery has waited for the store. A store that has
    /// not answered since then is late, and counts as away.
    fn try_fleet_permit(&mut self, fleet: &Fleet, asked_at: Option<u64>) -> Result<u32, Exhausted> {
        let now = fleet.now();
        let is_up = fleet.is_up() && asked_at.is_none_or(|since| self.is_exhausted(fleet, since));
        self.set_allowed_permits(fleet, is_up, now);
        let is_behind = asked_at.is_none() && self.waiting_for_permit() > 0;
        if is_behind || self.in_flight >= self.max_in_flight {
            return Err(Exhausted(CONCURRENCY_RETRY));
        }
        self.in_flight += 1;
        if !is_up {
            fleet.count_share_decision();
        }
        Ok(self.permits_left())
    }

    /// Grants the permits that this instance may use to the deliveries that wait.
    fn set_allowed_permits(&mut self, fleet: &Fleet, is_up: bool, now: u64) {
        self.max_in_flight = self.key().map_or(0, |key| key.allowed_permits(is_up, fleet.live(), now));
        self.grant_permits();
    }

    fn try_slices(&mut self, fleet: &Fleet) -> SliceDecision {
        self.key_mut().tokens.take(fleet.now())
    }

    /// Takes a token of the share: the part of the rate that the instance has without the store. The state of the rate is
    /// that of the fleet when the store last answered, so the share of a key that was used up is used up.
    fn take_share(&mut self, fleet: &Fleet) -> Result<RateStatus, Exhausted> {
        let Some(quota) = self.key().and_then(|key| key.quota) else { return Err(Exhausted(CONCURRENCY_RETRY)) };
        let (share, now) = (quota.share(fleet.live()), fleet.now());
        self.rate.set_limits(&share);
        let status = self.rate.try_take(now).map_err(Exhausted)?;
        self.key_mut().tokens.use_share(&share, now);
        fleet.count_share_decision();
        Ok(status)
    }

    /// Returns the status of the rate of the whole fleet, as far as this instance knows.
    fn fleet_status(&self, fleet: &Fleet) -> RateStatus {
        let (mut rate, mut left) = (self.rate, 0);
        if let Some((key, quota)) = self.key().and_then(|key| Some((key, key.quota?))) {
            rate.set_limits(&quota);
            left = key.tokens.left();
        }
        let status = rate.status(fleet.now());
        RateStatus { remaining: status.remaining.saturating_add(left), ..status }
    }

    /// Chooses the next action of the task.
    fn next_step(&mut self, fleet: &Fleet) -> LeaseStep {
        let (now, is_up, live, in_flight) = (fleet.now(), fleet.is_up(), fleet.live(), self.in_flight);
        let [waiting, queued] =
            [self.waiting_for_permit(), self.waiting_for_token()].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        self.set_allowed_permits(fleet, is_up, now);
        let key = self.key_mut();
        let name = Arc::clone(&key.name);
        if !is_up {
            key.answer_all(TokenAnswer::Away);
            let is_idle = in_flight == 0 && waiting == 0;
            if is_idle && !key.tokens.owes(now) {
                key.is_served = false;
                return LeaseStep::End;
            }
            return LeaseStep::AwaitStore(Arc::clone(&key.wake), if is_idle { IDLE_AWAY_PAUSE } else { AWAY_PAUSE });
        }
        let mut rest: Option<Duration> = None;
        // A lease is renewed first: a key whose rate is used up always asks for tokens.
        if key.max_in_flight > 0 {
            let (wanted, more_after) = key.permits_wanted([in_flight, waiting], fleet, now);
            match key.permits.next_request(wanted, in_flight, fleet.returned_at(), now) {
                Some(Duration::ZERO) => {
                    let request = key.permits.request([wanted, key.max_in_flight], in_flight, now);
                    self.set_allowed_permits(fleet, is_up, now);
                    return LeaseStep::LeasePermits(name, request);
                }
                time => rest = time.into_iter().chain(more_after).min(),
            }
        }
        if let Some(quota) = key.quota {
            let asks = u32::try_from(key.asks.len()).unwrap_or(u32::MAX);
            if asks > 0 || key.tokens.needs_refill(now) {
                return LeaseStep::TakeTokens(name, key.tokens.request(quota, live, [asks, queued], now));
            }
            if let Some(request) = key.tokens.return_if_idle(quota, now) {
                return LeaseStep::TakeTokens(name, request);
            }
            if key.tokens.owes(now) {
                return LeaseStep::TakeTokens(name, key.tokens.settlement(quota, now));
            }
            rest = rest.into_iter().chain(key.tokens.next_look(now)).min();
        }
        match rest {
            Some(time) => LeaseStep::Sleep(Arc::clone(&key.wake), time),
            None => {
                key.is_served = false;
                LeaseStep::End
            }
        }
    }

    fn tokens_answered(
        &mut self,
        fleet: &Fleet,
        request: &TokenRequest,
        answer: Result<TokenGrant, StoreError>,
        asked_at: u64,
    ) {
        let now = fleet.now();
        let key = self.key_mut();
        let Ok(grant) = answer else { return key.answer_all(TokenAnswer::Away) };
        let handed_out = key.hand_out(grant.tokens);
        key.tokens.granted(request, &grant, handed_out, fleet.live(), [asked_at, now]);
        if let Some(wait) = key.tokens.time_without(now) {
            key.answer_all(TokenAnswer::Exhausted(wait));
        }
        self.rate.set_arrival(grant.arrival_after(asked_at));
    }

    fn permits_answered(
        &mut self,
        fleet: &Fleet,
        request: &PermitRequest,
        answer: Result<PermitGrant, StoreError>,
        asked_at: u64,
    ) {
        let now = fleet.now();
        if let Ok(grant) = answer {
            self.key_mut().permits.granted(request, grant, fleet.live(), asked_at, now);
        }
        self.set_allowed_permits(fleet, fleet.is_up(), now);
    }
}

/// A delivery that waits for the store. Dropping it leaves the queue; a token that it does not take is lost.
struct TokenAsk<'a> {
    limiter: &'a LimiterState,
    ticket: Ticket<TokenAnswer>,
}

impl Drop for TokenAsk<'_> {
    fn drop(&mut self) {
        let mut inner = self.limiter.0.lock();
        inner.key_mut().asks.leave(&mut self.ticket);
    }
}
