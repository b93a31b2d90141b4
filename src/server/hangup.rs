//! Work that ends when its client hangs up.
//! Does a request go on that no client waits for?

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

/// Runs `work` to its end, or returns `None` when the client hangs up.
///
/// The first poll is the work's: a refusal that waits for nothing is written even if the client has ended its direction
/// already. From then on the hang-up is polled first, so that a client which is gone gets no further step, such as the
/// place in a queue that came free at the same moment.
pub(super) async fn unless<T>(hangs_up: impl Future<Output = ()>, work: impl Future<Output = T>) -> Option<T> {
    let (mut hangs_up, mut work) = (pin!(hangs_up), pin!(work));
    if let Poll::Ready(done) = poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
        return Some(done);
    }
    tokio::select! {
        biased;
        () = &mut hangs_up => None,
        done = &mut work => Some(done),
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn unless_lets_work_end_that_waits_for_nothing() {
        assert_eq!(unless(ready(()), ready(1)).await, Some(1));
    }

    #[tokio::test]
    async fn unless_polls_the_hang_up_before_the_second_step() {
        assert_eq!(unless(ready(()), yield_now()).await, None);
        // The hang-up is polled from the second poll of the work on: both end at its third.
        let both_at_once = (yield_now(), async {
            yield_now().await;
            yield_now().await;
            2
        });
        assert_eq!(unless(both_at_once.0, both_at_once.1).await, None);
        assert_eq!(unless(std::future::pending(), yield_now()).await, Some(()));
    }
}
