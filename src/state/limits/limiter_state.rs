//! The state of one key of one limit: its deliveries in flight, its rate, and its bandwidth.
//! Is there room for another delivery, and if not, when?

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::panics::Mutex;
use crate::policy::limits::{Quota, RateStatus};
use crate::state::limits::byte_bucket::ByteBucket;
use crate::state::limits::byte_queue::ByteQueue;
use crate::state::limits::fleet_key::FleetKey;
use crate::state::limits::rate::GcraState;
use crate::state::limits::token_queue::{TokenQueue, TokenTurns};
use crate::state::limits::wait_queue::{Ticket, WaitQueue};

/// The length of each of the two queues of deliveries; more are refused at once.
pub(super) const WAITING_PER_KEY_MAX: usize = 1000;

/// The advice to a delivery that gets no permit. When the deliveries in flight end is unknown, so it is short.
pub(super) const CONCURRENCY_RETRY: Duration = Duration::from_secs(1);

/// The use at which a key is reported as near full.
const NEAR_FULL_PERCENT: u32 = 90;

/// The largest grant of bytes: small enough that other bodies get their turn soon, large enough to be efficient.
const GRANT_MAX: u64 = 16 * 1024;
/// A grant is also at most this part of one second's bytes.
const GRANTS_PER_SECOND: u64 = 8;

/// The state of one key. There may be millions of them: each takes 64 bytes with the counts of its `Arc`.
#[derive(Default)]
pub(in crate::state) struct LimiterState(pub(super) Mutex<LimiterInner>);

#[derive(Default)]
pub(super) struct LimiterInner {
    pub(super) rate: GcraState,
    pub(super) in_flight: u32,
    /// The limit of the newest arrival: after a reload it also applies to the deliveries that wait. Of a key that the fleet
    /// counts, it is the part of this instance.
    pub(super) max_in_flight: u32,
    pub(super) extras: Option<Box<Extras>>,
}

/// The state that few keys need.
#[derive(Default)]
pub(super) struct Extras {
    /// Deliveries that wait for a token hold a permit already, so they must not wait behind these.
    permits: WaitQueue<GrantedPermit>,
    tokens: TokenQueue,
    byte_bucket: Option<ByteBucket>,
    bytes: ByteQueue,
    /// `None`: the key is that of this host alone.
    pub(super) fleet: Option<Box<FleetKey>>,
}

/// A permit for a delivery that has waited.
#[derive(Clone, Copy, Debug)]
pub(super) struct GrantedPermit {
    /// The number of permits left.
    left: u32,
    /// Whether the share of this instance gave it, without the store of the fleet.
    pub(super) is_of_share: bool,
}

impl Extras {
    fn is_unused(&self) -> bool {
        let has_waiting = !self.permits.is_empty() || self.tokens.len() > 0 || !self.bytes.is_empty();
        !has_waiting && self.byte_bucket.is_none() && self.fleet.is_none()
    }
}

/// One delivery in flight. Dropping it frees its place for the next delivery.
pub(in crate::state) struct ConcurrencyPermit(pub(super) Arc<LimiterState>);

impl Drop for ConcurrencyPermit {
    fn drop(&mut self) {
        self.0.0.lock().release_permit();
    }
}

/// There is no room. The value is the time after which a retry may succeed.
#[derive(Debug)]
pub(in crate::state) struct Exhausted(pub(in crate::state) Duration);

/// How full a key is.
pub(in crate::state) struct LimiterUsage {
    pub(in crate::state) rate: Option<RateStatus>,
    pub(in crate::state) in_flight: u32,
    pub(in crate::state) waiting: usize,
}

impl LimiterState {
    /// Makes the state of a key that this state has counted among others. It inherits their debt of tokens and bytes, and
    /// none of their permits.
    pub(in crate::state) fn inherit(&self) -> Self {
        let inner = self.0.lock();
        let byte_bucket = inner.extras.as_ref().and_then(|extras| extras.byte_bucket.clone());
        let extras = byte_bucket.map(|bucket| Box::new(Extras { byte_bucket: Some(bucket), ..Extras::default() }));
        Self(Mutex::new(LimiterInner { rate: inner.rate, extras, ..LimiterInner::default() }))
    }

