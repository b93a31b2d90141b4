//! The difference between the configuration in use and another one, without a change.
//! What would a reload or a rollback change?

use std::sync::Arc;

use tracing::info;

use super::Reloader;
use super::prepare::{ConfigFiles, PreparedConfig, ProblemReport};
use crate::config::difference::Difference;
use crate::state::config::reload_queue::ComparisonTarget;
use crate::state::config::status::{ReloadOutcome, ReloadVerdict};

/// Changes that the log names one by one.
const LOGGED_MAX: usize = 20;

impl Reloader {
    pub(super) fn rejected(&self, problems: ProblemReport) -> ReloadOutcome {
        let ProblemReport { json, report, .. } = problems;
        ReloadOutcome { problems: json, report, ..self.runtime.config_status.outcome(ReloadVerdict::Rejected) }
    }

    /// Changes nothing.
    pub(super) async fn compare(&self, with: ComparisonTarget) -> ReloadOutcome {
        let files = match with {
            ComparisonTarget::Disk => ConfigFiles::OnDisk,
            ComparisonTarget::History(number) => match self.kept.overlay(&self.path, number).await {
                Ok(overlay) => ConfigFiles::Overlaid(overlay),
                Err(why) => return self.rejected(ProblemReport::general(why)),
            },
            ComparisonTarget::Snapshot(with) => {
                let before = Arc::clone(&self.runtime.config_status.adopted().written);
                let difference = self
                    .runtime
                    .config_worker
                    .run(move || Difference::between(&before, &with))
                    .await
                    .unwrap_or_default();
                let verdict = if difference.is_empty() { ReloadVerdict::Unchanged } else { ReloadVerdict::Different };
                return ReloadOutcome { difference, ..self.runtime.config_status.outcome(verdict) };
            }
        };
        match self.read(files).await {
            Err(rejection) => self.rejected(rejection.problems),
            Ok(PreparedConfig { change: None, .. }) => self.runtime.config_status.outcome(ReloadVerdict::Unchanged),
            Ok(PreparedConfig { change: Some(change), .. }) => ReloadOutcome {
                warnings: change.left_out.into_iter().chain(change.warnings).collect(),
                difference: change.difference,
                ..self.runtime.config_status.outcome(ReloadVerdict::Different)
            },
        }
    }
}

pub(super) fn log_difference(difference: &Difference) {
    for change in difference.changes.iter().take(LOGGED_MAX) {
        info!("changed: {change}");
    }
    let more = difference.changes.len().saturating_sub(LOGGED_MAX) + difference.more;
    if more > 0 {
        info!("changed: and {more} more");
    }
}
