//! Work beside the traffic, not before it, on one thread for each kind: to read a hundred thousand routes, to free them.
//! Who gives way to whom?

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use tokio::sync::oneshot;
use tracing::warn;

use crate::state::config::thread_priority::lower_thread_priority;

type Job = Box<dyn FnOnce() + Send>;

/// One thread, so that what was allocated here is also freed here.
pub struct BackgroundWorker(Sender<Job>);

impl Default for BackgroundWorker {
    fn default() -> Self {
        Self::with_name("aside")
    }
}

impl BackgroundWorker {
    pub fn with_name(name: &str) -> Self {
        let (sender, jobs) = channel();
        if let Err(fault) = thread::Builder::new().name(name.to_owned()).spawn(|| work(jobs)) {
            warn!("cannot start the thread {name}: {fault}; its work is not done");
        }
        Self(sender)
    }

    /// Done after all that was asked before; who waits gets an error if it could not be done.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
        let (told, outcome) = oneshot::channel();
        // Without the thread, `told` goes as well.
        let _ = self.0.send(Box::new(move || drop(told.send(work()))));
        outcome
    }

    /// Freed when there is time for it.
    pub fn drop_later<T: Send + 'static>(&self, what: T) {
        drop(self.run(|| drop(what)));
    }
}

fn work(jobs: Receiver<Job>) {
    if let Err(fault) = lower_thread_priority() {
        let thread = thread::current();
        let name = thread.name().unwrap_or_default();
        warn!("cannot lower the priority of the {name} thread; its work may slow the traffic down: {fault}");
    }
    for job in jobs {
        // One that panics is not the last.
        let _ = catch_unwind(AssertUnwindSafe(job));
    }
}
