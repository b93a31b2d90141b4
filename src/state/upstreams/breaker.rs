//! The circuits of all targets that have failed lately; a target that responds has none.
//! Is it worth contacting the target, and who finds out?

mod key;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::names::ClientName;
use crate::policy::breaker::{BreakerConfig, BreakerOpen, BreakerPermit, CircuitBreaker};
use crate::state::upstreams::fair_share::FairShareLru;
pub use key::{BreakerKey, UpstreamFailure, UpstreamSuccess};
use key::{CircuitScope, RouteRequirements, Upstream};
use parking_lot::{Mutex, MutexGuard};

/// Circuits of targets that failed within the window, or that are open. A further one evicts the circuit of the client
/// that has most of them, the one whose last failure is the longest ago: a client that names many targets that fail costs
/// itself circuits, and no other client below an even share.
const CIRCUITS_MAX: usize = 65_536;

/// Locks that the targets are spread over.
const SHARDS: usize = 16;

/// Changes that are not logged yet. More are not logged: the metrics alone count them.
const CHANGES_MAX: usize = 100;

/// The key of a circuit: a target, and whose deliveries the circuit stops.
type CircuitKey = (Upstream, (RouteRequirements, CircuitScope));

/// A target that deliveries contact now, or that has circuits.
#[derive(Default)]
struct UpstreamCircuits {
    attempts: usize,
    /// The last success, for any client, that refutes each kind of failure.
    refuted: [Option<Instant>; 2],
    circuits: HashMap<(RouteRequirements, CircuitScope), OwnedCircuit>,
}

/// A circuit, and the client whose failure began it.
struct OwnedCircuit {
    circuit: CircuitBreaker,
    owner: ClientName,
    /// Its last failure, in [`FairShareLru`].
    number: u64,
}

type CircuitShard = HashMap<Upstream, UpstreamCircuits>;

pub struct CircuitBreakers {
    shards: [Mutex<CircuitShard>; SHARDS],
    /// How many circuits there are: while all goes well, an early check takes no lock.
    count: AtomicUsize,
    /// Locked within a shard, never the other way round.
    shares: Mutex<FairShareLru<ClientName, CircuitKey>>,
    changes: Mutex<Vec<CircuitEvent>>,
    random: RandomState,
}

/// A circuit that opened or closed.
pub struct CircuitEvent {
    upstream: Upstream,
    scope: CircuitScope,
    pub now: CircuitTransition,
}

pub enum CircuitTransition {
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
pub struct UpstreamAttempt {
    home: Arc<CircuitBreakers>,
    key: BreakerKey,
    fuse: BreakerConfig,
    began: Instant,
    leave: [BreakerPermit; 2],
}

impl Default for CircuitBreakers {
    fn default() -> Self {
        Self::with_room_for(CIRCUITS_MAX)
    }
}

impl CircuitBreakers {
    fn with_room_for(circuits: usize) -> Self {
        Self {
            shards: Default::default(),
            count: AtomicUsize::new(0),
            shares: Mutex::new(FairShareLru::new(circuits)),
            changes: Mutex::default(),
            random: RandomState::new(),
        }
    }

    /// Refuses a delivery whose circuit is open, before anything is spent on it. Takes nothing.
    pub fn check(&self, key: &BreakerKey) -> Result<(), BreakerOpen> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let shard = self.shard(&key.upstream);
        let Some(watched) = shard.get(&key.upstream) else { return Ok(()) };
        watched.check(key, Instant::now())
    }

    /// Begins an attempt, just before it contacts the target.
    pub fn begin(self: &Arc<Self>, key: BreakerKey, fuse: BreakerConfig) -> Result<UpstreamAttempt, BreakerOpen> {
        let (began, mut leave) = (Instant::now(), [BreakerPermit::Normal; 2]);
        let mut shard = self.shard(&key.upstream);
        let watched = shard.entry(key.upstream.clone()).or_default();
        if !watched.circuits.is_empty() {
            watched.check(&key, began)?; // of both, before a probe of one is taken
            for (circuit, leave) in key.circuits().iter().zip(&mut leave) {
                let owned = watched.circuits.get_mut(circuit);
                *leave = owned.map_or(Ok(BreakerPermit::Normal), |owned| owned.circuit.acquire(began))?;
            }
        }
        watched.attempts += 1;
        drop(shard);
        Ok(UpstreamAttempt { home: Arc::clone(self), key, fuse, began, leave })
    }

