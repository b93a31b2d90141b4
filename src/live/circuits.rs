//! The circuits of all targets that have failed lately; a target that responds has none.
//! Is it worth contacting the target, and who finds out?

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::names::{ClientName, PoolName, RouteName, Target, TenantName};
use crate::policy::circuit::{Circuit, Fuse, Leave, Open};
use crate::policy::route::Route;

/// Circuits of targets that failed within the window, or that are open. Where there is no room for another, the target
/// has no circuit: so strangers who name targets that fail can keep a circuit from opening, as if there were none, but
/// never close one.
const CIRCUITS_MAX: usize = 65_536;

/// Locks that the targets are spread over.
const SHARDS: usize = 16;

/// Changes that are not logged yet. More are not logged: the metrics alone count them.
const CHANGES_MAX: usize = 100;

/// What a delivery contacts, for which client, and under which terms.
#[derive(Clone, Debug)]
pub struct Key {
    upstream: Upstream,
    terms: Terms,
    client: ClientName,
    tenant: Option<TenantName>,
}

/// A target, as the addresses of one pool reach it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Upstream {
    target: Target,
    pool: PoolName,
    /// The route on whose other side of a split it is tried: what is too strict or too short there says nothing of the
    /// target, and must cost nobody else their deliveries.
    trial: Option<RouteName>,
}

/// What a route asks of its targets. Routes that ask for different things do not decide each other's circuits: a target
/// may fail the one and serve the other.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Terms {
    /// DNS, connect, TLS, body, response, total.
    timeouts: [Duration; 6],
    /// The fingerprint of the trust, which has the TLS versions and the client certificate.
    trust: [u8; 32],
}

/// Whose deliveries a circuit stops. One client's request can cause what comes after the request was sent, by its path,
/// its size or its pace, so those failures count for the same client and tenant alone.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Scope {
    Everyone,
    Sender(ClientName, Option<TenantName>),
}

/// What a failure says of the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// There was no connection to send the request over.
    Unreachable,
    /// The request was sent, or a part of it, and there is no response.
    NoResponse,
}

/// What a success shows of the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Success {
    /// A tunnel's connection is open. Whether the target responds to requests is unknown.
    Connection,
    Response,
}

impl Success {
    /// Returns whether this shows that the target does not fail in this way.
    fn refutes(self, failure: Failure) -> bool {
        self == Self::Response || failure == Failure::Unreachable
    }
}

/// A target that deliveries contact now, or that has circuits.
#[derive(Default)]
struct Watched {
    attempts: usize,
    /// The last success, for any client, that refutes each kind of failure.
    refuted: [Option<Instant>; 2],
    circuits: HashMap<(Terms, Scope), Circuit>,
}

type Shard = HashMap<Upstream, Watched>;

#[derive(Default)]
pub struct Circuits {
    shards: [Mutex<Shard>; SHARDS],
    /// How many circuits there are: while all goes well, an early check takes no lock.
    count: AtomicUsize,
    changes: Mutex<Vec<Change>>,
    random: RandomState,
}

/// A circuit that opened or closed.
pub struct Change {
    upstream: Upstream,
    scope: Scope,
    pub now: Now,
}

pub enum Now {
    Open {
        again_in: Duration,
        /// The code of the last failure.
        code: &'static str,
    },
    Closed {
        after: Duration,
    },
}

/// A delivery that contacts the target. Dropping it says that nothing was learned of the target.
pub struct Attempt {
    home: Arc<Circuits>,
    key: Key,
    fuse: Fuse,
    began: Instant,
    leave: [Leave; 2],
}

impl Key {
    pub fn of(route: &Route, target: &Target, client: &ClientName, tenant: Option<&TenantName>) -> Self {
        let trial = route.is_trial().then(|| route.name.clone());
        let times = &route.timeouts;
        Self {
            upstream: Upstream { target: target.clone(), pool: route.pool.name().clone(), trial },
            terms: Terms {
                timeouts: [times.dns, times.connect, times.tls, times.body, times.response, times.total],
                trust: route.trust.fingerprint,
            },
            client: client.clone(),
            tenant: tenant.cloned(),
        }
    }

    /// The circuits that stop this delivery.
    fn circuits(&self) -> [(Terms, Scope); 2] {
        [Failure::Unreachable, Failure::NoResponse].map(|failure| self.circuit(failure))
    }

