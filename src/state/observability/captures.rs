//! Captures on their way to the store: bounded in memory, sealed and stored by a background thread.
//! How does a capture reach its store without delaying its delivery?

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::Semaphore;
use tracing::{info, warn};

use crate::audit::CAPTURE_EXPIRED;
use crate::capture_store::{ObjectDigest, ObjectName, Store};
use crate::names::{CaptureName, TenantName, pluralize};
use crate::panics::Mutex;
use crate::policy::capture::{Capture, CapturedExchange, Recipients};
use crate::policy::redact::Redactor;
use crate::state::Runtime;
use crate::state::config::worker::BackgroundWorker;
use crate::state::limits::memory_budget::{MemoryBudget, MemoryReservation};

/// The most bytes of copied messages in memory: of deliveries in flight, and of those that wait for the store.
const HELD_MAX: usize = 64 << 20;
/// The most captures that wait for the store.
const WAITING_MAX: usize = 1000;
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// A full store is measured again after this time, because an operator may have erased captures.
const MEASURE_EVERY: Duration = Duration::from_secs(5);
/// A problem of a store or of recipients is logged again after this time.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// The time for the waiting captures to be stored when the process ends.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
/// The most captures that one record of an erasure or an export lists: syslog servers cut longer messages than 8 KiB.
pub const LISTED_MAX: usize = 20;

/// The queue of captures, and what is known of their stores.
pub struct CaptureQueue {
    /// Bytes of copied messages.
    memory: MemoryBudget,
    /// A permit for each capture that may still wait for the store.
    permits: Arc<Semaphore>,
    /// Started with the first capture.
    worker: OnceLock<BackgroundWorker>,
    stores: Mutex<HashMap<(CaptureName, PathBuf), StoreState>>,
    swept: Mutex<Option<Instant>>,
}

/// A capture in memory. Its bytes count until it is dropped.
pub struct PendingCapture {
    pub capture: Arc<Capture>,
    pub exchange: CapturedExchange,
    recipients: Arc<Recipients>,
    redactor: Arc<Redactor>,
    tenant: TenantName,
    reserved: MemoryReservation,
    runtime: Arc<Runtime>,
}

impl PendingCapture {
    /// Begins a capture of `head` bytes. `None`: there is no room for it.
    pub fn begin(
        runtime: &Arc<Runtime>,
        capture: &Arc<Capture>,
        recipients: &Arc<Recipients>,
        redactor: &Arc<Redactor>,
        tenant: &TenantName,
        head: usize,
    ) -> Option<Self> {
        let mut pending = Self {
            capture: Arc::clone(capture),
            exchange: CapturedExchange::default(),
            recipients: Arc::clone(recipients),
            redactor: Arc::clone(redactor),
            tenant: tenant.clone(),
            reserved: runtime.captures.memory.reservation(),
            runtime: Arc::clone(runtime),
        };
        if pending.reserve(head) {
            return Some(pending);
        }
        runtime.metrics.capture(&capture.name, "dropped");
        None
    }

    /// Reserves memory for a copy of this many bytes. Returns whether there is room.
    pub fn reserve(&mut self, bytes: usize) -> bool {
        self.reserved.grow(bytes).is_ok()
    }

    /// Hands the capture to the background thread. It is lost if too many wait.
    pub fn submit(self) {
        let runtime = Arc::clone(&self.runtime);
        let Ok(permit) = Arc::clone(&runtime.captures.permits).try_acquire_owned() else {
            runtime.metrics.capture(&self.capture.name, "dropped");
            return;
        };
        runtime.captures.run(move || {
            let queue = &self.runtime.captures;
            let result = StoreState::of(&mut queue.stores.lock(), &self.capture).store(&self);
            self.runtime.metrics.capture(&self.capture.name, result);
            drop(permit);
        });
    }
}

impl Default for CaptureQueue {
    fn default() -> Self {
        Self {
            memory: MemoryBudget::new(HELD_MAX),
            permits: Arc::new(Semaphore::new(WAITING_MAX)),
            worker: OnceLock::new(),
            stores: Mutex::default(),
            swept: Mutex::default(),
        }
    }
}

impl CaptureQueue {
    fn run(&self, job: impl FnOnce() + Send + 'static) {
        drop(self.worker.get_or_init(|| BackgroundWorker::with_name("captures")).run(job));
    }

    /// Deletes expired captures if it is time.
    pub fn sweep(&self, runtime: &Arc<Runtime>, captures: &[Arc<Capture>]) {
        let mut swept = self.swept.lock();
        let interval =
            captures.iter().map(|capture| capture.section.keep / 2).min().unwrap_or(SWEEP_EVERY).min(SWEEP_EVERY);
        let is_idle = self.permits.available_permits() > 0;
        if !captures.is_empty() && is_idle && swept.is_none_or(|at| at.elapsed() >= interval) {
            *swept = Some(Instant::now());
            let (runtime, captures) = (Arc::clone(runtime), captures.to_vec());
            self.run(move || {
                for capture in &captures {
                    let mut stores = runtime.captures.stores.lock();
                    let state = StoreState::of(&mut stores, capture);
                    let measured = block_on(state.measure(&runtime, capture));
                    state.report(capture, measured);
                }
            });
        }
    }