    /// Forgets what changes nothing; without a fuse all circuits. Call it from time to time.
    pub fn sweep(&self, fuse: Option<&BreakerConfig>) {
        let now = Instant::now();
        for shard in &self.shards {
            let mut shard = shard.lock();
            for watched in shard.values_mut() {
                self.retain(watched, |_, circuit| fuse.is_some_and(|fuse| !circuit.is_idle(fuse, now)));
            }
            shard.retain(|_, watched| watched.is_needed());
            let few = shard.len() * 2;
            shard.shrink_to(few);
        }
    }

    /// What opened and closed since this was asked the last time.
    pub fn changes(&self) -> Vec<CircuitEvent> {
        std::mem::take(&mut self.changes.lock())
    }

    /// How long an open circuit still refuses, for who wants to know: nothing is tried. `None`: it is closed.
    pub fn peek(&self, key: &BreakerKey) -> Option<Duration> {
        let shard = self.shard(&key.upstream);
        let watched = shard.get(&key.upstream)?;
        let open = |circuit: &(RouteRequirements, CircuitScope)| watched.circuits.get(circuit)?.circuit.open_period();
        let until = key.circuits().iter().filter_map(open).map(|(_, until)| until).max()?;
        Some(until.saturating_duration_since(Instant::now()))
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        if self.count.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let open_of = |watched: &UpstreamCircuits| {
            watched.circuits.values().filter(|owned| owned.circuit.open_period().is_some()).count()
        };
        self.shards.iter().map(|shard| shard.lock().values().map(open_of).sum::<usize>()).sum()
    }

    fn shard(&self, upstream: &Upstream) -> MutexGuard<'_, CircuitShard> {
        self.shards[(self.random.hash_one(upstream) % SHARDS as u64) as usize].lock()
    }

    fn retain(
        &self,
        watched: &mut UpstreamCircuits,
        mut keep: impl FnMut(&(RouteRequirements, CircuitScope), &CircuitBreaker) -> bool,
    ) {
        watched.circuits.retain(|key, owned| {
            let is_kept = keep(key, &owned.circuit);
            if !is_kept {
                self.count.fetch_sub(1, Ordering::Relaxed);
                self.shares.lock().remove(&owned.owner, owned.number);
            }
            is_kept
        });
    }

    /// Removes a circuit that has lost its share, unless it has failed again since.
    fn evict(&self, (upstream, circuit): CircuitKey, number: u64) {
        let mut shard = self.shard(&upstream);
        let Some(watched) = shard.get_mut(&upstream) else { return };
        if watched.circuits.get(&circuit).is_some_and(|owned| owned.number == number) {
            watched.circuits.remove(&circuit);
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        if !watched.is_needed() {
            shard.remove(&upstream);
        }
    }

    fn changed(&self, change: CircuitEvent) {
        let mut changes = self.changes.lock();
        if changes.len() < CHANGES_MAX {
            changes.push(change);
        }
    }
}

impl UpstreamCircuits {
    fn check(&self, key: &BreakerKey, now: Instant) -> Result<(), BreakerOpen> {
        let circuits = key.circuits();
        circuits.iter().filter_map(|circuit| self.circuits.get(circuit)).try_for_each(|owned| {
            owned.circuit.check(now)?;
            Ok(())
        })
    }

    fn is_needed(&self) -> bool {
        self.attempts > 0 || !self.circuits.is_empty()
    }
}

impl UpstreamAttempt {
    /// The target has responded, whatever it said, or a connection to it is open. Every count of the failures that this
    /// refutes begins anew, and their circuits close for deliveries under the same terms.
    pub fn succeeded(self, success: UpstreamSuccess) {
        let (now, mut closed) = (Instant::now(), Vec::new());
        if let Some(watched) = self.home.shard(&self.key.upstream).get_mut(&self.key.upstream) {
            for failure in [UpstreamFailure::Unreachable, UpstreamFailure::NoResponse] {
                if success.refutes(failure) {
                    watched.refuted[failure as usize] = Some(now);
                }
            }
            self.home.retain(watched, |(terms, scope), circuit| {
                if !success.refutes(scope.failure()) {
                    return true;
                }
                let open = circuit.open_period();
                if let Some((since, _)) = open.filter(|_| *terms == self.key.terms) {
                    closed.push((scope.clone(), now.saturating_duration_since(since)));
                    return false;
                }
                open.is_some()
            });
        }
        for (scope, after) in closed {
            let upstream = self.key.upstream.clone();
            self.home.changed(CircuitEvent { upstream, scope, now: CircuitTransition::Closed { after } });
        }
    }

