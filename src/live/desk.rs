//! Requests to read the configuration again, from wherever they come, until the one who reads it takes them all at once.
//! Who asks, and who waits for what comes of it?

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::{Notify, oneshot};

use super::configuration::{By, Outcome};
use crate::config::Written;

/// Bounded by who can ask: files and signals are one request each however often they ask, and each user holds one of
/// the admin listener's connections; who has gone is forgotten.
#[derive(Default)]
pub struct Desk {
    waiting: Mutex<Waiting>,
    arrived: Notify,
    is_attended: AtomicBool,
}

/// What was asked since the last time.
#[derive(Default)]
pub struct Waiting {
    /// Who wants the configuration read again; empty: nobody.
    pub by: Vec<By>,
    /// Told what came of it: of a reading that begins after they asked.
    pub told: Vec<oneshot::Sender<Outcome>>,
    pub comparisons: Vec<Comparison>,
}

/// A configuration to compare with the one in force.
pub struct Comparison {
    pub with: With,
    pub told: oneshot::Sender<Outcome>,
}

pub enum With {
    /// What is there now.
    Disk,
    Written(Box<Written>),
    /// One that was adopted, by its number.
    Entry(u64),
}

impl Desk {
    /// Asks for a reload. To ask again before it has begun is the same request.
    pub fn ask(&self, by: By) {
        self.with(|waiting| waiting.note(by));
    }

    /// The same, to be told what came of it.
    pub fn ask_and_wait(&self, by: By) -> oneshot::Receiver<Outcome> {
        let (told, outcome) = oneshot::channel();
        self.with(|waiting| {
            waiting.note(by);
            waiting.told.retain(|told| !told.is_closed());
            waiting.told.push(told);
        });
        outcome
    }

    pub fn compare(&self, with: With) -> oneshot::Receiver<Outcome> {
        let (told, outcome) = oneshot::channel();
        self.with(|waiting| {
            waiting.comparisons.retain(|asked| !asked.told.is_closed());
            waiting.comparisons.push(Comparison { with, told });
        });
        outcome
    }

    fn with(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        self.arrived.notify_one();
    }

    /// Whether there is a configuration file, and somebody who reads it.
    pub fn is_attended(&self) -> bool {
        self.is_attended.load(Ordering::Relaxed)
    }

    pub fn attend(&self) {
        self.is_attended.store(true, Ordering::Relaxed);
    }

    /// Resolves when something was asked since it was last taken.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    pub fn take(&self) -> Waiting {
        std::mem::take(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Waiting {
    fn note(&mut self, by: By) {
        if !self.by.contains(&by) {
            self.by.push(by);
        }
    }
}
