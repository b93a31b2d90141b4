//! The open client connections: their number, their addresses, and which of them may be evicted.
//! Is there capacity for another connection, and which one is evicted for it?

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::panics::Mutex;
use crate::state::Runtime;

/// The time for an evicted connection to close before another is evicted as well. It closes at once, but a loaded host
/// may delay its task.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(1);

/// The open client connections of all listeners.
#[derive(Clone)]
pub struct Connections(Arc<ConnectionsInner>);

struct ConnectionsInner {
    count: watch::Sender<ConnectionCount>,
    /// The number of open connections of each client key that has any.
    per_client: Mutex<HashMap<IpAddr, usize>>,
    evictions: Mutex<EvictionQueue>,
    /// New connections that wait for capacity among `max_connections`.
    admission: CapacityQueue,
    /// Connections that wait for capacity before their PROXY header. No identified connection is evicted for them.
    proxy_admission: CapacityQueue,
}

#[derive(Clone, Copy, Default)]
struct ConnectionCount {
    open: usize,
    /// The open connections that wait for capacity among `max_connections`.
    waiting: usize,
    /// The number of connections closed since the start.
    closed: u64,
}

/// A connection that waits for capacity. It takes none from the others that wait: they would otherwise wait for each
/// other.
struct WaitingConnection<'a>(&'a ConnectionsInner);

impl Drop for WaitingConnection<'_> {
    fn drop(&mut self) {
        self.0.count.send_modify(|count| count.waiting -= 1);
    }
}

/// The connections that wait for capacity. One of them evicts at a time: two would close two connections where one is
/// enough.
#[derive(Default)]
struct CapacityQueue {
    evicting: tokio::sync::Mutex<()>,
    /// Notified when a connection becomes evictable.
    evictable: Notify,
    /// Notified when an evicted connection stays open, because its request had just arrived.
    eviction_averted: Notify,
}

/// The connections that may be evicted, oldest first.
#[derive(Default)]
struct EvictionQueue {
    /// Connections without an identified client and without a request in progress, by arrival. Their PROXY header,
    /// handshake or request head is incomplete or has not begun.
    unidentified: BTreeMap<u64, (Option<IpAddr>, Arc<Notify>)>,
    /// The entries of `unidentified` by client key.
    by_client: BTreeSet<(IpAddr, u64)>,
    /// Identified connections without a request in progress, by the start of their idle time, with their number.
    idle: BTreeMap<u64, (u64, Arc<Notify>)>,
    /// The numbers of connections that were evicted and have not closed yet.
    closing: BTreeSet<u64>,
    /// The last number given to an arrival or to the start of an idle time.
    last_seq: u64,
}

/// One open connection. Dropping the value removes the connection from all counts.
pub(super) struct OpenConnection {
    connections: Connections,
    runtime: Arc<Runtime>,
    seq: u64,
    client_key: Option<IpAddr>,
}

/// Identifies a connection while it is served.
#[derive(Clone, Copy)]
pub(super) struct ConnectionId {
    seq: u64,
    client_key: Option<IpAddr>,
}

/// A connection that may be evicted until the value is dropped.
pub(super) struct Evictable {
    connections: Connections,
    key: EvictionKey,
    notify: Arc<Notify>,
    /// Set once the connection has observed its eviction.
    is_notified: AtomicBool,
}

enum EvictionKey {
    Unidentified(ConnectionId),
    Idle { since: u64, id: ConnectionId },
}

/// The client's address has reached its limit of open connections.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PerIpLimitExceeded;

impl Connections {
    #[expect(clippy::new_without_default, reason = "made once, by the app")]
    pub fn new() -> Self {
        let (admission, proxy_admission) = (CapacityQueue::default(), CapacityQueue::default());
        let (count, per_client, evictions) =
            (watch::Sender::new(ConnectionCount::default()), Mutex::default(), Mutex::default());
        Self(Arc::new(ConnectionsInner { count, per_client, evictions, admission, proxy_admission }))
    }

    pub(super) fn open(&self, runtime: &Arc<Runtime>) -> OpenConnection {
        self.0.count.send_modify(|count| count.open += 1);
        runtime.metrics.client_connections.inc();
        let seq = self.0.evictions.lock().next_seq();
        OpenConnection { connections: self.clone(), runtime: Arc::clone(runtime), seq, client_key: None }
    }

    /// Resolves when no connection is open.
    pub async fn all_closed(&self) {
        let _ = self.0.count.subscribe().wait_for(|count| count.open == 0).await;
    }

