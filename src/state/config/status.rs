//! The configuration in force, and what is said of it: its number, who adopted it, what it changed, what is wrong.
//! What runs, since when, by whose doing?

use std::fmt;
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

/// Those who asked that are told one by one.
const NAMED_MAX: usize = 3;

/// Who, or what, wants the files read again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReloadSource {
    Start,
    FileChange,
    Signal,
    /// Of this host, as the kernel knows them.
    User {
        name: Option<String>,
        uid: u32,
        pid: Option<i32>,
    },
}

impl fmt::Display for ReloadSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReloadSource::Start => f.write_str("start"),
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
        }
    }
}

/// How a configuration came to be read, by whoever it was.
pub fn reload_cause(by: &[ReloadSource]) -> &'static str {
    let has = |kind: fn(&ReloadSource) -> bool| by.iter().any(kind);
    match () {
        () if has(|by| matches!(by, ReloadSource::User { .. })) => "reload",
        () if has(|by| *by == ReloadSource::Signal) => "signal",
        () if has(|by| *by == ReloadSource::Start) => "start",
        () => "file change",
    }
}

/// All who asked for the same, in words.
pub fn describe_sources(by: &[ReloadSource]) -> String {
    // A file that changed while a user asks is what the user means.
    let users = by.iter().filter(|by| matches!(by, ReloadSource::User { .. })).collect::<Vec<_>>();
    let all = if users.is_empty() { by.iter().collect() } else { users };
    let mut words = all.iter().take(NAMED_MAX).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if all.len() > NAMED_MAX {
        words.push_str(&format!(" and {} more", all.len() - NAMED_MAX));
    }
    words
}

/// A configuration that was adopted.
#[derive(Clone, Debug, Default)]
pub struct AdoptedConfig {
    /// Counted from 1.
    pub number: u64,
    pub at: Timestamp,
    pub by: String,
    /// `reload`, `rollback to 41`.
    pub cause: String,
    /// To the one before.
    pub difference: Difference,
    pub written: Arc<SourceSnapshot>,
    pub warnings: Vec<String>,
    /// Keys whose values take effect at the next restart.
    pub restart: Vec<String>,
}

/// One that was not.
#[derive(Clone, Debug)]
pub struct RejectedConfig {
    pub at: Timestamp,
    pub by: String,
    /// One a line, with its place.
    pub problems: Vec<String>,
}

/// What is on disk is not what runs.
#[derive(Clone, Debug, Serialize)]
pub struct ConfigDrift {
    pub since: Timestamp,
    /// The first that differs.
    pub what: String,
}

/// What came of a request to read the files again, or to compare.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ReloadOutcome {
    pub outcome: ReloadVerdict,
    /// The number of the configuration in force afterwards, and who adopted it when.
    pub number: u64,
    pub at: Timestamp,
    pub by: String,
    pub how: String,
    #[serde(flatten)]
    pub difference: Difference,
    pub warnings: Vec<String>,
    pub restart: Vec<String>,
    /// As `check --json` has them.
    pub problems: Value,
    /// As `check` shows them.
    pub report: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReloadVerdict {
    Adopted,
    /// What is on disk is what runs.
    #[default]
    Unchanged,
    /// It would be adopted.
    Different,
    Rejected,
}

/// Where clients and operators come in, as bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BoundAddresses {
    pub server: Vec<String>,
    pub admin: Vec<String>,
}

#[derive(Default)]
pub struct ConfigStatus {
    adopted: ArcSwap<AdoptedConfig>,
    rejected: ArcSwapOption<RejectedConfig>,
    drift: ArcSwapOption<ConfigDrift>,
    /// The number of a configuration that is being put back; 0: none is.
    rollback: AtomicU64,
    history: ArcSwapOption<PathBuf>,
    history_error: ArcSwapOption<String>,
    listening: ArcSwap<BoundAddresses>,
    changed: Notify,
}

