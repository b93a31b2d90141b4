//! All deliveries in flight, and those that wait for a moment until one of them ends.
//! Is the proxy as a whole too busy for one more?

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Who waits holds a connection and a head. In order of arrival; where one more comes, the first is refused: it has
/// waited longest, so its client is the likeliest to have given up.
const LINE_MAX: usize = 1000;

/// A peak that is longer is better met by the client, later.
const PATIENCE: Duration = Duration::from_secs(1);

pub struct AdmissionQueue {
    state: Mutex<AdmissionState>,
    line_max: usize,
}

#[derive(Default)]
struct AdmissionState {
    in_flight: usize,
    /// As the newest arrival has it, so that after a reload it holds for those in line too.
    most: usize,
    queue: VecDeque<(u64, oneshot::Sender<Result<(), Overloaded>>)>,
    next: u64,
}

/// One delivery in flight; its drop lets another in.
pub struct InFlightGuard(Arc<AdmissionQueue>);

/// Too many are in flight, and too many wait, or this one has waited long enough.
#[derive(Debug, PartialEq, Eq)]
pub struct Overloaded;

impl AdmissionQueue {
    #[expect(clippy::new_without_default, reason = "made once, by Live")]
    pub fn new() -> Self {
        Self { state: Mutex::default(), line_max: LINE_MAX }
    }

    /// Among no more than `most`.
    pub async fn acquire(self: &Arc<Self>, most: usize) -> Result<InFlightGuard, Overloaded> {
        let mut in_line = {
            let mut state = self.state.lock();
            state.most = most;
            state.let_in();
            if state.in_flight < most {
                state.in_flight += 1; // and nobody waits
                return Ok(InFlightGuard(Arc::clone(self)));
            }
            if state.queue.len() >= self.line_max
                && let Some((_, oldest)) = state.queue.pop_front()
            {
                let _ = oldest.send(Err(Overloaded));
            }
            let ((called, answer), number) = (oneshot::channel(), state.next);
            state.next += 1;
            state.queue.push_back((number, called));
            AdmissionTicket { gate: self, number, answer }
        };
        match timeout(PATIENCE, &mut in_line.answer).await {
            Ok(Ok(Ok(()))) => Ok(InFlightGuard(Arc::clone(self))),
            _ => Err(Overloaded),
        }
    }

    /// How many are in flight, and how many wait.
    pub fn count(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.in_flight, state.queue.len())
    }

    fn leave(&self) {
        let mut state = self.state.lock();
        state.in_flight -= 1;
        state.let_in();
    }
}

impl AdmissionState {
    fn let_in(&mut self) {
        while self.in_flight < self.most
            && let Some((_, first)) = self.queue.pop_front()
        {
            self.in_flight += usize::from(first.send(Ok(())).is_ok());
        }
    }
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Somebody waiting. Who hangs up leaves the line; a place that was given meanwhile goes to the next.
struct AdmissionTicket<'a> {
    gate: &'a AdmissionQueue,
    number: u64,
    answer: oneshot::Receiver<Result<(), Overloaded>>,
}

impl Drop for AdmissionTicket<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state.lock();
        if let Ok(place) = state.queue.binary_search_by_key(&self.number, |(number, _)| *number) {
            state.queue.remove(place);
        } else if let Ok(Ok(())) = self.answer.try_recv() {
            state.in_flight -= 1;
            state.let_in();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    type Acquiring<'a> = Pin<Box<dyn Future<Output = Result<InFlightGuard, Overloaded>> + 'a>>;

    fn gate(line_max: usize) -> Arc<AdmissionQueue> {
        Arc::new(AdmissionQueue { line_max, ..AdmissionQueue::new() })
    }

    fn acquire(gate: &Arc<AdmissionQueue>, most: usize) -> Acquiring<'_> {
        Box::pin(gate.acquire(most))
    }

    fn poll(entering: &mut Acquiring<'_>) -> Poll<Result<InFlightGuard, Overloaded>> {
        entering.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    fn passed(entering: &mut Acquiring<'_>) -> InFlightGuard {
        let Poll::Ready(Ok(pass)) = poll(entering) else { panic!("not let in") };
        pass
    }

    #[tokio::test]
    async fn the_first_to_come_is_the_first_let_in_and_the_first_refused() {
        let gate = gate(2);
        let first = passed(&mut acquire(&gate, 1));
        let [mut second, mut third, mut fourth] = [(); 3].map(|()| acquire(&gate, 1));
        assert!(poll(&mut second).is_pending() && poll(&mut third).is_pending());
        assert_eq!(gate.count(), (1, 2));
        assert!(poll(&mut fourth).is_pending());
        assert!(matches!(poll(&mut second), Poll::Ready(Err(Overloaded))), "it has waited longest");
        drop(first);
        assert_eq!(gate.count(), (1, 1), "its place is given at once, and nobody overtakes");
        assert!(poll(&mut fourth).is_pending());
        let pass = passed(&mut third);
        drop(pass);
        passed(&mut fourth);
        drop(fourth);
        assert_eq!(gate.count(), (0, 0));
    }

    #[tokio::test]
    async fn who_hangs_up_loses_no_place_to_nobody() {
        let gate = gate(10);
        let first = passed(&mut acquire(&gate, 1));
        let [mut second, mut third, mut fourth] = [(); 3].map(|()| acquire(&gate, 1));
        assert!([&mut second, &mut third, &mut fourth].into_iter().all(|waiting| poll(waiting).is_pending()));
        drop(second);
        drop(first);
        // The third has been given a place, and never looks.
        drop(third);
        assert_eq!(gate.count(), (1, 0));
        passed(&mut fourth);
        assert_eq!(gate.count(), (0, 0));
    }

    #[tokio::test]
    async fn a_reload_holds_for_those_in_line() {
        let gate = gate(10);
        let _first = passed(&mut acquire(&gate, 1));
        let mut second = acquire(&gate, 1);
        assert!(poll(&mut second).is_pending());
        let _third = passed(&mut acquire(&gate, 3));
        let _second = passed(&mut second);
        assert_eq!(gate.count(), (3, 0));
        assert!(poll(&mut acquire(&gate, 2)).is_pending());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_long() {
        let gate = gate(10);
        let _first = passed(&mut acquire(&gate, 1));
        assert_eq!(gate.acquire(1).await.err(), Some(Overloaded));
        assert_eq!(gate.count(), (1, 0));
    }
}
