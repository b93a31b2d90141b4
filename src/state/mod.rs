//! The state that outlives a delivery: the active configuration, and the state that a reload must not reset.
//! Which state does the running proxy keep?

pub mod alerts;
pub mod audit;
pub mod config;
mod counters;
pub mod drain;
pub mod fleet;
pub mod hashed;
pub mod limits;
pub mod load;
pub mod observability;
pub mod publication;
pub mod replay;
pub mod sinks;
pub mod upstreams;

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{self, AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::sync::{Semaphore, watch};

use crate::names::RequestId;
use crate::net::memory_limit;
use crate::panics::Mutex;
use crate::policy::load::Usage;
use config::ActiveConfig;

/// The state of a running proxy; one for the process.
pub struct Runtime {
    active: ArcSwap<ActiveConfig>,
    pub config_worker: config::worker::BackgroundWorker,
    /// Renders `/metrics` and finds the conditions of alerts, which both list the host's sockets: readiness waits for
    /// neither.
    pub metrics_worker: config::worker::BackgroundWorker,
    /// Renders the other responses of the admin listener.
    pub admin_worker: config::worker::BackgroundWorker,
    /// Reads the history for the admin listener: a disk that hangs delays nothing else.
    pub history_reader: config::worker::BackgroundWorker,
    pub deferred_drop: Arc<config::deferred_drop::DeferredDrop>,
    pub limits: Arc<limits::Limits>,
    pub admission: Arc<limits::admission::AdmissionQueue>,
    /// The permits of open tunnels.
    pub tunnel_permits: Arc<Semaphore>,
    pub replay_cache: replay::ReplayCache,
    pub connection_pool: Arc<upstreams::pool::ConnectionPool>,
    pub circuit_breakers: Arc<upstreams::breaker::CircuitBreakers>,
    pub source_health: upstreams::health::SourceHealth,
    pub verified_targets: upstreams::verified::VerifiedTargetCache,
    pub http1_only: upstreams::http1_only::Http1OnlyTargets,
    pub http2_dials: upstreams::http2_dials::Http2Dials,
    pub tokens: Arc<upstreams::tokens::TokenCache>,
    pub sources: upstreams::sources::Sources,
    pub metrics: observability::metrics::Metrics,
    pub expiry_warnings: config::warnings::ExpiryWarnings,
    pub signer_warnings: config::warnings::SignerWarnings,
    pub records: observability::records::Records,
    pub audit: audit::AuditTrail,
    pub traces: observability::traces::TraceExporter,
    pub alerts: alerts::Alerts,
    pub publication: publication::LastPublication,
    pub failing_tenants: alerts::FailingTenants,
    pub traffic: observability::traffic::TrafficHistory,
    pub captures: observability::captures::CaptureQueue,
    /// Empty: the configuration has no fleet.
    pub fleet: OnceLock<Arc<fleet::Fleet>>,
    pub body_memory: limits::memory_budget::MemoryBudget,
    ports_used: Mutex<Usage>,
    pub started_at: Timestamp,
    pub config_status: config::status::ConfigStatus,
    pub reload_queue: Arc<config::reload_queue::ReloadQueue>,
    /// The number of open HTTP/2 requests, whose tasks are separate from their connection's.
    open_streams: watch::Sender<usize>,
    drain: drain::Drain,
    is_hard_stopped: AtomicBool,
    request_count: AtomicU64,
    random: RandomState,
}

/// An open HTTP/2 request. It is dropped after the record of its delivery is written.
pub struct StreamGuard(Arc<Runtime>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.open_streams.send_if_modified(|count| {
            *count -= 1;
            *count == 0
        });
    }
}

impl Runtime {
    pub fn new(active: ActiveConfig, records: observability::records::Records) -> Self {
        Self {
            active: ArcSwap::from_pointee(active),
            config_worker: config::worker::BackgroundWorker::default(),
            metrics_worker: config::worker::BackgroundWorker::with_name("metrics"),
            admin_worker: config::worker::BackgroundWorker::with_name("admin"),
            history_reader: config::worker::BackgroundWorker::with_name("history"),
            deferred_drop: Arc::default(),
            limits: Arc::default(),
            admission: Arc::new(limits::admission::AdmissionQueue::new()),
            tunnel_permits: Arc::new(Semaphore::new(load::tunnels_max())),
            replay_cache: replay::ReplayCache::new(),
            connection_pool: Arc::new(upstreams::pool::ConnectionPool::new()),
            circuit_breakers: Arc::default(),
            source_health: upstreams::health::SourceHealth::new(Instant::now()),
            verified_targets: upstreams::verified::VerifiedTargetCache::default(),
            http1_only: upstreams::http1_only::Http1OnlyTargets::default(),
            http2_dials: upstreams::http2_dials::Http2Dials::default(),
            tokens: Arc::default(),
            sources: upstreams::sources::Sources::new(),
            metrics: observability::metrics::Metrics::new(),
            expiry_warnings: config::warnings::ExpiryWarnings::default(),
            signer_warnings: config::warnings::SignerWarnings::default(),
            records,
            audit: audit::AuditTrail::default(),
            traces: observability::traces::TraceExporter::default(),
            alerts: alerts::Alerts::default(),
            publication: publication::LastPublication::default(),
            failing_tenants: alerts::FailingTenants::default(),
            traffic: observability::traffic::TrafficHistory::new(Instant::now()),
            captures: observability::captures::CaptureQueue::default(),
            fleet: OnceLock::new(),
            body_memory: limits::memory_budget::MemoryBudget::for_bodies(memory_limit::memory_max()),
            ports_used: Mutex::default(),
            started_at: Timestamp::now(),
            config_status: config::status::ConfigStatus::default(),
            reload_queue: Arc::default(),
            open_streams: watch::Sender::new(0),
            drain: drain::Drain::default(),
            is_hard_stopped: AtomicBool::new(false),
            request_count: AtomicU64::new(0),
            random: RandomState::new(),
        }
    }