impl ConfigStatus {
    /// Resolves when another one is in force; for one who waits.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Logs that a signal found no change. Who asks over the socket gets an answer, and saved files are often the same.
    pub fn log_unchanged(&self, how: &str, by: &str) {
        if how == "signal" {
            info!("configuration unchanged: number {} stays in force, by {by}", self.adopted().number);
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

    /// Gives the configuration in force the number that it is kept by, if it still has the number `from`.
    pub fn renumber(&self, from: u64, number: u64) {
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

    /// What is on disk is again what runs.
    pub fn unreject(&self) {
        self.rejected.store(None);
    }

    pub fn drift(&self) -> Option<Arc<ConfigDrift>> {
        self.drift.load_full()
    }

    /// True if it begins or ends with this.
    pub fn drifts(&self, what: Option<String>) -> bool {
        let before = self.drift();
        let since = before.as_ref().map_or_else(Timestamp::now, |drift| drift.since);
        let is_other = before.is_some() != what.is_some();
        self.drift.store(what.map(|what| Arc::new(ConfigDrift { since, what })));
        is_other
    }

    /// Which configuration is being put back, if one is.
    pub fn rolls_back(&self, number: Option<u64>) {
        self.rollback.store(number.unwrap_or(0), Ordering::Relaxed);
    }

    /// Where adopted configurations are kept.
    pub fn history(&self) -> Option<Arc<PathBuf>> {
        self.history.load_full()
    }

    pub fn keeps_history(&self, folder: PathBuf) {
        self.history.store(Some(Arc::new(folder)));
    }

    /// Why the one in force is not kept; `None`: it is.
    pub fn set_history_error(&self, why: Option<String>) {
        self.history_error.store(why.map(Arc::new));
    }

    pub fn listening(&self) -> Arc<BoundAddresses> {
        self.listening.load_full()
    }

    pub fn listens(&self, listening: BoundAddresses) {
        self.listening.store(Arc::new(listening));
    }

    /// An outcome that leaves, or found, things as they are now.
    pub fn outcome(&self, outcome: ReloadVerdict) -> ReloadOutcome {
        let adopted = self.adopted();
        ReloadOutcome {
            outcome,
            number: adopted.number,
            at: adopted.at,
            by: adopted.by.clone(),
            how: adopted.cause.clone(),
            restart: adopted.restart.clone(),
            ..ReloadOutcome::default()
        }
    }

    /// Why somebody should look.
    pub fn degraded(&self) -> Vec<String> {
        let mut degraded = Vec::new();
        if let Some(rejected) = self.rejected() {
            let why = rejected.problems.first().map_or("", String::as_str);
            degraded.push(format!("the configuration on disk is rejected, and the active one stays: {why}"));
        } else if let Some(drift) = self.drift() {
            degraded.push(format!("the configuration on disk differs from the active one: {}", drift.what));
        }
        match self.rollback.load(Ordering::Relaxed) {
            0 => {}
            number => {
                degraded.push(format!("a rollback to {number} has not finished: run `outgate rollback --finish`"))
            }
        }
        degraded
            .extend(self.history_error.load_full().map(|why| format!("the configuration in force is not kept: {why}")));
        degraded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asked_is_named_and_a_crowd_is_counted() {
        let user = |uid| ReloadSource::User { name: None, uid, pid: Some(7) };
        assert_eq!(describe_sources(&[ReloadSource::FileChange, ReloadSource::Signal]), "file change, signal");
        let root = ReloadSource::User { name: Some("root".into()), uid: 0, pid: None };
        assert_eq!(describe_sources(&[ReloadSource::FileChange, root]), "user root (uid 0)");
        let crowd = [user(1), user(2), user(3), user(4), user(5)];
        assert_eq!(
            describe_sources(&crowd),
            "user 1 (uid 1, pid 7), user 2 (uid 2, pid 7), user 3 (uid 3, pid 7) and 2 more"
        );
    }
}
