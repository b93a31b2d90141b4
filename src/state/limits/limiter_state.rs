//! One key's counter of one limit: how many are under way, how many more its rate allows, how many bytes.
//! Is there room for one more, and if not, when?

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

use crate::policy::limits::{Quota, RateStatus};
use crate::state::limits::byte_bucket::ByteBucket;
use crate::state::limits::byte_queue::ByteQueue;
use crate::state::limits::queue::{QueueHead, Resource, WaiterQueues};
use crate::state::limits::rate::GcraState;

/// Deliveries held back by one bucket for each of its two reasons; more are refused at once.
const WAITING_MAX: usize = 1000;

/// What is not known is when others will end: ask again soon.
const CONCURRENCY_RETRY: Duration = Duration::from_secs(1);

/// Handed out to one delivery at a time: few enough for others to get their turn soon, enough to be worth the trouble.
const BYTES_AT_ONCE: u64 = 16 * 1024;
/// And no more than come in this part of a second.
const TURNS_A_SECOND: u64 = 8;

/// There may be millions of them: 64 bytes, with the counts of their `Arc`.
#[derive(Default)]
pub(in crate::state) struct LimiterState(Mutex<LimiterInner>);

#[derive(Default)]
struct LimiterInner {
    rate: GcraState,
    in_flight: u32,
    /// As the newest arrival has it, so that after a reload it holds for those in line too.
    maximum: u32,
    /// What few keys have.
    rare: Option<Box<Extras>>,
}

#[derive(Default)]
struct Extras {
    queues: WaiterQueues,
    flow: Option<ByteBucket>,
    turns: ByteQueue,
}

/// One delivery under way; its drop makes room.
pub(in crate::state) struct ConcurrencyPermit(Arc<LimiterState>);

impl Drop for ConcurrencyPermit {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.in_flight -= 1;
        state.call(Resource::Concurrency);
    }
}

/// No room; perhaps after this time.
#[derive(Debug)]
pub(in crate::state) struct Exhausted(pub(in crate::state) Duration);

/// How full a bucket is.
pub(in crate::state) struct LimiterUsage {
    pub(in crate::state) rate: Option<RateStatus>,
    pub(in crate::state) in_flight: u32,
    pub(in crate::state) waiting: usize,
}

impl LimiterState {
    /// For one of those that this one counted together: it owes what all of them owe. What it has under way here, it may
    /// have once more there.
    pub(in crate::state) fn inherit(&self) -> Self {
        let state = self.0.lock();
        let flow = state.rare.as_ref().and_then(|rare| rare.flow.clone());
        let rare = flow.map(|flow| Box::new(Extras { flow: Some(flow), ..Extras::default() }));
        Self(Mutex::new(LimiterInner { rate: state.rate, rare, ..LimiterInner::default() }))
    }

    /// A place at once, and how many are left; nobody overtakes those in line.
    pub(in crate::state) fn try_acquire_permit(
        self: &Arc<Self>,
        maximum: u32,
    ) -> Result<(ConcurrencyPermit, u32), Exhausted> {
        let mut state = self.0.lock();
        if maximum > state.maximum {
            state.call(Resource::Concurrency);
        }
        state.maximum = maximum;
        if state.waiting(Resource::Concurrency) == 0 {
            self.occupy(&mut state)
        } else {
            Err(Exhausted(CONCURRENCY_RETRY))
        }
    }

    /// A place by the deadline, in order of arrival.
    pub(in crate::state) async fn wait_to_enter(
        self: &Arc<Self>,
        deadline: Instant,
    ) -> Result<(ConcurrencyPermit, u32), Exhausted> {
        let in_line = self.queue(Resource::Concurrency, |ahead| match ahead < WAITING_MAX {
            true => Ok(()),
            false => Err(Exhausted(CONCURRENCY_RETRY)),
        })?;
        let first_in_line = async {
            let _first = in_line.head.first().await;
            loop {
                if let Ok(entered) = self.occupy(&mut self.0.lock()) {
                    return entered;
                }
                in_line.head.notified().await;
            }
        };
        timeout_at(deadline, first_in_line).await.map_err(|_| Exhausted(CONCURRENCY_RETRY))
    }

