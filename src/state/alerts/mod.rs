//! The alerts that are active now.
//! Which conditions begin, last or end, and is a message about them due?

mod failing_tenants;
mod kinds;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;

use crate::panics::Mutex;
use crate::state::sinks::SinkStatus;

pub use failing_tenants::FailingTenants;
pub use kinds::*;

/// Limits the active alerts. Most subjects are names in the configuration; tenants and targets may be many.
const ALERTS_MAX: usize = 200;

/// A condition that holds now.
#[derive(Debug)]
pub struct Condition {
    pub kind: &'static AlertKind,
    /// The pool, address, file or tenant that it concerns; empty for the process.
    pub subject: String,
    /// The subject before redaction, which may make the subjects of several conditions equal. Nothing shows it.
    pub key: String,
    /// One sentence: what happened.
    pub what: String,
}

/// An alert, as messages about it have it.
#[derive(Clone, Debug, Serialize)]
pub struct Alert {
    #[serde(flatten)]
    pub kind: &'static AlertKind,
    pub subject: String,
    pub since: Timestamp,
    pub what: String,
    /// `None`: the condition lasts.
    pub resolved: Option<Timestamp>,
}

/// The reason for a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AlertEvent {
    Began,
    Reminded,
    Resolved,
}

impl AlertEvent {
    /// Returns the type of a webhook, and of a syslog message.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Began => "alert.began",
            Self::Reminded => "alert.reminded",
            Self::Resolved => "alert.resolved",
        }
    }
}

#[derive(Debug)]
struct ActiveAlert {
    alert: Alert,
    last_seen: Instant,
    last_message: Instant,
}

/// The active alerts, by name, subject and key, and the sinks that get them.
#[derive(Default)]
pub struct Alerts {
    active: Mutex<BTreeMap<(&'static str, String, String), ActiveAlert>>,
    sinks: Mutex<Vec<Arc<SinkStatus>>>,
}

impl Alerts {
    /// Returns the active alerts, sorted by name and subject.
    pub fn active(&self) -> Vec<Alert> {
        self.active.lock().values().map(|active| active.alert.clone()).collect()
    }

    pub fn set_sinks(&self, sinks: Vec<Arc<SinkStatus>>) {
        *self.sinks.lock() = sinks;
    }

    /// Returns the reasons why alerts do not reach a sink.
    pub fn degraded_reasons(&self) -> Vec<String> {
        self.sinks.lock().iter().filter_map(|sink| sink.degraded_reason()).collect()
    }

    /// Compares the conditions that hold now with the active alerts, and returns the messages that are due. An alert
    /// begins at once, and is resolved when its condition has been gone for `hold`: a condition that comes and goes is one
    /// alert.
    pub fn update(
        &self,
        conditions: Vec<Condition>,
        (now, instant): (Timestamp, Instant),
        (remind, hold): (Duration, Duration),
    ) -> Vec<(AlertEvent, Alert)> {
        let (mut active, mut due) = (self.active.lock(), Vec::new());
        for Condition { kind, subject, key, what } in conditions {
            let key = (kind.name, subject.clone(), key);
            if let Some(found) = active.get_mut(&key) {
                (found.last_seen, found.alert.what) = (instant, what);
                if instant.saturating_duration_since(found.last_message) >= remind {
                    found.last_message = instant;
                    due.push((AlertEvent::Reminded, found.alert.clone()));
                }
            } else if active.len() < ALERTS_MAX {
                let alert = Alert { kind, subject, since: now, what, resolved: None };
                due.push((AlertEvent::Began, alert.clone()));
                active.insert(key, ActiveAlert { alert, last_seen: instant, last_message: instant });
            }
        }
        active.retain(|_, ActiveAlert { alert, last_seen, .. }| {
            let lasts = *last_seen == instant || instant.saturating_duration_since(*last_seen) < hold;
            if !lasts {
                due.push((AlertEvent::Resolved, Alert { resolved: Some(now), ..alert.clone() }));
            }
            lasts
        });
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a sequence of observations, and returns the event and subject of each message.
    fn run(steps: &[(u64, &[&str])]) -> Vec<Vec<(AlertEvent, String)>> {
        let (alerts, start) = (Alerts::default(), Instant::now());
        let limits = (Duration::from_secs(100), Duration::from_secs(20));
        let observe = |(second, subjects): &(u64, &[&str])| {
            let condition = |subject: &&str| {
                let what = "happened".to_owned();
                Condition { kind: &POOL_EMPTY, subject: (*subject).to_owned(), key: String::new(), what }
            };
            let at = (Timestamp::UNIX_EPOCH, start + Duration::from_secs(*second));
            let due = alerts.update(subjects.iter().map(condition).collect(), at, limits);
            due.into_iter().map(|(event, alert)| (event, alert.subject)).collect()
        };
        steps.iter().map(observe).collect()
    }

    #[test]
    fn alert_has_one_message_at_its_begin_reminders_and_one_at_its_end() {
        use AlertEvent::{Began, Reminded, Resolved};
        let messages =
            run(&[(0, &["a"]), (5, &["a", "b"]), (100, &["a", "b"]), (110, &["a"]), (125, &["a"]), (150, &[])]);
        let expected: [&[(AlertEvent, &str)]; 6] =
            [&[(Began, "a")], &[(Began, "b")], &[(Reminded, "a")], &[], &[(Resolved, "b")], &[(Resolved, "a")]];
        for (found, expected) in messages.iter().zip(expected) {
            let found: Vec<_> = found.iter().map(|(event, subject)| (*event, subject.as_str())).collect();
            assert_eq!(found, expected, "{messages:?}");
        }
    }

    #[test]
    fn alert_of_a_condition_that_comes_and_goes_is_not_resolved_meanwhile() {
        let steps: Vec<(u64, &[&str])> =
            (0..9).map(|step| (step * 10, if step % 2 == 0 { &["a"][..] } else { &[] })).collect();
        assert_eq!(run(&steps).concat(), [(AlertEvent::Began, "a".to_owned())]);
    }

    #[test]
    fn alerts_have_a_bound() {
        let subjects: Vec<String> = (0..300).map(|number| number.to_string()).collect();
        let subjects: Vec<&str> = subjects.iter().map(String::as_str).collect();
        assert_eq!(run(&[(0, &subjects)]).concat().len(), ALERTS_MAX);
    }

    #[test]
    fn names_of_alerts_are_unique() {
        let names: std::collections::BTreeSet<_> = ALERT_KINDS.iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), ALERT_KINDS.len());
    }
}
