//! The status of the configuration: the adopted one, a rejected one, a drift of the files, and the history.
//! Which configuration is active, since when, and which source requested it?

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Notify;
use tracing::info;

use crate::config::SourceSnapshot;
use crate::config::difference::Difference;
use crate::names::join_first;
use crate::policy::egress::list::ListVersion;
use crate::policy::egress::notice::Announcements;

/// The number of sources that a description names; it counts the rest.
const SOURCES_NAMED_MAX: usize = 3;

/// The source of a request to reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReloadSource {
    FileChange,
    Signal,
    /// A user of this host, as the kernel identifies the peer of the admin socket.
    User {
        name: Option<String>,
        uid: u32,
        pid: Option<i32>,
    },
    /// A user of `[admin.users]`, at the other end of a TCP connection.
    RemoteUser {
        name: String,
        address: IpAddr,
    },
    /// Operators of the fleet, who have signed a bundle.
    Rollout {
        number: u64,
        author: String,
        approver: Option<String>,
        /// Whether the bundle failed, so that the former one returns.
        is_undone: bool,
    },
}

impl ReloadSource {
    fn is_user(&self) -> bool {
        matches!(self, ReloadSource::User { .. } | ReloadSource::RemoteUser { .. })
    }
}

impl fmt::Display for ReloadSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReloadSource::FileChange => f.write_str("file change"),
            ReloadSource::Signal => f.write_str("signal"),
            ReloadSource::User { name, uid, pid } => {
                match name {
                    Some(name) => write!(f, "user {name} (uid {uid}")?,
                    None => write!(f, "user {uid} (uid {uid}")?,
                }
                match pid {
                    Some(pid) => write!(f, ", pid {pid})"),
                    None => f.write_str(")"),
                }
            }
            ReloadSource::RemoteUser { name, address } => write!(f, "user {name} at {address}"),
            ReloadSource::Rollout { number, author, approver, .. } => {
                write!(f, "rollout {number} of {author}")?;
                approver.iter().try_for_each(|approver| write!(f, ", approved by {approver}"))
            }
        }
    }
}

/// Returns the cause of a reload with these sources, as the history names it.
pub fn reload_cause(sources: &[ReloadSource]) -> &'static str {
    let has = |kind: fn(&ReloadSource) -> bool| sources.iter().any(kind);
    match () {
        () if has(|source| matches!(source, ReloadSource::Rollout { is_undone: true, .. })) => "rollback of a rollout",
        () if has(|source| matches!(source, ReloadSource::Rollout { .. })) => "rollout",
        () if has(ReloadSource::is_user) => "reload",
        () if has(|source| *source == ReloadSource::Signal) => "signal",
        () => "file change",
    }
}

/// Describes the sources of one reload, for logs and the history.
pub fn describe_sources(sources: &[ReloadSource]) -> String {
    // A user who requests a reload has usually changed the file, too.
    let users = sources.iter().filter(|source| source.is_user()).collect::<Vec<_>>();
    let all = if users.is_empty() { sources.iter().collect() } else { users };
    join_first(&all, SOURCES_NAMED_MAX)
}

/// A configuration that was adopted.
#[derive(Clone, Debug, Default)]
pub struct AdoptedConfig {
    /// Counted from 1.
    pub number: u64,
    pub adopted_at: Timestamp,
    /// The sources of the request.
    pub adopted_by: String,
    /// `reload`, `rollback to 41`.
    pub cause: String,
    /// The difference from the configuration before.
    pub difference: Difference,
    pub snapshot: Arc<SourceSnapshot>,
    /// The version of the ranges that customers see.
    pub list: ListVersion,
    pub warnings: Vec<String>,
    /// The keys whose values take effect at the next restart.
    pub restart_required: Vec<String>,
}

/// A configuration that was rejected.
#[derive(Clone, Debug)]
pub struct RejectedConfig {
    pub rejected_at: Timestamp,
    /// The sources of the request.
    pub requested_by: String,
    /// One line for each problem, with its position in the file.
    pub problems: Vec<String>,
}