    /// Takes a permit without waiting, unless other deliveries wait. Also returns the number of permits left.
    pub(in crate::state) fn try_acquire_permit(
        self: &Arc<Self>,
        max_in_flight: u32,
    ) -> Result<(ConcurrencyPermit, u32), Exhausted> {
        let mut inner = self.0.lock();
        inner.max_in_flight = max_in_flight;
        inner.grant_permits();
        if inner.waiting_for_permit() > 0 || inner.in_flight >= max_in_flight {
            return Err(Exhausted(CONCURRENCY_RETRY));
        }
        inner.in_flight += 1;
        Ok((ConcurrencyPermit(Arc::clone(self)), max_in_flight - inner.in_flight))
    }

    /// Waits for a permit until the deadline, in order of arrival.
    pub(in crate::state) async fn acquire_permit(
        self: &Arc<Self>,
        deadline: Instant,
    ) -> Result<(ConcurrencyPermit, u32), Exhausted> {
        let mut waiter = self.join_permit_queue()?;
        match timeout_at(deadline, &mut waiter.ticket).await {
            Ok(Some(grant)) => Ok((ConcurrencyPermit(Arc::clone(self)), grant.left)),
            Ok(None) | Err(_) => Err(Exhausted(CONCURRENCY_RETRY)),
        }
    }

