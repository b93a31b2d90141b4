//! Adopts an earlier configuration from the history, and leaves the files on disk as they are.
//! What is active after a rollback over the admin API, and for how long?

use std::time::{Duration, SystemTime};

use super::prepare::{ConfigFiles, PreparedConfig, ProblemReport};
use super::{Reloader, Requester};
use crate::state::config::status::{ReloadOutcome, ReloadVerdict};

/// Later than any file that could still change without another timestamp.
const SETTLED_AFTER: Duration = Duration::from_secs(60);

impl Reloader {
    /// Adopts configuration `number` until the next reload. The process cannot write its files: the difference between
    /// them and the active configuration is reported as drift. A rejection changes nothing.
    pub(super) async fn roll_back(&mut self, number: u64, requester: &Requester) -> ReloadOutcome {
        let overlay = match self.history.overlay(&self.path, number).await {
            Ok(overlay) => overlay,
            Err(reason) => return self.rejected_outcome(ProblemReport::general(reason)),
        };
        let PreparedConfig { config, change, .. } = match self.read(ConfigFiles::Overlaid(overlay)).await {
            Ok(prepared) => prepared,
            Err(rejection) => return self.rejected_outcome(rejection.problems),
        };
        let outcome = match change {
            None => self.runtime.config_status.current_outcome(ReloadVerdict::Unchanged),
            Some(change) => {
                let adopted = self.adopt(change, &config, requester).await;
                adopted.unwrap_or_else(|problems| self.rejected_outcome(problems))
            }
        };
        self.runtime.config_worker.drop_later(config);
        if outcome.outcome == ReloadVerdict::Adopted {
            self.keep_over_present_files().await;
            self.set_drift(Some(format!(
                "configuration {number} was restored without its files, and the next reload loads those on disk: run \
                 `outgate rollback {number}` on this host, or correct the files"
            )));
        }
        outcome
    }

    /// Takes the files on disk as read, so that only a later change of them causes a reload.
    async fn keep_over_present_files(&mut self) {
        let (main, watch_set) = (self.path.clone(), self.watch_set.clone());
        let read_at = SystemTime::now() + SETTLED_AFTER;
        let fingerprint = self.runtime.config_worker.run(move || watch_set.fingerprint(&main, read_at)).await;
        self.fingerprint = fingerprint.ok();
        self.unsettled = None;
    }
}
