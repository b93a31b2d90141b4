//! Adopts a configuration as a whole, or reports why it is rejected.
//! In which order do sockets, files, the audit log, the plan and the history change?

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use tracing::{error, info, warn};

use super::listeners::ListenerChange;
use super::prepare::{ConfigChange, ProblemReport};
use super::startup_settings::StartupSettings;
use super::{ReloadReason, Reloader, Requester, audit_events};
use crate::config::difference::Difference;
use crate::config::{Config, Problem};
use crate::policy::Plan;
use crate::state::audit::NextLog;
use crate::state::config::status::{AdoptedConfig, RejectedConfig, ReloadOutcome, ReloadVerdict};
use crate::state::observability::log;
use crate::state::observability::records::RecordDestination;

/// Limits the changes of one reload that are logged.
const LOGGED_CHANGES_MAX: usize = 20;

/// The sockets and files of the next configuration, open before anything changes.
pub(super) struct Resources {
    listeners: ListenerChange,
    /// `None`: records go where they went before.
    destination: Option<RecordDestination>,
    audit: NextLog,
}

impl Reloader {
    /// Opens new sockets and files before anything changes.
    async fn open_resources(&self, config: &Config, plan: &Plan) -> Result<Resources, Vec<Problem>> {
        let deliveries = &config.log.deliveries;
        let destination = self.runtime.records.open_next(&config.log).await.map_err(|error| {
            let problem = Problem::at(deliveries.span, "cannot open the delivery log").label(error.to_string());
            vec![problem.help("let the user that outgate runs as write there, or write another path")]
        })?;
        let active = self.runtime.active_config();
        let audit = self.runtime.audit.prepare(active.plan.audit.as_ref(), plan.audit.as_ref()).await;
        let audit = audit.map_err(|error| {
            let span = config.audit.file.as_ref().map(|file| file.span);
            let problem = Problem { span, ..Problem::general("cannot open the audit log") }.label(error.to_string());
            vec![problem.help("let the user that outgate runs as write there, or write another path")]
        })?;
        Ok(Resources { listeners: self.listeners.prepare(config)?, destination, audit })
    }

    /// Opens new sockets and files, records the change, and adopts the configuration. An error leaves all as it was.
    pub(super) async fn adopt(
        &mut self,
        change: ConfigChange,
        config: &Config,
        requester: &Requester,
    ) -> Result<ReloadOutcome, ProblemReport> {
        let ConfigChange { active, difference, contained, warnings, customer_actions } = change;
        let report = |problems: &[Problem]| ProblemReport::new(problems, &config.sources);
        let opened = self.open_resources(config, &active.plan).await;
        let Resources { listeners, destination, audit } = opened.map_err(|problems| report(&problems))?;
        let (former, now) = (self.runtime.config_status.adopted(), Timestamp::now());
        let adopted = AdoptedConfig {
            number: former.number + 1,
            adopted_at: now,
            list: active.plan.list_version(Some(&former.list), now, now),
            adopted_by: requester.by.clone(),
            cause: config.rollback.map_or_else(|| requester.cause.to_owned(), |number| format!("rollback to {number}")),
            difference,
            snapshot: Arc::clone(&config.snapshot),
            warnings: contained.iter().chain(&warnings).cloned().collect(),
            restart_required: self.startup_settings.restart_required_keys(&StartupSettings::from_config(config)),
        };
        if let Err(error) = self.record_change(&active.plan, &adopted, audit, requester).await {
            self.listeners.abort(listeners);
            let problem = Problem::general(format!("audit_unwritable: {error}"));
            return Err(report(&[problem.help("make the audit log writable, and reload again: `outgate reload`")]));
        }
        let new_warnings = self.without_logged(warnings);
        self.last_problems.clear();
        self.failed_to_listen = None;
        self.is_watching = config.server.watch;
        self.runtime.adopt(active, adopted.clone());
        let runtime = Arc::clone(&self.runtime);
        drop(self.runtime.config_worker.run(move || runtime.metrics.prune(&runtime.active_config().plan)));
        self.listeners.commit(listeners);
        if let Some(destination) = destination {
            self.runtime.records.replace(destination, Instant::now());
        }
        self.runtime.records.configure(&config.log);
        log::configure(&config.log);
        self.set_drift(None);
        self.history.announce_ranges().await;
        self.history.write_adopted(adopted, config.server.history).await;
        contained.iter().for_each(|problem| error!("{problem}"));
        new_warnings.iter().for_each(|warning| warn!("{warning}"));
        customer_actions.iter().for_each(|action| info!("{action}"));
        Ok(ReloadOutcome { customer_actions, ..self.log_adopted() })
    }

