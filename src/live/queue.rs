//! Those who wait for something of a bucket, in order of arrival.
//! Whose turn is it, and who tells them?

use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard, Notify};

/// What can be waited for. A line for each: those who wait for a token already hold a place, and must not stand behind
/// those who wait for it.
#[derive(Clone, Copy)]
pub(super) enum What {
    Place,
    Token,
}

/// The lines of one bucket; those that nobody stands in are not there.
#[derive(Default)]
pub(super) struct Queues([Option<Queue>; 2]);

#[derive(Default)]
struct Queue {
    waiting: usize,
    turn: Arc<Turn>,
}

#[derive(Default)]
pub(super) struct Turn {
    /// Held by who stands first; the mutex serves in order of arrival.
    first: Mutex<()>,
    /// There may be something now; only who stands first listens.
    called: Notify,
}

impl Turn {
    pub(super) async fn first(&self) -> MutexGuard<'_, ()> {
        self.first.lock().await
    }
    pub(super) async fn called(&self) {
        self.called.notified().await;
    }
}

impl Queues {
    pub(super) fn waiting(&self, what: What) -> usize {
        self.0[what as usize].as_ref().map_or(0, |queue| queue.waiting)
    }

    pub(super) fn call(&self, what: What) {
        if let Some(queue) = &self.0[what as usize] {
            queue.turn.called.notify_one();
        }
    }

    pub(super) fn join(&mut self, what: What) -> Arc<Turn> {
        let queue = self.0[what as usize].get_or_insert_default();
        queue.waiting += 1;
        Arc::clone(&queue.turn)
    }

    pub(super) fn leave(&mut self, what: What) {
        let queue = &mut self.0[what as usize];
        if let Some(left) = queue.as_mut().map(|queue| {
            queue.waiting -= 1;
            queue.waiting
        }) && left == 0
        {
            *queue = None;
        }
    }

    pub(super) fn are_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }
}
