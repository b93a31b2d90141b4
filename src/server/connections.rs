//! The connections of clients that are open: how many, from which addresses, and which of them have nothing to do.
//! Is there room for one more, and whose?

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::live::Live;

/// For a connection that was told to go to be gone. It may have been asked for something just before: then another goes.
const GOING: Duration = Duration::from_millis(100);

/// The connections that are open now.
#[derive(Clone)]
pub struct Connections(Arc<All>);

struct All {
    count: watch::Sender<usize>,
    /// Only those who have a connection.
    visitors: Mutex<HashMap<IpAddr, usize>>,
    idle: Mutex<Waiting>,
    /// A connection has nothing to do any more.
    idles: Notify,
    /// Held by the newcomer that is next: what each of two found to be too many would be closed twice.
    next: tokio::sync::Mutex<()>,
}

/// Connections without a request, in the order in which they have been so.
#[derive(Default)]
struct Waiting {
    oldest_first: BTreeMap<u64, Arc<Notify>>,
    next: u64,
}

/// One connection; dropped with it.
pub(super) struct Open {
    connections: Connections,
    live: Arc<Live>,
    visitor: Option<IpAddr>,
}

/// A connection without a request, until dropped.
pub(super) struct Idle {
    connections: Connections,
    number: u64,
    told: Arc<Notify>,
}

/// As many connections of one address as there may be.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany;

impl Connections {
    #[expect(clippy::new_without_default, reason = "made once, by the app")]
    pub fn new() -> Self {
        let (count, visitors, idle) = (watch::Sender::new(0), Mutex::default(), Mutex::default());
        Self(Arc::new(All { count, visitors, idle, idles: Notify::new(), next: Default::default() }))
    }

    pub(super) fn open(&self, live: &Arc<Live>) -> Open {
        self.0.count.send_modify(|count| *count += 1);
        live.meters.client_connections.inc();
        Open { connections: self.clone(), live: Arc::clone(live), visitor: None }
    }

    /// Resolves when the last one has closed.
    pub async fn all_closed(&self) {
        let _ = self.0.count.subscribe().wait_for(|count| *count == 0).await;
    }

    pub fn count(&self) -> usize {
        *self.0.count.borrow()
    }

    /// Resolves when there are no more than `most`, the newcomer included. Those that have been idle for longest are told to go, one by one (RFC
    /// 9112 §9.5: at any time); none that has a request is.
    async fn make_room(&self, most: usize, live: &Live) {
        let _next = self.0.next.lock().await;
        let mut count = self.0.count.subscribe();
        while *count.borrow_and_update() > most {
            if self.send_oldest_away() {
                live.meters.connection_closed("max_connections");
                let _ = timeout(GOING, count.changed()).await;
            } else {
                tokio::select! { _ = count.changed() => {}, () = self.0.idles.notified() => {} }
            }
        }
    }

    /// Resolves when there are no more than `most`, and nobody has to go for it.
    pub(super) async fn wait_for_room(&self, most: usize) {
        let _ = self.0.count.subscribe().wait_for(|count| *count <= most).await;
    }

    fn send_oldest_away(&self) -> bool {
        let oldest = lock(&self.0.idle).oldest_first.pop_first();
        oldest.inspect(|(_, told)| told.notify_one()).is_some()
    }

    /// A connection that has nothing to do from now on.
    pub(super) fn idle(&self) -> Idle {
        let told = Arc::new(Notify::new());
        let mut waiting = lock(&self.0.idle);
        let number = waiting.next;
        waiting.next += 1;
        waiting.oldest_first.insert(number, Arc::clone(&told));
        self.0.idles.notify_one();
        Idle { connections: self.clone(), number, told }
    }
}

impl Idle {
    /// Resolves when the connection should go, to make room for others.
    pub(super) async fn told_to_go(&self) {
        self.told.notified().await;
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        lock(&self.connections.0.idle).oldest_first.remove(&self.number);
    }
}

impl Open {
    /// See [`Connections::make_room`].
    pub(super) async fn makes_room(&self, most: usize) {
        self.connections.make_room(most, &self.live).await;
    }

    /// Counts it for whom it is, among no more than `most`. Who comes over a unix socket has no address.
    pub(super) fn comes_from(&mut self, address: Option<IpAddr>, most: Option<usize>) -> Result<(), TooMany> {
        let Some((address, most)) = address.map(visitor).zip(most) else { return Ok(()) };
        if self.visitor == Some(address) {
            return Ok(());
        }
        self.leave();
        let mut visitors = lock(&self.connections.0.visitors);
        match visitors.get(&address).copied().unwrap_or(0) {
            count if count < most => visitors.insert(address, count + 1),
            _ => return Err(TooMany),
        };
        self.visitor = Some(address);
        Ok(())
    }

    fn leave(&mut self) {
        let Some(address) = self.visitor.take() else { return };
        if let Entry::Occupied(mut visitor) = lock(&self.connections.0.visitors).entry(address) {
            *visitor.get_mut() -= 1;
            if *visitor.get() == 0 {
                visitor.remove();
            }
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.leave();
        self.connections.0.count.send_modify(|count| *count -= 1);
        self.live.meters.client_connections.dec();
    }
}

/// Whom an address stands for: a host has all of a /64 to choose from (RFC 4291 §2.5.4).
fn visitor(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & !0 << 64).into(),
        v4 => v4,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_visitor_is_an_ipv4_address_or_a_64() {
        for (address, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("::1", "::"),
        ] {
            assert_eq!(visitor(address.parse().unwrap()), expected.parse::<IpAddr>().unwrap());
        }
    }
}