    fn occupy(self: &Arc<Self>, state: &mut LimiterInner) -> Result<(ConcurrencyPermit, u32), Exhausted> {
        if state.in_flight >= state.maximum {
            return Err(Exhausted(CONCURRENCY_RETRY));
        }
        state.in_flight += 1;
        Ok((ConcurrencyPermit(self.clone()), state.maximum - state.in_flight))
    }

    /// A token at once, and how many are left; nobody overtakes those in line, for whom a new quota holds too.
    pub(in crate::state) fn try_take_token(&self, quota: &Quota, now: u64) -> Result<u32, Exhausted> {
        let mut state = self.0.lock();
        if state.rate.adopt(quota, now) {
            state.call(Resource::Token);
        }
        match state.waiting(Resource::Token) {
            0 => state.rate.try_take(now).map_err(Exhausted),
            ahead => Err(Exhausted(after(quota, ahead + 1))),
        }
    }

    /// A token by the deadline, in order of arrival, once [`Self::try_take_token`] had none. Who cannot get one in time is
    /// not made to wait for a refusal.
    pub(in crate::state) async fn wait_to_take(
        &self,
        quota: &Quota,
        clock: impl Fn() -> u64,
        deadline: Instant,
    ) -> Result<u32, Exhausted> {
        let in_time = |ahead| Instant::now() + after(quota, ahead) <= deadline;
        let in_line = self.queue(Resource::Token, |ahead| match ahead < WAITING_MAX && in_time(ahead) {
            true => Ok(()),
            false => Err(Exhausted(after(quota, ahead + 1))),
        })?;
        let first = timeout_at(deadline, in_line.head.first()).await;
        let _first = first.map_err(|_| Exhausted(quota.interval()))?;
        loop {
            let taken = self.0.lock().rate.try_take(clock());
            match taken {
                Err(wait) if Instant::now() + wait <= deadline => {
                    tokio::select! { () = sleep(wait) => {}, () = in_line.head.notified() => {} }
                }
                decided => return decided.map_err(Exhausted),
            }
        }
    }

    /// From now on its deliveries share so many bytes a second, those under way too.
    pub(in crate::state) fn open_flow(&self, bandwidth: u64) {
        let now = Instant::now();
        let mut state = self.0.lock();
        let rare = state.rare.get_or_insert_default();
        let changed = rare.flow.get_or_insert_with(|| ByteBucket::new(bandwidth, now)).adopt(bandwidth, now);
        if changed {
            rare.turns.changed.notify_one();
        }
    }

    /// Some of these bytes, now; none where others are in line for theirs.
    pub(in crate::state) fn take_bytes(&self, most: u64) -> Option<u64> {
        let mut state = self.0.lock();
        let is_first = state.rare.as_ref().is_none_or(|rare| rare.turns.is_empty());
        is_first.then(|| state.take_bytes(most).ok())?
    }

    /// Some of these bytes, in order of arrival, whether or not the caller polls for them.
    pub(in crate::state) fn wait_for_bytes(self: &Arc<Self>, most: u64) -> BytesGrant {
        let (number, granted, is_first) = self.0.lock().rare.get_or_insert_default().turns.join(most);
        if is_first {
            tokio::spawn(Arc::clone(self).serve());
        }
        BytesGrant { bucket: Arc::clone(self), number, granted }
    }

    /// Bytes that were taken and did not pass.
    pub(in crate::state) fn refund_bytes(&self, bytes: u64) {
        if let Some(flow) = self.0.lock().rare.as_mut().and_then(|rare| rare.flow.as_mut()) {
            flow.refund(bytes);
        }
    }

    /// Grants turns until no body waits.
    async fn serve(self: Arc<Self>) {
        loop {
            let (wait, changed) = {
                let mut state = self.0.lock();
                let Some(rare) = &mut state.rare else { return };
                let Extras { flow, turns, .. } = &mut **rare;
                let (now, mut unclaimed) = (Instant::now(), 0);
                let take = |most| match flow.as_mut() {
                    Some(flow) => take_from(flow, most, now),
                    None => Ok(most),
                };
                let wait = turns.grant(take, |bytes| unclaimed += bytes);
                flow.iter_mut().for_each(|flow| flow.refund(unclaimed));
                let Some(wait) = wait else { return };
                (wait, Arc::clone(&turns.changed))
            };
            tokio::select! { () = sleep(wait) => {}, () = changed.notified() => {} }
        }
    }

