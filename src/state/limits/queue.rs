//! Those who wait for something of a bucket, in order of arrival.
//! Whose turn is it, and who tells them?

use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard, Notify};

/// What can be waited for. A line for each: those who wait for a token already hold a place, and must not stand behind
/// those who wait for it.
#[derive(Clone, Copy)]
pub(in crate::state) enum Resource {
    Concurrency,
    Token,
}

/// The lines of one bucket; those that nobody stands in are not there.
#[derive(Default)]
pub(in crate::state) struct WaiterQueues([Option<WaiterQueue>; 2]);

#[derive(Default)]
struct WaiterQueue {
    waiting: usize,
    head: Arc<QueueHead>,
}

#[derive(Default)]
pub(in crate::state) struct QueueHead {
    /// Held by who stands first; the mutex serves in order of arrival.
    first: Mutex<()>,
    /// There may be something now; only who stands first listens.
    notify: Notify,
}

impl QueueHead {
    pub(in crate::state) async fn first(&self) -> MutexGuard<'_, ()> {
        self.first.lock().await
    }
    pub(in crate::state) async fn notified(&self) {
        self.notify.notified().await;
    }
}

impl WaiterQueues {
    pub(in crate::state) fn waiting(&self, what: Resource) -> usize {
        self.0[what as usize].as_ref().map_or(0, |queue| queue.waiting)
    }

    pub(in crate::state) fn call(&self, what: Resource) {
        if let Some(queue) = &self.0[what as usize] {
            queue.head.notify.notify_one();
        }
    }

    pub(in crate::state) fn join(&mut self, what: Resource) -> Arc<QueueHead> {
        let queue = self.0[what as usize].get_or_insert_default();
        queue.waiting += 1;
        Arc::clone(&queue.head)
    }

    pub(in crate::state) fn leave(&mut self, what: Resource) {
        let queue = &mut self.0[what as usize];
        if let Some(left) = queue.as_mut().map(|queue| {
            queue.waiting -= 1;
            queue.waiting
        }) && left == 0
        {
            *queue = None;
        }
    }

    pub(in crate::state) fn are_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }
}