/// The files on disk differ from the active configuration.
#[derive(Clone, Debug, Serialize)]
pub struct ConfigDrift {
    pub since: Timestamp,
    /// The first difference.
    pub what: String,
}

/// The outcome of a request to reload or to compare. It is the body of the response.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ReloadOutcome {
    pub outcome: ReloadVerdict,
    /// The number of the configuration that is active afterwards; `at`, `by` and `how` are of its adoption.
    pub number: u64,
    pub at: Timestamp,
    pub by: String,
    pub how: String,
    #[serde(flatten)]
    pub difference: Difference,
    pub warnings: Vec<String>,
    pub restart: Vec<String>,
    /// The actions of customers that the ranges require, one sentence each.
    #[serde(default)]
    pub customer_actions: Vec<String>,
    /// The problems as `check --json` prints them.
    pub problems: Value,
    /// The problems as `check` prints them.
    pub report: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReloadVerdict {
    Adopted,
    /// The files on disk equal the active configuration.
    #[default]
    Unchanged,
    /// The compared configuration would be adopted.
    Different,
    Rejected,
}

/// The addresses of the listeners for clients and operators, as bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BoundAddresses {
    pub server: Vec<String>,
    pub admin: Vec<String>,
    pub agent: Vec<String>,
    pub publish: Vec<String>,
}

#[derive(Default)]
pub struct ConfigStatus {
    adopted: ArcSwap<AdoptedConfig>,
    rejected: ArcSwapOption<RejectedConfig>,
    drift: ArcSwapOption<ConfigDrift>,
    /// The number of the configuration that a rollback is restoring. 0: there is no rollback.
    pending_rollback: AtomicU64,
    history_dir: ArcSwapOption<PathBuf>,
    history_error: ArcSwapOption<String>,
    announcements_error: ArcSwapOption<String>,
    announcements: ArcSwap<Announcements>,
    bound_addresses: ArcSwap<BoundAddresses>,
    changed: Notify,
}

impl ConfigStatus {
    /// Resolves when another configuration becomes active. It serves one waiting task.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Logs that a signal found no change. Users of the admin socket get a response instead, and file changes without a
    /// difference are common.
    pub fn log_unchanged(&self, cause: &str, by: &str) {
        if cause == "signal" {
            info!("configuration unchanged: number {} stays active, requested by {by}", self.adopted().number);
        }
    }

    pub fn adopted(&self) -> Arc<AdoptedConfig> {
        self.adopted.load_full()
    }

    pub fn adopt(&self, adopted: AdoptedConfig) {
        self.adopted.store(Arc::new(adopted));
        self.rejected.store(None);
        self.changed.notify_one();
    }

    /// Gives the adopted configuration the number that the history assigned, if it still has the number `from`.
    pub fn set_number(&self, from: u64, number: u64) {
        if from != number {
            self.adopted.rcu(|adopted| match adopted.number == from {
                true => Arc::new(AdoptedConfig { number, ..AdoptedConfig::clone(adopted) }),
                false => Arc::clone(adopted),
            });
        }
    }

    pub fn rejected(&self) -> Option<Arc<RejectedConfig>> {
        self.rejected.load_full()
    }

    pub fn reject(&self, rejected: RejectedConfig) {
        self.rejected.store(Some(Arc::new(rejected)));
    }

    /// Clears the rejection: the files on disk are the active configuration again.
    pub fn clear_rejection(&self) {
        self.rejected.store(None);
    }

    pub fn drift(&self) -> Option<Arc<ConfigDrift>> {
        self.drift.load_full()
    }

    /// Sets or clears the drift. Returns whether the drift begins or ends.
    pub fn set_drift(&self, what: Option<String>, now: Timestamp) -> bool {
        let before = self.drift();
        let since = before.as_ref().map_or(now, |drift| drift.since);
        let has_changed = before.is_some() != what.is_some();
        self.drift.store(what.map(|what| Arc::new(ConfigDrift { since, what })));
        has_changed
    }

