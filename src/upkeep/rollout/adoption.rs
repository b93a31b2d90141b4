//! The adoption of a bundle on this host, and the return to the former one.
//! In which order do the number, the files and the active configuration change?

use std::sync::Arc;

use tracing::warn;

use super::Follower;
use crate::history::bundle_folder::AdoptedBundle;
use crate::policy::rollout::bundle::SignedBundle;
use crate::policy::rollout::{InstanceReport, RolloutStage};
use crate::state::config::reload_queue::{BundleChange, BundleRequest};
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
        let former = self.view.adopted.clone();
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
        };
        let source = source(&adopted, false);
        // The number is on the disk before the files: a crash in between repeats the adoption.
        if !self.set_adopted(adopted).await {
            return;
        }
        match self.switch(Some(bundle), source).await {
            Ok(()) => self.health.begin(&self.runtime),
            Err(problem) => {
                self.report =
                    Some(InstanceReport { stage: RolloutStage::Refused, approval: Vec::new(), detail: problem });
                self.view.adopted = former.clone();
                if let Some(former) = former {
                    self.set_adopted(former).await;
                }
            }
        }
    }

    /// Returns to the former bundle.
    pub(super) async fn undo(&mut self, adopted: AdoptedBundle) {
        let source = source(&adopted, true);
        // Until the stage is on the disk, the next tick decides to return again.
        if !self.set_adopted(adopted).await {
            return;
        }
        let switched = self.switch(None, source).await;
        self.is_undo_pending = switched.is_err();
        if let Err(problem) = switched {
            warn!("this instance cannot return to its former bundle, and tries again: {problem}");
        }
    }

    async fn switch(&self, next: Option<Arc<SignedBundle>>, source: ReloadSource) -> Result<(), String> {
        let change = BundleChange { folder: self.folder.clone(), next };
        let queue = &self.runtime.reload_queue;
        let outcome = queue.ask_about_bundle(|reply| BundleRequest::Switch { change, source, reply }).await;
        let outcome = outcome.ok_or("outgate is stopping")?;
        if outcome.outcome == ReloadVerdict::Rejected { Err(outcome.report) } else { Ok(()) }
    }

    /// Stores what this instance has adopted, and returns whether it is on the disk.
    pub(super) async fn set_adopted(&mut self, adopted: AdoptedBundle) -> bool {
        let (folder, stored) = (self.folder.clone(), adopted.clone());
        match self.runtime.history_reader.run(move || folder.set_adopted(&stored)).await {
            Ok(Ok(())) => {
                self.view.adopted = Some(adopted);
                true
            }
            error => {
                warn!("the state of the rollout cannot be written: {error:?}");
                false
            }
        }
    }

    /// Stores a number, and returns whether it is on the disk.
    pub(super) async fn set_number(&self, file: &'static str, number: u64) -> bool {
        let folder = self.folder.clone();
        let stored = self.runtime.history_reader.run(move || folder.set_number(file, number)).await;
        if !matches!(stored, Ok(Ok(()))) {
            warn!("the number of rollout {number} cannot be written, and outgate tries again: {stored:?}");
        }
        matches!(stored, Ok(Ok(())))
    }
}

fn source(adopted: &AdoptedBundle, is_undone: bool) -> ReloadSource {
    let AdoptedBundle { number, author, approver, .. } = adopted;
    ReloadSource::Rollout { number: *number, author: author.clone(), approver: approver.clone(), is_undone }
}
