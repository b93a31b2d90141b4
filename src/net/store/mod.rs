//! The store that the instances of a fleet share: calls to a Redis or Valkey server, and its connections.
//! What does the store answer, and is it away?
//!
//! The store is no target: the kernel chooses the source address, and the guard does not judge it.

mod connector;
pub mod script;

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use redis::{FromRedisValue, RedisError, RedisResult};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::config;
use crate::panics::Mutex;
use connector::{StoreConnection, StoreConnector};
use script::StoreScript;

/// A connection attempt may take this many times the time of a response: it needs several round trips.
const CONNECT_FACTOR: u32 = 4;

/// The connections to the store: one for each worker thread, on which calls do not wait for each other.
///
/// No call makes a connection. [`Store::connect`] does, in the background.
pub struct Store {
    connector: StoreConnector,
    connections: Box<[Mutex<Option<Arc<StoreConnection>>>]>,
    timeout: Duration,
    is_up: AtomicBool,
    lost: Notify,
    /// The number of claims, which tells them apart.
    claims: AtomicU64,
    calls: AtomicU64,
    errors: AtomicU64,
    last_error: Mutex<String>,
}

/// The store did not answer a call, or refused it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreError(String);

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for StoreError {}

impl From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        Self(error.to_string())
    }
}

/// The number of this worker thread. It is the same for the life of the thread.
fn worker() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static WORKER: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    WORKER.with(Cell::get)
}

/// Returns the lifetime of a key, which cannot be zero.
fn milliseconds(lifetime: Duration) -> u64 {
    u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX).max(1)
}

impl Store {
    /// Prepares `workers` connections. It contacts no server.
    pub fn new(fleet: &config::Fleet, workers: usize) -> Result<Self, StoreError> {
        Ok(Self {
            connector: StoreConnector::new(fleet)?,
            connections: (0..workers.max(1)).map(|_| Mutex::default()).collect(),
            timeout: fleet.timeout,
            is_up: AtomicBool::new(false),
            lost: Notify::new(),
            claims: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            last_error: Mutex::new("outgate has not reached it yet".to_owned()),
        })
    }

    /// Runs a script on keys of one slot, and returns its answer. An error means that the store is away until
    /// [`Store::set_up`].
    pub async fn run<T: FromRedisValue>(
        &self,
        script: &StoreScript,
        keys: &[&str],
        arguments: &[&(dyn fmt::Display + Sync)],
    ) -> Result<T, StoreError> {
        let invocation = script.invocation(keys, arguments);
        self.call(async |connection| connection.run(&invocation).await).await
    }

    /// Claims a key, which ends after `lifetime`, for this call of `process`. Returns whether there was no such key.
    ///
    /// The library repeats a call of a cluster whose answer is lost. The claim states its call, so that the repeated call does
    /// not take it for that of another.
    pub async fn claim(&self, key: &str, process: &str, lifetime: Duration) -> Result<bool, StoreError> {
        let call = format!("{process}:{}", self.claims.fetch_add(1, Ordering::Relaxed));
        self.run(&script::CLAIM, &[key], &[&call, &milliseconds(lifetime)]).await
    }

    /// Writes a key that ends after `lifetime`.
    pub async fn set(&self, key: &str, value: &[u8], lifetime: Duration) -> Result<(), StoreError> {
        let mut command = redis::cmd("SET");
        command.arg(key).arg(value).arg("PX").arg(milliseconds(lifetime));
        self.call(async |connection| connection.query(&command).await).await
    }

    /// Returns at most `max` bytes of a key's value, which is empty if there is no such key.
    pub async fn get(&self, key: &str, max: usize) -> Result<Vec<u8>, StoreError> {
        let mut command = redis::cmd("GETRANGE");
        command.arg(key).arg(0).arg(max);
        self.call(async |connection| connection.query(&command).await).await
    }

    async fn call<T>(&self, call: impl AsyncFnOnce(StoreConnection) -> RedisResult<T>) -> Result<T, StoreError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let slot = &self.connections[worker() % self.connections.len()];
        let connection = slot.lock().clone();
        let Some(connection) = connection else {
            return Err(self.failed(StoreError("outgate has no connection to it".to_owned())));
        };
        let result = match timeout(self.timeout, call(StoreConnection::clone(&connection))).await {
            Ok(result) => result.map_err(StoreError::from),
            Err(_) => Err(StoreError(format!("it did not answer within {:?}", self.timeout))),
        };
        result.map_err(|error| {
            // The next one may lead to another server: this one may be a replica, or frozen. The error of a connection that
            // another has replaced since tells nothing of the store.
            let mut current = slot.lock();
            if current.as_ref().is_some_and(|current| !Arc::ptr_eq(current, &connection)) {
                self.errors.fetch_add(1, Ordering::Relaxed);
                return error;
            }
            *current = None;
            drop(current);
            self.failed(error)
        })
    }

    fn failed(&self, error: StoreError) -> StoreError {
        self.errors.fetch_add(1, Ordering::Relaxed);
        self.last_error.lock().clone_from(&error.0);
        self.is_up.store(false, Ordering::Relaxed);
        self.lost.notify_one();
        error
    }

    /// Makes the connections that are missing, and returns whether there were such.
    pub async fn connect(&self) -> Result<bool, StoreError> {
        let mut has_connected = false;
        for slot in &self.connections {
            if slot.lock().is_some() {
                continue;
            }
            let connected = timeout(self.timeout * CONNECT_FACTOR, self.connector.connect(self.timeout)).await;
            let connected =
                connected.unwrap_or_else(|_| Err(StoreError("the connection attempt timed out".to_owned())));
            let connection = connected.map_err(|error| self.failed(error))?;
            for script in script::AWAITED {
                // A server that does not take it now gets it with its first call.
                let _ = timeout(self.timeout, connection.clone().load(&script.loading())).await;
            }
            *slot.lock() = Some(Arc::new(connection));
            has_connected = true;
        }
        Ok(has_connected)
    }

    /// Drops all connections: if one leads to a server that is gone, the others do, too.
    pub fn disconnect(&self) {
        self.connections.iter().for_each(|slot| *slot.lock() = None);
    }

    /// States that the store has answered, so that deliveries may ask it again.
    pub fn set_up(&self) {
        self.is_up.store(true, Ordering::Relaxed);
    }

    /// Returns whether the last call succeeded.
    pub fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }

    /// Resolves when a call has failed.
    pub async fn lost(&self) {
        self.lost.notified().await;
    }

    /// Returns the error of the last call that failed.
    pub fn last_error(&self) -> String {
        self.last_error.lock().clone()
    }

    /// Returns the number of calls, and of those that failed.
    pub fn counts(&self) -> [u64; 2] {
        [&self.calls, &self.errors].map(|counter| counter.load(Ordering::Relaxed))
    }
}
