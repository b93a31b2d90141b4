//! The connections of clients that are open: how many, from which addresses, and which of them may be evicted.
//! Is there room for one more, and whose?

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::state::Runtime;

/// For an evicted connection to close, before another is evicted as well. It does so at once, but a loaded host may keep
/// its task waiting.
const GOING: Duration = Duration::from_secs(1);

/// The connections that are open now.
#[derive(Clone)]
pub struct Connections(Arc<ConnectionsInner>);

struct ConnectionsInner {
    count: watch::Sender<ConnectionCount>,
    /// Only those who have a connection.
    visitors: Mutex<HashMap<IpAddr, usize>>,
    evictable: Mutex<EvictionQueue>,
    /// New connections that wait for room among `max_connections`.
    admission: CapacityQueue,
    /// The same before a PROXY header, where no identified connection closes for them.
    introduction: CapacityQueue,
}

#[derive(Clone, Copy, Default)]
struct ConnectionCount {
    open: usize,
    /// Since the start.
    closed: u64,
}

/// A queue for room. One newcomer at a time evicts: two that find one connection too many would close two.
#[derive(Default)]
struct CapacityQueue {
    next: tokio::sync::Mutex<()>,
    /// A connection has become evictable.
    evictable: Notify,
    /// An evicted connection had got a request just before, and stays.
    survived: Notify,
}

/// Connections that may be closed to make room, oldest first.
#[derive(Default)]
struct EvictionQueue {
    /// Connections on which no client was identified and no request is under way: with an incomplete PROXY header,
    /// handshake or head, or none yet. By their arrival.
    unidentified: BTreeMap<u64, (Option<IpAddr>, Arc<Notify>)>,
    /// The same by the client's address.
    by_visitor: BTreeSet<(IpAddr, u64)>,
    /// Identified connections without a request, by the begin of that.
    idle: BTreeMap<u64, Arc<Notify>>,
    /// Counts arrivals, and begins of idleness.
    next: u64,
}

/// One connection; dropped with it.
pub(super) struct OpenConnection {
    connections: Connections,
    runtime: Arc<Runtime>,
    arrived: u64,
    client_key: Option<IpAddr>,
}

/// Which connection it is, for as long as it is served.
#[derive(Clone, Copy)]
pub(super) struct ConnectionId {
    arrived: u64,
    client_key: Option<IpAddr>,
}

/// A connection that may be evicted, until dropped.
pub(super) struct Evictable {
    connections: Connections,
    key: EvictionKey,
    notify: Arc<Notify>,
    /// The connection knows that it is evicted.
    is_notified: AtomicBool,
}

enum EvictionKey {
    Unidentified(ConnectionId),
    Idle(u64),
}

/// As many connections of one address as there may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PerIpLimitExceeded;

impl Connections {
    #[expect(clippy::new_without_default, reason = "made once, by the app")]
    pub fn new() -> Self {
        let (admission, introduction) = (CapacityQueue::default(), CapacityQueue::default());
        let (count, visitors, evictable) =
            (watch::Sender::new(ConnectionCount::default()), Mutex::default(), Mutex::default());
        Self(Arc::new(ConnectionsInner { count, visitors, evictable, admission, introduction }))
    }

    pub(super) fn open(&self, runtime: &Arc<Runtime>) -> OpenConnection {
        self.0.count.send_modify(|count| count.open += 1);
        runtime.metrics.client_connections.inc();
        let arrived = self.0.evictable.lock().number();
        OpenConnection { connections: self.clone(), runtime: Arc::clone(runtime), arrived, client_key: None }
    }

    /// Resolves when the last one has closed.
    pub async fn all_closed(&self) {
        let _ = self.0.count.subscribe().wait_for(|count| count.open == 0).await;
    }

    pub fn count(&self) -> usize {
        self.0.count.borrow().open
    }

