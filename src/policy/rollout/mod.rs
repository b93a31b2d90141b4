//! A rollout: one signed bundle of configuration files, which the instances of a fleet adopt in waves.
//! May this instance adopt the bundle now, and has the rollout failed?
//!
//! No instance leads. Each decides from the reports of all, and the first that sees a failure states it for all.

pub mod approval;
pub mod bundle;
pub mod health;
mod operators;
#[cfg(test)]
mod tests;
pub mod waves;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use operators::{OperatorKey, Operators};

/// The time that a wave has to adopt the bundle, besides its pause.
pub const ADOPTION_TIME: Duration = Duration::from_secs(120);

/// Limits a text of a report, and one of the store, in characters.
const TEXT_MAX: usize = 500;
/// Limits the reasons of a report.
const REASONS_MAX: usize = 100;

/// The time after which an operator learns which instance holds a wave up.
const LATE_AFTER: Duration = Duration::from_secs(30);

/// The advice about an instance that does not check a bundle.
const UNJUDGED: &str = "(look at its [fleet.operators] and its log)";

/// Returns the part of a text that a report or the store has. Others could have written a longer one.
pub fn shortened(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

/// The progress of one instance with the bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutStage {
    /// It would adopt the bundle.
    Checked,
    /// The bundle has a problem on its host.
    Refused,
    /// It has adopted the bundle, and its pause is not over.
    Adopted,
    /// Its pause is over, without more refusals than before.
    Kept,
    RolledBack,
}

/// The report of one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceReport {
    pub stage: RolloutStage,
    /// Why the change needs a second operator, as this instance computes it.
    #[serde(default)]
    pub approval: Vec<String>,
    /// The problem of the bundle, or why the instance went back.
    #[serde(default)]
    pub detail: String,
}

impl InstanceReport {
    /// Returns the report of a stage that asks for no second operator.
    pub fn new(stage: RolloutStage, detail: String) -> Self {
        Self { stage, approval: Vec::new(), detail }
    }

    /// Shortens a report to what the others read: a report of more than 64 KiB would count as none. One that was read may be
    /// that of an intruder.
    pub fn shortened(mut self) -> Self {
        self.detail = shortened(&self.detail);
        let more = self.approval.len().saturating_sub(REASONS_MAX);
        // A report that was shortened before has the line about the others.
        if more > 1 {
            self.approval.truncate(REASONS_MAX);
            self.approval.push(format!("and {more} more reasons"));
        }
        self.approval.iter_mut().for_each(|reason| *reason = shortened(reason));
        self
    }
}

/// Returns whether an instance asks for a second operator, and none has signed.
pub fn needs_approval(reports: &BTreeMap<String, InstanceReport>, is_approved: bool) -> bool {
    !is_approved && reports.values().any(|report| !report.approval.is_empty())
}

/// The knowledge of one instance about a rollout.
#[derive(Clone, Copy)]
pub struct Progress<'a> {
    pub instance: &'a str,
    pub waves: &'a [BTreeSet<String>],
    pub pause: Duration,
    pub reports: &'a BTreeMap<String, InstanceReport>,
    /// Whether a second operator has signed.
    pub is_approved: bool,
    /// Whether the store has a failure, or an operator's signed abort.
    pub has_ended: bool,
    /// The instances whose announcements ended some time ago.
    pub missing: &'a BTreeSet<String>,
    /// The time for which [`Progress::phase`] has been the same, by a [`PhaseClock`].
    pub unchanged_for: Duration,
}

/// The next action of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RolloutStep {
    Wait,
    Adopt,
    RollBack,
    /// The instance states that the rollout has failed, and why.
    Fail(String),
}

/// The clock that states since when [`Progress::phase`] has been the same.
pub struct PhaseClock {
    phase: (Option<usize>, bool),
    since: Instant,
}

impl PhaseClock {
    pub fn new(now: Instant) -> Self {
        Self { phase: (None, false), since: now }
    }

    /// Returns the time for which this phase has lasted. A phase that has just begun has lasted no time.
    pub fn unchanged_for(&mut self, phase: (Option<usize>, bool), now: Instant) -> Duration {
        if self.phase != phase {
            *self = Self { phase, since: now };
        }
        now.duration_since(self.since)
    }
}

