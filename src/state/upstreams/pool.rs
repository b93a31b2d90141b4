//! Connections to targets that may serve another delivery.
//! Is there an open connection that is in every respect what a new one would be?

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use http::HeaderMap;
use jiff::Timestamp;
use parking_lot::Mutex;

use crate::config::{ResponseHeadMax, Timeouts};
use crate::names::{ClientName, Target, TenantName};
use crate::net::fd_limit;
use crate::net::http_client::Connection;
use crate::policy::egress::Pool;
use crate::state::upstreams::fair_share::FairShareLru;
use crate::state::upstreams::keep_alive;

/// Everything that makes a connection what it is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct PoolKey {
    pub from: IpAddr,
    pub target: Target,
    /// The fingerprint of the trust policy that its certificate satisfied, and of who we are under it.
    pub trust: [u8; 32],
    /// `None`: for no tenant.
    pub tenant: Option<TenantName>,
    /// `None`: for all clients.
    pub client: Option<ClientName>,
    /// The limits under which it reads responses.
    pub head_max: ResponseHeadMax,
}

/// Connections kept for one key, and altogether: see [`fd_limit`] for what else the process must hold.
const PER_KEY_MAX: usize = 256;
const TOTAL_MAX: usize = 10_000;
/// For the tail of an answer to be read, and of an upload to leave, if its target answered early.
const SETTLED_WITHIN: Duration = Duration::from_secs(1);
/// Locks are held for a few instructions; this many keep even those apart.
const SHARDS: usize = 16;

pub struct ConnectionPool {
    shards: [Mutex<HashMap<PoolKey, PoolEntry>>; SHARDS],
    /// Of all that is kept. Locked after a shard, never before.
    shares: Mutex<FairShareLru<Option<ClientName>, PoolKey>>,
    /// Where connections leave from that may serve again: what comes back from elsewhere is not kept.
    sources: ArcSwapOption<Vec<Arc<Pool>>>,
}

/// The connections of one key.
#[derive(Default)]
struct PoolEntry {
    /// The one used last at the end.
    idle: Vec<IdleConnection>,
    /// HTTP/2: they stay here while they are in use, too.
    shared: Vec<SharedConnection>,
}

struct IdleConnection {
    connection: Connection,
    since: Instant,
    stay: IdleTimeout,
    /// Its last use, in [`FairShareLru`].
    number: u64,
}

struct SharedConnection {
    connection: Connection,
    number: u64,
    /// The longest of the routes that have used it.
    idle: Duration,
}

/// How long a connection may be idle and be used again.
#[derive(Clone, Copy)]
struct IdleTimeout {
    /// As the route says that used it last.
    route: Duration,
    /// As the target has announced, less the margin.
    announced: Option<Duration>,
}

impl IdleTimeout {
    fn longest(self) -> Duration {
        self.announced.map_or(self.route, |announced| announced.min(self.route))
    }
}

/// A connection in use. Dropping it closes the connection, or, of a shared one, ends its part; only
/// [`PooledConnection::release`] keeps it.
pub struct PooledConnection {
    connection: Connection,
    key: PoolKey,
    home: Arc<ConnectionPool>,
    stay: IdleTimeout,
}

