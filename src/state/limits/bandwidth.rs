//! The bandwidth of one direction of a delivery, which all of its limits restrict.
//! How many of these bytes may be forwarded now?

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::state::limits::limiter_state::{BytesGrant, LimiterState};

/// The shares of a delivery in the bandwidths of its limits, for one direction. Each direction waits by itself.
pub struct BandwidthLimiter(Vec<BandwidthShare>);

struct BandwidthShare {
    limiter: Arc<LimiterState>,
    /// The bytes that this limit has given, while the body waits for another limit.
    credit: u64,
    waiting: Option<BytesGrant>,
}

impl BandwidthLimiter {
    pub(in crate::state) fn new(limiters: impl Iterator<Item = Arc<LimiterState>>) -> Self {
        Self(limiters.map(|limiter| BandwidthShare { limiter, credit: 0, waiting: None }).collect())
    }

    /// Acquires at least one and at most `max_bytes` bytes, which are at hand. The caller must forward the acquired bytes.
    pub fn poll_acquire(&mut self, cx: &mut Context<'_>, max_bytes: usize) -> Poll<usize> {
        let max_bytes = max_bytes as u64;
        for share in &mut self.0 {
            if share.credit == 0 && max_bytes > 0 {
                share.credit = ready!(share.poll_take(cx, max_bytes));
            }
        }
        let acquired = self.0.iter().map(|share| share.credit).fold(max_bytes, u64::min);
        self.0.iter_mut().for_each(|share| share.credit -= acquired);
        Poll::Ready(acquired as usize) // at most `max_bytes`, which was a usize
    }
}

impl Drop for BandwidthShare {
    fn drop(&mut self) {
        if self.credit > 0 {
            self.limiter.refund_bytes(self.credit);
        }
    }
}

impl BandwidthShare {
    fn poll_take(&mut self, cx: &mut Context<'_>, max_bytes: u64) -> Poll<u64> {
        if self.waiting.is_none()
            && let Some(taken) = self.limiter.try_take_bytes(max_bytes)
        {
            return Poll::Ready(taken);
        }
        let limiter = &self.limiter;
        let waiting = self.waiting.get_or_insert_with(|| limiter.wait_for_bytes(max_bytes));
        let taken = ready!(Pin::new(waiting).poll(cx));
        self.waiting = None;
        Poll::Ready(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::task::Waker;
    use std::time::Duration;
    use tokio::time::{Instant, timeout_at};

    /// Returns the bytes that are forwarded until then.
    async fn forward(mut bandwidth: BandwidthLimiter, at_hand: usize, until: Instant) -> usize {
        let mut forwarded = 0;
        while let Ok(acquired) = timeout_at(until, poll_fn(|cx| bandwidth.poll_acquire(cx, at_hand))).await {
            assert!((1..=at_hand).contains(&acquired));
            forwarded += acquired;
        }
        forwarded
    }

    fn limiter(bandwidth: u64) -> Arc<LimiterState> {
        let limiter = Arc::new(LimiterState::default());
        limiter.set_bandwidth(bandwidth);
        limiter
    }

    fn body(limiter: &Arc<LimiterState>) -> BandwidthLimiter {
        BandwidthLimiter::new([Arc::clone(limiter)].into_iter())
    }

    #[tokio::test(start_paused = true)]
    async fn bandwidth_of_a_key_is_shared_evenly_and_used_fully() {
        let limiter = limiter(100_000);
        let until = Instant::now() + Duration::from_secs(10);
        // The first body has few bytes at hand at a time, the second many; the third ends after a second.
        let ends = Instant::now() + Duration::from_secs(1);
        let (first, second, third) = tokio::join!(
            forward(body(&limiter), 10_000, until),
            forward(body(&limiter), 1 << 20, until),
            forward(body(&limiter), 64, ends)
        );
        let all = first + second + third;
        assert!((1_080_000..=1_100_000).contains(&all), "{all}: the full bucket, and ten seconds");
        assert!(first.abs_diff(second) < 400_000, "{first} and {second}");
    }

    /// A client that has stopped reading gets a grant, and its body is not polled for it.
    #[tokio::test(start_paused = true)]
    async fn bandwidth_of_a_stuck_reader_goes_to_the_others() {
        let limiter = limiter(100_000);
        let mut stuck: Vec<BandwidthLimiter> = (0..10).map(|_| body(&limiter)).collect();
        let poll_once =
            |body: &mut BandwidthLimiter| body.poll_acquire(&mut Context::from_waker(Waker::noop()), 1 << 20);
        for body in &mut stuck {
            while poll_once(body).is_ready() {}
        }
        // The bucket is empty, and each stuck body waits for one grant.
        let until = Instant::now() + Duration::from_secs(10);
        let forwarded = forward(body(&limiter), 4096, until).await;
        assert!((860_000..=1_000_000).contains(&forwarded), "{forwarded}: all but ten grants of 12,500 bytes");
        // Grants that were not taken return to the bucket, up to its capacity.
        let before = forward(body(&limiter), 1 << 20, Instant::now()).await;
        drop(stuck);
        let after = forward(body(&limiter), 1 << 20, Instant::now()).await;
        assert!(before < 20_000 && (87_500..=100_000).contains(&after), "{before} and {after}");
    }

    #[tokio::test(start_paused = true)]
    async fn bandwidths_of_two_limits_apply_together_and_waste_nothing() {
        let (narrow, wide) = (limiter(10_000), limiter(30_000));
        let until = Instant::now() + Duration::from_secs(9);
        let both = BandwidthLimiter::new([Arc::clone(&wide), narrow].into_iter());
        let (limited, alone) = tokio::join!(forward(both, 4096, until), forward(body(&wide), 4096, until));
        assert!((95_000..=100_000).contains(&limited), "{limited}");
        assert!((190_000..=200_000).contains(&alone), "{alone}: the rest of the wide limit");
    }

    #[tokio::test(start_paused = true)]
    async fn bandwidth_that_a_reload_raises_reaches_bodies_that_wait() {
        let limiter = limiter(1);
        let begun = Instant::now();
        let mut body = body(&limiter);
        poll_fn(|cx| body.poll_acquire(cx, 1)).await;
        let waiting = poll_fn(|cx| body.poll_acquire(cx, 1));
        let raised = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            limiter.set_bandwidth(1000);
        };
        tokio::join!(waiting, raised);
        assert!(begun.elapsed() < Duration::from_millis(110), "{:?}", begun.elapsed());
    }
}
