//! The pool of connections to targets.
//! Is there an open connection that is equal to a new one in every respect?

use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;

use crate::config::{ResponseHeadMax, Timeouts};
use crate::http_message::Fields;
use crate::names::{ClientName, Target, TenantName};
use crate::net::fd_limit;
use crate::net::http_client::Connection;
use crate::panics::{self, Mutex};
use crate::policy::egress::Pool;
use crate::state::hashed::{Hashed, HashedMap};
use crate::state::upstreams::fair_share::FairShareLru;
use crate::state::upstreams::keep_alive;

/// The properties of a connection. A delivery may use a connection only if all of them are equal.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ConnectionKey {
    pub from: IpAddr,
    pub target: Target,
    /// The fingerprint of the trust that its certificate satisfied, with the client certificate.
    pub trust: [u8; 32],
    /// `None`: it serves deliveries without a tenant.
    pub tenant: Option<TenantName>,
    /// `None`: it serves all clients.
    pub client: Option<ClientName>,
    /// The limits on the heads of its responses.
    pub head_max: ResponseHeadMax,
}

/// A key that the pool and the connections share.
type SharedKey = Arc<Hashed<ConnectionKey>>;

/// The number of connections of one key, and of all keys. [`fd_limit`] says how many descriptors the process needs besides.
const PER_KEY_MAX: usize = 256;
const TOTAL_MAX: usize = 10_000;
/// The number of locks that the keys are spread over.
const SHARDS: usize = 16;

pub struct ConnectionPool {
    shards: [Mutex<PoolShard>; SHARDS],
    /// The shares of the clients in all connections. Lock order: a shard first, then this.
    shares: Mutex<FairShareLru<Option<ClientName>, SharedKey>>,
    /// The pools whose source addresses connections may have. The pool closes a released connection from another source.
    allowed_sources: ArcSwapOption<Vec<Arc<Pool>>>,
}

type PoolShard = HashedMap<SharedKey, PoolEntry>;

/// The connections of one key.
#[derive(Default)]
struct PoolEntry {
    /// HTTP/1.1: the most recently used one is the last.
    idle: Vec<IdleConnection>,
    /// HTTP/2: they stay here while they are in use.
    shared: Vec<SharedConnection>,
}

struct IdleConnection {
    connection: Box<Connection>,
    key: SharedKey,
    since: Instant,
    idle_timeout: IdleTimeout,
    /// The number of its last use in [`FairShareLru`], while the connection is in the pool.
    number: u64,
}

struct SharedConnection {
    connection: Connection,
    key: SharedKey,
    number: u64,
    /// The longest idle timeout of the routes that have used it.
    idle_timeout: Duration,
}

/// The time for which a connection may be idle and be used again.
#[derive(Clone, Copy)]
struct IdleTimeout {
    /// The idle timeout of the route that used it last.
    route: Duration,
    /// The timeout of the target's `Keep-Alive`, less the margin.
    announced: Option<Duration>,
}

impl IdleTimeout {
    fn effective(self) -> Duration {
        self.announced.map_or(self.route, |announced| announced.min(self.route))
    }
}

/// A connection in use. Dropping it closes an HTTP/1.1 connection, or the stream of an HTTP/2 connection.
/// [`PooledConnection::release`] returns it to the pool.
pub struct PooledConnection {
    /// Boxed, because the steps of a delivery pass it on. A handle of an HTTP/2 connection is boxed for each delivery.
    connection: Box<Connection>,
    key: SharedKey,
    pool: Arc<ConnectionPool>,
    idle_timeout: IdleTimeout,
}