    /// The target's doing; `code` says what. Not counted where a success for any client has refuted it since the attempt
    /// began. Returns whether this has opened its circuit.
    pub fn failed(self, failure: UpstreamFailure, code: &'static str) -> bool {
        let (now, circuit) = (Instant::now(), self.key.circuit(failure));
        let leave = self.leave[failure as usize];
        let scope = circuit.1.clone();
        let (again_in, evicted) = {
            let mut shard = self.home.shard(&self.key.upstream);
            let Some(watched) = shard.get_mut(&self.key.upstream) else { return false };
            if watched.refuted[failure as usize].is_some_and(|refuted| refuted >= self.began) {
                return false;
            }
            let (owned, evicted) = self.circuit_to_count_in(watched, circuit, now);
            let dice = self.home.random.hash_one(now);
            let has_opened = owned.circuit.observe_failure(leave, self.began, &self.fuse, now, dice);
            let open = owned.circuit.open_period().filter(|_| has_opened);
            (open.map(|(_, until)| until.saturating_duration_since(now)), evicted)
        };
        if let Some((key, number)) = evicted {
            self.home.evict(key, number);
        }
        if let Some(again_in) = again_in {
            let upstream = self.key.upstream.clone();
            self.home.changed(CircuitEvent { upstream, scope, now: CircuitTransition::Open { again_in, code } });
        }
        again_in.is_some()
    }

    /// The circuit that a failure counts in, as the last of its owner that failed; a new one belongs to this client. Also
    /// returns the one that is to be evicted for it.
    fn circuit_to_count_in<'w>(
        &self,
        watched: &'w mut UpstreamCircuits,
        circuit: (RouteRequirements, CircuitScope),
        now: Instant,
    ) -> (&'w mut OwnedCircuit, Option<(CircuitKey, u64)>) {
        let mut shares = self.home.shares.lock();
        match watched.circuits.entry(circuit) {
            Entry::Occupied(entry) => {
                let owned = entry.into_mut();
                owned.number = shares.touch(&owned.owner, owned.number);
                (owned, None)
            }
            Entry::Vacant(entry) => {
                let (number, evicted) = shares.add(&self.key.client, (self.key.upstream.clone(), entry.key().clone()));
                self.home.count.fetch_add(1, Ordering::Relaxed);
                let owner = self.key.client.clone();
                (entry.insert(OwnedCircuit { circuit: CircuitBreaker::new(now), owner, number }), evicted)
            }
        }
    }
}

impl Drop for UpstreamAttempt {
    /// Ends the attempt. A probe that has no outcome by now lets another delivery probe.
    fn drop(&mut self) {
        let mut shard = self.home.shard(&self.key.upstream);
        let Some(watched) = shard.get_mut(&self.key.upstream) else { return };
        if self.leave != [BreakerPermit::Normal; 2] {
            let circuits = self.key.circuits();
            let probed = circuits.iter().zip(self.leave).filter(|(_, leave)| *leave == BreakerPermit::Probe);
            for (circuit, _) in probed {
                if let Some(owned) = watched.circuits.get_mut(circuit) {
                    owned.circuit.release(self.began);
                }
            }
        }
        watched.attempts -= 1;
        if !watched.is_needed() {
            shard.remove(&self.key.upstream);
        }
    }
}

impl std::fmt::Display for CircuitEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Upstream { target, pool, trial } = &self.upstream;
        if let Some(route) = trial {
            write!(f, "on the other side of route {route}, ")?;
        }
        write!(f, "{target} from pool {pool} ")?;
        f.write_str(if matches!(self.now, CircuitTransition::Open { .. }) { "fails" } else { "answers again" })?;
        if let CircuitScope::Client(client, tenant) = &self.scope {
            write!(f, " for client {client}")?;
            tenant.iter().try_for_each(|tenant| write!(f, ", tenant {tenant}"))?;
        }
        match &self.now {
            CircuitTransition::Open { again_in, code } => {
                write!(f, ": its circuit is open for {} s; the last failure was {code}", again_in.as_secs())
            }
            CircuitTransition::Closed { after } => write!(f, ": its circuit is closed after {} s", after.as_secs()),
        }
    }
}

#[cfg(test)]
mod tests;