    pub fn count(&self) -> usize {
        self.0.count.borrow().open
    }

    /// Resolves when at most `max_open` connections are open, the new one included. Until then `evict` closes one
    /// connection after another (RFC 9112 §9.5: at any time). `evict` returns the reason for the metric, or `None` if
    /// no connection is evictable. `waiting`: the others that wait do not count.
    async fn make_room(
        &self,
        (admission, waiting): (&CapacityQueue, Option<WaitingConnection<'_>>),
        max_open: usize,
        runtime: &Runtime,
        evict: impl Fn(&mut EvictionQueue) -> Option<&'static str>,
    ) {
        let _evicting = admission.evicting.lock().await;
        let (mut count, mut is_overdue) = (self.0.count.subscribe(), false);
        loop {
            let (closed, evicted, awaits_closing) = {
                let mut evictions = self.0.evictions.lock();
                let ConnectionCount { open, waiting: others, closed } = *count.borrow_and_update();
                let open = if waiting.is_some() { open - others + 1 } else { open };
                if open <= max_open {
                    drop(waiting); // before the next connection gets its turn
                    return;
                }
                // Connections that are closing already, such as those that a limit of their address has evicted, make
                // room, too.
                let awaits_closing = !is_overdue && open.saturating_sub(evictions.closing.len()) <= max_open;
                (closed, if awaits_closing { None } else { evict(&mut evictions) }, awaits_closing)
            };
            // Other listeners open connections in the meantime: the number of closed connections decides.
            let one_closed = count.wait_for(|count| count.closed > closed);
            evicted.iter().for_each(|reason| runtime.metrics.connection_closed(reason));
            if evicted.is_some() || awaits_closing {
                let closed_or_averted = async {
                    tokio::select! { biased; _ = one_closed => {}, () = admission.eviction_averted.notified() => {} }
                };
                is_overdue = timeout(EVICTION_TIMEOUT, closed_or_averted).await.is_err();
            } else {
                tokio::select! { biased; _ = one_closed => {}, () = admission.evictable.notified() => {} }
            }
        }
    }

    /// Marks an identified connection as idle, and thus evictable, until the value is dropped. `notify`: of this
    /// connection, which is marked once at a time.
    pub(super) fn mark_idle(&self, id: ConnectionId, notify: &Arc<Notify>) -> Evictable {
        let notify = Arc::clone(notify);
        // An earlier eviction may have come too late. No other can come while the connection is not in the queue.
        pin!(notify.notified()).enable();
        let mut evictions = self.0.evictions.lock();
        let seq = evictions.next_seq();
        evictions.idle.insert(seq, (id.seq, Arc::clone(&notify)));
        self.0.admission.evictable.notify_one();
        Evictable {
            connections: self.clone(),
            key: EvictionKey::Idle { since: seq, id },
            notify,
            is_notified: AtomicBool::new(false),
        }
    }

    /// Marks a connection of an unidentified peer as evictable until the value is dropped.
    pub(super) fn mark_unidentified(&self, id: ConnectionId) -> Evictable {
        let notify = Arc::new(Notify::new());
        let mut evictions = self.0.evictions.lock();
        evictions.unidentified.insert(id.seq, (id.client_key, Arc::clone(&notify)));
        evictions.by_client.extend(id.client_key.map(|client| (client, id.seq)));
        self.0.admission.evictable.notify_one();
        self.0.proxy_admission.evictable.notify_one();
        Evictable {
            connections: self.clone(),
            key: EvictionKey::Unidentified(id),
            notify,
            is_notified: AtomicBool::new(false),
        }
    }
}

impl EvictionQueue {
    fn next_seq(&mut self) -> u64 {
        self.last_seq += 1;
        self.last_seq
    }

    /// Evicts the oldest connection of an unidentified peer, or else the connection that has been idle for longest.
    fn evict_oldest(&mut self) -> Option<&'static str> {
        self.evict_oldest_unidentified().or_else(|| {
            let (_, (seq, notify)) = self.idle.pop_first()?;
            self.evict(seq, &notify);
            Some("max_connections")
        })
    }

