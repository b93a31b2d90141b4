//! The connections that are being opened to targets that speak HTTP/2.
//! Does another delivery open a connection that this delivery can share?
//!
//! A connection over HTTP/2 carries many deliveries. When one ends, its deliveries and those that follow need another at the
//! same time. One of them opens it, and the others wait for it: otherwise each would make a handshake of its own.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::pool::ConnectionKey;
use crate::config::Timeouts;
use crate::lru::LruCache;
use crate::panics::Mutex;
use crate::single_flight::{Flight, Follower, Leader};
use crate::state::hashed::Hashed;

/// The longest time that others wait for a dial, from its beginning. The connection, the handshake and SETTINGS take three round
/// trips.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// The number of remembered keys. A new key evicts the least recently used one.
const KEYS_MAX: usize = 1024;

type Key = Hashed<ConnectionKey>;
/// A dial and the time at which it began.
type DialInFlight = Flight<(), Instant>;

pub struct Http2Dials {
    /// The keys whose last new connection spoke HTTP/2, and the last dial of each.
    dials: Mutex<LruCache<Key, Option<DialInFlight>>>,
}

/// The duty to open the connection for which other deliveries wait. It is finished when the connection is open, or has failed.
/// Dropping it before that, because the client of its delivery has left, lets one of the others open the connection.
pub type Dial = Leader<(), Instant>;

/// The next step of a delivery that needs a connection.
pub enum Turn {
    /// It opens one. `None`: no other delivery waits for it.
    Opens(Option<Dial>),
    /// It waits for the connection of another delivery.
    Waits(Follower<(), Instant>),
}

impl Default for Http2Dials {
    fn default() -> Self {
        Self { dials: Mutex::new(LruCache::new(KEYS_MAX)) }
    }
}

impl Http2Dials {
    pub fn join(&self, key: &Key, now: Instant) -> Turn {
        let mut dials = self.dials.lock();
        let Some(last) = dials.get(key) else { return Turn::Opens(None) };
        let is_awaited = |dial: &&DialInFlight| dial.is_pending() && now.duration_since(*dial.progress()) < WAIT_MAX;
        if let Some(dial) = last.as_ref().filter(is_awaited) {
            return Turn::Waits(dial.join());
        }
        let leader = Flight::begin(now);
        *last = Some(leader.flight().clone());
        Turn::Opens(Some(leader))
    }

    /// Remembers whether a new connection with this key speaks HTTP/2.
    pub fn observe(&self, key: &Key, speaks_http2: bool) {
        let mut dials = self.dials.lock();
        match speaks_http2 {
            true => drop(dials.get_or_insert_with(key, || None)),
            false => dials.remove(key),
        }
    }
}

/// Returns when a delivery ends its wait for the dial of another: [`WAIT_MAX`] after that began, at the latest. It also waits at
/// most for half of the connect timeout and a quarter of the total timeout: the delivery may have to open its own connection
/// afterwards, and a target that does not answer must end that by the connect timeout, not by the total timeout.
pub fn wait_end(follower: &Follower<(), Instant>, timeouts: &Timeouts) -> Instant {
    *follower.progress() + WAIT_MAX.min(timeouts.connect / 2).min(timeouts.total / 4)
}

/// Waits until the other delivery has its connection, or has failed. Returns whether it has left without either.
pub async fn wait(mut follower: Follower<(), Instant>, end: Instant) -> bool {
    matches!(timeout_at(end, follower.result()).await, Ok(None))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::config::ResponseHeadMax;
    use crate::names::{Host, Scheme, Target};

    fn key(port: usize) -> Key {
        let (host, port) = (Host::Name("hook.example".into()), u16::try_from(port).unwrap());
        Hashed::new(ConnectionKey {
            from: IpAddr::V4(Ipv4Addr::LOCALHOST),
            target: Target { scheme: Scheme::Https, host, port },
            trust: [0; 32],
            tenant: None,
            client: None,
            head_max: ResponseHeadMax { count: 1, bytes: 1 },
        })
    }

    fn timeouts() -> Timeouts {
        let minute = Duration::from_secs(60);
        let [dns, connect, tls, body, response, idle, total, tunnel, reuse] = [minute; 9];
        Timeouts { dns, connect, tls, body, response, idle, total, tunnel, reuse }
    }

    fn join(dials: &Http2Dials, port: usize) -> Turn {
        dials.join(&key(port), Instant::now())
    }

    fn leads(turn: Turn) -> Option<Dial> {
        match turn {
            Turn::Opens(dial) => dial,
            Turn::Waits(_) => panic!("it waits"),
        }
    }

    fn follows(turn: Turn) -> Follower<(), Instant> {
        match turn {
            Turn::Opens(_) => panic!("it opens a connection"),
            Turn::Waits(follower) => follower,
        }
    }

    #[test]
    fn nothing_waits_for_a_key_without_http2() {
        let dials = Http2Dials::default();
        assert!(leads(join(&dials, 1)).is_none());
        dials.observe(&key(1), true);
        assert!(leads(join(&dials, 2)).is_none(), "another key");
        let dial = leads(join(&dials, 1));
        assert!(dial.is_some());
        dials.observe(&key(1), false);
        assert!(leads(join(&dials, 1)).is_none(), "the last connection spoke HTTP/1.1");
    }

    #[tokio::test(start_paused = true)]
    async fn deliveries_wait_for_one_dial_until_it_ends_and_no_longer_than_their_timeouts_allow() {
        let dials = Http2Dials::default();
        dials.observe(&key(1), true);
        let dial = leads(join(&dials, 1)).unwrap();
        let begun = Instant::now();
        let (long, mut short) = (timeouts(), timeouts());
        short.connect = Duration::from_millis(400);
        let follow = async |timeouts: &Timeouts| {
            let follower = follows(join(&dials, 1));
            let end = wait_end(&follower, timeouts);
            wait(follower, end).await
        };
        assert!(!follow(&short).await);
        assert_eq!(begun.elapsed(), short.connect / 2);
        (short.connect, short.total) = (long.connect, Duration::from_secs(2));
        assert!(!follow(&short).await);
        assert_eq!(begun.elapsed(), short.total / 4);
        assert!(!follow(&long).await);
        assert_eq!(begun.elapsed(), WAIT_MAX);
        let next = leads(join(&dials, 1)).expect("a delivery opens a connection if another has dialled for a second");
        let (waited, ()) = tokio::join!(follow(&long), async { next.finish(()) });
        assert!(!waited && begun.elapsed() == WAIT_MAX, "the end of the dial wakes those that wait");
        drop(dial);
        assert!(leads(join(&dials, 1)).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn one_of_those_that_wait_opens_the_connection_when_the_first_has_left() {
        let dials = Http2Dials::default();
        dials.observe(&key(1), true);
        let (begun, dial) = (Instant::now(), leads(join(&dials, 1)).unwrap());
        let follower = follows(join(&dials, 1));
        let end = wait_end(&follower, &timeouts());
        let (has_left, ()) = tokio::join!(wait(follower, end), async { drop(dial) });
        assert!(has_left && begun.elapsed().is_zero());
        let next = leads(join(&dials, 1)).expect("the first of them opens it");
        let other = follows(join(&dials, 1));
        assert_eq!(wait_end(&other, &timeouts()), end);
        drop(next);
    }

    #[test]
    fn keys_evict_the_least_recently_used_one() {
        let dials = Http2Dials::default();
        (0..=KEYS_MAX).for_each(|port| dials.observe(&key(port), true));
        assert!(leads(join(&dials, 0)).is_none());
        assert!(leads(join(&dials, KEYS_MAX)).is_some());
    }
}
