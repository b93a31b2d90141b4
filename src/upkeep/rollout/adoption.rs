//! The adoption of a bundle on this host, and the return to the former one.
//! In which order do the number, the files and the active configuration change?

use std::sync::Arc;

use tracing::warn;

use super::Follower;
use crate::history::bundle_folder::{AdoptedBundle, RolloutState};
use crate::policy::rollout::bundle::SignedBundle;
use crate::policy::rollout::{InstanceReport, RolloutStage};
use crate::state::config::reload_queue::BundleRequest;
use crate::state::config::status::{ReloadSource, ReloadVerdict};

impl Follower {
    /// Adopts the bundle, unless the configuration has changed since the check so that it needs more.
    pub(super) async fn adopt(&mut self, bundle: Arc<SignedBundle>) {
        if !self.health.is_ready(&self.runtime) {
            return;
        }
        self.check(&bundle).await;
        let Some(report) = self.report.clone().filter(|report| report.stage == RolloutStage::Checked) else { return };
        if !report.approval.is_empty() && self.view.approver.is_none() {
            return;
        }
        let former = self.view.state.adopted.clone();
        let adopted = AdoptedBundle {
            number: bundle.number,
            digest: bundle.digest().to_owned(),
            author: bundle.author.clone(),
            approver: self.view.approver.clone(),
            stage: RolloutStage::Adopted,
            detail: String::new(),
            pause_seconds: bundle.pause_seconds,
            before: self.health.before(bundle.pause()),
            is_final: false,
            is_planned: bundle.waves.iter().any(|wave| wave.contains(&self.fleet.instance)),
            replaced: (!self.view.state.has_bundle()).then(|| self.runtime.config_status.adopted().number),
        };
        let source = source(&adopted, false);
        // The number is on the disk before the files: a crash in between repeats the adoption.
        if !self.set_adopted(adopted).await {
            return;
        }
        match self.switch(Some(bundle), None, source).await {
            Ok(()) => self.health.begin(&self.runtime),
            Err(problem) => {
                self.report = Some(InstanceReport::new(RolloutStage::Refused, problem));
                self.view.state.adopted = former.clone();
                self.remember(|state| state.adopted = former).await;
            }
        }
    }

    /// Returns to the former bundle, because this instance or the fleet is worse off.
    pub(super) async fn go_back(&mut self, adopted: AdoptedBundle, reason: String) {
        warn!("rollout {}: {reason}; this instance returns to its former bundle", adopted.number);
        self.undo(AdoptedBundle { stage: RolloutStage::RolledBack, detail: reason, ..adopted }).await;
    }

    /// Returns to the former bundle, or to the configuration before the first one.
    pub(super) async fn undo(&mut self, adopted: AdoptedBundle) {
        let (source, replaced) = (source(&adopted, true), adopted.replaced);
        // Until the stage is on the disk, the next tick decides to return again.
        if !self.set_adopted(adopted).await {
            return;
        }
        let switched = self.switch(None, replaced, source).await;
        self.is_undo_pending = switched.is_err();
        if let Err(problem) = switched {
            warn!("this instance cannot return to its former bundle, and tries again: {problem}");
        }
    }

    async fn switch(
        &self,
        next: Option<Arc<SignedBundle>>,
        replaced: Option<u64>,
        source: ReloadSource,
    ) -> Result<(), String> {
        let (queue, folder) = (&self.runtime.reload_queue, self.folder.clone());
        let outcome =
            queue.ask_about_bundle(|reply| BundleRequest::Switch { folder, next, replaced, source, reply }).await;
        let outcome = outcome.ok_or("outgate is stopping")?;
        if outcome.outcome == ReloadVerdict::Rejected { Err(outcome.report) } else { Ok(()) }
    }

    /// Stores what this instance has adopted, and returns whether it is on the disk.
    pub(super) async fn set_adopted(&mut self, adopted: AdoptedBundle) -> bool {
        self.remember(|state| state.adopted = Some(adopted)).await
    }

    /// Changes what this instance remembers, and returns whether the change is on the disk. Otherwise nothing has changed.
    pub(super) async fn remember(&mut self, change: impl FnOnce(&mut RolloutState)) -> bool {
        let (folder, mut next) = (self.folder.clone(), self.view.state.clone());
        change(&mut next);
        let stored = next.clone();
        match self.runtime.history_reader.run(move || folder.set_state(&stored)).await {
            Ok(Ok(())) => {
                self.view.state = next;
                true
            }
            error => {
                warn!("the state of the rollout cannot be written, and outgate tries again: {error:?}");
                false
            }
        }
    }
}

fn source(adopted: &AdoptedBundle, is_undone: bool) -> ReloadSource {
    let AdoptedBundle { number, author, approver, .. } = adopted;
    ReloadSource::Rollout { number: *number, author: author.clone(), approver: approver.clone(), is_undone }
}
