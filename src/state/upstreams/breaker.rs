//! The circuits of all targets that failed recently. A target that responds has none.
//! May a delivery contact this target, and which delivery probes it?

mod key;
mod report;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::names::ClientName;
use crate::panics::{Mutex, MutexGuard};
use crate::policy::breaker::{BreakerConfig, BreakerOpen, BreakerPermit, CircuitBreaker};
use crate::state::counters::TableSize;
use crate::state::hashed::{Hashed, HashedMap};
use crate::state::upstreams::fair_share::FairShareLru;
pub use key::{BreakerKey, UpstreamFailure, UpstreamSuccess};
use key::{CircuitScope, RouteRequirements, Upstream};
pub use report::CircuitReport;

/// The number of circuits: of targets that failed within the window, and open ones. A new circuit in a full table evicts the
/// one with the oldest last failure of the client that has most circuits. So a client with many failing targets evicts its
/// own circuits, and none of other clients below an even share.
const CIRCUITS_MAX: usize = 65_536;

/// The number of locks that the targets are spread over.
const SHARDS: usize = 16;

/// The number of events that wait for the log. More are only counted by the metrics.
const EVENTS_MAX: usize = 100;

/// The key of a circuit: a target, and the deliveries that the circuit stops.
type CircuitKey = (Hashed<Upstream>, (RouteRequirements, CircuitScope));

/// A target with attempts in flight, or with circuits.
#[derive(Default)]
struct UpstreamCircuits {
    attempts: usize,
    /// The last success for any client that refutes each kind of failure.
    refuted_at: [Option<Instant>; 2],
    circuits: HashMap<(RouteRequirements, CircuitScope), OwnedCircuit>,
}

/// A circuit, and the client whose failure began it.
struct OwnedCircuit {
    circuit: CircuitBreaker,
    owner: ClientName,
    /// The number of its last failure in [`FairShareLru`].
    number: u64,
}

type CircuitShard = HashedMap<Hashed<Upstream>, UpstreamCircuits>;

pub struct CircuitBreakers {
    shards: [Mutex<CircuitShard>; SHARDS],
    /// The number of circuits. While it is zero, a check takes no lock.
    count: TableSize,
    /// Lock order: a shard first, then this.
    shares: Mutex<FairShareLru<ClientName, CircuitKey>>,
    events: Mutex<Vec<CircuitEvent>>,
    random: RandomState,
}

/// A circuit that opened or closed.
pub struct CircuitEvent {
    upstream: Hashed<Upstream>,
    scope: CircuitScope,
    pub transition: CircuitTransition,
}

pub enum CircuitTransition {
    Open {
        retry_after: Duration,
        /// The code of the last failure.
        code: &'static str,
    },
    Closed {
        after: Duration,
    },
}

/// An attempt of a delivery to contact the target. Dropping it without an outcome changes no count of failures.
pub struct UpstreamAttempt {
    breakers: Arc<CircuitBreakers>,
    key: BreakerKey,
    config: BreakerConfig,
    began: Instant,
    permits: [BreakerPermit; 2],
}

impl Default for CircuitBreakers {
    fn default() -> Self {
        Self::with_capacity(CIRCUITS_MAX)
    }
}

impl CircuitBreakers {
    fn with_capacity(circuits: usize) -> Self {
        Self {
            shards: Default::default(),
            count: TableSize::default(),
            shares: Mutex::new(FairShareLru::new(circuits)),
            events: Mutex::default(),
            random: RandomState::new(),
        }
    }

    /// Refuses a delivery whose circuit is open. It begins no attempt and no probe.
    pub fn check(&self, key: &BreakerKey, now: Instant) -> Result<(), BreakerOpen> {
        if self.count.is_zero() {
            return Ok(());
        }
        let shard = self.shard(&key.upstream);
        let Some(tracked) = shard.get(&key.upstream) else { return Ok(()) };
        tracked.check(key, now)
    }

    /// Begins an attempt, just before it contacts the target.
    pub fn begin(
        self: &Arc<Self>,
        key: BreakerKey,
        config: BreakerConfig,
        now: Instant,
    ) -> Result<UpstreamAttempt, BreakerOpen> {
        let mut permits = [BreakerPermit::Normal; 2];
        let mut shard = self.shard(&key.upstream);
        let tracked = shard.entry(key.upstream.clone()).or_default();
        if !tracked.circuits.is_empty() {
            tracked.check(&key, now)?; // both circuits, before the probe of one is taken
            for (circuit, permit) in key.circuits().iter().zip(&mut permits) {
                let owned = tracked.circuits.get_mut(circuit);
                *permit = owned.map_or(Ok(BreakerPermit::Normal), |owned| owned.circuit.acquire(now))?;
            }
        }
        tracked.attempts += 1;
        drop(shard);
        Ok(UpstreamAttempt { breakers: Arc::clone(self), key, config, began: now, permits })
    }

