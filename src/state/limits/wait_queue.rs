//! A FIFO queue of waiters, to which its owner makes grants.
//! Which waiter comes next, and what happens to the grant of a waiter that has gone?

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

/// The waiters in order of arrival. `G` is what the owner grants, and `R` is what a waiter requests.
///
/// The owner keeps the queue under its own lock and decides when to grant. A waiter need not poll to get its grant, so a
/// waiter that is not polled holds up no other waiter.
pub(in crate::state) struct WaitQueue<G, R = ()> {
    waiters: VecDeque<Waiter<G, R>>,
    next_number: u64,
}

struct Waiter<G, R> {
    number: u64,
    request: R,
    grant: oneshot::Sender<G>,
}

/// A place in a queue, and the future of its grant. Its holder gives it to [`WaitQueue::leave`] when it is done.
pub(in crate::state) struct Ticket<G> {
    number: u64,
    grant: oneshot::Receiver<G>,
}

impl<G, R> Default for WaitQueue<G, R> {
    fn default() -> Self {
        Self { waiters: VecDeque::new(), next_number: 0 }
    }
}

impl<G, R> WaitQueue<G, R> {
    pub(in crate::state) fn len(&self) -> usize {
        self.waiters.len()
    }

    pub(in crate::state) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// Adds a waiter at the end.
    pub(in crate::state) fn join(&mut self, request: R) -> Ticket<G> {
        let ((sender, grant), number) = (oneshot::channel(), self.next_number);
        self.next_number += 1;
        self.waiters.push_back(Waiter { number, request, grant: sender });
        Ticket { number, grant }
    }

    /// Returns the request of the first waiter.
    pub(in crate::state) fn first(&self) -> Option<&R> {
        self.waiters.front().map(|waiter| &waiter.request)
    }

    /// Removes the first waiter and gives it the grant. Returns whether there was a waiter that takes it.
    pub(in crate::state) fn grant(&mut self, grant: G) -> bool {
        self.waiters.pop_front().is_some_and(|waiter| waiter.grant.send(grant).is_ok())
    }

    /// Removes a waiter. Returns a grant that it got and did not take.
    pub(in crate::state) fn leave(&mut self, ticket: &mut Ticket<G>) -> Option<G> {
        if let Ok(index) = self.waiters.binary_search_by_key(&ticket.number, |waiter| waiter.number) {
            self.waiters.remove(index);
        }
        ticket.grant.try_recv().ok()
    }
}

impl<G> Future for Ticket<G> {
    /// `None`: the queue was dropped.
    type Output = Option<G>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<G>> {
        Pin::new(&mut self.grant).poll(cx).map(Result::ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn wait_queue_grants_in_order_of_arrival() {
        let mut queue = WaitQueue::default();
        let [first, second] = ["a", "b"].map(|request| queue.join(request));
        assert_eq!(queue.first(), Some(&"a"));
        assert!(queue.grant(1));
        assert_eq!(queue.first(), Some(&"b"));
        assert!(queue.grant(2));
        assert_eq!((second.await, first.await), (Some(2), Some(1)));
        assert!(!queue.grant(3), "no waiter is left");
    }

    #[test]
    fn wait_queue_returns_the_grant_of_a_waiter_that_leaves() {
        let mut queue = WaitQueue::default();
        let [mut first, mut second, mut third] = [(); 3].map(|()| queue.join(()));
        assert_eq!(queue.leave(&mut second), None, "nothing was granted yet");
        assert!(queue.grant(1) && queue.grant(3));
        assert_eq!((queue.leave(&mut first), queue.leave(&mut third)), (Some(1), Some(3)));
        assert_eq!(queue.leave(&mut first), None, "a grant is returned once");
        assert!(queue.is_empty());
    }
}
