//! The limit on all deliveries in flight, and the short queue in front of it.
//! Does the proxy as a whole have room for one more delivery?

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::panics::Mutex;
use crate::state::limits::wait_queue::{Ticket, WaitQueue};

/// The length of the queue. Each waiter holds a connection and a request head. A newcomer to a full queue evicts the
/// first waiter: it has waited longest, so its client is the most likely to have given up.
const ADMISSION_WAITING_MAX: usize = 1000;

/// The longest wait. In a longer peak, a later retry by the client is better.
const WAIT_MAX: Duration = Duration::from_secs(1);

pub struct AdmissionQueue {
    state: Mutex<AdmissionState>,
    waiting_max: usize,
}

#[derive(Default)]
struct AdmissionState {
    in_flight: usize,
    /// The limit of the newest arrival: after a reload it also applies to the deliveries that wait.
    max_in_flight: usize,
    queue: WaitQueue<Result<(), Overloaded>>,
}

/// One delivery in flight. Dropping it admits the next delivery.
pub struct InFlightGuard(Arc<AdmissionQueue>);

/// There was no room: the queue was full, or the wait was too long.
#[derive(Debug, PartialEq, Eq)]
pub struct Overloaded;

impl AdmissionQueue {
    #[expect(clippy::new_without_default, reason = "made once, by Runtime")]
    pub fn new() -> Self {
        Self { state: Mutex::default(), waiting_max: ADMISSION_WAITING_MAX }
    }

    /// Waits until the delivery is one of at most `max_in_flight`.
    pub async fn acquire(self: &Arc<Self>, max_in_flight: usize) -> Result<InFlightGuard, Overloaded> {
        let mut waiter = {
            let mut state = self.state.lock();
            state.max_in_flight = max_in_flight;
            state.admit_waiters();
            if state.in_flight < max_in_flight {
                state.in_flight += 1; // no delivery waits
                return Ok(InFlightGuard(Arc::clone(self)));
            }
            if state.queue.len() >= self.waiting_max {
                state.queue.grant(Err(Overloaded));
            }
            AdmissionWaiter { admission: self, ticket: state.queue.join(()) }
        };
        match timeout(WAIT_MAX, &mut waiter.ticket).await {
            Ok(Some(Ok(()))) => Ok(InFlightGuard(Arc::clone(self))),
            _ => Err(Overloaded),
        }
    }

    /// Returns the number of deliveries in flight, and the number that wait.
    pub fn count(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.in_flight, state.queue.len())
    }
}

impl AdmissionState {
    fn admit_waiters(&mut self) {
        while self.in_flight < self.max_in_flight && !self.queue.is_empty() {
            self.in_flight += usize::from(self.queue.grant(Ok(())));
        }
    }

    fn release(&mut self) {
        self.in_flight -= 1;
        self.admit_waiters();
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.state.lock().release();
    }
}

/// A delivery that waits. Dropping it leaves the queue, and passes on an admission that was granted meanwhile.
struct AdmissionWaiter<'a> {
    admission: &'a AdmissionQueue,
    ticket: Ticket<Result<(), Overloaded>>,
}

impl Drop for AdmissionWaiter<'_> {
    fn drop(&mut self) {
        let mut state = self.admission.state.lock();
        if let Some(Ok(())) = state.queue.leave(&mut self.ticket) {
            state.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    type Acquiring<'a> = Pin<Box<dyn Future<Output = Result<InFlightGuard, Overloaded>> + 'a>>;

    fn queue(waiting_max: usize) -> Arc<AdmissionQueue> {
        Arc::new(AdmissionQueue { waiting_max, ..AdmissionQueue::new() })
    }

    fn acquire(queue: &Arc<AdmissionQueue>, max_in_flight: usize) -> Acquiring<'_> {
        Box::pin(queue.acquire(max_in_flight))
    }

    fn poll(acquiring: &mut Acquiring<'_>) -> Poll<Result<InFlightGuard, Overloaded>> {
        acquiring.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    fn admitted(acquiring: &mut Acquiring<'_>) -> InFlightGuard {
        let Poll::Ready(Ok(guard)) = poll(acquiring) else { panic!("not admitted") };
        guard
    }

    #[tokio::test]
    async fn admission_queue_admits_in_order_and_evicts_the_first_waiter_when_full() {
        let queue = queue(2);
        let first = admitted(&mut acquire(&queue, 1));
        let [mut second, mut third, mut fourth] = [(); 3].map(|()| acquire(&queue, 1));
        assert!(poll(&mut second).is_pending() && poll(&mut third).is_pending());
        assert_eq!(queue.count(), (1, 2));
        assert!(poll(&mut fourth).is_pending());
        assert!(matches!(poll(&mut second), Poll::Ready(Err(Overloaded))), "it has waited longest");
        drop(first);
        assert_eq!(queue.count(), (1, 1), "the next waiter is admitted at once, before any newcomer");
        assert!(poll(&mut fourth).is_pending());
        let guard = admitted(&mut third);
        drop(guard);
        admitted(&mut fourth);
        drop(fourth);
        assert_eq!(queue.count(), (0, 0));
    }

    #[tokio::test]
    async fn admission_of_a_client_that_hangs_up_goes_to_the_next_waiter() {
        let queue = queue(10);
        let first = admitted(&mut acquire(&queue, 1));
        let [mut second, mut third, mut fourth] = [(); 3].map(|()| acquire(&queue, 1));
        assert!([&mut second, &mut third, &mut fourth].into_iter().all(|waiting| poll(waiting).is_pending()));
        drop(second);
        drop(first);
        // The third is admitted, and is not polled again.
        drop(third);
        assert_eq!(queue.count(), (1, 0));
        admitted(&mut fourth);
        assert_eq!(queue.count(), (0, 0));
    }

    #[tokio::test]
    async fn admission_limit_of_a_reload_applies_to_deliveries_that_wait() {
        let queue = queue(10);
        let _first = admitted(&mut acquire(&queue, 1));
        let mut second = acquire(&queue, 1);
        assert!(poll(&mut second).is_pending());
        let _third = admitted(&mut acquire(&queue, 3));
        let _second = admitted(&mut second);
        assert_eq!(queue.count(), (3, 0));
        assert!(poll(&mut acquire(&queue, 2)).is_pending());
    }

    #[tokio::test(start_paused = true)]
    async fn admission_wait_ends_after_a_second() {
        let queue = queue(10);
        let begun = tokio::time::Instant::now();
        let _first = admitted(&mut acquire(&queue, 1));
        assert_eq!(queue.acquire(1).await.err(), Some(Overloaded));
        assert_eq!((queue.count(), begun.elapsed()), ((1, 0), WAIT_MAX));
    }
}