impl Progress<'_> {
    /// Returns the first wave that is not kept as a whole. `None`: the bundle is kept everywhere.
    pub fn open_wave(&self) -> Option<usize> {
        self.waves.iter().position(|wave| !wave.iter().all(|name| self.stage(name) == Some(RolloutStage::Kept)))
    }

    /// Returns whether an instance waits for the signature of a second operator.
    pub fn needs_approval(&self) -> bool {
        needs_approval(self.reports, self.is_approved)
    }

    /// Returns what has to change within [`ADOPTION_TIME`] and the pause. Operators may take any time to approve.
    pub fn phase(&self) -> (Option<usize>, bool) {
        (self.open_wave(), self.needs_approval())
    }

    fn stage(&self, name: &str) -> Option<RolloutStage> {
        self.reports.get(name).map(|report| report.stage)
    }

    /// Returns the wave of this instance. One that has joined since the plan was made is in the last wave.
    fn own_wave(&self) -> usize {
        let planned = self.waves.iter().position(|wave| wave.contains(self.instance));
        planned.unwrap_or(self.waves.len().saturating_sub(1))
    }

    /// Returns what this instance does now.
    pub fn next_step(&self) -> RolloutStep {
        let own = self.stage(self.instance);
        let open = self.open_wave();
        if self.has_ended {
            let is_adopted = matches!(own, Some(RolloutStage::Adopted | RolloutStage::Kept));
            return if is_adopted { RolloutStep::RollBack } else { RolloutStep::Wait };
        }
        if let Some(failure) = open.and_then(|open| self.failure(open)) {
            return RolloutStep::Fail(failure);
        }
        let is_open = open.is_none_or(|open| open >= self.own_wave());
        let are_judged = self.waves.iter().flatten().all(|name| self.is_judged(name));
        let may_adopt = is_open && !self.needs_approval() && are_judged;
        if own == Some(RolloutStage::Checked) && may_adopt { RolloutStep::Adopt } else { RolloutStep::Wait }
    }

    /// Returns what the rollout waits for, other than the pause of a wave.
    pub fn waits_for(&self) -> Option<String> {
        if self.has_ended {
            return None;
        }
        if self.needs_approval() {
            return Some("the approval of a second operator: `outgate fleet approve` shows the change".to_owned());
        }
        let open = self.open_wave().filter(|_| self.unchanged_for > LATE_AFTER)?;
        let unjudged = self.waves.iter().flatten().find(|name| !self.is_judged(name));
        let unjudged = unjudged.map(|name| format!("{name}, which has not checked the bundle {UNJUDGED}"));
        let is_late = |name: &&String| !matches!(self.stage(name), Some(RolloutStage::Adopted | RolloutStage::Kept));
        let late = || self.waves.get(open)?.iter().find(is_late);
        let late = || Some(format!("{}, which is not ready to adopt the bundle in wave {}", late()?, open + 1));
        unjudged.or_else(late)
    }

    /// Returns whether nothing is to be expected from an instance before the first adoption.
    fn is_judged(&self, name: &String) -> bool {
        self.reports.contains_key(name) || self.missing.contains(name)
    }

    /// Returns why the rollout has failed while the wave `open` is the first that is not kept.
    fn failure(&self, open: usize) -> Option<String> {
        let planned = self.waves.iter().flatten().filter_map(|name| Some((name, self.reports.get(name)?)));
        let ended = planned.into_iter().find_map(|(name, report)| match report.stage {
            RolloutStage::Refused => Some(format!("the bundle has a problem on {name}: {}", report.detail)),
            RolloutStage::RolledBack => Some(format!("{name} went back: {}", report.detail)),
            RolloutStage::Checked | RolloutStage::Adopted | RolloutStage::Kept => None,
        });
        let number = open + 1;
        let wave = self.waves.get(open)?;
        let unkept = || wave.iter().filter(|name| self.stage(name) != Some(RolloutStage::Kept));
        let gone = || unkept().find(|name| self.missing.contains(*name));
        let gone = || Some(format!("{} disappeared in wave {number}", gone()?));
        let is_late = !self.needs_approval() && self.unchanged_for > self.pause + ADOPTION_TIME;
        let late = || {
            let unjudged = self.waves.iter().flatten().find(|name| !self.is_judged(name));
            let unkept = unkept().next().filter(|_| is_late)?;
            let what = match unjudged {
                Some(name) => format!("{name} has not checked the bundle {UNJUDGED}"),
                None => format!("{unkept} has not kept the bundle"),
            };
            Some(format!("{what} {} s after wave {number} began", self.unchanged_for.as_secs()))
        };
        // Approval may take days, in which hosts restart.
        ended.or_else(|| gone().filter(|_| !self.needs_approval())).or_else(late)
    }
}
