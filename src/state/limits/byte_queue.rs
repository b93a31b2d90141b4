//! The bodies and tunnels that wait for bytes of one key, in order of arrival.
//! Which body gets the next bytes, whether or not it is polled for them?

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::state::limits::wait_queue::{Ticket, WaitQueue};

/// A queue that a task serves. A body whose reader is slow is not polled: if it had to take its bytes itself, the bodies
/// behind it would wait as well. Its grant waits for it instead, and the queue goes on.
#[derive(Default)]
pub(in crate::state) struct ByteQueue {
    /// The request is the number of bytes at hand.
    waiters: WaitQueue<u64, u64>,
    /// A task serves the queue: see [`ByteQueue::grant`].
    is_served: bool,
    pub(in crate::state) bandwidth_changed: Arc<Notify>,
}

impl ByteQueue {
    pub(in crate::state) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// Adds a body with this many bytes at hand. Also returns whether the caller must start the task that serves the
    /// queue.
    pub(in crate::state) fn join(&mut self, max_bytes: u64) -> (Ticket<u64>, bool) {
        (self.waiters.join(max_bytes), !std::mem::replace(&mut self.is_served, true))
    }

    /// Removes a body. Returns bytes that it was granted and did not take.
    pub(in crate::state) fn leave(&mut self, ticket: &mut Ticket<u64>) -> Option<u64> {
        self.waiters.leave(ticket)
    }

    /// Grants to each body what `try_take` gives for its request, until it gives nothing. Returns the time until it gives
    /// more. `None`: no body waits, and the task ends.
    pub(in crate::state) fn grant(
        &mut self,
        mut try_take: impl FnMut(u64) -> Result<u64, Duration>,
    ) -> Option<Duration> {
        while let Some(max_bytes) = self.waiters.first() {
            match try_take(*max_bytes) {
                Err(wait) => return Some(wait),
                Ok(bytes) => self.waiters.grant(bytes),
            };
        }
        self.is_served = false;
        None
    }
}
