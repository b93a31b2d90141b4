//! The assignments of ranges, as this instance follows them.
//! Which addresses of this host belong to other instances now?

use std::collections::BTreeSet;
use std::fmt::Display;
use std::mem;

use ipnet::IpNet;
use jiff::Timestamp;
use tracing::{info, warn};

use super::{Fleet, FleetError};
use crate::history::known_fleet::KnownFleet;
use crate::net::socket_diag;
use crate::net::store::{StoreError, script};
use crate::policy::Plan;
use crate::policy::addresses::overlapping;
use crate::policy::fleet::assignments::{Assignments, free_of_others, source_ranges};
use crate::policy::fleet::status::RangeState;
use crate::state::Runtime;

/// The assignments that this instance knows, and what it still waits for.
#[derive(Default)]
pub(super) struct FollowedAssignments {
    pub(super) known: Assignments,
    /// Ranges of this instance from which another one may still begin connections.
    pub(super) awaited: BTreeSet<IpNet>,
    /// Ranges of other instances from which this one has connections.
    pub(super) draining: BTreeSet<IpNet>,
    /// The document of the store was refused the last time.
    is_refused: bool,
    /// They are those of the former process: what changed since then is unknown.
    are_recalled: bool,
}

/// The assignments as the store has them, for which [`Assignments::read`] has not looked yet.
struct StoredAssignments {
    version: String,
    document: String,
}

impl FollowedAssignments {
    /// Follows what the former process of this instance knew.
    pub(super) fn recall(&mut self, known: &KnownFleet, instance: &str) {
        self.known = known.assignments.clone();
        self.awaited = known.awaited.intersection(&self.known.ranges_of(instance, true)).copied().collect();
        self.draining = self.known.ranges_of(instance, false);
        self.are_recalled = true;
    }

    /// Lets assignments of the store, also older ones, replace those of the former process. A store that has none has lost its
    /// data.
    fn give_way(&mut self, stored_version: u64) {
        if self.are_recalled && ![0, self.known.version].contains(&stored_version) {
            self.known.version = 0;
        }
    }

    /// Adopts newer assignments. A range that becomes that of this instance waits until the others have left it.
    fn adopt(&mut self, next: Assignments, instance: &str) {
        let own = next.ranges_of(instance, true);
        // Another instance may have had a range while this one did not run.
        let former = if self.are_recalled { BTreeSet::new() } else { self.known.ranges_of(instance, true) };
        self.awaited =
            own.into_iter().filter(|range| self.awaited.contains(range) || !former.contains(range)).collect();
        self.draining = next.ranges_of(instance, false);
        self.known = next;
    }
}

impl Fleet {
    pub fn assignments(&self) -> Assignments {
        self.assignments.lock().known.clone()
    }

    /// Returns the ranges from which this instance must not begin connections, as customers see them.
    fn withheld(&self) -> Vec<IpNet> {
        let followed = self.assignments.lock();
        followed.known.ranges_of(&self.instance, false).into_iter().chain(followed.awaited.iter().copied()).collect()
    }

    /// Returns the state of a range that an assignment overlaps.
    pub(super) fn assigned_state(&self, range: &IpNet) -> Option<RangeState> {
        let followed = self.assignments.lock();
        let is_in = |ranges: &BTreeSet<IpNet>| overlapping(ranges, range).next().is_some();
        match () {
            () if is_in(&followed.awaited) => Some(RangeState::Waiting),
            () if is_in(&followed.draining) => Some(RangeState::Draining),
            () if followed.known.is_elsewhere(range, &self.instance) => Some(RangeState::Free),
            () => None,
        }
    }

    /// Reads the assignments, and replaces them by `next` if the store has the version `known`.
    async fn exchange(&self, known: &str, next: Option<&Assignments>) -> Result<StoredAssignments, StoreError> {
        let document = next.map(document_of).unwrap_or_default();
        let version = next.map_or(0, |next| next.version);
        let arguments: &[&(dyn Display + Sync)] = &[&known, &version, &document];
        let found: [Vec<u8>; 2] = self.store.run(&script::ASSIGN, &[&self.key("instances")], arguments).await?;
        // The store is up, also if another has written what no instance writes.
        let [version, document] = found.map(|text| String::from_utf8_lossy(&text).into_owned());
        Ok(StoredAssignments { version, document })
    }

    /// Returns the assignments of the store. `None`: it has some that must not be followed, and those that this instance
    /// knows stay.
    fn read_assignments(&self, stored: &StoredAssignments) -> Option<Assignments> {
        let read = Assignments::read(&stored.document, &stored.version, Timestamp::now());
        let was_refused = mem::replace(&mut self.assignments.lock().is_refused, read.is_err());
        if let (Err(reason), false) = (&read, was_refused) {
            warn!(
                "the assignments of ranges in the store are refused, and those that this instance knows stay: {reason}; \
                 any `outgate fleet move` replaces them"
            );
        }
        read.ok()
    }

    /// Follows the assignments, whose version in the store is `version`.
    pub(super) async fn follow_assignments(&self, runtime: &Runtime, version: u64) -> Result<(), StoreError> {
        self.assignments.lock().give_way(version);
        let known = self.assignments();
        if version < known.version {
            // The store has lost its data. Each instance knows the assignments, and the newest stay.
            self.exchange(&version.to_string(), Some(&known)).await?;
        } else if version > known.version {
            let stored = self.exchange("", None).await?;
            if let Some(next) = self.read_assignments(&stored) {
                self.adopt_assignments(runtime, next);
            }
        }
        self.assignments.lock().are_recalled = false;
        self.finish_waiting(runtime).await?;
        self.finish_draining(runtime).await;
        Ok(())
    }

