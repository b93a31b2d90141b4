//! The decisions about the concurrency of a key that the fleet counts, and the task that leases its tokens and permits from
//! the store.
//! Is there room for another delivery in the whole fleet?

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{sleep, timeout_at};

use crate::net::store::StoreError;
use crate::policy::fleet::TokenRequest;
use crate::policy::fleet::permits::{PermitGrant, PermitRequest};
use crate::policy::limits::Limit;
use crate::state::fleet::{CallKind, Fleet};
use crate::state::limits::fleet_key::{FleetKey, TokenAnswer};
use crate::state::limits::limiter_state::{
    CONCURRENCY_RETRY, ConcurrencyPermit, Exhausted, GrantedPermit, LimiterInner, LimiterState,
};
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
    /// A pause until the turn of a call for which no delivery waits, or until there may be one that waits.
    AwaitTurn(Arc<Notify>, CallKind),
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
        let granted = |grant: GrantedPermit| {
            if grant.is_of_share {
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
        if let Ok(Some(grant)) = timeout_at(wait.store_deadline(fleet.wait), &mut waiter.ticket).await {
            return Ok(granted(grant));
        }
        let Some(deadline) = wait.deadline(max_wait) else {
            drop(waiter); // leaves the queue before the last attempt
            return self.0.lock().try_fleet_permit(fleet, Some(asked_at)).map(permit);
        };
        *has_waited = true;
        let grant = timeout_at(deadline, &mut waiter.ticket).await.ok().flatten();
        drop(waiter);
        if let Some(grant) = grant {
            return Ok(granted(grant));
        }
        self.0.lock().try_fleet_permit(fleet, Some(asked_at)).map(permit)
    }

    /// Wakes the task that serves the key, and starts it if none runs.
    pub(super) fn wake(self: &Arc<Self>, fleet: &Arc<Fleet>) {
        let mut inner = self.0.lock();
        let key = inner.key_mut();
        key.wake.notify_one();
        if !std::mem::replace(&mut key.is_served, true) {
            tokio::spawn(Arc::clone(self).serve_fleet(Arc::clone(fleet)));
        }
    }

    /// Leases tokens and permits, and returns them, until the key is not in use.
    async fn serve_fleet(self: Arc<Self>, fleet: Arc<Fleet>) {
        let mut kind = CallKind::Idle;
        let mut next_turn = pin!(fleet.turn(kind));
        let mut turn = None;
        loop {
            let (returned, answered) = (fleet.next_return(), fleet.answer());
            let (step, asked_at) = {
                let mut inner = self.0.lock();
                (inner.next_step(&fleet, turn.is_some()), fleet.now())
            };
            match step {
                LeaseStep::AwaitTurn(_, of) if of == kind => {}
                // A task that does something else leaves its place among those that wait for a turn.
                LeaseStep::AwaitTurn(_, of) => {
                    kind = of;
                    next_turn.set(fleet.turn(kind));
                }
                _ => next_turn.set(fleet.turn(kind)),
            }
            let is_call = matches!(step, LeaseStep::TakeTokens(..) | LeaseStep::LeasePermits(..));
            let _turn = match turn.take() {
                Some(turn) if is_call => Some(turn),
                None if is_call => fleet.turn(CallKind::Awaited).await,
                _ => None,
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
                LeaseStep::AwaitTurn(wake, _) => tokio::select! {
                    given = &mut next_turn => {
                        turn = given;
                        next_turn.set(fleet.turn(kind));
                    }
                    () = wake.notified() => {}
                },
                LeaseStep::Sleep(wake, time) => tokio::select! {
                    () = wake.notified() => {}
                    () = returned => {}
                    () = sleep(time) => {}
                },
                LeaseStep::AwaitStore(wake, time) => tokio::select! {
                    () = wake.notified() => {}
                    () = answered => {}
                    () = sleep(time) => {}
                },
                LeaseStep::End => return,
            }
        }
    }
}

impl LimiterInner {
    pub(super) fn key(&self) -> Option<&FleetKey> {
        self.extras.as_ref().and_then(|extras| extras.fleet.as_deref())
    }

    /// Returns the key, which [`LimiterState::join_fleet`] has made.
    pub(super) fn key_mut(&mut self) -> &mut FleetKey {
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
        let key = self.key_mut();
        key.gives_share = !is_up;
        self.max_in_flight = key.allowed_permits(is_up, fleet.live(), now);
        self.grant_permits();
    }

    /// Chooses the next action of the task. A call for which no delivery waits needs a turn.
    fn next_step(&mut self, fleet: &Fleet, has_turn: bool) -> LeaseStep {
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
        let asks = u32::try_from(key.asks.len()).unwrap_or(u32::MAX);
        let has_turn = has_turn || asks > 0 || waiting > 0;
        let mut rest: Option<Duration> = None;
        // A lease is renewed first: a key whose rate is used up always asks for tokens.
        if key.max_in_flight > 0 {
            let (wanted, more_after) = key.permits_wanted([in_flight, waiting], fleet, now);
            match key.permits.next_request(wanted, in_flight, fleet.returned_at(), now) {
                Some(Duration::ZERO) if !has_turn => {
                    let kind = if key.permits.is_held(now) { CallKind::Lease } else { CallKind::Idle };
                    return LeaseStep::AwaitTurn(Arc::clone(&key.wake), kind);
                }
                Some(Duration::ZERO) => {
                    let request = key.permits.request([wanted, key.max_in_flight], in_flight, now);
                    self.set_allowed_permits(fleet, is_up, now);
                    return LeaseStep::LeasePermits(name, request);
                }
                time => rest = time.into_iter().chain(more_after).min(),
            }
        }
        if let Some(quota) = key.quota {
            let (lacks, owes) = (asks > 0 || key.tokens.needs_refill(now), key.tokens.owes(now));
            let may_return = key.tokens.next_look(now) == Some(Duration::ZERO);
            if (lacks || owes || may_return) && !has_turn {
                return LeaseStep::AwaitTurn(Arc::clone(&key.wake), CallKind::Idle);
            }
            if lacks {
                return LeaseStep::TakeTokens(name, key.tokens.request(quota, live, [asks, queued], now));
            }
            if owes {
                return LeaseStep::TakeTokens(name, key.tokens.settlement(quota, now));
            }
            if let Some(request) = key.tokens.return_if_idle(quota, now) {
                return LeaseStep::TakeTokens(name, request);
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
