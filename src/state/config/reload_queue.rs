//! Requests to read the configuration again, from wherever they come, until the one who reads it takes them all at once.
//! Who asks, and who waits for what comes of it?

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::config::SourceSnapshot;
use crate::state::config::status::{ReloadOutcome, ReloadSource};

/// Bounded by who can ask: files and signals are one request each however often they ask, and each user holds one of
/// the admin listener's connections; who has gone is forgotten.
#[derive(Default)]
pub struct ReloadQueue {
    waiting: Mutex<PendingRequests>,
    arrived: Notify,
    is_attended: AtomicBool,
}

/// What was asked since the last time.
#[derive(Default)]
pub struct PendingRequests {
    /// Who wants the configuration read again; empty: nobody.
    pub by: Vec<ReloadSource>,
    /// Told what came of it: of a reading that begins after they asked.
    pub replies: Vec<oneshot::Sender<ReloadOutcome>>,
    pub comparisons: Vec<ComparisonRequest>,
}

/// A configuration to compare with the one in force.
pub struct ComparisonRequest {
    pub with: ComparisonTarget,
    pub reply: oneshot::Sender<ReloadOutcome>,
}

pub enum ComparisonTarget {
    /// What is there now.
    Disk,
    Snapshot(Box<SourceSnapshot>),
    /// One that was adopted, by its number.
    History(u64),
}

impl ReloadQueue {
    /// Asks for a reload. To ask again before it has begun is the same request.
    pub fn request(&self, by: ReloadSource) {
        self.with(|waiting| waiting.note(by));
    }

    /// The same, to be told what came of it.
    pub fn ask_and_wait(&self, by: ReloadSource) -> oneshot::Receiver<ReloadOutcome> {
        let (told, outcome) = oneshot::channel();
        self.with(|waiting| {
            waiting.note(by);
            waiting.replies.retain(|told| !told.is_closed());
            waiting.replies.push(told);
        });
        outcome
    }

    pub fn compare(&self, with: ComparisonTarget) -> oneshot::Receiver<ReloadOutcome> {
        let (told, outcome) = oneshot::channel();
        self.with(|waiting| {
            waiting.comparisons.retain(|asked| !asked.reply.is_closed());
            waiting.comparisons.push(ComparisonRequest { with, reply: told });
        });
        outcome
    }

    fn with(&self, change: impl FnOnce(&mut PendingRequests)) {
        change(&mut self.waiting.lock());
        self.arrived.notify_one();
    }

    /// Whether there is a configuration file, and somebody who reads it.
    pub fn is_attended(&self) -> bool {
        self.is_attended.load(Ordering::Relaxed)
    }

    pub fn set_ready(&self) {
        self.is_attended.store(true, Ordering::Relaxed);
    }

    /// Resolves when something was asked since it was last taken.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    pub fn drain(&self) -> PendingRequests {
        std::mem::take(&mut self.waiting.lock())
    }
}

impl PendingRequests {
    fn note(&mut self, by: ReloadSource) {
        if !self.by.contains(&by) {
            self.by.push(by);
        }
    }
}
