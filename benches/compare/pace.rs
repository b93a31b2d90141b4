//! An offered rate that does not slow down when the proxy does.
//! When is the next delivery due?
//!
//! The latency of a delivery counts from the time when it was due. The wait for a free connection is part of it, so that
//! a slow proxy cannot hide its pauses.

use std::cell::Cell;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

pub(crate) struct Pace {
    start: Instant,
    rate: f64,
    due: Arc<Semaphore>,
    taken: Cell<u32>,
}

impl Pace {
    /// Starts a thread that counts. Tokio's timers have a resolution of 1 ms, which is longer than a delivery takes.
    pub(crate) fn start(rate: f64) -> Self {
        let (start, due) = (Instant::now(), Arc::new(Semaphore::new(0)));
        let counter = due.clone();
        thread::spawn(move || {
            for number in 1_u32.. {
                thread::sleep(when(start, number, rate).saturating_duration_since(Instant::now()));
                counter.add_permits(1);
            }
        });
        Self { start, rate, due, taken: Cell::new(0) }
    }

    /// Waits until a delivery is due, and returns when it was.
    pub(crate) async fn next(&self) -> Instant {
        self.due.acquire().await.expect("the semaphore stays open").forget();
        self.taken.set(self.taken.get() + 1);
        when(self.start, self.taken.get(), self.rate)
    }
}

fn when(start: Instant, number: u32, rate: f64) -> Instant {
    start + Duration::from_secs_f64(f64::from(number) / rate)
}