    /// Sets the number of the configuration that a rollback is restoring.
    pub fn set_pending_rollback(&self, number: Option<u64>) {
        self.pending_rollback.store(number.unwrap_or(0), Ordering::Relaxed);
    }

    /// Returns the folder of the history of adopted configurations.
    pub fn history_dir(&self) -> Option<Arc<PathBuf>> {
        self.history_dir.load_full()
    }

    pub fn set_history_dir(&self, dir: PathBuf) {
        self.history_dir.store(Some(Arc::new(dir)));
    }

    /// Returns the reason why the history lacks the active configuration.
    pub fn history_error(&self) -> Option<String> {
        self.history_error.load_full().map(|error| error.to_string())
    }

    /// Sets the reason why the history lacks the active configuration. `None`: the history has it.
    pub fn set_history_error(&self, error: Option<String>) {
        self.history_error.store(error.map(Arc::new));
    }

    /// Returns the reason why the disk lacks the announcements.
    pub fn announcements_error(&self) -> Option<String> {
        self.announcements_error.load_full().map(|error| error.to_string())
    }

    /// Sets the reason why the disk lacks the announcements. `None`: the disk has them.
    pub fn set_announcements_error(&self, error: Option<String>) {
        self.announcements_error.store(error.map(Arc::new));
    }

    /// Returns since when customers can know the ranges of the active configuration.
    pub fn announcements(&self) -> Arc<Announcements> {
        self.announcements.load_full()
    }

    /// Changes the announcements. The reloader, the history and the notices do so.
    pub fn update_announcements(&self, change: impl Fn(&Announcements) -> Announcements) {
        self.announcements.rcu(|before| change(before));
    }

    pub fn bound_addresses(&self) -> Arc<BoundAddresses> {
        self.bound_addresses.load_full()
    }

    pub fn set_bound_addresses(&self, addresses: BoundAddresses) {
        self.bound_addresses.store(Arc::new(addresses));
    }

    /// Returns an outcome with the adopted configuration and this verdict.
    pub fn current_outcome(&self, outcome: ReloadVerdict) -> ReloadOutcome {
        let adopted = self.adopted();
        ReloadOutcome {
            outcome,
            number: adopted.number,
            at: adopted.adopted_at,
            by: adopted.adopted_by.clone(),
            how: adopted.cause.clone(),
            restart: adopted.restart_required.clone(),
            ..ReloadOutcome::default()
        }
    }

    /// Returns the reasons why an operator should look at the configuration.
    pub fn degraded_reasons(&self) -> Vec<String> {
        let mut degraded = Vec::new();
        if let Some(rejected) = self.rejected() {
            let problem = rejected.problems.first().map_or("", String::as_str);
            degraded.push(format!("the configuration on disk is rejected, and the active one stays: {problem}"));
        } else if let Some(drift) = self.drift() {
            degraded.push(format!("the configuration on disk differs from the active one: {}", drift.what));
        }
        match self.pending_rollback.load(Ordering::Relaxed) {
            0 => {}
            number => degraded.push(format!(
                "a rollback to configuration {number} has not finished: run `outgate rollback --finish`"
            )),
        }
        let history = self.history_error();
        degraded.extend(history.map(|error| format!("the active configuration is not in the history: {error}")));
        degraded
            .extend(self.announcements_error().map(|error| format!("the announced ranges are not stored: {error}")));
        degraded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reload_sources_are_named_and_more_than_three_are_counted() {
        let user = |uid| ReloadSource::User { name: None, uid, pid: Some(7) };
        assert_eq!(describe_sources(&[ReloadSource::FileChange, ReloadSource::Signal]), "file change, signal");
        let root = ReloadSource::User { name: Some("root".into()), uid: 0, pid: None };
        assert_eq!(describe_sources(&[ReloadSource::FileChange, root]), "user root (uid 0)");
        let users = [user(1), user(2), user(3), user(4), user(5)];
        assert_eq!(
            describe_sources(&users),
            "user 1 (uid 1, pid 7), user 2 (uid 2, pid 7), user 3 (uid 3, pid 7) and 2 more"
        );
    }
}
