//! The rollout of the fleet: its facts in the store, and what this instance knows of it.
//! Which bundle is on its way, and what have the operators and instances stated about it?

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;

use super::{Fleet, FleetError};
use crate::capture_store::{get_object, put_object};
use crate::config::difference::Difference;
use crate::history::bundle_folder::{BundleFolder, RolloutState};
use crate::net::store::script;
use crate::policy::fleet::status::{FleetProblem, FleetProblemKind};
use crate::policy::rollout::bundle::{DOCUMENT_MAX, SignedBundle};
use crate::policy::rollout::{InstanceReport, RolloutStage, needs_approval};

/// The name of the key in the store.
const KEY: &str = "rollout";
/// The fields of the facts.
const DOCUMENT: &str = "document";
const DIGEST: &str = "digest";
const SIGNATURE: &str = "signature";

/// The knowledge of this instance about the last rollout.
#[derive(Clone, Default)]
pub struct RolloutView {
    /// `None`: there is none, or its bundle does not verify.
    pub bundle: Option<Arc<SignedBundle>>,
    /// The digest of the rollout in the store, whether its bundle verifies or not. Empty: there is none. `None`: this process
    /// has not looked yet.
    pub digest: Option<String>,
    pub approver: Option<String>,
    pub reports: BTreeMap<String, InstanceReport>,
    /// The failure, or the operator who has aborted it.
    pub ended: Option<String>,
    /// Whether all planned instances have kept it.
    pub is_kept: bool,
    /// The first wave that is not kept as a whole, counted from 0.
    pub wave: Option<usize>,
    /// Reason why it does not progress, other than the pause of a wave.
    pub waits_for: Option<String>,
    /// The changes of its bundle on this host.
    pub difference: Difference,
    /// The problem of its bundle on this host, or why this instance refuses it.
    pub problem: Option<String>,
    /// The error of the last attempt to read its bundle from the bucket. `None`: the attempt succeeded.
    pub fetch_error: Option<String>,
    pub state: RolloutState,
    /// Why this instance cannot read its own state, and so follows no rollout until it starts again.
    pub state_error: Option<String>,
    /// `None`: this instance has not read its own state.
    pub folder: Option<BundleFolder>,
}

impl RolloutView {
    pub fn is_in_progress(&self) -> bool {
        self.bundle.is_some() && !self.is_kept && self.ended.is_none()
    }

    /// Returns the problem of a rollout that has failed or waits. It lasts until the next rollout begins.
    pub fn fleet_problem(&self) -> Option<FleetProblem> {
        if let Some(lost) = self.lost() {
            let what = format!(
                "rollout {lost} waits for its repetition: the store has lost the bundle, so a host that joins gets none. \
                 Roll the same files out again"
            );
            return Some(FleetProblem { problem: FleetProblemKind::RolloutWaiting, subject: lost.to_string(), what });
        }
        let number = self.bundle.as_ref().map(|bundle| bundle.number.to_string()).unwrap_or_default();
        let (problem, what) = match (&self.bundle, &self.ended, &self.waits_for) {
            (None, ..) => {
                let reason = self.problem.as_ref()?;
                (FleetProblemKind::RolloutFailed, format!("this instance refuses the rollout in the store: {reason}"))
            }
            (_, Some(reason), _) if !self.is_kept => {
                (FleetProblemKind::RolloutFailed, format!("rollout {number} has failed: {reason}"))
            }
            (_, None, Some(what)) => (FleetProblemKind::RolloutWaiting, format!("rollout {number} waits for {what}")),
            _ => return None,
        };
        Some(FleetProblem { problem, subject: number, what })
    }

    /// Returns the number of the bundle that this instance has, if the store has no rollout.
    fn lost(&self) -> Option<u64> {
        let own = self.state.adopted.as_ref().filter(|own| own.stage != RolloutStage::RolledBack)?;
        (self.digest.as_deref() == Some("")).then_some(own.number)
    }

    /// Returns the instances among `live` that still have the bundle of a rollout that has failed.
    pub fn returning<'a>(&self, live: &'a BTreeSet<String>) -> Vec<&'a str> {
        let has_failed = self.bundle.is_some() && self.ended.is_some() && !self.is_kept;
        let stage = |name: &String| self.reports.get(name).map(|report| report.stage);
        let has_bundle = |name: &&String| matches!(stage(name), Some(RolloutStage::Adopted | RolloutStage::Kept));
        live.iter().filter(|name| has_failed && has_bundle(name)).map(String::as_str).collect()
    }

    pub fn needs_approval(&self) -> bool {
        needs_approval(&self.reports, self.approver.is_some())
    }
}

