//! The requests to reload or compare the configuration, until the reloader takes all of them at once.
//! Which requests are pending, and which callers wait for the outcome?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use tokio::sync::{Notify, oneshot};

use crate::config::SourceSnapshot;
use crate::history::bundle_folder::BundleFolder;
use crate::panics::Mutex;
use crate::policy::rollout::bundle::{Bundle, SignedBundle};
use crate::state::config::status::{ReloadOutcome, ReloadSource};

/// The pending requests. Their number is bounded: file changes and signals are one request each, however often they come,
/// and each user holds a connection of the admin listener. A request whose user has gone is removed.
#[derive(Default)]
pub struct ReloadQueue {
    pending: Mutex<PendingRequests>,
    requested: Notify,
    is_ready: AtomicBool,
}

/// The requests since the last [`ReloadQueue::drain`].
#[derive(Default)]
pub struct PendingRequests {
    /// The sources of the requests to reload. Empty: none was requested.
    pub sources: Vec<ReloadSource>,
    /// They get the outcome of a reload that begins after their request.
    pub replies: Vec<oneshot::Sender<ReloadOutcome>>,
    pub rollbacks: Vec<RollbackRequest>,
    pub comparisons: Vec<ComparisonRequest>,
    pub bundles: Vec<BundleRequest>,
}

/// A request about a bundle of the fleet.
pub enum BundleRequest {
    /// Would this host adopt the bundle?
    Check { folder: BundleFolder, bundle: Arc<Bundle>, reply: oneshot::Sender<BundleCheck> },
    /// Replaces the files of the current bundle, and reloads. Without a next bundle, the former one returns.
    Switch {
        folder: BundleFolder,
        next: Option<Arc<SignedBundle>>,
        /// The configuration in the history that was active before the first bundle. It returns with an empty former bundle.
        replaced: Option<u64>,
        source: ReloadSource,
        reply: oneshot::Sender<ReloadOutcome>,
    },
}

impl BundleRequest {
    /// Returns whether the caller of a check has gone, so that the reloader skips it. The reloader makes every switch.
    pub fn is_abandoned(&self) -> bool {
        matches!(self, Self::Check { reply, .. } if reply.is_closed())
    }
}

/// The comparison of a bundle with the active configuration.
#[derive(Serialize)]
pub struct BundleCheck {
    #[serde(flatten)]
    pub outcome: ReloadOutcome,
    /// The first problem, if there is one.
    #[serde(skip)]
    pub problem: Option<String>,
    /// Why the change needs a second operator.
    pub approval: Vec<String>,
}

/// A request to adopt an earlier configuration from the history.
pub struct RollbackRequest {
    pub number: u64,
    pub source: ReloadSource,
    pub reply: oneshot::Sender<ReloadOutcome>,
}

/// A request to compare a configuration with the active one.
pub struct ComparisonRequest {
    pub target: ComparisonTarget,
    pub reply: oneshot::Sender<ReloadOutcome>,
}

pub enum ComparisonTarget {
    /// The files on disk now.
    Disk,
    Snapshot(Box<SourceSnapshot>),
    /// An adopted configuration, by its number.
    History(u64),
}

impl ReloadQueue {
    /// Requests a reload. Requests of the same source are merged until the reload begins.
    pub fn request(&self, source: ReloadSource) {
        self.update(|pending| pending.add_source(source));
    }

    /// Requests a reload, and returns the receiver of its outcome.
    pub fn request_and_wait(&self, source: ReloadSource) -> oneshot::Receiver<ReloadOutcome> {
        let (reply, outcome) = oneshot::channel();
        self.update(|pending| {
            pending.add_source(source);
            pending.replies.retain(|reply| !reply.is_closed());
            pending.replies.push(reply);
        });
        outcome
    }

    /// Requests a rollback, and returns the receiver of its outcome.
    pub fn roll_back(&self, number: u64, source: ReloadSource) -> oneshot::Receiver<ReloadOutcome> {
        let (reply, outcome) = oneshot::channel();
        self.update(|pending| {
            pending.rollbacks.retain(|rollback| !rollback.reply.is_closed());
            pending.rollbacks.push(RollbackRequest { number, source, reply });
        });
        outcome
    }

    /// Requests a comparison, and returns the receiver of its outcome.
    pub fn compare(&self, target: ComparisonTarget) -> oneshot::Receiver<ReloadOutcome> {
        let (reply, outcome) = oneshot::channel();
        self.update(|pending| {
            pending.comparisons.retain(|comparison| !comparison.reply.is_closed());
            pending.comparisons.push(ComparisonRequest { target, reply });
        });
        outcome
    }

    /// Requests what `request` makes of the sender of the outcome. `None`: no reloader answers.
    pub async fn ask_about_bundle<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> BundleRequest) -> Option<T> {
        let (reply, outcome) = oneshot::channel();
        self.update(|pending| {
            pending.bundles.retain(|request| !request.is_abandoned());
            pending.bundles.push(request(reply));
        });
        outcome.await.ok()
    }

    fn update(&self, change: impl FnOnce(&mut PendingRequests)) {
        change(&mut self.pending.lock());
        self.requested.notify_one();
    }

    /// Returns whether a reloader takes the requests; without a configuration file there is none.
    pub fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }

    pub fn set_ready(&self) {
        self.is_ready.store(true, Ordering::Relaxed);
    }

    /// Resolves when a request was added since the last [`ReloadQueue::drain`].
    pub async fn wait_for_request(&self) {
        self.requested.notified().await;
    }

    /// Takes all pending requests.
    pub fn drain(&self) -> PendingRequests {
        std::mem::take(&mut self.pending.lock())
    }
}

impl PendingRequests {
    fn add_source(&mut self, source: ReloadSource) {
        if !self.sources.contains(&source) {
            self.sources.push(source);
        }
    }
}
