//! Timeouts of a process that may have been stopped, or had no processor, while its timers ran out.
//! Had the bytes that a step waits for arrived before its timeout ended?
//!
//! After SIGCONT, or when a virtual machine goes on, the kernel interrupts the wait for events (epoll_wait(2), EINTR). tokio
//! then runs the timers that have ended before it asks the kernel for events again. A timer that is set at that moment
//! fires only after the next events. So a step gets one turn of the event loop more.

use std::pin::pin;
use std::time::Duration;

use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// The shortest timer of tokio: one turn of the event loop.
const TURN: Duration = Duration::from_millis(1);

/// Waits until the deadline, and for the events that arrived before it.
pub async fn passed(deadline: Instant) {
    sleep_until(deadline).await;
    sleep(TURN).await;
}

/// Returns the output of the future, unless the deadline comes before the events that it waits for.
pub async fn timeout_at<T>(deadline: Instant, future: impl Future<Output = T>) -> Result<T, Elapsed> {
    let mut future = pin!(future);
    tokio::select! {
        biased;
        output = &mut future => return Ok(output),
        () = sleep_until(deadline) => {}
    }
    timeout(TURN, future).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn timeout_gives_one_turn_more() {
        let deadline = Instant::now() + Duration::from_secs(1);
        let at = |wait| async move {
            sleep_until(deadline + wait).await;
            7
        };
        assert_eq!(timeout_at(deadline, at(Duration::ZERO)).await.ok(), Some(7));
        assert!(timeout_at(deadline, at(3 * TURN)).await.is_err());
        passed(deadline + 10 * TURN).await;
        assert!(Instant::now() >= deadline + 11 * TURN);
    }
}