    /// Records a change before it takes effect.
    async fn record_change(
        &self,
        plan: &Plan,
        adopted: &AdoptedConfig,
        next: NextLog,
        requester: &Requester,
    ) -> Result<(), String> {
        let (active, former) = (self.runtime.active_config(), self.runtime.config_status.adopted());
        let announcements = self.runtime.config_status.announcements();
        let events = audit_events::changed(&active.plan, plan, &former, adopted, requester, &announcements);
        self.runtime.audit.change(events, next, audit_events::withdrawn(adopted)).await
    }

    /// Logs the adoption, and returns its outcome. The history has assigned the number.
    fn log_adopted(&self) -> ReloadOutcome {
        let adopted = self.runtime.config_status.adopted();
        for key in &adopted.restart_required {
            warn!("{key} changed: it takes effect at the next restart");
        }
        log_difference(&adopted.difference);
        let AdoptedConfig { number, cause, adopted_by, .. } = &*adopted;
        let by = if cause == adopted_by { String::new() } else { format!(", by {adopted_by}") };
        info!("configuration reloaded from {}: number {number}, {cause}{by}", self.path.display());
        ReloadOutcome {
            difference: adopted.difference.clone(),
            warnings: adopted.warnings.clone(),
            ..self.runtime.config_status.current_outcome(ReloadVerdict::Adopted)
        }
    }

    /// Removes the warnings of the active configuration, which are logged already.
    fn without_logged(&self, mut warnings: Vec<String>) -> Vec<String> {
        let adopted = self.runtime.config_status.adopted();
        warnings.retain(|warning| !adopted.warnings.contains(warning));
        warnings
    }

    pub(super) fn reject(
        &mut self,
        problems: ProblemReport,
        requester: &Requester,
        reason: ReloadReason,
    ) -> ReloadOutcome {
        if reason == ReloadReason::Requested || problems.lines != self.last_problems {
            self.runtime.reject(RejectedConfig {
                rejected_at: Timestamp::now(),
                requested_by: requester.by.clone(),
                problems: problems.lines.clone(),
            });
            let file = self.path.display().to_string();
            self.runtime.audit.record(audit_events::rejected(&file, &problems.lines, requester, Timestamp::now()));
            self.without_logged(problems.warnings.clone()).iter().for_each(|warning| warn!("{warning}"));
            for problem in &problems.lines {
                error!("{problem}");
            }
            error!(
                "configuration not adopted, requested by {}: outgate keeps the active one; fix the problems above and reload",
                requester.by
            );
            self.last_problems.clone_from(&problems.lines);
        }
        self.record_drift(problems.lines.first().cloned()); // logged above, as a rejection
        self.rejected_outcome(problems)
    }

    pub(super) fn rejected_outcome(&self, problems: ProblemReport) -> ReloadOutcome {
        let ProblemReport { json, report, .. } = problems;
        ReloadOutcome { problems: json, report, ..self.runtime.config_status.current_outcome(ReloadVerdict::Rejected) }
    }
}

fn log_difference(difference: &Difference) {
    for change in difference.changes.iter().take(LOGGED_CHANGES_MAX) {
        info!("changed: {change}");
    }
    let more = difference.changes.len().saturating_sub(LOGGED_CHANGES_MAX) + difference.more;
    if more > 0 {
        info!("changed: and {more} more");
    }
}
