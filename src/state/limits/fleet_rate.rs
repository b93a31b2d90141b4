//! The decisions about the rate of a key that the fleet counts: tokens of slices, of the store, and of the share.
//! May the fleet admit another delivery now?

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::net::store::StoreError;
use crate::policy::fleet::{SliceDecision, TokenGrant, TokenRequest};
use crate::policy::limits::{Quota, RateStatus};
use crate::state::fleet::Fleet;
use crate::state::limits::fleet_key::TokenAnswer;
use crate::state::limits::limiter_state::{
    CONCURRENCY_RETRY, Exhausted, LimiterInner, LimiterState, WAITING_PER_KEY_MAX, time_of_tokens,
};
use crate::state::limits::wait_queue::Ticket;
use crate::state::limits::wait_slots::LimitWait;

impl LimiterState {
    /// Takes a token of the fleet, as [`LimiterState::acquire_fleet_permit`] takes a permit.
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
                _ if !fleet.is_up() || inner.key().is_none_or(|key| key.asks.len() >= WAITING_PER_KEY_MAX) => {
                    drop(inner);
                    return self.take_share(fleet);
                }
                _ => inner.key_mut().asks.join(()),
            }
        };
        self.wake(fleet);
        let mut ask = TokenAsk { limiter: self, ticket };
        match timeout_at(answer_by(), &mut ask.ticket).await {
            Ok(Some(TokenAnswer::Taken)) => Ok(self.0.lock().fleet_status(fleet)),
            Ok(Some(TokenAnswer::Exhausted(wait))) => Err(Exhausted(wait)),
            Ok(Some(TokenAnswer::Away) | None) | Err(_) => self.take_share(fleet),
        }
    }

    /// Takes a token of the share, of which the task tells the store.
    fn take_share(self: &Arc<Self>, fleet: &Arc<Fleet>) -> Result<RateStatus, Exhausted> {
        let (taken, is_served) = {
            let mut inner = self.0.lock();
            (inner.take_share(fleet), inner.key_mut().is_served)
        };
        if taken.is_ok() && !is_served {
            self.wake(fleet);
        }
        taken
    }
}

impl LimiterInner {
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

    /// Takes the answer of the store to a request.
    pub(super) fn tokens_answered(
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
