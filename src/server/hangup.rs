//! Work that is cancelled when its client hangs up.
//! Does a request continue after its client is gone?

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

/// Runs `work` to its end, or returns `None` when the client hangs up.
///
/// The first poll goes to the work: a refusal that waits for nothing is written even if the client has already closed
/// its sending direction. Every later poll starts with the hangup, so that a client that is gone gets no further step,
/// such as a place in a queue that became free at the same moment.
pub(super) async fn run_until_hangup<T>(hangup: impl Future<Output = ()>, work: impl Future<Output = T>) -> Option<T> {
    let (mut hangup, mut work) = (pin!(hangup), pin!(work));
    if let Poll::Ready(done) = poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
        return Some(done);
    }
    tokio::select! {
        biased;
        () = &mut hangup => None,
        done = &mut work => Some(done),
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn run_until_hangup_completes_work_that_is_ready_at_the_first_poll() {
        assert_eq!(run_until_hangup(ready(()), ready(1)).await, Some(1));
    }

    #[tokio::test]
    async fn run_until_hangup_polls_the_hangup_before_the_second_step() {
        assert_eq!(run_until_hangup(ready(()), yield_now()).await, None);
        // The hangup is polled from the second poll of the work on; both complete at the work's third poll.
        let both_ready = (yield_now(), async {
            yield_now().await;
            yield_now().await;
            2
        });
        assert_eq!(run_until_hangup(both_ready.0, both_ready.1).await, None);
        assert_eq!(run_until_hangup(std::future::pending(), yield_now()).await, Some(()));
    }
}
