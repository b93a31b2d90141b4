//! The bodies and tunnels that wait for bytes of one bucket, in order of arrival.
//! Who gets the next bytes, whether or not somebody looks for them?

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};

/// A queue whose turns are granted from outside. A body whose reader is slow is not polled: if it had to take its turn by
/// itself, it would keep all behind it waiting. Its grant waits for it instead, and the queue goes on.
#[derive(Default)]
pub(in crate::state) struct ByteQueue {
    waiting: VecDeque<ByteWaiter>,
    next: u64,
    /// A task grants the turns: see [`ByteQueue::grant`].
    is_served: bool,
    /// The bandwidth is another than before.
    pub(in crate::state) changed: Arc<Notify>,
}

struct ByteWaiter {
    number: u64,
    most: u64,
    grant: oneshot::Sender<u64>,
}

impl ByteQueue {
    pub(in crate::state) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Joins the queue. Returns its number there, where the grant arrives, and whether the caller must start the task that
    /// grants the turns.
    pub(in crate::state) fn join(&mut self, most: u64) -> (u64, oneshot::Receiver<u64>, bool) {
        let ((grant, granted), number) = (oneshot::channel(), self.next);
        self.next += 1;
        self.waiting.push_back(ByteWaiter { number, most, grant });
        (number, granted, !std::mem::replace(&mut self.is_served, true))
    }

    pub(in crate::state) fn leave(&mut self, number: u64) {
        if let Ok(place) = self.waiting.binary_search_by_key(&number, |waiter| waiter.number) {
            self.waiting.remove(place);
        }
    }

    /// Grants what `take` gives of the bytes that each wants, until it gives none. Returns when there will be some, or
    /// `None` where nothing waits, and the task ends. Pushes to `unclaimed` what was granted to a waiter that has gone.
    pub(in crate::state) fn grant(
        &mut self,
        mut take: impl FnMut(u64) -> Result<u64, Duration>,
        mut unclaimed: impl FnMut(u64),
    ) -> Option<Duration> {
        while let Some(first) = self.waiting.front() {
            match take(first.most) {
                Err(wait) => return Some(wait),
                Ok(bytes) => {
                    let first = self.waiting.pop_front();
                    if first.is_some_and(|first| first.grant.send(bytes).is_err()) {
                        unclaimed(bytes);
                    }
                }
            }
        }
        self.is_served = false;
        None
    }
}
