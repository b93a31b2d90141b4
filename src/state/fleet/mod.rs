//! The fleet that this process belongs to: its store, and the number of live instances.
//! Is the store of the fleet up, and how many instances share its limits?

mod announcement;
mod assignments;
mod calls;
mod error;
pub mod hints;
mod instances;
mod known;
mod returns;
mod rollout;
mod tokens;

use std::fmt::Display;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::config::{self, FleetReplay};
use crate::digest::Fingerprint;
use crate::names::{ClientName, pluralize};
use crate::net::store::{Store, StoreError, script};
use crate::panics::Mutex;
use crate::policy::authn::ReplayToken;
use crate::policy::credential::TokenSeal;
use crate::policy::fleet::permits::{PERMIT_LEASE, PERMIT_PATIENCE, PERMIT_TERM, PermitGrant, PermitRequest};
use crate::policy::limits::saturating_nanos;
use crate::state::Runtime;
use crate::state::replay::ReplayError;
use announcement::Announcer;
use assignments::FollowedAssignments;
pub use calls::CallKind;
use calls::CallTurns;
pub use error::FleetError;
use hints::Hints;
use instances::Observation;
use returns::StoreReturns;
pub use rollout::RolloutView;

/// How often an instance announces itself, and for how long an announcement lasts.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);
const INSTANCE_LEASE_MS: u64 = 5_000;
/// The time after which another process takes over from an observer that died.
const OBSERVER_LEASE_MS: u64 = 3_000;
/// The pause after an attempt to reach a store that is away.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// How often a store is reported that answers announcements and not all other calls.
const LOST_WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// The membership of this process in a fleet; one for the process.
pub struct Fleet {
    store: Store,
    /// The start of each key in the store.
    pub prefix: String,
    pub instance: String,
    /// The identity of this process among those that ever had the name.
    process: String,
    changed: Notify,
    /// Wakes [`Fleet::keep_known`] when the store has answered an announcement.
    answered: Notify,
    /// Wakes all that wait for an answer of the store to an announcement.
    announced: Notify,
    returns: StoreReturns,
    observation: Mutex<Option<Observation>>,
    assignments: Mutex<FollowedAssignments>,
    /// The number of live instances when the store last answered; see [`Fleet::recall`].
    live: AtomicU32,
    /// `None`: the store is up.
    away_since: Mutex<Option<Instant>>,
    /// The longest time that a delivery waits for the store.
    pub wait: Duration,
    /// The epoch of [`Fleet::now`].
    epoch: Instant,
    turns: CallTurns,
    share_decisions: AtomicU64,
    replay: FleetReplay,
    local_signatures: AtomicU64,
    /// `None`: without a key, instances share no token.
    seal: Option<TokenSeal>,
    rollout: Mutex<Arc<RolloutView>>,
    /// The bucket of the bundles; `None`: the store.
    bundles: Option<PathBuf>,
    hints: ArcSwap<Hints>,
}

impl Fleet {
    /// Joins the fleet. It contacts no server: [`Fleet::run`] does.
    pub fn new(config: &config::Fleet, workers: usize) -> Result<Self, StoreError> {
        Ok(Self {
            store: Store::new(config, workers)?,
            prefix: config.prefix.clone(),
            instance: config.instance.clone(),
            process: format!("{:016x}", RandomState::new().hash_one(&config.instance)),
            changed: Notify::new(),
            answered: Notify::new(),
            announced: Notify::new(),
            returns: StoreReturns::default(),
            observation: Mutex::default(),
            assignments: Mutex::default(),
            live: AtomicU32::new(1),
            away_since: Mutex::new(Some(Instant::now())),
            wait: config.wait,
            epoch: Instant::now(),
            turns: CallTurns::default(),
            share_decisions: AtomicU64::new(0),
            replay: config.replay,
            local_signatures: AtomicU64::new(0),
            seal: config.key.as_ref().and_then(|key| TokenSeal::new(key.expose())),
            rollout: Mutex::default(),
            bundles: config.bundles.as_ref().map(|bundles| bundles.value.clone()),
            hints: ArcSwap::default(),
        })
    }

