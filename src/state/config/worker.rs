//! Background threads for long work, such as reading a hundred thousand routes or dropping them.
//! How does long work run without delaying the traffic?

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use tokio::sync::oneshot;
use tracing::warn;

use crate::state::config::thread_priority::lower_thread_priority;

type Job = Box<dyn FnOnce() + Send>;

/// One background thread, which runs its jobs in order. Memory that a job allocates is also freed on this thread.
pub struct BackgroundWorker(Sender<Job>);

impl Default for BackgroundWorker {
    fn default() -> Self {
        Self::with_name("config")
    }
}

impl BackgroundWorker {
    pub fn with_name(name: &str) -> Self {
        let (sender, jobs) = channel();
        if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn(|| run_jobs(jobs)) {
            warn!("cannot start the {name} thread: {error}; its jobs do not run");
        }
        Self(sender)
    }

    /// Runs a job after all earlier ones. The receiver gets an error if the job could not run.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> oneshot::Receiver<T> {
        let (sender, result) = oneshot::channel();
        // Without the thread, the job is dropped, and `sender` with it.
        let _ = self.0.send(Box::new(move || drop(sender.send(job()))));
        result
    }

    /// Drops a value on this thread.
    pub fn drop_later<T: Send + 'static>(&self, value: T) {
        drop(self.run(|| drop(value)));
    }
}

fn run_jobs(jobs: Receiver<Job>) {
    if let Err(error) = lower_thread_priority() {
        let thread = thread::current();
        let name = thread.name().unwrap_or_default();
        warn!("cannot lower the priority of the {name} thread; its jobs may add latency to the traffic: {error}");
    }
    for job in jobs {
        job();
    }
}
