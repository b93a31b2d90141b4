//! What outlives a delivery: the plan in force, and the state that no reload may reset.
//! What does the running proxy remember?

pub mod config;
mod gauges;
pub mod limits;
pub mod observability;
mod readiness;
pub mod replay;
pub mod upstreams;

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::sync::{Semaphore, watch};

use crate::config::Listen;
use crate::net::fd_limit;
use config::ActiveConfig;

/// The state of a running proxy; one for the process.
pub struct Runtime {
    active: ArcSwap<ActiveConfig>,
    pub config_worker: config::worker::BackgroundWorker,
    /// Renders `/metrics`, and nothing else: readiness must not wait for it.
    pub metrics_worker: config::worker::BackgroundWorker,
    /// Works out what other requests to the admin listener ask for.
    pub admin_worker: config::worker::BackgroundWorker,
    pub deferred_drop: Arc<config::deferred_drop::DeferredDrop>,
    pub limits: Arc<limits::Limits>,
    pub admission: Arc<limits::admission::AdmissionQueue>,
    /// Places of open tunnels.
    pub tunnel_permits: Arc<Semaphore>,
    pub replay_cache: replay::ReplayCache,
    pub connection_pool: Arc<upstreams::pool::ConnectionPool>,
    pub circuit_breakers: Arc<upstreams::breaker::CircuitBreakers>,
    pub source_health: upstreams::health::SourceHealth,
    pub verified_targets: upstreams::verified::VerifiedTargetCache,
    pub http1_only: upstreams::http1_only::Http1OnlyTargets,
    pub tokens: Arc<upstreams::tokens::TokenCache>,
    pub sources: upstreams::sources::Sources,
    pub metrics: observability::metrics::Metrics,
    pub expiry_warnings: config::warnings::ExpiryWarnings,
    pub signer_warnings: config::warnings::SignerWarnings,
    pub records: observability::records::Records,
    pub started_at: Timestamp,
    pub config_status: config::status::ConfigStatus,
    pub reload_queue: Arc<config::reload_queue::ReloadQueue>,
    /// Requests of HTTP/2, which are tasks beside their connection's.
    streams: watch::Sender<usize>,
    draining: watch::Sender<bool>,
    /// The listeners that another process has taken over: see [`Runtime::drain`].
    handed_over: OnceLock<Vec<Listen>>,
    cut: AtomicBool,
    requests: AtomicU64,
    random: RandomState,
}

/// A request of HTTP/2 that is open; dropped when its delivery has left its record.
pub struct StreamGuard(Arc<Runtime>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.streams.send_if_modified(|count| {
            *count -= 1;
            *count == 0
        });
    }
}

/// New deliveries are refused; the ones in flight finish.
#[derive(Debug, PartialEq, Eq)]
pub struct Draining;

impl Runtime {
    pub fn new(active: ActiveConfig, records: observability::records::Records) -> Self {
        Self {
            active: ArcSwap::from_pointee(active),
            config_worker: config::worker::BackgroundWorker::default(),
            metrics_worker: config::worker::BackgroundWorker::with_name("metrics"),
            admin_worker: config::worker::BackgroundWorker::with_name("admin"),
            deferred_drop: Arc::default(),
            limits: Arc::new(limits::Limits::new()),
            admission: Arc::new(limits::admission::AdmissionQueue::new()),
            tunnel_permits: Arc::new(Semaphore::new(fd_limit::connections_max().min(Semaphore::MAX_PERMITS))),
            replay_cache: replay::ReplayCache::new(),
            connection_pool: Arc::new(upstreams::pool::ConnectionPool::new()),
            circuit_breakers: Arc::default(),
            source_health: upstreams::health::SourceHealth::default(),
            verified_targets: upstreams::verified::VerifiedTargetCache::default(),
            http1_only: upstreams::http1_only::Http1OnlyTargets::default(),
            tokens: Arc::default(),
            sources: upstreams::sources::Sources::new(),
            metrics: observability::metrics::Metrics::new(),
            expiry_warnings: config::warnings::ExpiryWarnings::default(),
            signer_warnings: config::warnings::SignerWarnings::default(),
            records,
            started_at: Timestamp::now(),
            config_status: config::status::ConfigStatus::default(),
            reload_queue: Arc::default(),
            streams: watch::Sender::new(0),
            draining: watch::Sender::new(false),
            handed_over: OnceLock::new(),
            cut: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            random: RandomState::new(),
        }
    }