    pub fn active_config(&self) -> Arc<ActiveConfig> {
        self.active.load_full()
    }

    /// Replaces the active configuration atomically: a delivery uses the former one or the new one, never a mixture. Idle
    /// connections from source addresses that are no longer in a pool are closed.
    pub fn adopt(&self, next: ActiveConfig, adopted: config::status::AdoptedConfig) {
        self.withhold_assigned(&[&self.active_config().plan, &next.plan]);
        self.deferred_drop.push(self.active.swap(Arc::new(next)));
        self.sweep_deferred_drops();
        self.config_status.adopt(adopted);
        self.metrics.reloaded(true);
        self.sweep_connections();
        self.announce_change();
    }

    /// Drops former configurations that no delivery holds, on the config thread, which carries no traffic.
    pub fn sweep_deferred_drops(&self) {
        if !self.deferred_drop.is_empty() {
            let deferred_drop = Arc::clone(&self.deferred_drop);
            drop(self.config_worker.run(move || deferred_drop.sweep()));
        }
    }

    /// Records that the configuration on disk was rejected. The active one stays.
    pub fn reject(&self, rejected: config::status::RejectedConfig) {
        self.config_status.reject(rejected);
        self.metrics.reloaded(false);
    }

    /// Sets the reason why the history lacks the active configuration. `None`: the history has it.
    pub fn set_history_error(&self, error: Option<String>) {
        self.metrics.history_failed.set(i64::from(error.is_some()));
        self.config_status.set_history_error(error);
    }

    /// Clears the rejection: the configuration on disk is the active one again.
    pub fn clear_rejection(&self) {
        self.config_status.clear_rejection();
        self.metrics.reload_failed.set(0);
    }

    /// Announces a change of this instance to its fleet at once.
    pub fn announce_change(&self) {
        if let Some(fleet) = self.fleet.get() {
            fleet.announce_change();
        }
    }

    /// Closes the idle connections that no delivery may reuse: too old, or from a source that is no longer in a pool.
    pub fn sweep_connections(&self) {
        let (now, snapshot, active) = (Timestamp::now(), self.sources.snapshot(), self.active_config());
        let plan = &active.plan;
        self.connection_pool.set_allowed_sources(plan.pools.values().cloned().collect());
        let is_allowed = |from| snapshot.has(from) && plan.has_source(from, now);
        self.connection_pool.sweep(plan.timeouts.reuse, Instant::now(), is_allowed);
    }

    /// Ends the drain: deliveries still in flight end now, and their records blame outgate.
    pub fn hard_stop(&self) {
        self.is_hard_stopped.store(true, Ordering::Relaxed);
    }
    pub fn is_hard_stopped(&self) -> bool {
        self.is_hard_stopped.load(Ordering::Relaxed)
    }

    pub fn open_stream(self: &Arc<Self>) -> StreamGuard {
        self.open_streams.send_if_modified(|count| {
            *count += 1;
            false
        });
        StreamGuard(Arc::clone(self))
    }
    /// Returns the number of open HTTP/2 requests.
    pub fn open_stream_count(&self) -> usize {
        *self.open_streams.borrow()
    }
    /// Resolves when no HTTP/2 request is open.
    pub async fn all_streams_closed(&self) {
        let _ = self.open_streams.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Returns numbers that no other process can predict.
    pub fn random_numbers(&self) -> [u64; 3] {
        let count = self.request_count.fetch_add(1, Ordering::Relaxed);
        std::array::from_fn(|index| self.random.hash_one((count, index)))
    }

    /// Returns an id that is unique in this process, and in practice beyond it.
    pub fn next_request_id(&self) -> RequestId {
        let count = self.request_count.fetch_add(1, Ordering::Relaxed);
        RequestId::new(self.random.hash_one((count, "request")), count)
    }
}
