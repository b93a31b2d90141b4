//! Checks bundles of the fleet against this host, and switches the files of the current bundle.
//! Would this host adopt a bundle, and which bundle is active afterwards?

use std::sync::Arc;

use jiff::Timestamp;
use tracing::error;

use super::prepare::{ConfigFiles, PreparedConfig, ProblemReport};
use super::{ReloadReason, Reloader, Requester};
use crate::history::bundle_folder::BundleFolder;
use crate::policy::rollout::approval::approval_reasons;
use crate::policy::rollout::bundle::{Bundle, SignedBundle};
use crate::state::config::reload_queue::{BundleCheck, BundleRequest};
use crate::state::config::status::{ReloadOutcome, ReloadVerdict};

impl Reloader {
    pub(super) async fn answer_about_bundle(&mut self, request: BundleRequest) {
        match request {
            BundleRequest::Check { folder, bundle, reply } => drop(reply.send(self.check_bundle(folder, bundle).await)),
            BundleRequest::Switch { folder, next, replaced, source, reply } => {
                let outcome = self.switch_bundle(folder, next, replaced, &Requester::new(&[source])).await;
                let _ = reply.send(outcome); // the caller may be gone
            }
        }
    }

    async fn check_bundle(&self, folder: BundleFolder, bundle: Arc<Bundle>) -> BundleCheck {
        let status = &self.runtime.config_status;
        // The operator has the files of the bundle elsewhere, and sees only their names.
        let prefix = format!("{}/", folder.current().display());
        let name_files = |text: String| text.replace(&prefix, "");
        let overlay = move || bundle.overlay(folder.current(), folder.current_files().unwrap_or_default());
        let overlay = self.runtime.config_worker.run(overlay);
        let Ok(overlay) = overlay.await else {
            let problem = "the files of the bundle could not be read: see the log".to_owned();
            let outcome = self.rejected_outcome(ProblemReport::general(problem.clone()));
            return BundleCheck { outcome, problem: Some(problem), approval: Vec::new() };
        };
        match self.read(ConfigFiles::Overlaid(overlay)).await {
            Err(rejection) => {
                let mut problems = rejection.problems;
                problems.report = name_files(problems.report);
                let problem = problems.lines.first().cloned().map(name_files);
                BundleCheck { outcome: self.rejected_outcome(problems), problem, approval: Vec::new() }
            }
            Ok(PreparedConfig { change: None, .. }) => {
                let outcome = status.current_outcome(ReloadVerdict::Unchanged);
                BundleCheck { outcome, problem: None, approval: Vec::new() }
            }
            Ok(PreparedConfig { change: Some(change), .. }) => {
                let (active, now) = (self.runtime.active_config(), Timestamp::now());
                let approve_above = active.plan.operators.approve_above;
                let approval =
                    approval_reasons(&active.plan, &change.active.plan, &change.difference, approve_above, now);
                let current = status.current_outcome(ReloadVerdict::Different);
                let outcome = ReloadOutcome { difference: change.difference, ..current };
                BundleCheck { outcome, problem: None, approval }
            }
        }
    }

    /// Switches the files and reloads. A bundle that is rejected now leaves the former one.
    async fn switch_bundle(
        &mut self,
        folder: BundleFolder,
        next: Option<Arc<SignedBundle>>,
        replaced: Option<u64>,
        requester: &Requester,
    ) -> ReloadOutcome {
        let (is_adoption, switched) = (next.is_some(), folder.clone());
        let switched = self.runtime.config_worker.run(move || match &next {
            Some(bundle) => switched.adopt(bundle),
            None => switched.undo(),
        });
        if let Err(error) = switched.await.unwrap_or_else(|_| Err(std::io::Error::other("the switch panicked"))) {
            error!("cannot write the files of the bundle, so the configuration stays: {error}");
            return self.rejected_outcome(ProblemReport::general(format!("cannot write the bundle: {error}")));
        }
        if let Some(number) = replaced
            && let Some(outcome) = self.restore(number, requester).await
        {
            return outcome;
        }
        let outcome = self.reload(requester, ReloadReason::Requested).await;
        if is_adoption && outcome.outcome == ReloadVerdict::Rejected {
            let undone = self.runtime.config_worker.run(move || folder.undo()).await;
            if let Ok(Err(error)) = undone {
                error!("the files of a bundle that this host has rejected stay on the disk: {error}");
            }
            self.reload(requester, ReloadReason::Requested).await;
        }
        outcome
    }

    /// Restores the configuration that was active before the first bundle, unless the files on disk are that configuration.
    /// Sections that have moved into the bundle are no longer in these files. `None`: the files on disk are to be read.
    async fn restore(&mut self, number: u64, requester: &Requester) -> Option<ReloadOutcome> {
        let overlay = self.history.overlay(&self.path, number).await;
        let overlay = overlay.inspect_err(|reason| error!("outgate reads the files on disk, because {reason}")).ok()?;
        let unusable = |report: &str| {
            error!("outgate reads the files on disk, because configuration {number} is no longer valid: {report}")
        };
        let former = self.read(ConfigFiles::Overlaid(overlay)).await;
        let former = former.inspect_err(|rejection| unusable(&rejection.problems.report)).ok()?;
        let present = self.read(ConfigFiles::OnDisk).await;
        let is_present = present.as_ref().is_ok_and(|present| present.config.digest == former.config.digest);
        if is_present {
            return None;
        }
        let outcome = self.roll_back(number, requester).await;
        if outcome.outcome == ReloadVerdict::Rejected {
            unusable(&outcome.report);
            return None;
        }
        Some(outcome)
    }
}
