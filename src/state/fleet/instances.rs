//! The instances of a fleet, as the store has them, and the problems that its observer sees.
//! Which instances are live, and what is wrong?

use std::time::Duration;

use tokio::time::Instant;

use super::{Fleet, FleetError, INSTANCE_LEASE_MS};
use crate::net::store::{StoreError, script};
use crate::policy::fleet::status::{FleetProblem, FleetProblemKind, InstanceAnnouncement, problems};

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

impl Fleet {
    /// Reads all announcements, now and then.
    pub(super) async fn observe(&self) -> Result<(), StoreError> {
        let is_due = |observation: &Observation| observation.at.elapsed() >= OBSERVE_INTERVAL;
        if !self.observation.lock().as_ref().is_none_or(is_due) {
            return Ok(());
        }
        let (live, _) = self.read_announcements().await?;
        let found = tokio::task::spawn_blocking(move || problems(&live)).await.unwrap_or_default();
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

    /// Reads the announcements of the live processes, by the name of the instance.
    pub async fn announcements(&self) -> Result<Vec<InstanceAnnouncement>, FleetError> {
        Ok(self.read_announcements().await?.0)
    }

    /// Reads the announcements, and returns whether each live process has one that this instance understands.
    pub(super) async fn read_announcements(&self) -> Result<(Vec<InstanceAnnouncement>, bool), StoreError> {
        let rows: Vec<(f64, Vec<u8>)> =
            self.store.run(&script::READ_ANNOUNCEMENTS, &self.key("instances"), &[]).await?;
        let read = |(lease_end, text): (f64, Vec<u8>)| {
            let announcement = serde_json::from_slice::<InstanceAnnouncement>(&text).ok()?;
            announcement.is_within_limits().then_some(())?;
            Some(InstanceAnnouncement { announced_ms: lease_end as i64 - INSTANCE_LEASE_MS as i64, ..announcement })
        };
        let count = rows.len();
        let mut announcements: Vec<_> = rows.into_iter().filter_map(read).collect();
        let are_all = announcements.len() == count && count < ANNOUNCEMENTS_MAX;
        announcements.sort_by(|a, b| (&a.instance, &a.process).cmp(&(&b.instance, &b.process)));
        Ok((announcements, are_all))
    }

    /// Returns the problems that announcements and the rollout show.
    pub fn problems(&self, announcements: &[InstanceAnnouncement]) -> Vec<FleetProblem> {
        self.with_rollout(problems(announcements))
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