    /// Nothing would be forgotten by dropping it: nobody is in it, and its rate is as if never used.
    pub(in crate::state) fn is_idle(&self, now: u64) -> bool {
        let state = self.0.lock();
        let flow = state.rare.as_ref().and_then(|rare| rare.flow.as_ref());
        state.in_flight == 0 && state.rate.is_full(now) && flow.is_none_or(|flow| flow.is_full(Instant::now()))
    }

    /// How full it is under this quota, which it does not take up.
    pub(in crate::state) fn level(&self, quota: Option<&Quota>, now: u64) -> LimiterUsage {
        let state = self.0.lock();
        let rate = quota.map(|quota| {
            let mut rate = state.rate;
            rate.adopt(quota, now);
            rate.left(now)
        });
        let waiting = state.waiting(Resource::Concurrency) + state.waiting(Resource::Token);
        LimiterUsage { rate, in_flight: state.in_flight, waiting }
    }

    /// Stands in line, if `wants` says so of as many as are ahead.
    fn queue(
        &self,
        what: Resource,
        wants: impl FnOnce(usize) -> Result<(), Exhausted>,
    ) -> Result<QueueTicket<'_>, Exhausted> {
        let mut state = self.0.lock();
        wants(state.waiting(what))?;
        Ok(self.join(what, &mut state))
    }

    fn join(&self, what: Resource, state: &mut LimiterInner) -> QueueTicket<'_> {
        let turn = state.rare.get_or_insert_default().queues.join(what);
        QueueTicket { bucket: self, what, head: turn }
    }
}

/// The time that so many tokens take.
fn after(quota: &Quota, tokens: usize) -> Duration {
    quota.interval().saturating_mul(u32::try_from(tokens).unwrap_or(u32::MAX))
}

impl LimiterInner {
    fn waiting(&self, what: Resource) -> usize {
        self.rare.as_ref().map_or(0, |rare| rare.queues.waiting(what))
    }

    fn call(&self, what: Resource) {
        if let Some(rare) = &self.rare {
            rare.queues.call(what);
        }
    }

    fn take_bytes(&mut self, most: u64) -> Result<u64, Duration> {
        let Some(flow) = self.rare.as_mut().and_then(|rare| rare.flow.as_mut()) else { return Ok(most) };
        take_from(flow, most, Instant::now())
    }
}

fn take_from(flow: &mut ByteBucket, most: u64, now: Instant) -> Result<u64, Duration> {
    let at_once = BYTES_AT_ONCE.min(flow.bandwidth() / TURNS_A_SECOND).max(1);
    flow.try_take(most.min(at_once), now)
}

/// The bytes that a body waits for. Dropping it leaves the queue, and gives back what was granted meanwhile.
pub(in crate::state) struct BytesGrant {
    bucket: Arc<LimiterState>,
    number: u64,
    granted: oneshot::Receiver<u64>,
}

impl Future for BytesGrant {
    type Output = u64;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u64> {
        // The task that grants ends without a grant where the runtime ends: one byte at a time is no bandwidth then.
        Poll::Ready(ready!(Pin::new(&mut self.granted).poll(cx)).unwrap_or(1))
    }
}

impl Drop for BytesGrant {
    fn drop(&mut self) {
        if let Some(rare) = &mut self.bucket.0.lock().rare {
            rare.turns.leave(self.number);
        }
        if let Ok(bytes) = self.granted.try_recv() {
            self.bucket.refund_bytes(bytes);
        }
    }
}

/// Somebody waiting, counted until dropped.
struct QueueTicket<'a> {
    bucket: &'a LimiterState,
    what: Resource,
    head: Arc<QueueHead>,
}

impl Drop for QueueTicket<'_> {
    fn drop(&mut self) {
        let mut state = self.bucket.0.lock();
        let Some(rare) = &mut state.rare else { return };
        rare.queues.leave(self.what);
        if rare.queues.are_empty() && rare.flow.is_none() && rare.turns.is_empty() {
            state.rare = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_small() {
        assert_eq!(size_of::<LimiterState>() + 2 * size_of::<usize>(), 64);
    }
}