    fn adopt_assignments(&self, runtime: &Runtime, next: Assignments) {
        let mut followed = self.assignments.lock();
        // A command of this host and the announcements both adopt them.
        if next.version > followed.known.version {
            info!("the fleet has {} assigned ranges, version {}", next.ranges().len(), next.version);
            followed.adopt(next, &self.instance);
            drop(followed);
            self.withhold(runtime);
        }
    }

    /// Uses the ranges that no other instance uses any more.
    async fn finish_waiting(&self, runtime: &Runtime) -> Result<(), StoreError> {
        let awaited = self.assignments.lock().awaited.clone();
        if awaited.is_empty() {
            return Ok(());
        }
        let (instances, are_all) = self.read_announcements().await?;
        if !are_all {
            // A process that cannot be understood may use any range.
            return Ok(());
        }
        let instance = self.instance.clone();
        let free = tokio::task::spawn_blocking(move || free_of_others(&awaited, &instance, &instances.live)).await;
        let free = free.unwrap_or_default();
        if !free.is_empty() {
            self.assignments.lock().awaited.retain(|range| !free.contains(range));
            self.withhold(runtime);
        }
        Ok(())
    }

    /// Looks whether this instance still has connections from ranges of others.
    async fn finish_draining(&self, runtime: &Runtime) {
        let asked = self.assignments.lock().draining.clone();
        if asked.is_empty() {
            return;
        }
        let (active, draining) = (runtime.active_config(), asked.clone());
        let usage = move || {
            let pools = &active.plan.pools;
            let sources = |ranges: &[IpNet]| source_ranges(pools, ranges, Timestamp::now());
            let all = sources(&draining.iter().copied().collect::<Vec<_>>());
            let is_draining = |address| all.iter().any(|net| net.contains(&address));
            // Without an answer of the kernel, no range has lost its connections.
            let Ok(usage) = socket_diag::port_usage(is_draining) else { return draining };
            let open: Vec<_> = usage.sources.into_iter().filter(|(_, usage)| usage.open > 0).collect();
            let is_busy = |range: &IpNet| {
                sources(&[*range]).iter().any(|net| open.iter().any(|(address, _)| net.contains(address)))
            };
            draining.into_iter().filter(is_busy).collect::<BTreeSet<_>>()
        };
        if let Ok(busy) = tokio::task::spawn_blocking(usage).await {
            let mut followed = self.assignments.lock();
            followed.draining.retain(|range| busy.contains(range) || !asked.contains(range));
            if busy.len() < asked.len() {
                self.announce_change();
            }
        }
    }

    fn withhold(&self, runtime: &Runtime) {
        runtime.withhold_assigned(&[&runtime.active_config().plan]);
        runtime.sweep_connections();
        self.announce_change();
    }

    /// Assigns a range to an instance, or to none.
    pub async fn assign(&self, range: IpNet, to: Option<&str>, runtime: &Runtime) -> Result<Assignments, FleetError> {
        let (known, stored) = (self.assignments(), self.exchange("", None).await?);
        // A store that lost its data has older ones, or none.
        let newer = self.read_assignments(&stored).filter(|read| read.version >= known.version);
        let next = newer.unwrap_or(known).with(range, to, Timestamp::now()).map_err(FleetError::Range)?;
        if self.exchange(&stored.version, Some(&next)).await?.document != document_of(&next) {
            return Err(FleetError::Conflict("another operator has changed the assignments at this moment: try again"));
        }
        self.adopt_assignments(runtime, next.clone());
        Ok(next)
    }
}

fn document_of(assignments: &Assignments) -> String {
    serde_json::json!(assignments).to_string()
}

impl Runtime {
    /// Takes the addresses that belong to other instances away from deliveries, as if the host had lost them.
    pub fn withhold_assigned(&self, plans: &[&Plan]) {
        let Some(fleet) = self.fleet.get() else { return };
        let (published, now) = (fleet.withheld(), Timestamp::now());
        let withheld: Vec<_> = plans.iter().flat_map(|plan| source_ranges(&plan.pools, &published, now)).collect();
        self.sources.set_withheld(withheld);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// While the former process was gone, another instance may have had the range of this one.
    #[test]
    fn assignments_of_the_former_process_give_way_to_those_of_the_store() {
        let range: IpNet = "198.51.100.16/28".parse().unwrap();
        let at = |version| {
            let now = Timestamp::from_millisecond(version).unwrap();
            Assignments::default().with(range, Some("a"), now).unwrap()
        };
        let known = |awaited: &[IpNet]| KnownFleet {
            prefix: "outgate".to_owned(),
            live: 2,
            assignments: at(500),
            awaited: awaited.iter().copied().collect(),
        };
        let mut followed = FollowedAssignments::default();
        followed.recall(&known(&[range, "203.0.113.0/24".parse().unwrap()]), "a");
        assert_eq!(followed.awaited, [range].into(), "only its own ranges wait");
        followed.recall(&known(&[]), "b");
        assert_eq!((followed.awaited.len(), &followed.draining), (0, &[range].into()));
        followed.recall(&known(&[]), "a");
        assert!(followed.awaited.is_empty() && followed.draining.is_empty(), "it had begun to use the range");
        for (stored, version) in [(500, 500), (0, 500), (300, 0), (700, 0)] {
            followed.recall(&known(&[]), "a");
            followed.give_way(stored);
            assert_eq!(followed.known.version, version, "{stored}");
        }
        followed.adopt(at(700), "a");
        assert_eq!(followed.awaited, [range].into(), "it waits for the others");
        followed.are_recalled = false;
        followed.awaited.clear();
        followed.adopt(at(800), "a");
        assert!(followed.awaited.is_empty(), "no other instance had it meanwhile");
        followed.give_way(300);
        assert_eq!(followed.known.version, 800, "a running instance gives the store newer ones");
    }
}