    /// Announces this instance, and reaches for a store that is away.
    pub async fn run(self: Arc<Self>, runtime: Arc<Runtime>) {
        let (mut was_reported, mut announcer, mut lost_at) = (false, Announcer::default(), None::<Instant>);
        loop {
            match self.announce(&runtime, &mut announcer).await {
                Ok(()) => {
                    self.report_up(was_reported);
                    was_reported = false;
                    let _ = timeout(ANNOUNCE_INTERVAL, async {
                        tokio::select! {
                            () = self.store.lost() => {}
                            () = self.changed.notified() => {}
                        }
                    })
                    .await;
                    // A call has failed. The connections of other workers may lead to the same server that is gone.
                    if !self.is_up() {
                        self.store.disconnect();
                        *self.observation.lock() = None;
                        // An announcement may succeed while other calls fail, such as those that the ACL forbids. Without a
                        // pause, outgate would connect again and again.
                        if lost_at.is_none_or(|at| at.elapsed() >= LOST_WARNING_INTERVAL) {
                            lost_at = Some(Instant::now());
                            let error = self.store.last_error();
                            warn!("a call to the store of the fleet has failed, so outgate connects again: {error}");
                        }
                        sleep(RETRY_INTERVAL).await;
                    }
                }
                Err(error) => {
                    self.store.disconnect();
                    *self.observation.lock() = None;
                    self.away_since.lock().get_or_insert_with(Instant::now);
                    if !was_reported {
                        let share = self.live();
                        warn!(
                            "the store of the fleet is away: {error}; this instance continues with its share, 1/{share}, \
                             of each limit of the fleet, until the store answers"
                        );
                    }
                    was_reported = true;
                    sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }

    /// Announces that an operator has stopped this process. Otherwise the others would take it for one that died.
    pub async fn leave(&self, runtime: &Runtime) {
        if self.is_up() {
            let _ = self.announce(runtime, &mut Announcer::default()).await; // the process ends in any case
        }
    }

    async fn announce(&self, runtime: &Runtime, announcer: &mut Announcer) -> Result<(), StoreError> {
        let is_first = !std::mem::replace(&mut announcer.has_tried, true);
        let has_returned = self.store.connect().await? && !is_first;
        let announcement = announcer.announcement(runtime, self).await;
        let observer_lease = if announcement.stopping { 0 } else { OBSERVER_LEASE_MS };
        let document = json!(announcement);
        let (asked, asked_at) = (Instant::now(), Timestamp::now());
        let arguments: &[&(dyn Display + Sync)] =
            &[&self.process, &INSTANCE_LEASE_MS, &document, &observer_lease, &self.instance];
        let [live, server_micros, is_observer, assignments]: [i64; 4] =
            self.store.run(&script::ANNOUNCE, &[&self.key("instances")], arguments).await?;
        let at = asked_at.as_microsecond() + i64::try_from(asked.elapsed().as_micros() / 2).unwrap_or_default();
        announcer.clock_offset_ms = Some((at - server_micros) / 1000);
        self.set_up(u32::try_from(live).unwrap_or(1), has_returned);
        self.follow_assignments(runtime, u64::try_from(assignments).unwrap_or_default()).await?;
        self.announced.notify_waiters();
        self.answered.notify_one();
        if is_observer == 1 {
            return self.observe().await;
        }
        *self.observation.lock() = None;
        Ok(())
    }

    /// Announces this instance at once, because it has changed.
    pub fn announce_change(&self) {
        self.changed.notify_one();
    }

    fn report_up(&self, was_reported: bool) {
        let since = self.away_since.lock().take();
        let Some(since) = since else { return };
        let instances = pluralize(self.live() as usize, "live instance");
        match was_reported {
            true => {
                info!("the store of the fleet answers again after {:.1} s: {instances}", since.elapsed().as_secs_f64());
            }
            false => info!("the store of the fleet answers: {instances}"),
        }
    }

    /// Returns the key of a name in the store. The braces make it the only part that selects the slot of a cluster.
    fn key(&self, name: &str) -> String {
        format!("{}:{{{name}}}", self.prefix)
    }

    /// Returns the key of one kind of state of a name.
    fn key_of(&self, name: &str, kind: &str) -> String {
        format!("{}:{kind}", self.key(name))
    }

    /// Returns the number of live instances, this one included, as the store last stated it.
    pub fn live(&self) -> u32 {
        self.live.load(Ordering::Relaxed)
    }

    pub fn is_up(&self) -> bool {
        self.store.is_up()
    }

    /// Resolves when the store answers an announcement after this call.
    pub fn answer(&self) -> Notified<'_> {
        self.announced.notified()
    }

    /// Returns for how long the store has been away.
    pub fn away_for(&self) -> Duration {
        self.away_since.lock().map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Returns what an operator should know of a store that is away.
    pub fn degraded_reason(&self) -> Option<String> {
        let since = *self.away_since.lock();
        if since.is_none() && self.is_up() {
            return None;
        }
        // Any call may be the first that fails, before the announcement.
        let (error, share) = (self.store.last_error(), self.live());
        let seconds = since.map_or(0, |since| since.elapsed().as_secs());
        Some(format!(
            "the store of the fleet has been away for {seconds} s ({error}): this instance continues with its share, \
             1/{share}, of each limit of the fleet"
        ))
    }

    /// Returns the monotonic time of this instance in nanoseconds.
    pub fn now(&self) -> u64 {
        saturating_nanos(self.epoch.elapsed())
    }

    /// Leases permits of a key. The processes of an instance that replace one another each have a lease.
    pub async fn lease_permits(&self, name: &str, request: &PermitRequest) -> Result<PermitGrant, StoreError> {
        let PermitRequest { wanted, used, max } = request;
        let [length, patience, term] = [PERMIT_LEASE, PERMIT_PATIENCE, PERMIT_TERM].map(|time| time.as_millis());
        let key = self.key_of(name, "permits");
        // An earlier request may still be on its way through a connection that was given up.
        let number = self.now() / 1000;
        let arguments: &[&(dyn Display + Sync)] =
            &[&self.process, wanted, used, max, &length, &patience, &term, &number];
        let answer: [i64; 2] = self.store.run(&script::LEASE_PERMITS, &[&key], arguments).await?;
        let [permits, others] = answer.map(|permits| u32::try_from(permits).unwrap_or_default());
        Ok(PermitGrant { permits, others })
    }

    /// Records the first use of a signature in the fleet. A second use is an error, on whichever instance the first was.
    ///
    /// A late answer counts as none. The store may have recorded the signature then, so that it is used up.
    pub async fn claim_signature(
        &self,
        client: &ClientName,
        token: &ReplayToken,
        now: Timestamp,
    ) -> Result<(), ReplayError> {
        let hash = Fingerprint::of_parts([client.as_str().as_bytes(), token.key()]);
        let key = self.key_of(&HEXLOWER.encode(&hash[..16]), "used");
        let claim = self.store.claim(&key, &self.process, token.lifetime(now.as_second()));
        match (self.within_wait(claim).await, self.replay) {
            (Some(true), _) => Ok(()),
            (Some(false), _) => Err(ReplayError::Replayed),
            (None, FleetReplay::Refuse) => Err(ReplayError::StoreAway),
            (None, FleetReplay::Local) => {
                self.local_signatures.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Returns the answer of a call for which a delivery waits. `None`: the store is away, or late.
    async fn within_wait<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Option<T> {
        if self.is_up() { timeout(self.wait, call).await.ok()?.ok() } else { None }
    }

    /// Returns the number of signatures that only the memory of this instance has checked.
    pub fn local_signatures(&self) -> u64 {
        self.local_signatures.load(Ordering::Relaxed)
    }

    /// Counts a delivery that this instance's share allowed, without the store.
    pub fn count_share_decision(&self) {
        self.share_decisions.fetch_add(1, Ordering::Relaxed);
    }

    pub fn share_decisions(&self) -> u64 {
        self.share_decisions.load(Ordering::Relaxed)
    }

    /// Returns the number of calls to the store, and of those that failed.
    pub fn call_counts(&self) -> [u64; 2] {
        self.store.counts()
    }
}