impl ConnectionPool {
    #[expect(clippy::new_without_default, reason = "made once, by Runtime")]
    pub fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            shares: Mutex::new(FairShareLru::new(TOTAL_MAX.min(fd_limit::connections_max()))),
            allowed_sources: ArcSwapOption::empty(),
        }
    }

    /// Adds a new connection, whose route has the idle timeout `idle_timeout`, and takes it into use.
    pub fn lease(
        self: &Arc<Self>,
        key: Hashed<ConnectionKey>,
        connection: Connection,
        idle_timeout: Duration,
    ) -> PooledConnection {
        let key = Arc::new(key);
        let connection = match connection.share() {
            None => connection,
            Some(handle) => {
                self.store(&key, |entry, number| {
                    let oldest = entry.shared.iter().enumerate().min_by_key(|(_, shared)| shared.number);
                    let oldest = oldest.map(|(at, _)| at).filter(|_| entry.shared.len() >= PER_KEY_MAX);
                    let oldest = oldest.map(|at| entry.shared.remove(at));
                    entry.shared.push(SharedConnection { connection, key: Arc::clone(&key), number, idle_timeout });
                    oldest.map(|oldest| (oldest.connection, oldest.number))
                });
                handle
            }
        };
        let idle_timeout = IdleTimeout { route: idle_timeout, announced: None };
        PooledConnection { connection: Box::new(connection), key, pool: Arc::clone(self), idle_timeout }
    }

    /// Takes a new connection into use for one exchange. No other delivery gets it, neither during the exchange nor afterwards.
    pub fn lease_dedicated(self: &Arc<Self>, key: Hashed<ConnectionKey>, connection: Connection) -> PooledConnection {
        let connection = connection.share().unwrap_or(connection);
        PooledConnection {
            connection: Box::new(connection),
            key: Arc::new(key),
            pool: Arc::clone(self),
            idle_timeout: IdleTimeout { route: Duration::ZERO, announced: None },
        }
    }

    /// Returns a shared connection, or else the most recently used idle one, so that the others can expire. It drops idle
    /// connections that the peer has closed or that are too old. Connections that `may_serve` does not allow now, such as one
    /// to an address that the guard denies, stay in the pool.
    pub async fn acquire(
        self: &Arc<Self>,
        key: &Hashed<ConnectionKey>,
        timeouts: &Timeouts,
        now: Instant,
        may_serve: impl Fn(&Connection) -> bool,
    ) -> Option<PooledConnection> {
        let (connection, key, announced) = match self.take_shared(key, timeouts, now, &may_serve).await {
            Some((connection, key)) => (Box::new(connection), key, None),
            None => {
                let idle = self.take_idle(key, timeouts, now, &may_serve).await?;
                (idle.connection, idle.key, idle.idle_timeout.announced)
            }
        };
        let idle_timeout = IdleTimeout { route: timeouts.idle, announced };
        Some(PooledConnection { connection, key, pool: Arc::clone(self), idle_timeout })
    }

    async fn take_shared(
        &self,
        key: &Hashed<ConnectionKey>,
        timeouts: &Timeouts,
        now: Instant,
        may_serve: &impl Fn(&Connection) -> bool,
    ) -> Option<(Connection, SharedKey)> {
        let mut seen = 0;
        loop {
            // Handles are tried one by one outside of the lock. A handle that fails has lost its connection.
            let (mut handle, shared_key) = {
                let mut shard = self.shard(key).lock();
                let mut shared = shard.get_mut(key)?.shared.iter_mut().enumerate().skip(seen);
                let (index, number, handle, shared_key) =
                    shared.find_map(|(index, SharedConnection { connection, key, number, idle_timeout })| {
                        let is_recent = connection.idle_time().unwrap_or_default() < timeouts.idle;
                        let is_young = now.saturating_duration_since(connection.created_at()) < timeouts.reuse;
                        let is_usable = is_recent && is_young && !connection.is_closed();
                        let handle = (is_usable && may_serve(connection)).then(|| connection.share()).flatten();
                        if handle.is_some() {
                            *idle_timeout = timeouts.idle.max(*idle_timeout);
                        }
                        handle.map(|handle| (index, number, handle, Arc::clone(key)))
                    })?;
                *number = self.shares.lock().touch(&key.client, *number);
                seen = index + 1;
                (handle, shared_key)
            };
            if handle.is_ready() || handle.becomes_ready().await {
                return Some((handle, shared_key));
            }
        }
    }

    /// Takes an idle connection out of the pool.
    async fn take_idle(
        &self,
        key: &Hashed<ConnectionKey>,
        timeouts: &Timeouts,
        now: Instant,
        may_serve: &impl Fn(&Connection) -> bool,
    ) -> Option<IdleConnection> {
        let (mut unsettled, mut not_allowed) = (None, Vec::new());
        let mut found = None;
        while let Some(idle) = self.pop(key) {
            let connection = &idle.connection;
            let idle_timeout = IdleTimeout { route: timeouts.idle, ..idle.idle_timeout }.effective();
            let age = |since: Instant| now.saturating_duration_since(since);
            let is_recent = age(idle.since) < idle_timeout && age(connection.created_at()) < timeouts.reuse;
            if !is_recent || connection.is_closed() {
                continue;
            }
            if !may_serve(connection) {
                not_allowed.push(idle);
            } else if connection.is_ready() {
                found = Some(idle);
                break;
            } else if unsettled.is_none() {
                unsettled = Some(idle);
            }
        }
        not_allowed.into_iter().rev().for_each(|idle| self.push(idle));
        match (found, unsettled) {
            // A delivery waits for one connection only, even if several have the rest of a response to read.
            (None, Some(mut idle)) => idle.connection.becomes_ready().await.then_some(idle),
            (Some(found), Some(unsettled)) => {
                self.push(unsettled);
                Some(found)
            }
            (found, None) => found,
        }
    }

    fn pop(&self, key: &Hashed<ConnectionKey>) -> Option<IdleConnection> {
        let mut shard = self.shard(key).lock();
        let idle = shard.get_mut(key)?.idle.pop()?;
        self.shares.lock().remove(&key.client, idle.number);
        Some(idle)
    }

    /// Puts a connection back under a new number, or closes it if no delivery may use it again.
    fn push(&self, idle: IdleConnection) {
        let IdleConnection { connection, key, idle_timeout, .. } = &idle;
        if !idle_timeout.effective().is_zero() && !connection.is_closed() && self.allows_source(key.from) {
            self.store(&Arc::clone(key), |entry, number| {
                let oldest = (entry.idle.len() >= PER_KEY_MAX).then(|| entry.idle.remove(0));
                entry.idle.push(IdleConnection { number, ..idle });
                oldest.map(|oldest| (*oldest.connection, oldest.number))
            });
        }
    }

    /// Sets the pools whose source addresses connections may have.
    pub fn set_allowed_sources(&self, pools: Vec<Arc<Pool>>) {
        self.allowed_sources.store(Some(Arc::new(pools)));
    }

    fn allows_source(&self, source: IpAddr) -> bool {
        let now = Timestamp::now();
        self.allowed_sources.load().as_ref().is_none_or(|pools| pools.iter().any(|pool| pool.contains(source, now)))
    }

    /// Stores a connection, which `put` adds under its number. A full pool, or a full key, evicts its least recently used
    /// connection.
    fn store(&self, key: &SharedKey, put: impl FnOnce(&mut PoolEntry, u64) -> Option<(Connection, u64)>) {
        let (oldest, evicted) = {
            let mut shard = self.shard(key).lock();
            let (number, evicted) = self.shares.lock().add(&key.client, Arc::clone(key));
            let oldest = put(shard.entry(Arc::clone(key)).or_default(), number);
            if let Some((_, number)) = &oldest {
                self.shares.lock().remove(&key.client, *number);
            }
            (oldest, evicted)
        };
        // Connections are closed outside of the locks.
        drop(oldest);
        drop(evicted.and_then(|(key, number)| self.remove(&key, number)));
    }

    /// Removes a connection. `None`: another delivery has taken it meanwhile.
    fn remove(&self, key: &Hashed<ConnectionKey>, number: u64) -> Option<Connection> {
        let mut shard = self.shard(key).lock();
        let entry = shard.get_mut(key)?;
        let idle = entry.idle.iter().position(|idle| idle.number == number);
        let shared = entry.shared.iter().position(|shared| shared.number == number);
        let connection = idle
            .map(|at| *entry.idle.remove(at).connection)
            .or_else(|| shared.map(|at| entry.shared.remove(at).connection));
        if entry.idle.is_empty() && entry.shared.is_empty() {
            shard.remove(key);
        }
        connection
    }

    fn shard(&self, key: &Hashed<ConnectionKey>) -> &Mutex<PoolShard> {
        &self.shards[key.shard(SHARDS)]
    }

    /// Drops the connections that are closed, idle for too long or older than `max_age`, and those from a source
    /// that `allows_source` rejects. Exchanges in flight on a shared connection finish.
    pub fn sweep(&self, max_age: Duration, now: Instant, allows_source: impl Fn(IpAddr) -> bool) {
        for shard in &self.shards {
            let mut removed = Vec::new(); // closed outside of the lock
            shard.lock().retain(|key, entry| {
                let age = |since: Instant| now.saturating_duration_since(since);
                let is_unusable = |connection: &Connection, idle: Duration, idle_timeout: Duration, number: u64| {
                    let is_young = idle < idle_timeout && age(connection.created_at()) < max_age;
                    let is_unusable = !(allows_source(key.from) && is_young && connection.is_kept_open());
                    if is_unusable {
                        self.shares.lock().remove(&key.client, number);
                    }
                    is_unusable
                };
                let idle =
                    entry.idle.extract_if(.., |IdleConnection { connection, since, idle_timeout, number, .. }| {
                        is_unusable(connection, age(*since), idle_timeout.effective(), *number)
                    });
                removed.extend(idle.map(|idle| *idle.connection));
                let shared =
                    entry.shared.extract_if(.., |SharedConnection { connection, number, idle_timeout, .. }| {
                        is_unusable(connection, connection.idle_time().unwrap_or_default(), *idle_timeout, *number)
                    });
                removed.extend(shared.map(|shared| shared.connection));
                entry.idle.len() + entry.shared.len() > 0
            });
        }
    }

    /// Returns the number of connections in the pool.
    pub fn connection_count(&self) -> usize {
        self.shares.lock().total()
    }
}