    fn evict_oldest_unidentified(&mut self) -> Option<&'static str> {
        let (seq, (client, notify)) = self.unidentified.pop_first()?;
        if let Some(client) = client {
            self.by_client.remove(&(client, seq));
        }
        self.evict(seq, &notify);
        Some("unidentified")
    }

    fn evict(&mut self, seq: u64, notify: &Notify) {
        self.closing.insert(seq);
        notify.notify_one();
    }

    /// Evicts the oldest connection of an unidentified peer with this client key. Returns false if there is none.
    fn evict_oldest_of(&mut self, client: IpAddr) -> bool {
        let oldest = self.by_client.range((client, 0)..=(client, u64::MAX)).next().copied();
        let notify = oldest.and_then(|oldest| {
            self.by_client.remove(&oldest);
            Some((oldest.1, self.unidentified.remove(&oldest.1)?.1))
        });
        notify.is_some_and(|(seq, notify)| {
            self.evict(seq, &notify);
            true
        })
    }
}

impl Evictable {
    /// Resolves when the connection should close to make room for another.
    pub(super) async fn evicted(&self) {
        self.notify.notified().await;
        self.is_notified.store(true, Ordering::Relaxed);
    }
}

impl Drop for Evictable {
    fn drop(&mut self) {
        let mut evictions = self.connections.0.evictions.lock();
        let (was_queued, seq) = match self.key {
            EvictionKey::Idle { since, id } => (evictions.idle.remove(&since).is_some(), id.seq),
            EvictionKey::Unidentified(ConnectionId { seq, client_key: client }) => {
                if let Some(client) = client {
                    evictions.by_client.remove(&(client, seq));
                }
                (evictions.unidentified.remove(&seq).is_some(), seq)
            }
        };
        if !was_queued && !self.is_notified.load(Ordering::Relaxed) {
            evictions.closing.remove(&seq);
            self.connections.0.admission.eviction_averted.notify_one();
            self.connections.0.proxy_admission.eviction_averted.notify_one();
        }
    }
}

impl OpenConnection {
    /// Resolves when at most `max_open` connections are open. Connections of unidentified peers are evicted first, then
    /// idle ones.
    pub(super) async fn wait_for_capacity(&self, max_open: usize) {
        let all = &self.connections.0;
        all.count.send_modify(|count| count.waiting += 1);
        let queue = (&all.admission, Some(WaitingConnection(all)));
        self.connections.make_room(queue, max_open, &self.runtime, EvictionQueue::evict_oldest).await;
    }

    /// Resolves when at most `max_open` connections are open. Only connections of unidentified peers are evicted.
    pub(super) async fn wait_for_capacity_before_proxy_header(&self, max_open: usize) {
        let all = &self.connections.0;
        self.connections
            .make_room((&all.proxy_admission, None), max_open, &self.runtime, EvictionQueue::evict_oldest_unidentified)
            .await;
    }

    pub(super) fn id(&self) -> ConnectionId {
        ConnectionId { seq: self.seq, client_key: self.client_key }
    }

    /// See [`Connections::mark_unidentified`].
    pub(super) fn mark_unidentified(&self) -> Evictable {
        self.connections.mark_unidentified(self.id())
    }

    /// Counts the connection under its client's address, unless `max_per_client` connections are counted there. A peer
    /// on a unix socket has no address.
    pub(super) fn register_client(
        &mut self,
        address: Option<IpAddr>,
        max_per_client: usize,
    ) -> Result<(), PerIpLimitExceeded> {
        let Some(address) = address.map(client_key) else { return Ok(()) };
        if self.client_key == Some(address) {
            return Ok(());
        }
        self.unregister_client();
        let mut per_client = self.connections.0.per_client.lock();
        let count = per_client.get(&address).copied().unwrap_or(0);
        if count >= max_per_client {
            // The evicted connection, and its count, are gone in a moment.
            if !self.connections.0.evictions.lock().evict_oldest_of(address) {
                return Err(PerIpLimitExceeded);
            }
            self.runtime.metrics.connection_closed("unidentified");
        }
        per_client.insert(address, count + 1);
        self.client_key = Some(address);
        Ok(())
    }

    fn unregister_client(&mut self) {
        let Some(address) = self.client_key.take() else { return };
        if let Entry::Occupied(mut occupied) = self.connections.0.per_client.lock().entry(address) {
            *occupied.get_mut() -= 1;
            if *occupied.get() == 0 {
                occupied.remove();
            }
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.unregister_client();
        // Both change together: otherwise the connection would count as neither closing nor closed for a moment.
        let mut evictions = self.connections.0.evictions.lock();
        evictions.closing.remove(&self.seq);
        self.connections.0.count.send_modify(|count| {
            count.open -= 1;
            count.closed += 1;
        });
        drop(evictions);
        self.runtime.metrics.client_connections.dec();
    }
}

/// Returns the key under which connections of an address are counted. A host can use all addresses of a /64 (RFC 4291
/// §2.5.4).
fn client_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & !0 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests;
