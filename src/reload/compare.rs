//! Compares the active configuration with another one, without a change.
//! What would a reload or a rollback change?

use std::sync::Arc;

use super::Reloader;
use super::prepare::{ConfigFiles, PreparedConfig, ProblemReport};
use crate::config::difference::Difference;
use crate::state::config::reload_queue::ComparisonTarget;
use crate::state::config::status::{ReloadOutcome, ReloadVerdict};

impl Reloader {
    /// Compares the active configuration with `target`.
    pub(super) async fn compare(&self, target: ComparisonTarget) -> ReloadOutcome {
        let files = match target {
            ComparisonTarget::Disk => ConfigFiles::OnDisk,
            ComparisonTarget::History(number) => match self.history.overlay(&self.path, number).await {
                Ok(overlay) => ConfigFiles::Overlaid(overlay),
                Err(reason) => return self.rejected_outcome(ProblemReport::general(reason)),
            },
            ComparisonTarget::Snapshot(other) => {
                let active = Arc::clone(&self.runtime.config_status.adopted().snapshot);
                let difference = self
                    .runtime
                    .config_worker
                    .run(move || Difference::between(&active, &other))
                    .await
                    .unwrap_or_default();
                let verdict = if difference.is_empty() { ReloadVerdict::Unchanged } else { ReloadVerdict::Different };
                return ReloadOutcome { difference, ..self.runtime.config_status.current_outcome(verdict) };
            }
        };
        match self.read(files).await {
            Err(rejection) => self.rejected_outcome(rejection.problems),
            Ok(PreparedConfig { change: None, .. }) => {
                self.runtime.config_status.current_outcome(ReloadVerdict::Unchanged)
            }
            Ok(PreparedConfig { change: Some(change), .. }) => ReloadOutcome {
                warnings: change.contained.into_iter().chain(change.warnings).collect(),
                difference: change.difference,
                customer_actions: change.customer_actions,
                ..self.runtime.config_status.current_outcome(ReloadVerdict::Different)
            },
        }
    }
}