    /// Resolves when there are no more than `most`, the newcomer included. Until then `evict` closes one connection after
    /// the other (RFC 9112 §9.5: at any time), and gives the reason; `None`: there is none to close.
    async fn make_room(
        &self,
        admission: &CapacityQueue,
        most: usize,
        runtime: &Runtime,
        evict: impl Fn(&mut EvictionQueue) -> Option<&'static str>,
    ) {
        let _next = admission.next.lock().await;
        let mut count = self.0.count.subscribe();
        loop {
            let ConnectionCount { open, closed } = *count.borrow_and_update();
            if open <= most {
                return;
            }
            // Other listeners open connections meanwhile.
            let one_closed = count.wait_for(|count| count.closed > closed);
            let evicted = evict(&mut self.0.evictable.lock());
            if let Some(reason) = evicted {
                runtime.metrics.connection_closed(reason);
                let gone = async {
                    tokio::select! { _ = one_closed => {}, () = admission.survived.notified() => {} }
                };
                let _ = timeout(GOING, gone).await;
            } else {
                tokio::select! { _ = one_closed => {}, () = admission.evictable.notified() => {} }
            }
        }
    }

    /// An identified connection without a request from now on.
    pub(super) fn idle(&self) -> Evictable {
        let notify = Arc::new(Notify::new());
        let mut evictable = self.0.evictable.lock();
        let number = evictable.number();
        evictable.idle.insert(number, Arc::clone(&notify));
        self.0.admission.evictable.notify_one();
        Evictable {
            connections: self.clone(),
            key: EvictionKey::Idle(number),
            notify,
            is_notified: AtomicBool::new(false),
        }
    }

    /// A connection of an unidentified peer that has no request under way from now on.
    pub(super) fn unidentified(&self, number: ConnectionId) -> Evictable {
        let notify = Arc::new(Notify::new());
        let mut evictable = self.0.evictable.lock();
        evictable.unidentified.insert(number.arrived, (number.client_key, Arc::clone(&notify)));
        evictable.by_visitor.extend(number.client_key.map(|visitor| (visitor, number.arrived)));
        self.0.admission.evictable.notify_one();
        self.0.introduction.evictable.notify_one();
        Evictable {
            connections: self.clone(),
            key: EvictionKey::Unidentified(number),
            notify,
            is_notified: AtomicBool::new(false),
        }
    }
}

impl EvictionQueue {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Evicts the oldest connection: of an unidentified peer, else the one that has been idle for longest.
    fn evict(&mut self) -> Option<&'static str> {
        let idle = |this: &mut Self| this.idle.pop_first().map(|(_, notify)| notify.notify_one());
        self.evict_unidentified().or_else(|| idle(self).map(|()| "max_connections"))
    }

    fn evict_unidentified(&mut self) -> Option<&'static str> {
        let (arrived, (visitor, notify)) = self.unidentified.pop_first()?;
        if let Some(visitor) = visitor {
            self.by_visitor.remove(&(visitor, arrived));
        }
        notify.notify_one();
        Some("unidentified")
    }

    /// Evicts the oldest connection of an unidentified peer with this address.
    fn evict_of(&mut self, visitor: IpAddr) -> bool {
        let oldest = self.by_visitor.range((visitor, 0)..=(visitor, u64::MAX)).next().copied();
        let notify = oldest.and_then(|oldest| {
            self.by_visitor.remove(&oldest);
            self.unidentified.remove(&oldest.1)
        });
        notify.is_some_and(|(_, notify)| {
            notify.notify_one();
            true
        })
    }
}

impl Evictable {
    /// Resolves when the connection should close, to make room for others.
    pub(super) async fn evicted(&self) {
        self.notify.notified().await;
        self.is_notified.store(true, Ordering::Relaxed);
    }
}

impl Drop for Evictable {
    fn drop(&mut self) {
        let mut evictable = self.connections.0.evictable.lock();
        let was_there = match self.key {
            EvictionKey::Idle(number) => evictable.idle.remove(&number).is_some(),
            EvictionKey::Unidentified(ConnectionId { arrived, client_key: visitor }) => {
                if let Some(visitor) = visitor {
                    evictable.by_visitor.remove(&(visitor, arrived));
                }
                evictable.unidentified.remove(&arrived).is_some()
            }
        };
        if !was_there && !self.is_notified.load(Ordering::Relaxed) {
            self.connections.0.admission.survived.notify_one();
            self.connections.0.introduction.survived.notify_one();
        }
    }
}

impl OpenConnection {
    /// Resolves when it is one of at most `most`: unidentified peers make room for it, then idle connections do.
    pub(super) async fn makes_room(&self, most: usize) {
        let all = &self.connections.0;
        self.connections.make_room(&all.admission, most, &self.runtime, EvictionQueue::evict).await;
    }