    /// Joins the queue for a permit, unless it is full.
    pub(super) fn join_permit_queue(&self) -> Result<PermitWaiter<'_>, Exhausted> {
        let mut inner = self.0.lock();
        if inner.waiting_for_permit() >= WAITING_PER_KEY_MAX {
            return Err(Exhausted(CONCURRENCY_RETRY));
        }
        let ticket = inner.extras.get_or_insert_default().permits.join(());
        inner.grant_permits();
        Ok(PermitWaiter { limiter: self, ticket })
    }

    /// Takes a token without waiting, unless other deliveries wait. Returns the status after it. A new quota also
    /// applies to the deliveries that wait.
    pub(in crate::state) fn try_take_token(&self, quota: &Quota, now: u64) -> Result<RateStatus, Exhausted> {
        let mut inner = self.0.lock();
        if inner.rate.set_quota(quota, now)
            && let Some(extras) = &inner.extras
        {
            extras.tokens.notify_quota_changed();
        }
        match inner.waiting_for_token() {
            0 => inner.rate.try_take(now).map_err(Exhausted),
            ahead => Err(Exhausted(time_of_tokens(quota, ahead + 1))),
        }
    }

    /// Waits for a token until the deadline, in order of arrival, after [`Self::try_take_token`] had none. A delivery that
    /// cannot get one in time is refused at once.
    pub(in crate::state) async fn take_token(
        &self,
        quota: &Quota,
        clock: impl Fn() -> u64,
        deadline: Instant,
    ) -> Result<RateStatus, Exhausted> {
        let waiter = self.join_token_queue(quota, deadline)?;
        let turn = timeout_at(deadline, waiter.turns.turn()).await;
        let _turn = turn.map_err(|_| Exhausted(quota.interval()))?;
        loop {
            let taken = self.0.lock().rate.try_take(clock());
            match taken {
                Err(wait) if Instant::now() + wait <= deadline => {
                    tokio::select! { biased; () = sleep(wait) => {}, () = waiter.turns.quota_changed() => {} }
                }
                decided => return decided.map_err(Exhausted),
            }
        }
    }

    /// Joins the queue for a token, unless it is full or the token would come after the deadline.
    pub(super) fn join_token_queue(&self, quota: &Quota, deadline: Instant) -> Result<TokenWaiter<'_>, Exhausted> {
        let mut inner = self.0.lock();
        let ahead = inner.waiting_for_token();
        if ahead >= WAITING_PER_KEY_MAX || Instant::now() + time_of_tokens(quota, ahead) > deadline {
            return Err(Exhausted(time_of_tokens(quota, ahead + 1)));
        }
        Ok(TokenWaiter { limiter: self, turns: inner.extras.get_or_insert_default().tokens.join() })
    }

    /// Sets the bytes a second that all deliveries of the key share, including those in flight.
    pub(in crate::state) fn set_bandwidth(&self, bandwidth: u64) {
        let now = Instant::now();
        let mut inner = self.0.lock();
        let extras = inner.extras.get_or_insert_default();
        let bucket = extras.byte_bucket.get_or_insert_with(|| ByteBucket::new(bandwidth, now));
        if bucket.set_bandwidth(bandwidth, now) {
            extras.bytes.bandwidth_changed.notify_one();
        }
    }

    /// Takes at most `max_bytes` without waiting. `None`: none are due, or other bodies wait.
    pub(in crate::state) fn try_take_bytes(&self, max_bytes: u64) -> Option<u64> {
        let mut inner = self.0.lock();
        let Some(extras) = &mut inner.extras else { return Some(max_bytes) };
        match &mut extras.byte_bucket {
            _ if !extras.bytes.is_empty() => None,
            Some(bucket) => try_take_grant(bucket, max_bytes, Instant::now()).ok(),
            None => Some(max_bytes),
        }
    }

    /// Waits for at most `max_bytes`, in order of arrival, whether or not the caller polls.
    pub(in crate::state) fn wait_for_bytes(self: &Arc<Self>, max_bytes: u64) -> BytesGrant {
        let (ticket, must_serve) = self.0.lock().extras.get_or_insert_default().bytes.join(max_bytes);
        if must_serve {
            tokio::spawn(Arc::clone(self).serve_bytes());
        }
        BytesGrant { limiter: Arc::clone(self), ticket }
    }

    /// Returns bytes that were taken and not forwarded.
    pub(in crate::state) fn refund_bytes(&self, bytes: u64) {
        if let Some(bucket) = self.0.lock().extras.as_mut().and_then(|extras| extras.byte_bucket.as_mut()) {
            bucket.refund(bytes);
        }
    }

    /// Grants bytes until no body waits.
    async fn serve_bytes(self: Arc<Self>) {
        loop {
            let (wait, bandwidth_changed) = {
                let mut inner = self.0.lock();
                let Some(extras) = &mut inner.extras else { return };
                let Extras { byte_bucket, bytes, .. } = &mut **extras;
                let now = Instant::now();
                let try_take = |max_bytes| match byte_bucket {
                    Some(bucket) => try_take_grant(bucket, max_bytes, now),
                    None => Ok(max_bytes),
                };
                let Some(wait) = bytes.grant(try_take) else { return };
                (wait, Arc::clone(&bytes.bandwidth_changed))
            };
            tokio::select! { biased; () = sleep(wait) => {}, () = bandwidth_changed.notified() => {} }
        }
    }

    /// Returns whether dropping the state loses nothing: no permit is in use, and the rate and the bytes are unused.
    pub(in crate::state) fn is_idle(&self, now: u64) -> bool {
        let inner = self.0.lock();
        let bucket = inner.extras.as_ref().and_then(|extras| extras.byte_bucket.as_ref());
        inner.in_flight == 0 && inner.rate.is_full(now) && bucket.is_none_or(|bucket| bucket.is_full(Instant::now()))
    }

    /// Returns whether the burst or the concurrency is in use to [`NEAR_FULL_PERCENT`].
    pub(in crate::state) fn is_near_full(&self, now: u64) -> bool {
        let inner = self.0.lock();
        let fleet = inner.extras.as_ref().and_then(|extras| extras.fleet.as_ref());
        let max_in_flight = u64::from(fleet.map_or(inner.max_in_flight, |key| key.max_in_flight));
        let has_few_permits =
            max_in_flight > 0 && u64::from(inner.in_flight) * 100 >= max_in_flight * u64::from(NEAR_FULL_PERCENT);
        has_few_permits || inner.rate.is_used(NEAR_FULL_PERCENT, now)
    }

    /// Returns the usage under this quota, without adopting it.
    pub(in crate::state) fn usage(&self, quota: Option<&Quota>, now: u64) -> LimiterUsage {
        let inner = self.0.lock();
        let rate = quota.map(|quota| {
            let mut rate = inner.rate;
            match inner.extras.as_ref().is_some_and(|extras| extras.fleet.is_some()) {
                true => rate.set_limits(quota),
                false => _ = rate.set_quota(quota, now),
            }
            rate.status(now)
        });
        let waiting = inner.waiting_for_permit() + inner.waiting_for_token();
        LimiterUsage { rate, in_flight: inner.in_flight, waiting }
    }
}

