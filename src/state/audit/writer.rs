//! The thread that writes the audit log: the only code that waits for its disk.
//! Which records are on the disk, and which wait for it?

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::sinks::Sinks;
use super::status::AuditStatus;
use crate::audit::{AUDIT_GAP, AuditLog, Event, WrittenRecord};
use crate::policy::audit::AuditPlan;

/// The events that wait while the log cannot be written. Further ones are lost and counted.
const BACKLOG_MAX: usize = 1000;

/// A task for the thread.
pub(super) enum Command {
    /// Records an event that needs no confirmation.
    Record(Event),
    /// Records a change before it takes effect, and adopts the next log afterwards.
    Change(Box<Change>),
    /// Tries again to write what waits, and deletes files whose time has passed.
    Tick,
    /// Ends the thread. The reply has the tasks that still send records.
    Close(oneshot::Sender<Vec<JoinHandle<()>>>),
}

/// A change that waits for its record.
pub(super) struct Change {
    pub(super) events: Vec<Event>,
    pub(super) next: NextLog,
    /// The record for a caller that no longer waits: the change does not take effect.
    pub(super) withdrawn: Event,
    pub(super) reply: oneshot::Sender<Result<(), String>>,
}

/// The audit log after a change.
#[derive(Default)]
pub struct NextLog {
    pub(super) plan: Option<Arc<AuditPlan>>,
    /// The open log, if it is at another path than the present one.
    pub(super) opened: Option<AuditLog>,
}

pub(super) struct Writer {
    /// `None`: there is no audit log.
    plan: Option<Arc<AuditPlan>>,
    /// `None`: the log could not be opened yet.
    log: Option<AuditLog>,
    backlog: VecDeque<Event>,
    failure: Option<Failure>,
    status: Arc<AuditStatus>,
    sinks: Sinks,
}

/// A time in which the log could not be written.
struct Failure {
    since: Timestamp,
    reason: String,
    lost_before: u64,
}

impl Writer {
    pub(super) fn new(plan: Option<Arc<AuditPlan>>, status: Arc<AuditStatus>, mut sinks: Sinks) -> Self {
        status.set_on(plan.is_some());
        sinks.set(plan.as_deref(), &status);
        Self { plan, log: None, backlog: VecDeque::new(), failure: None, status, sinks }
    }

    pub(super) fn run(mut self, commands: Receiver<Command>) {
        for command in commands {
            match command {
                Command::Record(event) => self.record(event),
                Command::Change(change) => self.change(*change),
                Command::Tick => self.tick(),
                Command::Close(reply) => {
                    let _ = self.flush(Vec::new());
                    let _ = reply.send(self.sinks.close());
                    return;
                }
            }
        }
    }

    fn record(&mut self, event: Event) {
        if self.backlog.len() < BACKLOG_MAX {
            self.backlog.push_back(event);
        } else {
            self.status.count_lost();
        }
        // A disk that failed is tried again by the next tick or change.
        if self.failure.is_none() {
            let _ = self.flush(Vec::new());
        }
    }

    fn tick(&mut self) {
        if self.failure.is_some() || !self.backlog.is_empty() {
            let _ = self.flush(Vec::new());
        }
        let Some(log) = &mut self.log else { return };
        match log.expire(Timestamp::now()) {
            Ok(records) => {
                let late = log.checkpoint_error().map(|error| format!("the audit checkpoint is not written: {error}"));
                self.status.set_warning(late);
                self.written(&records);
            }
            Err(error) => self.status.set_warning(Some(format!("the audit log deletes no old file: {error}"))),
        }
    }

    fn change(&mut self, Change { events, mut next, withdrawn, reply }: Change) {
        let recorded = match &mut next.opened {
            None => self.flush(events),
            Some(opened) => self.move_to(opened, events),
        };
        let is_recorded = recorded.is_ok();
        match reply.send(recorded) {
            Ok(()) if is_recorded => self.adopt(next),
            Err(Ok(())) => {
                if let Some(opened) = &mut next.opened {
                    let _ = opened.append(vec![withdrawn.clone()]);
                }
                let _ = self.flush(vec![withdrawn]);
            }
            _ => {}
        }
    }

    /// Appends the records of a change that moves the log to another path. The former log gets them, too, if it can be
    /// written: otherwise no change could replace a log on a broken disk.
    fn move_to(&mut self, opened: &mut AuditLog, events: Vec<Event>) -> Result<(), String> {
        let waiting: Vec<Event> = match self.flush(events.clone()) {
            Ok(()) => Vec::new(),
            Err(_) => self.backlog.iter().cloned().collect(),
        };
        let appended = opened.append(waiting.into_iter().chain(events).collect());
        let records = appended.map_err(|error| self.status.fail(opened.settings(), &error))?;
        self.written(&records);
        Ok(())
    }

    fn adopt(&mut self, NextLog { plan, opened }: NextLog) {
        match (opened, &plan, &mut self.log) {
            (None, Some(plan), Some(log)) => log.set_settings(plan.settings.clone()),
            (None, Some(_), None) => {}
            (opened, _, log) => {
                *log = opened;
                self.backlog.clear();
                self.failure = None;
            }
        }
        self.status.set_on(plan.is_some());
        self.sinks.set(plan.as_deref(), &self.status);
        self.plan = plan;
    }

    /// Writes the events that wait, and then these.
    fn flush(&mut self, events: Vec<Event>) -> Result<(), String> {
        let Some(plan) = &self.plan else { return Ok(()) };
        let now = Timestamp::now();
        let gap = self.failure.as_ref().map(|failure| self.gap(failure, now));
        let all: Vec<Event> = self.backlog.iter().cloned().chain(gap).chain(events).collect();
        if all.is_empty() {
            return Ok(());
        }
        match append(&mut self.log, plan, all) {
            Ok(records) => {
                self.backlog.clear();
                self.failure = None;
                self.written(&records);
                Ok(())
            }
            Err(error) => {
                let reason = self.status.fail(&plan.settings, &error);
                let lost_before = self.status.lost_count();
                let failure = self.failure.get_or_insert(Failure { since: now, reason: String::new(), lost_before });
                failure.reason.clone_from(&reason);
                Err(reason)
            }
        }
    }

    /// Returns the record of a time in which the log could not be written.
    fn gap(&self, failure: &Failure, now: Timestamp) -> Event {
        let Failure { since, reason, lost_before } = failure;
        let (waited, lost) = (self.backlog.len(), self.status.lost_count() - lost_before);
        let what = format!("{reason}; {waited} records waited from {since} to {now}, and {lost} were lost");
        let resource = self.plan.as_ref().map(|plan| plan.settings.path.display().to_string()).unwrap_or_default();
        let event = Event::new(AUDIT_GAP, resource, now, what);
        event.with("since", since.to_string()).with("waited", waited).with("lost", lost)
    }

    fn written(&self, records: &[WrittenRecord]) {
        if !records.is_empty() {
            self.status.succeeded(records.len());
            self.sinks.send(records);
        }
    }
}

/// Appends to the log, and opens it first if it could not be opened before.
fn append(log: &mut Option<AuditLog>, plan: &AuditPlan, events: Vec<Event>) -> io::Result<Vec<WrittenRecord>> {
    let log = match log {
        Some(log) => log,
        None => log.insert(AuditLog::open(plan.settings.clone())?),
    };
    log.append(events)
}
