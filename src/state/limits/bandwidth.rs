//! What a delivery pays, in bytes, before they pass: the share that each of its limits has for it now.
//! How many of these bytes may go on?

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::state::limits::limiter_state::{BytesGrant, LimiterState};

/// To the buckets of a delivery's limits that have a bandwidth. One direction's: each waits for itself.
pub struct BandwidthLimiter(Vec<BandwidthShare>);

struct BandwidthShare {
    bucket: Arc<LimiterState>,
    /// Paid for, while another limit is waited for.
    credit: u64,
    waiting: Option<BytesGrant>,
}

impl BandwidthLimiter {
    pub(in crate::state) fn to(buckets: impl Iterator<Item = Arc<LimiterState>>) -> Self {
        Self(buckets.map(|bucket| BandwidthShare { bucket, credit: 0, waiting: None }).collect())
    }

    /// Pays for some of `most` bytes, which are at hand: at least one, if there is one. Those that it gives may pass, and
    /// must.
    pub fn poll_acquire(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<usize> {
        let most = most as u64;
        for toll in &mut self.0 {
            if toll.credit == 0 && most > 0 {
                toll.credit = ready!(toll.poll_take(cx, most));
            }
        }
        let paid = self.0.iter().map(|toll| toll.credit).fold(most, u64::min);
        self.0.iter_mut().for_each(|toll| toll.credit -= paid);
        Poll::Ready(paid as usize) // no more than `most`, which was one
    }
}

impl Drop for BandwidthShare {
    fn drop(&mut self) {
        if self.credit > 0 {
            self.bucket.refund_bytes(self.credit);
        }
    }
}

impl BandwidthShare {
    fn poll_take(&mut self, cx: &mut Context<'_>, most: u64) -> Poll<u64> {
        if self.waiting.is_none()
            && let Some(taken) = self.bucket.take_bytes(most)
        {
            return Poll::Ready(taken);
        }
        let bucket = &self.bucket;
        let waiting = self.waiting.get_or_insert_with(|| bucket.wait_for_bytes(most));
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

    /// Bytes that pass until then.
    async fn pass(mut tolls: BandwidthLimiter, at_hand: usize, until: Instant) -> usize {
        let mut passed = 0;
        while let Ok(paid) = timeout_at(until, poll_fn(|cx| tolls.poll_acquire(cx, at_hand))).await {
            assert!((1..=at_hand).contains(&paid));
            passed += paid;
        }
        passed
    }

    fn bucket(bandwidth: u64) -> Arc<LimiterState> {
        let bucket = Arc::new(LimiterState::default());
        bucket.open_flow(bandwidth);
        bucket
    }

    #[tokio::test(start_paused = true)]
    async fn those_of_a_key_share_alike_all_that_is_due() {
        let bucket = bucket(100_000);
        let until = Instant::now() + Duration::from_secs(10);
        let tolls = || BandwidthLimiter::to([Arc::clone(&bucket)].into_iter());
        // One has little at hand at a time, one much; a third hangs up in the middle.
        let leaves = Instant::now() + Duration::from_secs(1);
        let (one, other, third) =
            tokio::join!(pass(tolls(), 10_000, until), pass(tolls(), 1 << 20, until), pass(tolls(), 64, leaves));
        let all = one + other + third;
        assert!((1_080_000..=1_100_000).contains(&all), "{all}: a second's worth, and ten seconds");
        assert!(one.abs_diff(other) < 400_000, "{one} and {other}");
    }

    /// Its client has stopped reading: it got a turn in the queue, and nobody asks for it.
    #[tokio::test(start_paused = true)]
    async fn bandwidth_of_a_stuck_reader_goes_to_the_others() {
        let bucket = bucket(100_000);
        let tolls = || BandwidthLimiter::to([Arc::clone(&bucket)].into_iter());
        let mut stuck: Vec<BandwidthLimiter> = (0..10).map(|_| tolls()).collect();
        let poll_once =
            |tolls: &mut BandwidthLimiter| tolls.poll_acquire(&mut Context::from_waker(Waker::noop()), 1 << 20);
        for tolls in &mut stuck {
            while poll_once(tolls).is_ready() {}
        }
        // The first second's worth has gone, and each of them holds one turn.
        let until = Instant::now() + Duration::from_secs(10);
        let passed = pass(tolls(), 4096, until).await;
        assert!((860_000..=1_000_000).contains(&passed), "{passed}: all but ten turns of 12,500 bytes");
        // What they were granted and did not take comes back, up to a second's worth.
        let before = pass(tolls(), 1 << 20, Instant::now()).await;
        drop(stuck);
        let after = pass(tolls(), 1 << 20, Instant::now()).await;
        assert!(before < 20_000 && (87_500..=100_000).contains(&after), "{before} and {after}");
    }

    #[tokio::test(start_paused = true)]
    async fn two_limits_hold_at_once_and_waste_nothing() {
        let (narrow, wide) = (bucket(10_000), bucket(30_000));
        let until = Instant::now() + Duration::from_secs(9);
        let both = BandwidthLimiter::to([Arc::clone(&wide), narrow].into_iter());
        let (limited, alone) =
            tokio::join!(pass(both, 4096, until), pass(BandwidthLimiter::to([wide].into_iter()), 4096, until));
        assert!((95_000..=100_000).contains(&limited), "{limited}");
        assert!((190_000..=200_000).contains(&alone), "{alone}: what the other leaves");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_bandwidth_reaches_those_who_wait() {
        let bucket = bucket(1);
        let begun = Instant::now();
        let mut tolls = BandwidthLimiter::to([Arc::clone(&bucket)].into_iter());
        poll_fn(|cx| tolls.poll_acquire(cx, 1)).await;
        let waiting = poll_fn(|cx| tolls.poll_acquire(cx, 1));
        let widened = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            bucket.open_flow(1000);
        };
        tokio::join!(waiting, widened);
        assert!(begun.elapsed() < Duration::from_millis(110), "{:?}", begun.elapsed());
    }
}