    pub fn active_config(&self) -> Arc<ActiveConfig> {
        self.active.load_full()
    }

    /// Atomic: a delivery sees the plan before or the plan after, never a mixture. Nothing leaves any more over idle
    /// connections from addresses that are not ours now.
    pub fn adopt(&self, next: ActiveConfig, adopted: config::status::AdoptedConfig) {
        self.deferred_drop.push(self.active.swap(Arc::new(next)));
        self.sweep_retired();
        self.config_status.adopt(adopted);
        self.metrics.reloaded(true);
        self.sweep_connections();
    }

    /// Frees former plans that no delivery holds, on the config thread, which carries no traffic.
    pub fn sweep_retired(&self) {
        if self.deferred_drop.count() > 0 {
            let retired = Arc::clone(&self.deferred_drop);
            drop(self.config_worker.run(move || retired.sweep()));
        }
    }

    /// The configuration on disk is not adopted; the one in force stays.
    pub fn reject(&self, rejected: config::status::RejectedConfig) {
        self.config_status.reject(rejected);
        self.metrics.reloaded(false);
    }

    /// Why the one in force is not in the history; `None`: it is.
    pub fn set_history_error(&self, why: Option<String>) {
        self.metrics.history_failed.set(i64::from(why.is_some()));
        self.config_status.set_history_error(why);
    }

    /// The configuration on disk is again the one in force.
    pub fn unreject(&self) {
        self.config_status.unreject();
        self.metrics.reload_failed.set(0);
    }

    /// Closes idle connections that no delivery may reuse: too old, or from a source that left its pool.
    pub fn sweep_connections(&self) {
        let (now, view, active) = (Timestamp::now(), self.sources.view(), self.active_config());
        let (pools, timeouts) = (&active.plan.pools, &active.plan.timeouts);
        self.connection_pool.keep_sources(pools.values().cloned().collect());
        self.connection_pool
            .sweep(timeouts.reuse, |from| view.has(from) && pools.values().any(|pool| pool.contains(from, now)));
    }

    /// New deliveries are refused, but of clients that connected to a listener of `handed_over`: their connections began
    /// before, and this process alone can serve them.
    pub fn drain(&self, handed_over: &[Listen]) {
        self.handed_over.get_or_init(|| handed_over.to_vec());
        self.draining.send_replace(true);
    }
    /// The drain is over: what is still in flight ends now, and not by its client's doing.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }
    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }
    /// Resolves when the drain begins.
    pub fn drained(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }
    /// Judges a request of a client that connected to `listen`.
    pub fn refuse_when_draining(&self, listen: Option<&Listen>) -> Result<(), Draining> {
        let is_handed_over = || {
            let handed_over = self.handed_over.get();
            handed_over.zip(listen).is_some_and(|(handed_over, listen)| handed_over.contains(listen))
        };
        if self.is_draining() && !is_handed_over() { Err(Draining) } else { Ok(()) }
    }

    pub fn open_stream(self: &Arc<Self>) -> StreamGuard {
        self.streams.send_if_modified(|count| {
            *count += 1;
            false
        });
        StreamGuard(Arc::clone(self))
    }
    /// Resolves when no request of HTTP/2 is open.
    pub async fn all_streams_closed(&self) {
        let _ = self.streams.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Unique in this process and, for all practical purposes, beyond it.
    pub fn next_request_id(&self) -> String {
        let count = self.requests.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{count:08x}", self.random.hash_one((count, "request")))
    }
}