    /// The same before it is known for whom it is: unidentified peers alone make room.
    pub(super) async fn makes_room_unidentified(&self, most: usize) {
        let all = &self.connections.0;
        self.connections.make_room(&all.introduction, most, &self.runtime, EvictionQueue::evict_unidentified).await;
    }

    pub(super) fn number(&self) -> ConnectionId {
        ConnectionId { arrived: self.arrived, client_key: self.client_key }
    }

    /// See [`Connections::unidentified`].
    pub(super) fn unidentified(&self) -> Evictable {
        self.connections.unidentified(self.number())
    }

    /// Counts it for whom it is, among no more than `most`. Who comes over a unix socket has no address.
    pub(super) fn comes_from(&mut self, address: Option<IpAddr>, most: usize) -> Result<(), PerIpLimitExceeded> {
        let Some(address) = address.map(client_key) else { return Ok(()) };
        if self.client_key == Some(address) {
            return Ok(());
        }
        self.leave();
        let mut visitors = self.connections.0.visitors.lock();
        let count = visitors.get(&address).copied().unwrap_or(0);
        if count >= most {
            // The evicted connection is gone in a moment, and its count with it.
            if !self.connections.0.evictable.lock().evict_of(address) {
                return Err(PerIpLimitExceeded);
            }
            self.runtime.metrics.connection_closed("unidentified");
        }
        visitors.insert(address, count + 1);
        self.client_key = Some(address);
        Ok(())
    }

    fn leave(&mut self) {
        let Some(address) = self.client_key.take() else { return };
        if let Entry::Occupied(mut visitor) = self.connections.0.visitors.lock().entry(address) {
            *visitor.get_mut() -= 1;
            if *visitor.get() == 0 {
                visitor.remove();
            }
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.leave();
        self.connections.0.count.send_modify(|count| {
            count.open -= 1;
            count.closed += 1;
        });
        self.runtime.metrics.client_connections.dec();
    }
}

/// Whom an address stands for: a host has all of a /64 to choose from (RFC 4291 §2.5.4).
fn client_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & !0 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::{Pin, pin};
    use std::task::Poll;

    use jiff::Timestamp;

    use super::*;
    use crate::policy::fixture::{at, config};
    use crate::state::config::ActiveConfig;
    use crate::state::observability::records::Records;

    fn test_runtime() -> Arc<Runtime> {
        let mut config = config();
        config.server.allow_anonymous.value = true;
        config.resolver.servers = vec![at(6, ([127, 0, 0, 1], 53).into())];
        let (plan, _) = crate::policy::compile(&config, Timestamp::UNIX_EPOCH).unwrap();
        Arc::new(Runtime::new(ActiveConfig::new(plan, &config.resolver, None).unwrap(), Records::kept()))
    }

    #[tokio::test]
    async fn max_connections_evicts_no_second_connection_when_another_opens_meanwhile() {
        let (runtime, connections) = (test_runtime(), Connections::new());
        let [oldest, younger, newcomer] = [(); 3].map(|()| connections.open(&runtime));
        let _evictable = [&oldest, &younger].map(OpenConnection::unidentified);
        let evictable = || connections.0.evictable.lock().unidentified.len();
        let mut room = pin!(newcomer.makes_room(2));
        assert!(is_pending(room.as_mut()).await);
        assert_eq!(evictable(), 1, "the oldest makes room");
        let elsewhere = connections.open(&runtime);
        assert!(is_pending(room.as_mut()).await);
        assert_eq!(evictable(), 1, "it has not closed yet");
        drop((oldest, elsewhere));
        room.await;
        assert_eq!(evictable(), 1);
    }

    /// Polls once.
    async fn is_pending(work: Pin<&mut impl Future<Output = ()>>) -> bool {
        let mut work = Some(work);
        poll_fn(|cx| Poll::Ready(work.take().is_some_and(|work| work.poll(cx).is_pending()))).await
    }

    #[test]
    fn a_visitor_is_an_ipv4_address_or_a_64() {
        for (address, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("::1", "::"),
        ] {
            assert_eq!(client_key(address.parse().unwrap()), expected.parse::<IpAddr>().unwrap());
        }
    }
}