    /// Removes idle circuits, and all circuits if `config` is `None`. Call it periodically.
    pub fn sweep(&self, config: Option<&BreakerConfig>, now: Instant) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            for tracked in shard.values_mut() {
                self.retain(tracked, |_, circuit| config.is_some_and(|config| !circuit.is_idle(config, now)));
            }
            shard.retain(|_, tracked| tracked.is_needed());
            let capacity = shard.len() * 2;
            shard.shrink_to(capacity);
        }
    }

    /// Takes the events since the last call.
    pub fn take_events(&self) -> Vec<CircuitEvent> {
        std::mem::take(&mut self.events.lock())
    }

    /// Returns the time for which an open circuit still refuses deliveries. `None`: the circuits are closed.
    pub fn retry_after(&self, key: &BreakerKey, now: Instant) -> Option<Duration> {
        let shard = self.shard(&key.upstream);
        let tracked = shard.get(&key.upstream)?;
        let open = |circuit: &(RouteRequirements, CircuitScope)| tracked.circuits.get(circuit)?.circuit.open_period();
        let until = key.circuits().iter().filter_map(open).map(|(_, until)| until).max()?;
        Some(until.saturating_duration_since(now))
    }

    /// Returns the number of open circuits.
    pub fn open_count(&self) -> usize {
        if self.count.is_zero() {
            return 0;
        }
        let open_of = |tracked: &UpstreamCircuits| {
            tracked.circuits.values().filter(|owned| owned.circuit.open_period().is_some()).count()
        };
        self.shards.iter().map(|shard| shard.lock().values().map(open_of).sum::<usize>()).sum()
    }

    fn shard(&self, upstream: &Hashed<Upstream>) -> MutexGuard<'_, CircuitShard> {
        self.shards[upstream.shard(SHARDS)].lock()
    }

    fn retain(
        &self,
        tracked: &mut UpstreamCircuits,
        mut keep: impl FnMut(&(RouteRequirements, CircuitScope), &CircuitBreaker) -> bool,
    ) {
        tracked.circuits.retain(|key, owned| {
            let is_kept = keep(key, &owned.circuit);
            if !is_kept {
                self.count.decrement();
                self.shares.lock().remove(&owned.owner, owned.number);
            }
            is_kept
        });
    }

    /// Removes an evicted circuit, unless it has failed again since.
    fn evict(&self, (upstream, circuit): CircuitKey, number: u64) {
        let mut shard = self.shard(&upstream);
        let Some(tracked) = shard.get_mut(&upstream) else { return };
        if tracked.circuits.get(&circuit).is_some_and(|owned| owned.number == number) {
            tracked.circuits.remove(&circuit);
            self.count.decrement();
        }
        if !tracked.is_needed() {
            shard.remove(&upstream);
        }
    }

    fn push_event(&self, event: CircuitEvent) {
        let mut events = self.events.lock();
        if events.len() < EVENTS_MAX {
            events.push(event);
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
    /// Records that the target has responded with any status, or that a connection to it is open. The counts of the failures
    /// that this refutes restart. Their circuits close for deliveries with the same requirements.
    pub fn succeeded(self, success: UpstreamSuccess, now: Instant) {
        let mut closed = Vec::new();
        if let Some(tracked) = self.breakers.shard(&self.key.upstream).get_mut(&self.key.upstream) {
            for failure in [UpstreamFailure::Unreachable, UpstreamFailure::NoResponse] {
                if success.refutes(failure) {
                    tracked.refuted_at[failure as usize] = Some(now);
                }
            }
            self.breakers.retain(tracked, |(requirements, scope), circuit| {
                if !success.refutes(scope.failure()) {
                    return true;
                }
                let open = circuit.open_period();
                if let Some((since, _)) = open.filter(|_| *requirements == self.key.requirements) {
                    closed.push((scope.clone(), now.saturating_duration_since(since)));
                    return false;
                }
                open.is_some()
            });
        }
        for (scope, after) in closed {
            let upstream = self.key.upstream.clone();
            self.breakers.push_event(CircuitEvent { upstream, scope, transition: CircuitTransition::Closed { after } });
        }
    }

    /// Takes into account that another instance has an open circuit for the target: fewer failures open this one.
    pub fn heed_hint(&mut self) {
        self.config = self.config.with_hint();
    }

    /// Counts the failure even if another one came just before it: they are due to different events.
    pub fn count_at_once(&mut self) {
        self.config = self.config.without_spacing();
    }

    /// Records a failure of the target with its refusal code. It is not counted if a success for any client has refuted it
    /// since the attempt began. Returns whether the circuit has opened.
    pub fn failed(self, failure: UpstreamFailure, code: &'static str, now: Instant) -> bool {
        let circuit = self.key.circuit(failure);
        let permit = self.permits[failure as usize];
        let scope = circuit.1.clone();
        let (retry_after, evicted) = {
            let mut shard = self.breakers.shard(&self.key.upstream);
            let Some(tracked) = shard.get_mut(&self.key.upstream) else { return false };
            if tracked.refuted_at[failure as usize].is_some_and(|refuted_at| refuted_at >= self.began) {
                return false;
            }
            let (owned, evicted) = self.circuit_for_failure(tracked, circuit, now);
            let jitter = self.breakers.random.hash_one(now);
            let has_opened = owned.circuit.observe_failure(permit, self.began, &self.config, now, jitter);
            let open = owned.circuit.open_period().filter(|_| has_opened);
            (open.map(|(_, until)| until.saturating_duration_since(now)), evicted)
        };
        if let Some((key, number)) = evicted {
            self.breakers.evict(key, number);
        }
        if let Some(retry_after) = retry_after {
            let upstream = self.key.upstream.clone();
            self.breakers.push_event(CircuitEvent {
                upstream,
                scope,
                transition: CircuitTransition::Open { retry_after, code },
            });
        }
        retry_after.is_some()
    }

    /// Returns the circuit that counts a failure, and makes it the most recently used one of its owner. A new circuit belongs
    /// to this client. Also returns the circuit to evict for it.
    fn circuit_for_failure<'w>(
        &self,
        tracked: &'w mut UpstreamCircuits,
        circuit: (RouteRequirements, CircuitScope),
        now: Instant,
    ) -> (&'w mut OwnedCircuit, Option<(CircuitKey, u64)>) {
        let mut shares = self.breakers.shares.lock();
        match tracked.circuits.entry(circuit) {
            Entry::Occupied(entry) => {
                let owned = entry.into_mut();
                owned.number = shares.touch(&owned.owner, owned.number);
                (owned, None)
            }
            Entry::Vacant(entry) => {
                let (number, evicted) = shares.add(&self.key.client, (self.key.upstream.clone(), entry.key().clone()));
                self.breakers.count.increment();
                let owner = self.key.client.clone();
                (entry.insert(OwnedCircuit { circuit: CircuitBreaker::new(now), owner, number }), evicted)
            }
        }
    }
}

