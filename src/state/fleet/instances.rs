//! The instances of a fleet, as the store has them, and the problems that its observer sees.
//! Which instances are live, and what is wrong?

use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::{Fleet, FleetError, INSTANCE_LEASE_MS};
use crate::net::store::{StoreError, script};
use crate::policy::fleet::lost::FleetInstances;
use crate::policy::fleet::status::{FleetProblem, FleetProblemKind, InstanceAnnouncement};

/// How often the observer reads all announcements.
const OBSERVE_INTERVAL: Duration = Duration::from_secs(2);
/// The most announcements that the store returns.
const ANNOUNCEMENTS_MAX: usize = 4096;

/// The problems of the fleet, as its observer sees them.
pub(super) struct Observation {
    at: Instant,
    /// The problems of the last look, and those of the look before as well: a move of addresses takes a moment.
    last: Vec<FleetProblem>,
    lasting: Vec<FleetProblem>,
}

/// A row of the store: the end of the lease, the process or the instance, and the announcement.
type Row = (f64, Vec<u8>, Vec<u8>);

/// Returns an announcement that an instance could have written, with its name in the store.
fn read((lease_end, name, text): Row) -> Option<(Vec<u8>, InstanceAnnouncement)> {
    let announcement = serde_json::from_slice::<InstanceAnnouncement>(&text).ok()?;
    announcement.is_within_limits().then_some(())?;
    let announced_ms = (lease_end as i64).saturating_sub(INSTANCE_LEASE_MS as i64);
    Some((name, InstanceAnnouncement { announced_ms, ..announcement }))
}

/// Returns the instances, and whether each live process has an announcement that this instance understands.
fn parse(now_ms: i64, live: Vec<Row>, lost: Vec<Row>) -> (FleetInstances, bool) {
    let count = live.len();
    let mut live: Vec<_> = live.into_iter().filter_map(read).map(|(_, announcement)| announcement).collect();
    let are_all = live.len() == count && count < ANNOUNCEMENTS_MAX;
    live.sort_by(|a, b| (&a.instance, &a.process).cmp(&(&b.instance, &b.process)));
    // An operator could not forget an instance that has another name than its row.
    let lost = lost.into_iter().filter_map(read).filter(|(name, last)| *name == last.instance.as_bytes());
    (FleetInstances::new(live, lost.map(|(_, last)| last), now_ms), are_all)
}

impl Fleet {
    /// Reads all announcements, now and then.
    pub(super) async fn observe(&self) -> Result<(), StoreError> {
        let is_due = |observation: &Observation| observation.at.elapsed() >= OBSERVE_INTERVAL;
        if !self.observation.lock().as_ref().is_none_or(is_due) {
            return Ok(());
        }
        let (instances, _) = self.read_announcements().await?;
        let found = spawn_blocking(move || instances.problems()).await.unwrap_or_default();
        let found = self.with_rollout(found);
        let mut observation = self.observation.lock();
        let former = observation.take().map_or_else(Vec::new, |former| former.last);
        let is_known = |problem: &&FleetProblem| {
            former.iter().any(|known| (known.problem, &known.subject) == (problem.problem, &problem.subject))
        };
        let lasting = found.iter().filter(is_known).cloned().collect();
        *observation = Some(Observation { at: Instant::now(), last: found, lasting });
        Ok(())
    }

    /// Reads the live and the lost instances.
    pub async fn instances(&self) -> Result<FleetInstances, FleetError> {
        Ok(self.read_announcements().await?.0)
    }

    /// Reads the instances, and returns whether each live process has an announcement that this instance understands.
    pub(super) async fn read_announcements(&self) -> Result<(FleetInstances, bool), StoreError> {
        let (now_ms, live, lost): (i64, Vec<Row>, Vec<Row>) =
            self.store.run(&script::READ_ANNOUNCEMENTS, &[&self.key("instances")], &[]).await?;
        // They are 32 MiB at most, which would hold up the deliveries of this thread.
        let parsed = spawn_blocking(move || parse(now_ms, live, lost)).await;
        Ok(parsed.unwrap_or_else(|_| (FleetInstances::new(Vec::new(), std::iter::empty(), now_ms), false)))
    }

    /// Forgets a lost instance, and returns whether the store knew it.
    pub async fn forget(&self, instance: &str) -> Result<bool, FleetError> {
        Ok(self.store.run(&script::FORGET_INSTANCE, &[&self.key("instances")], &[&instance]).await?)
    }

    /// Returns the problems that the instances and the rollout show.
    pub fn problems(&self, instances: &FleetInstances) -> Vec<FleetProblem> {
        self.with_rollout(instances.problems())
    }

    /// Adds the problem of the rollout. While one is in progress, configurations are intended to differ.
    fn with_rollout(&self, found: Vec<FleetProblem>) -> Vec<FleetProblem> {
        let rollout = self.rollout();
        let is_intended = |problem: &FleetProblem| problem.problem == FleetProblemKind::ConfigurationDiffers;
        let unintended = found.into_iter().filter(|problem| !(rollout.is_in_progress() && is_intended(problem)));
        unintended.chain(rollout.fleet_problem()).collect()
    }

    /// Returns the problems of the fleet that last. `None`: another process observes the fleet.
    pub fn observed_problems(&self) -> Option<Vec<FleetProblem>> {
        self.observation.lock().as_ref().map(|observation| observation.lasting.clone())
    }
}