impl Fleet {
    pub fn rollout(&self) -> Arc<RolloutView> {
        Arc::clone(&self.rollout.lock())
    }

    pub fn set_rollout(&self, view: RolloutView) {
        *self.rollout.lock() = Arc::new(view);
    }

    /// Returns the names of the live instances.
    pub async fn live_instances(&self) -> Result<BTreeSet<String>, FleetError> {
        let names: Vec<Vec<u8>> = self.store.run(&script::LIVE_INSTANCES, &[&self.key("instances")], &[]).await?;
        Ok(names.into_iter().filter_map(|name| String::from_utf8(name).ok()).collect())
    }

    /// Stores a bundle in place of the rollout that the caller has seen.
    pub async fn start_rollout(&self, bundle: &SignedBundle, signature: &str, former: &str) -> Result<(), FleetError> {
        let (document, digest) = (bundle.document(), bundle.digest());
        let mut fields = vec![(DIGEST, digest), (SIGNATURE, signature)];
        match &self.bundles {
            Some(bucket) => {
                put_object(bucket, digest, document.into_bytes()).await.map_err(FleetError::Bucket)?;
            }
            None => fields.push((DOCUMENT, &document)),
        }
        let mut arguments: Vec<&(dyn Display + Sync)> = vec![&former];
        fields.iter().for_each(|(field, value)| arguments.extend([field as &(dyn Display + Sync), value]));
        match self.store.run(&script::START_ROLLOUT, &[&self.key(KEY)], &arguments).await? {
            true => Ok(()),
            false => {
                Err(FleetError::Conflict("another operator has started a rollout in the meantime: look at it first"))
            }
        }
    }

    /// Adds the signed statement of an operator to the rollout with this digest.
    pub async fn state_rollout(&self, digest: &str, field: String, signature: String) -> Result<(), FleetError> {
        let facts = self.report_rollout("", digest, &[(field, signature)]).await?.unwrap_or_default();
        // The store adds nothing to another rollout.
        let is_stated = facts.get(DIGEST).is_some_and(|known| known == digest);
        let replaced =
            "another rollout has replaced this one, or the store has lost it: look at the last rollout first";
        if is_stated { Ok(()) } else { Err(FleetError::Conflict(replaced)) }
    }

    /// Adds facts to the rollout with this digest, and returns all if there are others than those of `version`.
    pub async fn report_rollout(
        &self,
        version: &str,
        digest: &str,
        facts: &[(String, String)],
    ) -> Result<Option<BTreeMap<String, String>>, FleetError> {
        let mut arguments: Vec<&(dyn Display + Sync)> = vec![&version, &digest];
        facts.iter().for_each(|(field, value)| arguments.extend([field as &(dyn Display + Sync), value]));
        let found: BTreeMap<Vec<u8>, Vec<u8>> =
            self.store.run(&script::REPORT_ROLLOUT, &[&self.key(KEY)], &arguments).await?;
        // What is not UTF-8 is of no instance and no operator, and does not hide the other facts.
        let text = |(field, value)| Some((String::from_utf8(field).ok()?, String::from_utf8(value).ok()?));
        Ok((!found.is_empty()).then(|| found.into_iter().filter_map(text).collect()))
    }

    /// Returns the digest of the rollout in the store. Empty: there is none.
    pub async fn rollout_digest(&self) -> Result<String, FleetError> {
        let facts = self.report_rollout("", "", &[]).await?.unwrap_or_default();
        Ok(facts.get(DIGEST).cloned().unwrap_or_default())
    }

    /// Returns the document of a rollout from its facts, or from the bucket.
    pub async fn document(&self, facts: &BTreeMap<String, String>) -> Result<String, FleetError> {
        let digest = facts.get(DIGEST).map(String::as_str).unwrap_or_default();
        match &self.bundles {
            None => Ok(facts.get(DOCUMENT).cloned().unwrap_or_default()),
            Some(bucket) => {
                let bytes = get_object(bucket, digest, DOCUMENT_MAX).await.map_err(FleetError::Bucket)?;
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
        }
    }
}