/// Returns the time in which the quota gives this many tokens.
pub(super) fn time_of_tokens(quota: &Quota, tokens: usize) -> Duration {
    quota.interval().saturating_mul(u32::try_from(tokens).unwrap_or(u32::MAX))
}

fn try_take_grant(bucket: &mut ByteBucket, max_bytes: u64, now: Instant) -> Result<u64, Duration> {
    let grant_max = GRANT_MAX.min(bucket.bandwidth() / GRANTS_PER_SECOND).max(1);
    bucket.try_take(max_bytes.min(grant_max), now)
}

impl LimiterInner {
    pub(super) fn waiting_for_permit(&self) -> usize {
        self.extras.as_ref().map_or(0, |extras| extras.permits.len())
    }

    pub(super) fn waiting_for_token(&self) -> usize {
        self.extras.as_ref().map_or(0, |extras| extras.tokens.len())
    }

    fn release_permit(&mut self) {
        self.in_flight -= 1;
        self.grant_permits();
        if let Some(key) = self.extras.as_ref().and_then(|extras| extras.fleet.as_ref()) {
            key.permit_released(self.in_flight, self.max_in_flight);
        }
    }

    /// Grants the free permits to the deliveries that wait.
    pub(super) fn grant_permits(&mut self) {
        let Some(extras) = &mut self.extras else { return };
        let is_of_share = extras.fleet.as_ref().is_some_and(|key| key.gives_share);
        while self.in_flight < self.max_in_flight && !extras.permits.is_empty() {
            let left = self.max_in_flight - self.in_flight - 1;
            self.in_flight += u32::from(extras.permits.grant(GrantedPermit { left, is_of_share }));
        }
    }

    fn drop_unused_extras(&mut self) {
        if self.extras.as_ref().is_some_and(|extras| extras.is_unused()) {
            self.extras = None;
        }
    }
}

/// The bytes that a body waits for. Dropping it leaves the queue, and returns bytes that were granted meanwhile.
pub(in crate::state) struct BytesGrant {
    limiter: Arc<LimiterState>,
    ticket: Ticket<u64>,
}

impl Future for BytesGrant {
    type Output = u64;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u64> {
        // The task that grants ends without a grant when tokio shuts down: then the bandwidth no longer matters.
        Poll::Ready(ready!(Pin::new(&mut self.ticket).poll(cx)).unwrap_or(1))
    }
}

impl Drop for BytesGrant {
    fn drop(&mut self) {
        let mut inner = self.limiter.0.lock();
        let Some(extras) = &mut inner.extras else { return };
        if let Some(bytes) = extras.bytes.leave(&mut self.ticket)
            && let Some(bucket) = &mut extras.byte_bucket
        {
            bucket.refund(bytes);
        }
    }
}

/// A delivery that waits for a permit. Dropping it leaves the queue, and releases a permit that was granted meanwhile.
pub(super) struct PermitWaiter<'a> {
    limiter: &'a LimiterState,
    pub(super) ticket: Ticket<GrantedPermit>,
}

impl Drop for PermitWaiter<'_> {
    fn drop(&mut self) {
        let mut inner = self.limiter.0.lock();
        let Some(extras) = &mut inner.extras else { return };
        if extras.permits.leave(&mut self.ticket).is_some() {
            inner.release_permit();
        }
        inner.drop_unused_extras();
    }
}

/// A delivery that waits for a token. Dropping it leaves the queue.
pub(super) struct TokenWaiter<'a> {
    limiter: &'a LimiterState,
    pub(super) turns: Arc<TokenTurns>,
}

impl Drop for TokenWaiter<'_> {
    fn drop(&mut self) {
        let mut inner = self.limiter.0.lock();
        let Some(extras) = &mut inner.extras else { return };
        extras.tokens.leave();
        inner.drop_unused_extras();
    }
}

#[cfg(test)]
mod tests;
