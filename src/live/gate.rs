//! All deliveries in flight, and those that wait for a moment until one of them ends.
//! Is the proxy as a whole too busy for one more?

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

/// Who waits holds a connection and a head. In order of arrival; where one more comes, the first is refused: it has
/// waited longest, so its client is the likeliest to have given up.
const LINE_MAX: usize = 1000;

/// A peak that is longer is better met by the client, later.
const PATIENCE: Duration = Duration::from_secs(1);

pub struct Gate {
    state: Mutex<State>,
    line_max: usize,
}

#[derive(Default)]
struct State {
    in_flight: usize,
    /// As the newest arrival has it, so that after a reload it holds for those in line too.
    most: usize,
    line: VecDeque<(u64, oneshot::Sender<Result<(), Busy>>)>,
    next: u64,
}

/// One delivery in flight; its drop lets another in.
pub struct Pass(Arc<Gate>);

/// Too many are in flight, and too many wait, or this one has waited long enough.
#[derive(Debug, PartialEq, Eq)]
pub struct Busy;

impl Gate {
    #[expect(clippy::new_without_default, reason = "made once, by Live")]
    pub fn new() -> Self {
        Self { state: Mutex::default(), line_max: LINE_MAX }
    }

    /// Among no more than `most`.
    pub async fn enter(self: &Arc<Self>, most: usize) -> Result<Pass, Busy> {
        let mut in_line = {
            let mut state = self.lock();
            state.most = most;
            state.let_in();
            if state.in_flight < most {
                state.in_flight += 1; // and nobody waits
                return Ok(Pass(Arc::clone(self)));
            }
            if state.line.len() >= self.line_max
                && let Some((_, oldest)) = state.line.pop_front()
            {
                let _ = oldest.send(Err(Busy));
            }
            let ((called, answer), number) = (oneshot::channel(), state.next);
            state.next += 1;
            state.line.push_back((number, called));
            InLine { gate: self, number, answer }
        };
        match timeout(PATIENCE, &mut in_line.answer).await {
            Ok(Ok(Ok(()))) => Ok(Pass(Arc::clone(self))),
            _ => Err(Busy),
        }
    }

    /// How many are in flight, and how many wait.
    pub fn count(&self) -> (usize, usize) {
        let state = self.lock();
        (state.in_flight, state.line.len())
    }

    fn leave(&self) {
        let mut state = self.lock();
        state.in_flight -= 1;
        state.let_in();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics half-way through a change of the state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn let_in(&mut self) {
        while self.in_flight < self.most
            && let Some((_, first)) = self.line.pop_front()
        {
            self.in_flight += usize::from(first.send(Ok(())).is_ok());
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Somebody waiting. Who hangs up leaves the line; a place that was given meanwhile goes to the next.
struct InLine<'a> {
    gate: &'a Gate,
    number: u64,
    answer: oneshot::Receiver<Result<(), Busy>>,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        if let Ok(place) = state.line.binary_search_by_key(&self.number, |(number, _)| *number) {
            state.line.remove(place);
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

    type Entering<'a> = Pin<Box<dyn Future<Output = Result<Pass, Busy>> + 'a>>;

    fn gate(line_max: usize) -> Arc<Gate> {
        Arc::new(Gate { line_max, ..Gate::new() })
    }

    fn enter(gate: &Arc<Gate>, most: usize) -> Entering<'_> {
        Box::pin(gate.enter(most))
    }

    fn poll(entering: &mut Entering<'_>) -> Poll<Result<Pass, Busy>> {
        entering.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    fn passed(entering: &mut Entering<'_>) -> Pass {
        let Poll::Ready(Ok(pass)) = poll(entering) else { panic!("not let in") };
        pass
    }

    #[tokio::test]
    async fn the_first_to_come_is_the_first_let_in_and_the_first_refused() {
        let gate = gate(2);
        let first = passed(&mut enter(&gate, 1));
        let [mut second, mut third, mut fourth] = [(); 3].map(|()| enter(&gate, 1));
        assert!(poll(&mut second).is_pending() && poll(&mut third).is_pending());
        assert_eq!(gate.count(), (1, 2));
        assert!(poll(&mut fourth).is_pending());
        assert!(matches!(poll(&mut second), Poll::Ready(Err(Busy))), "it has waited longest");
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
        let first = passed(&mut enter(&gate, 1));
        let [mut second, mut third, mut fourth] = [(); 3].map(|()| enter(&gate, 1));
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
        let _first = passed(&mut enter(&gate, 1));
        let mut second = enter(&gate, 1);
        assert!(poll(&mut second).is_pending());
        let _third = passed(&mut enter(&gate, 3));
        let _second = passed(&mut second);
        assert_eq!(gate.count(), (3, 0));
        assert!(poll(&mut enter(&gate, 2)).is_pending());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_long() {
        let gate = gate(10);
        let _first = passed(&mut enter(&gate, 1));
        assert_eq!(gate.enter(1).await.err(), Some(Busy));
        assert_eq!(gate.count(), (1, 0));
    }
}
