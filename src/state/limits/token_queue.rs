//! The deliveries that wait for a token of one key's rate, in order of arrival.
//! Which delivery takes the next token?

use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard, Notify};

/// A queue whose first waiter takes the next token itself. Unlike a permit, a token is not returned by another delivery:
/// the first waiter sleeps until the token is due, and gives up if that is after its deadline.
#[derive(Default)]
pub(in crate::state) struct TokenQueue {
    waiting: usize,
    turns: Arc<TokenTurns>,
}

#[derive(Default)]
pub(in crate::state) struct TokenTurns {
    /// The first waiter holds it; the mutex of tokio is fair.
    turn: Mutex<()>,
    /// Wakes the first waiter.
    quota_changed: Notify,
}

impl TokenTurns {
    /// Waits for the turn, which ends when the guard is dropped.
    pub(in crate::state) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    pub(in crate::state) async fn quota_changed(&self) {
        self.quota_changed.notified().await;
    }
}

impl TokenQueue {
    pub(in crate::state) fn len(&self) -> usize {
        self.waiting
    }

    pub(in crate::state) fn join(&mut self) -> Arc<TokenTurns> {
        self.waiting += 1;
        Arc::clone(&self.turns)
    }

    pub(in crate::state) fn leave(&mut self) {
        self.waiting -= 1;
    }

    pub(in crate::state) fn notify_quota_changed(&self) {
        if self.waiting > 0 {
            self.turns.quota_changed.notify_one();
        }
    }
}