    /// Waits until the waiting captures are stored, for [`CLOSE_PATIENCE`] at most.
    pub async fn flush(&self) {
        if let Some(worker) = self.worker.get()
            && tokio::time::timeout(CLOSE_PATIENCE, worker.run(|| ())).await.is_err()
        {
            let waiting = pluralize((WAITING_MAX - self.permits.available_permits()) as u128, "capture");
            warn!("{waiting} are lost: the store did not take them within {} s", CLOSE_PATIENCE.as_secs());
        }
    }
}

/// The background thread's knowledge of a store.
#[derive(Default)]
struct StoreState {
    /// `None`: not open yet.
    store: Option<Store>,
    /// Bytes of all captures, and when they were counted; `None`: not known yet.
    used: Option<(u64, Instant)>,
    /// The time of the last log line about a failure, until the store succeeds again.
    failure_logged: Option<Instant>,
    full_logged: Option<Instant>,
}

impl StoreState {
    fn of<'a>(stores: &'a mut HashMap<(CaptureName, PathBuf), Self>, capture: &Capture) -> &'a mut Self {
        stores.entry((capture.name.clone(), capture.store.clone())).or_default()
    }

    /// Returns the store, and opens it first if that has not succeeded yet.
    fn open(&mut self, capture: &Capture) -> io::Result<&Store> {
        match &mut self.store {
            Some(store) => Ok(store),
            closed => {
                let store = Store::open(&capture.store, &capture.name)?;
                store.remove_unfinished()?;
                Ok(closed.insert(store))
            }
        }
    }

    /// Deletes what has expired, and returns the bytes of the rest.
    async fn measure(&mut self, runtime: &Runtime, capture: &Capture) -> io::Result<u64> {
        let now = Timestamp::now();
        let store = self.open(capture)?;
        let stored = store.list(None).await?;
        let (expired, kept): (Vec<_>, Vec<_>) =
            stored.into_iter().partition(|stored| capture.is_expired(stored.name.at, now));
        for expired in expired.chunk_by(|a, b| a.name.tenant == b.name.tenant).flat_map(|same| same.chunks(LISTED_MAX))
        {
            let (erased, failed) = store.erase(expired).await;
            if !erased.is_empty() {
                let name = &expired[0].name;
                runtime.audit.record(ObjectDigest::event(CAPTURE_EXPIRED, &capture.name, name, &erased, now));
            }
            if let Some((name, reason)) = failed.first() {
                return Err(io::Error::other(format!("{name} cannot be deleted: {reason}")));
            }
        }
        let used = kept.iter().map(|stored| stored.size).sum();
        self.used = Some((used, Instant::now()));
        Ok(used)
    }

    /// Seals and stores one capture, and returns the result to count.
    fn store(&mut self, pending: &PendingCapture) -> &'static str {
        let PendingCapture { capture, recipients, redactor, exchange, .. } = pending;
        let stored = recipients.seal(&exchange.document(capture, redactor));
        let stored = stored.and_then(|sealed| block_on(self.put(pending, sealed)));
        self.report(capture, stored).unwrap_or("failed")
    }

    async fn put(&mut self, pending: &PendingCapture, sealed: Vec<u8>) -> io::Result<&'static str> {
        let PendingCapture { capture, tenant, exchange, runtime, .. } = pending;
        let total_max = capture.section.total_max;
        let has_room = |used: u64| used + sealed.len() as u64 <= total_max;
        let used = match self.used {
            Some((used, at)) if has_room(used) || at.elapsed() < MEASURE_EVERY => used,
            _ => self.measure(runtime, capture).await?,
        };
        if !has_room(used) {
            if is_due(&mut self.full_logged) {
                warn!(
                    "captures.{}: nothing more is captured, because its captures in {} have {used} bytes of {total_max}; \
                     raise total_max, lower keep, or run `outgate captures erase`",
                    capture.name,
                    capture.store.display()
                );
            }
            return Ok("full");
        }
        self.used = self.used.map(|(_, at)| (used + sealed.len() as u64, at));
        let name = ObjectName { tenant: tenant.clone(), at: exchange.at, request_id: exchange.request_id.clone() };
        self.open(capture)?.put(&name, sealed).await?;
        Ok("stored")
    }

    /// Logs a failure of the store once a minute, and its end.
    fn report<T>(&mut self, capture: &Capture, result: io::Result<T>) -> Option<T> {
        let (name, store) = (&capture.name, capture.store.display());
        match &result {
            Ok(_) if self.failure_logged.take().is_some() => info!("captures.{name}: the store {store} works again"),
            Err(error) if is_due(&mut self.failure_logged) => warn!(
                "captures.{name}: cannot use the store {store}: {error}; captures are lost until it works again, and \
                 deliveries go on; check that outgate's user may write there"
            ),
            _ => {}
        }
        result.ok()
    }
}

/// Returns whether a line that was logged at this time may be logged again, and notes the time.
fn is_due(logged: &mut Option<Instant>) -> bool {
    let is_due = logged.is_none_or(|logged| logged.elapsed() >= LOG_EVERY);
    if is_due {
        *logged = Some(Instant::now());
    }
    is_due
}

/// Waits on this thread. The runtime of the deliveries does none of the work.
fn block_on<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