impl ConnectionPool {
    #[expect(clippy::new_without_default, reason = "made once, by Live")]
    pub fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            shares: Mutex::new(FairShareLru::new(TOTAL_MAX.min(fd_limit::connections_max()))),
            sources: ArcSwapOption::empty(),
        }
    }

    /// `idle`: how long the route lets it be idle.
    pub fn lease(home: &Arc<ConnectionPool>, key: PoolKey, connection: Connection, idle: Duration) -> PooledConnection {
        let connection = match connection.share() {
            None => connection,
            Some(handle) => {
                home.store(&key, |kept, number| {
                    let oldest = kept.shared.iter().enumerate().min_by_key(|(_, shared)| shared.number);
                    let oldest = oldest.map(|(at, _)| at).filter(|_| kept.shared.len() >= PER_KEY_MAX);
                    let oldest = oldest.map(|at| kept.shared.remove(at));
                    kept.shared.push(SharedConnection { connection, number, idle });
                    oldest.map(|oldest| (oldest.connection, oldest.number))
                });
                handle
            }
        };
        PooledConnection { connection, key, home: Arc::clone(home), stay: IdleTimeout { route: idle, announced: None } }
    }

    /// Leases a new connection for one exchange. No other delivery gets it, neither during the exchange nor afterwards.
    pub fn lease_dedicated(home: &Arc<ConnectionPool>, key: PoolKey, connection: Connection) -> PooledConnection {
        let connection = connection.share().unwrap_or(connection);
        PooledConnection {
            connection,
            key,
            home: Arc::clone(home),
            stay: IdleTimeout { route: Duration::ZERO, announced: None },
        }
    }

    /// A connection that others use too, else the one used last, so that the rest can grow old and go. One that the
    /// peer has closed, or that is too old, is dropped on the way; one that `may_serve` does not permit now, such as one to
    /// an address that the guard does not clear, is left for when it does again.
    pub async fn acquire(
        self: &Arc<Self>,
        key: &PoolKey,
        limits: &Timeouts,
        may_serve: impl Fn(&Connection) -> bool,
    ) -> Option<PooledConnection> {
        let (connection, announced) = match self.take_shared(key, limits, &may_serve).await {
            Some(connection) => (connection, None),
            None => self.take_idle(key, limits, &may_serve).await?,
        };
        let stay = IdleTimeout { route: limits.idle, announced };
        Some(PooledConnection { connection, key: key.clone(), home: Arc::clone(self), stay })
    }

    async fn take_shared(
        &self,
        key: &PoolKey,
        limits: &Timeouts,
        may_serve: &impl Fn(&Connection) -> bool,
    ) -> Option<Connection> {
        let mut seen = 0;
        loop {
            // Handles are tried one by one, and outside of the lock; each that fails has lost its connection.
            let mut handle = {
                let mut shard = self.shard(key).lock();
                let mut shared = shard.get_mut(key)?.shared.iter_mut().enumerate().skip(seen);
                let (index, number, handle) =
                    shared.find_map(|(index, SharedConnection { connection, number, idle })| {
                        let is_recent = connection.idle_time().unwrap_or_default() < limits.idle;
                        let fit =
                            is_recent && !connection.is_closed() && connection.created_at().elapsed() < limits.reuse;
                        let handle = (fit && may_serve(connection)).then(|| connection.share()).flatten();
                        *idle = if handle.is_some() { limits.idle.max(*idle) } else { *idle };
                        handle.map(|handle| (index, number, handle))
                    })?;
                *number = self.shares.lock().touch(&key.client, *number);
                seen = index + 1;
                handle
            };
            if handle.is_ready() || handle.becomes_ready().await {
                return Some(handle);
            }
        }
    }

    /// Takes an idle connection, and the time for which the target has announced to keep it.
    async fn take_idle(
        &self,
        key: &PoolKey,
        limits: &Timeouts,
        may_serve: &impl Fn(&Connection) -> bool,
    ) -> Option<(Connection, Option<Duration>)> {
        let (mut unsettled, mut elsewhere) = (None, Vec::new());
        let mut found = None;
        while let Some(idle) = self.pop(key) {
            let connection = &idle.connection;
            let stays = IdleTimeout { route: limits.idle, ..idle.stay }.longest();
            let is_fit = idle.since.elapsed() < stays && connection.created_at().elapsed() < limits.reuse;
            if !is_fit || connection.is_closed() {
                continue;
            }
            if !may_serve(connection) {
                elsewhere.push(idle);
            } else if connection.is_ready() {
                found = Some((idle.connection, idle.stay.announced));
                break;
            } else if unsettled.is_none() {
                unsettled = Some(idle);
            }
        }
        for IdleConnection { connection, since, stay, .. } in elsewhere.into_iter().rev() {
            self.push(key, connection, since, stay);
        }
        match (found, unsettled) {
            // One delivery waits for one connection, however many have a tail to read.
            (None, Some(IdleConnection { mut connection, stay, .. })) => {
                connection.becomes_ready().await.then_some((connection, stay.announced))
            }
            (Some(found), Some(unsettled)) => {
                self.push(key, unsettled.connection, unsettled.since, unsettled.stay);
                Some(found)
            }
            (found, None) => found,
        }
    }

    fn pop(&self, key: &PoolKey) -> Option<IdleConnection> {
        let mut shard = self.shard(key).lock();
        let idle = shard.get_mut(key)?.idle.pop()?;
        self.shares.lock().remove(&key.client, idle.number);
        Some(idle)
    }

    fn push(&self, key: &PoolKey, connection: Connection, since: Instant, stay: IdleTimeout) {
        if !stay.longest().is_zero() && !connection.is_closed() && self.may_leave_from(key.from) {
            self.store(key, |kept, number| {
                let oldest = (kept.idle.len() >= PER_KEY_MAX).then(|| kept.idle.remove(0));
                kept.idle.push(IdleConnection { connection, since, stay, number });
                oldest.map(|oldest| (oldest.connection, oldest.number))
            });
        }
    }

    /// From now on.
    pub fn keep_sources(&self, pools: Vec<Arc<Pool>>) {
        self.sources.store(Some(Arc::new(pools)));
    }

    fn may_leave_from(&self, source: IpAddr) -> bool {
        let now = Timestamp::now();
        self.sources.load().as_ref().is_none_or(|pools| pools.iter().any(|pool| pool.contains(source, now)))
    }

    /// Keeps a connection, which `put` adds under its number. Where there are too many, of its key or altogether, the one
    /// goes that was used least recently.
    fn store(&self, key: &PoolKey, put: impl FnOnce(&mut PoolEntry, u64) -> Option<(Connection, u64)>) {
        let (oldest, evicted) = {
            let mut shard = self.shard(key).lock();
            let (number, evicted) = self.shares.lock().add(&key.client, key.clone());
            let oldest = put(shard.entry(key.clone()).or_default(), number);
            if let Some((_, number)) = &oldest {
                self.shares.lock().remove(&key.client, *number);
            }
            (oldest, evicted)
        };
        // Closed outside of the locks.
        drop(oldest);
        drop(evicted.and_then(|(key, number)| self.take_out(&key, number)));
    }

    /// `None`: another delivery has taken it meanwhile.
    fn take_out(&self, key: &PoolKey, number: u64) -> Option<Connection> {
        let mut shard = self.shard(key).lock();
        let kept = shard.get_mut(key)?;
        let idle = kept.idle.iter().position(|idle| idle.number == number);
        let shared = kept.shared.iter().position(|shared| shared.number == number);
        let connection = idle
            .map(|at| kept.idle.remove(at).connection)
            .or_else(|| shared.map(|at| kept.shared.remove(at).connection));
        if kept.idle.is_empty() && kept.shared.is_empty() {
            shard.remove(key);
        }
        connection
    }

    fn shard(&self, key: &PoolKey) -> &Mutex<HashMap<PoolKey, PoolEntry>> {
        // Only to keep locks apart: any spread will do, and the map hashes for itself.
        let low = match key.from {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[15],
        };
        &self.shards[(usize::from(low) + usize::from(key.target.port)) % SHARDS]
    }

    /// Drops what is closed, has been idle for too long, is too old or does not settle, and what leaves from a source that
    /// `keeps` does not keep. Exchanges that are under way on a shared connection finish.
    pub fn sweep(&self, age_most: Duration, keeps: impl Fn(IpAddr) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.retain(|key, kept| {
                let stays = |connection: &Connection, idle: Duration, idle_most: Duration| {
                    let is_young = idle < idle_most && connection.created_at().elapsed() < age_most;
                    keeps(key.from) && is_young && !connection.is_closed()
                };
                let stays_or_goes = |stays: bool, number: u64| {
                    if !stays {
                        self.shares.lock().remove(&key.client, number);
                    }
                    stays
                };
                kept.idle.retain(|idle| {
                    let since = idle.since.elapsed();
                    let is_settled = since < SETTLED_WITHIN || idle.connection.is_upload_finished();
                    stays_or_goes(is_settled && stays(&idle.connection, since, idle.stay.longest()), idle.number)
                });
                kept.shared.retain(|SharedConnection { connection, number, idle }| {
                    stays_or_goes(stays(connection, connection.idle_time().unwrap_or_default(), *idle), *number)
                });
                kept.idle.len() + kept.shared.len() > 0
            });
        }
    }

    /// Connections that are kept.
    pub fn kept(&self) -> usize {
        self.shares.lock().total()
    }
}

impl PooledConnection {
    /// Takes note of how long the target keeps the connection, as its response says: `Keep-Alive: timeout=5, max=100`
    /// (RFC 2068 §19.7.1.1). A response without the field changes nothing; HTTP/2 has no such field (RFC 9113 §8.2.2).
    pub fn observe_keep_alive(&mut self, fields: &HeaderMap) {
        if self.connection.idle_time().is_none()
            && let Some(announced) = keep_alive::read(fields)
        {
            self.stay.announced = Some(announced);
        }
    }

    /// After the last byte of an answer that did not end the connection. A shared one was never taken away, and is broken
    /// off if the target goes on owing it to take the request; the sweep looks after those that serve one at a time.
    pub fn release(self) {
        let PooledConnection { mut connection, key, home, stay } = self;
        if connection.idle_time().is_none() {
            connection.finish_exchange();
            home.push(&key, connection, Instant::now(), stay);
        } else if connection.is_upload_finished() {
            connection.finish_exchange();
        } else {
            tokio::spawn(async move {
                if connection.upload_finished().await {
                    connection.finish_exchange();
                }
            });
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