    fn circuit(&self, failure: Failure) -> (Terms, Scope) {
        let scope = match failure {
            Failure::Unreachable => Scope::Everyone,
            Failure::NoResponse => Scope::Sender(self.client.clone(), self.tenant.clone()),
        };
        (self.terms.clone(), scope)
    }
}

impl Scope {
    /// The failures that are counted here.
    fn failure(&self) -> Failure {
        match self {
            Self::Everyone => Failure::Unreachable,
            Self::Sender(..) => Failure::NoResponse,
        }
    }
}

impl Circuits {
    /// Refuses a delivery whose circuit is open, before anything is spent on it. Takes nothing.
    pub fn check(&self, key: &Key) -> Result<(), Open> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let shard = self.shard(&key.upstream);
        let Some(watched) = shard.get(&key.upstream) else { return Ok(()) };
        watched.check(key, Instant::now())
    }

    /// Begins an attempt, just before it contacts the target.
    pub fn begin(self: &Arc<Self>, key: Key, fuse: Fuse) -> Result<Attempt, Open> {
        let (began, mut leave) = (Instant::now(), [Leave::Plain; 2]);
        let mut shard = self.shard(&key.upstream);
        let watched = shard.entry(key.upstream.clone()).or_default();
        if !watched.circuits.is_empty() {
            watched.check(&key, began)?; // of both, before a probe of one is taken
            for (circuit, leave) in key.circuits().iter().zip(&mut leave) {
                let circuit = watched.circuits.get_mut(circuit);
                *leave = circuit.map_or(Ok(Leave::Plain), |circuit| circuit.begin(began))?;
            }
        }
        watched.attempts += 1;
        drop(shard);
        Ok(Attempt { home: Arc::clone(self), key, fuse, began, leave })
    }

    /// Forgets what changes nothing; without a fuse all circuits. Call it from time to time.
    pub fn sweep(&self, fuse: Option<&Fuse>) {
        let now = Instant::now();
        for shard in &self.shards {
            let mut shard = lock(shard);
            for watched in shard.values_mut() {
                self.retain(watched, |_, circuit| fuse.is_some_and(|fuse| !circuit.is_idle(fuse, now)));
            }
            shard.retain(|_, watched| watched.is_needed());
            let few = shard.len() * 2;
            shard.shrink_to(few);
        }
    }

    /// What opened and closed since this was asked the last time.
    pub fn changes(&self) -> Vec<Change> {
        std::mem::take(&mut lock(&self.changes))
    }

    /// How long an open circuit still refuses, for who wants to know: nothing is tried. `None`: it is closed.
    pub fn peek(&self, key: &Key) -> Option<Duration> {
        let shard = self.shard(&key.upstream);
        let watched = shard.get(&key.upstream)?;
        let open = |circuit: &(Terms, Scope)| watched.circuits.get(circuit)?.open();
        let until = key.circuits().iter().filter_map(open).map(|(_, until)| until).max()?;
        Some(until.saturating_duration_since(Instant::now()))
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        if self.count.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let open_of = |watched: &Watched| watched.circuits.values().filter(|circuit| circuit.open().is_some()).count();
        self.shards.iter().map(|shard| lock(shard).values().map(open_of).sum::<usize>()).sum()
    }

    fn shard(&self, upstream: &Upstream) -> MutexGuard<'_, Shard> {
        lock(&self.shards[(self.random.hash_one(upstream) % SHARDS as u64) as usize])
    }

    fn retain(&self, watched: &mut Watched, keep: impl FnMut(&(Terms, Scope), &mut Circuit) -> bool) {
        let before = watched.circuits.len();
        watched.circuits.retain(keep);
        self.count.fetch_sub(before - watched.circuits.len(), Ordering::Relaxed);
    }

    fn changed(&self, change: Change) {
        let mut changes = lock(&self.changes);
        if changes.len() < CHANGES_MAX {
            changes.push(change);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watched {
    fn check(&self, key: &Key, now: Instant) -> Result<(), Open> {
        let circuits = key.circuits();
        circuits.iter().filter_map(|circuit| self.circuits.get(circuit)).try_for_each(|circuit| {
            circuit.check(now)?;
            Ok(())
        })
    }

    fn is_needed(&self) -> bool {
        self.attempts > 0 || !self.circuits.is_empty()
    }
}

impl Attempt {
    /// The target has responded, whatever it said, or a connection to it is open. Every count of the failures that this
    /// refutes begins anew, and their circuits close for deliveries under the same terms.
    pub fn succeeded(self, success: Success) {
        let (now, mut closed) = (Instant::now(), Vec::new());
        if let Some(watched) = self.home.shard(&self.key.upstream).get_mut(&self.key.upstream) {
            for failure in [Failure::Unreachable, Failure::NoResponse] {
                if success.refutes(failure) {
                    watched.refuted[failure as usize] = Some(now);
                }
            }
            self.home.retain(watched, |(terms, scope), circuit| {
                if !success.refutes(scope.failure()) {
                    return true;
                }
                let open = circuit.open();
                if let Some((since, _)) = open.filter(|_| *terms == self.key.terms) {
                    closed.push((scope.clone(), now.saturating_duration_since(since)));
                    return false;
                }
                open.is_some()
            });
        }
        for (scope, after) in closed {
            let upstream = self.key.upstream.clone();
            self.home.changed(Change { upstream, scope, now: Now::Closed { after } });
        }
    }

    /// The target's doing; `code` says what. Not counted where a success for any client has refuted it since the attempt
    /// began. Returns whether this has opened its circuit.
    pub fn failed(self, failure: Failure, code: &'static str) -> bool {
        let (now, circuit) = (Instant::now(), self.key.circuit(failure));
        let leave = self.leave[failure as usize];
        let scope = circuit.1.clone();
        let again_in = {
            let mut shard = self.home.shard(&self.key.upstream);
            let Some(watched) = shard.get_mut(&self.key.upstream) else { return false };
            if watched.refuted[failure as usize].is_some_and(|refuted| refuted >= self.began) {
                return false;
            }
            if !watched.circuits.contains_key(&circuit) {
                let count = &self.home.count;
                if count.fetch_add(1, Ordering::Relaxed) >= CIRCUITS_MAX {
                    count.fetch_sub(1, Ordering::Relaxed);
                    return false;
                }
            }
            let circuit = watched.circuits.entry(circuit).or_insert_with(|| Circuit::new(now));
            let dice = self.home.random.hash_one(now);
            let has_opened = circuit.failed(leave, self.began, &self.fuse, now, dice);
            circuit.open().filter(|_| has_opened).map(|(_, until)| until.saturating_duration_since(now))
        };
        if let Some(again_in) = again_in {
            let upstream = self.key.upstream.clone();
            self.home.changed(Change { upstream, scope, now: Now::Open { again_in, code } });
        }
        again_in.is_some()
    }
}

impl Drop for Attempt {
    /// Ends the attempt. A probe that has no outcome by now lets another delivery probe.
    fn drop(&mut self) {
        let mut shard = self.home.shard(&self.key.upstream);
        let Some(watched) = shard.get_mut(&self.key.upstream) else { return };
        if self.leave != [Leave::Plain; 2] {
            let circuits = self.key.circuits();
            let probed = circuits.iter().zip(self.leave).filter(|(_, leave)| *leave == Leave::Probe);
            for (circuit, _) in probed {
                if let Some(circuit) = watched.circuits.get_mut(circuit) {
                    circuit.released(self.began);
                }
            }
        }
        watched.attempts -= 1;
        if !watched.is_needed() {
            shard.remove(&self.key.upstream);
        }
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Upstream { target, pool, trial } = &self.upstream;
        if let Some(route) = trial {
            write!(f, "on the other side of route {route}, ")?;
        }
        write!(f, "{target} from pool {pool} ")?;
        f.write_str(if matches!(self.now, Now::Open { .. }) { "fails" } else { "answers again" })?;
        if let Scope::Sender(client, tenant) = &self.scope {
            write!(f, " for client {client}")?;
            tenant.iter().try_for_each(|tenant| write!(f, ", tenant {tenant}"))?;
        }
        match &self.now {
            Now::Open { again_in, code } => {
                write!(f, ": its circuit is open for {} s; the last failure was {code}", again_in.as_secs())
            }
            Now::Closed { after } => write!(f, ": its circuit is closed after {} s", after.as_secs()),
        }
    }
}
