//! The circuits of all targets that have failed lately; a target that answers has none.
//! Is it worth knocking there, and who finds out?

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::names::{PoolName, RouteName, Target};
use crate::policy::circuit::{Circuit, Fuse, Leave, Open};
use crate::policy::route::Route;

/// Targets that failed within the window, or whose circuit is open. Where there is no room for another, it has no
/// circuit: so strangers who name targets that fail can keep a circuit from opening, as if there were none, but never
/// close one.
const CIRCUITS_MAX: usize = 65_536;

/// Changes that nobody has asked about yet; more are counted by the gauge alone.
const CHANGES_MAX: usize = 100;

/// What fails together: a target, as the addresses of one pool reach it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    pub target: Target,
    pub pool: PoolName,
    /// The route on whose other side of a split it is tried: what is too strict or too short there says nothing of the
    /// target, and must cost nobody else their deliveries.
    pub trial: Option<RouteName>,
}

impl Key {
    pub fn of(route: &Route, target: &Target) -> Self {
        let trial = route.is_trial().then(|| route.name.clone());
        Self { target: target.clone(), pool: route.pool.name().clone(), trial }
    }
}

#[derive(Default)]
pub struct Circuits {
    known: Mutex<HashMap<Key, Circuit>>,
    /// How many there are: while all goes well, nobody locks.
    count: AtomicUsize,
    changes: Mutex<Vec<Change>>,
    random: RandomState,
}

/// A circuit that opened or closed.
pub struct Change {
    pub key: Key,
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

/// A delivery that has leave to go on. Dropping it says that nothing was learned of the target.
pub struct Attempt {
    home: Arc<Circuits>,
    key: Key,
    fuse: Fuse,
    leave: Leave,
    is_over: bool,
}

impl Circuits {
    pub fn enter(self: &Arc<Self>, key: Key, fuse: Fuse) -> Result<Attempt, Open> {
        let leave = match self.count.load(Ordering::Relaxed) {
            0 => Leave::Plain,
            _ => match self.known().get_mut(&key) {
                Some(circuit) => circuit.enter(Instant::now())?,
                None => Leave::Plain,
            },
        };
        Ok(Attempt { home: Arc::clone(self), key, fuse, leave, is_over: false })
    }

    /// Forgets what changes nothing; without a fuse all of them. Call it from time to time.
    pub fn sweep(&self, fuse: Option<&Fuse>) {
        let now = Instant::now();
        let mut known = self.known();
        known.retain(|_, circuit| fuse.is_some_and(|fuse| !circuit.is_idle(fuse, now)));
        let few = known.len() * 2;
        known.shrink_to(few);
        self.count.store(known.len(), Ordering::Relaxed);
    }

    /// What opened and closed since this was asked the last time.
    pub fn changes(&self) -> Vec<Change> {
        std::mem::take(&mut self.changes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How long an open circuit still refuses, for who wants to know: nothing is tried. `None`: it is closed.
    pub fn peek(&self, key: &Key) -> Option<Duration> {
        let (_, until) = self.known().get(key)?.open()?;
        Some(until.saturating_duration_since(Instant::now()))
    }

    /// How many are open.
    pub fn open(&self) -> usize {
        if self.count.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        self.known().values().filter(|circuit| circuit.open().is_some()).count()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Key, Circuit>> {
        // Nothing panics half-way through a change.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, change: Change) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if changes.len() < CHANGES_MAX {
            changes.push(change);
        }
    }
}

impl Attempt {
    /// The target has answered, whatever it said.
    pub fn succeeded(mut self) {
        self.is_over = true;
        if self.home.count.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut known = self.home.known();
        let gone = known.remove(&self.key);
        self.home.count.store(known.len(), Ordering::Relaxed);
        drop(known);
        if let Some((since, _)) = gone.and_then(|circuit| circuit.open()) {
            self.home.changed(Change { key: self.key.clone(), now: Now::Closed { after: since.elapsed() } });
        }
    }

    /// The target's doing; `code` says what. True where this has opened its circuit.
    pub fn failed(mut self, code: &'static str) -> bool {
        self.is_over = true;
        let now = Instant::now();
        let mut known = self.home.known();
        if known.len() >= CIRCUITS_MAX && !known.contains_key(&self.key) {
            return false;
        }
        let circuit = known.entry(self.key.clone()).or_insert_with(|| Circuit::new(now));
        let dice = self.home.random.hash_one(now);
        let has_opened = circuit.failed(self.leave, &self.fuse, now, dice);
        let until = circuit.open().map(|(_, until)| until);
        self.home.count.store(known.len(), Ordering::Relaxed);
        drop(known);
        if let (true, Some(until)) = (has_opened, until) {
            let again_in = until.saturating_duration_since(now);
            self.home.changed(Change { key: self.key.clone(), now: Now::Open { again_in, code } });
        }
        has_opened
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.is_over
            && self.leave == Leave::Probe
            && let Some(circuit) = self.home.known().get_mut(&self.key)
        {
            circuit.released();
        }
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Key { target, pool, trial } = &self.key;
        if let Some(route) = trial {
            write!(f, "on the other side of route {route}, ")?;
        }
        match &self.now {
            Now::Open { again_in, code } => write!(
                f,
                "{target} from pool {pool} fails: its circuit is open for {} s; the last failure was {code}",
                again_in.as_secs()
            ),
            Now::Closed { after } => {
                write!(f, "{target} from pool {pool} answers again: its circuit is closed after {} s", after.as_secs())
            }
        }
    }
}