impl Drop for UpstreamAttempt {
    /// Ends the attempt. A probe without an outcome lets another delivery probe.
    fn drop(&mut self) {
        let mut shard = self.breakers.shard(&self.key.upstream);
        let Some(tracked) = shard.get_mut(&self.key.upstream) else { return };
        if self.permits != [BreakerPermit::Normal; 2] {
            let circuits = self.key.circuits();
            let probed = circuits.iter().zip(self.permits).filter(|(_, permit)| *permit == BreakerPermit::Probe);
            for (circuit, _) in probed {
                if let Some(owned) = tracked.circuits.get_mut(circuit) {
                    owned.circuit.release(self.began);
                }
            }
        }
        tracked.attempts -= 1;
        if !tracked.is_needed() {
            shard.remove(&self.key.upstream);
        }
    }
}

impl std::fmt::Display for CircuitEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Upstream { target, pool, trial } = &*self.upstream;
        if let Some(route) = trial {
            write!(f, "on the split side of route {route}, ")?;
        }
        write!(f, "{target} from pool {pool} ")?;
        f.write_str(if matches!(self.transition, CircuitTransition::Open { .. }) {
            "fails"
        } else {
            "responds again"
        })?;
        if let CircuitScope::Client(client, tenant) = &self.scope {
            write!(f, " for client {client}")?;
            tenant.iter().try_for_each(|tenant| write!(f, ", tenant {tenant}"))?;
        }
        match &self.transition {
            CircuitTransition::Open { retry_after, code } => {
                let seconds = retry_after.as_secs();
                write!(f, ": its circuit is open for {seconds} s, and outgate refuses its webhooks; ")?;
                write!(f, "the last failure was {code}")
            }
            CircuitTransition::Closed { after } => write!(f, ": its circuit is closed after {} s", after.as_secs()),
        }
    }
}

#[cfg(test)]
mod tests;