impl PooledConnection {
    /// Applies the `Keep-Alive` field of a response, such as `timeout=5, max=100` (RFC 2068 §19.7.1.1). A response without the
    /// field changes nothing; HTTP/2 has no such field (RFC 9113 §8.2.2).
    pub fn observe_keep_alive(&mut self, fields: &Fields) {
        if self.connection.idle_time().is_none()
            && let Some(announced) = keep_alive::read(fields)
        {
            self.idle_timeout.announced = Some(announced);
        }
    }

    /// Ends the exchange after the last byte of its response. An HTTP/1.1 connection returns to the pool if it is
    /// `reusable`. A shared connection never left the pool; its stream is reset if the target does not read the rest of
    /// the upload in time.
    pub fn release(self, now: Instant, reusable: bool) {
        if self.connection.is_upload_finished() || self.connection.is_closed() {
            self.return_to_pool(now, reusable);
        } else {
            // The target has responded early. It may still want the rest of the request.
            let mut this = self;
            panics::spawn(async move {
                if this.connection.upload_finished().await {
                    this.return_to_pool(now, reusable);
                }
            });
        }
    }

    fn return_to_pool(self, now: Instant, reusable: bool) {
        let PooledConnection { mut connection, key, pool, idle_timeout } = self;
        connection.finish_exchange();
        if reusable && connection.idle_time().is_none() {
            pool.push(IdleConnection { connection, key, since: now, idle_timeout, number: 0 });
        }
    }
}

impl Deref for PooledConnection {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}
