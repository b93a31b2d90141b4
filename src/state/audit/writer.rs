//! The thread that writes the audit log: the only code that waits for its disk.
//! Which records are on the disk, and which wait for it?

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::status::AuditStatus;
use crate::audit::{AUDIT_GAP, AuditLog, Event, Record, WrittenRecord};
use crate::names::pluralize;
use crate::policy::audit::AuditPlan;
use crate::state::sinks::{Facility, JournalFields, SinkMessage, Sinks};

/// The events that wait while the log cannot be written. Further ones are lost and counted.
const BACKLOG_MAX: usize = 1000;

/// The interval at which the thread tries again to write what waits.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// The pause before the next look for files whose time has passed: after one without any, and after an error.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);
const EXPIRY_ERROR_INTERVAL: Duration = Duration::from_secs(3600);

/// A task for the thread.
pub(super) enum Command {
    /// Records an event that needs no confirmation.
    Record(Event),
    /// Records an event, and replies with the number of its record.
    Confirm(Event, oneshot::Sender<Result<Option<u64>, String>>),
    /// Records a change before it takes effect, and adopts the next log afterwards.
    Change(Box<Change>),
    /// Records the last events and ends the thread. The reply has the tasks that still send records.
    Close(Vec<Event>, oneshot::Sender<Vec<JoinHandle<()>>>),
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
    /// The lost events that a record states, or that were lost before this log.
    lost_stated: u64,
    /// The beginning of the last write.
    last_write: Timestamp,
    /// When to look for files whose time has passed, and why the last look deleted none.
    expiry_due: Instant,
    expiry_error: Option<String>,
    status: Arc<AuditStatus>,
    sinks: Sinks,
}

/// A time in which the log could not be written.
struct Failure {
    since: Timestamp,
    reason: String,
}

impl Writer {
    pub(super) fn new(plan: Option<Arc<AuditPlan>>, status: Arc<AuditStatus>, sinks: Sinks) -> Self {
        let mut writer = Self {
            plan,
            log: None,
            backlog: VecDeque::new(),
            failure: None,
            lost_stated: 0,
            last_write: Timestamp::now(),
            expiry_due: Instant::now(),
            expiry_error: None,
            status,
            sinks,
        };
        writer.follow_plan();
        writer
    }

    fn follow_plan(&mut self) {
        let plan = self.plan.as_deref();
        self.status.set_on(plan.is_some());
        let (servers, journald) = plan.map_or((&[][..], false), |plan| (&plan.syslog, plan.journald));
        self.status.set_sinks(self.sinks.set(servers, journald));
    }

    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        let mut next_retry = Instant::now() + RETRY_INTERVAL;
        loop {
            match commands.recv_timeout(next_retry.saturating_duration_since(Instant::now())) {
                Ok(Command::Record(event)) => self.record(event),
                Ok(Command::Confirm(event, reply)) => drop(reply.send(self.confirm(event))),
                Ok(Command::Change(change)) => self.change(*change),
                Ok(Command::Close(last, reply)) => {
                    let _ = self.flush(last);
                    let _ = reply.send(self.sinks.close());
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() >= next_retry {
                self.retry();
                next_retry = Instant::now() + RETRY_INTERVAL;
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

    fn confirm(&mut self, event: Event) -> Result<Option<u64>, String> {
        self.flush(vec![event])?;
        Ok(self.log.as_ref().map(|log| log.size() - 1))
    }

    /// Tries again to write what waits, and deletes a file whose time has passed.
    fn retry(&mut self) {
        let _ = self.flush(Vec::new());
        let Some(log) = &mut self.log else { return };
        let mut records = Vec::new();
        if Instant::now() >= self.expiry_due {
            let expired = log.expire(Timestamp::now(), &mut records);
            let pause = match expired {
                Ok(true) => Duration::ZERO, // the next file may be due, too
                Ok(false) => EXPIRY_INTERVAL,
                Err(_) => EXPIRY_ERROR_INTERVAL,
            };
            self.expiry_due = Instant::now() + pause;
            self.expiry_error = expired.err().map(|error| format!("the audit log deletes no old file: {error}"));
        }
        let late = log.checkpoint_error().map(|error| format!("the audit checkpoint is not written: {error}"));
        self.status.set_warning(late.or_else(|| self.expiry_error.clone()));
        self.written(&records);
    }

    fn change(&mut self, Change { events, mut next, withdrawn, reply }: Change) {
        if reply.is_closed() {
            return; // the caller no longer waits, and nothing is recorded
        }
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

    /// Appends the records of a change that moves the log to another path, first to the next log: the former one must not
    /// have records of a change that fails. The former log gets them, too, if it can be written: otherwise no change could
    /// replace a log on a broken disk.
    fn move_to(&mut self, opened: &mut AuditLog, events: Vec<Event>) -> Result<(), String> {
        let _ = self.flush(Vec::new());
        let all = self.waiting(self.status.lost_count(), Timestamp::now()).chain(events.iter().cloned()).collect();
        let records = opened.append(all).map_err(|error| self.status.fail(opened.settings(), &error))?;
        self.written(&records);
        if let Some(plan) = &self.plan
            && self.failure.is_none()
            && let Ok(records) = append(&mut self.log, plan, events)
        {
            self.written(&records);
        }
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
                self.lost_stated = self.status.lost_count();
                (self.expiry_due, self.expiry_error) = (Instant::now(), None);
                self.status.set_warning(None);
            }
        }
        self.plan = plan;
        self.follow_plan();
    }

    /// Writes the events that wait, and then these.
    fn flush(&mut self, events: Vec<Event>) -> Result<(), String> {
        let Some(plan) = &self.plan else { return Ok(()) };
        let (now, lost) = (Timestamp::now(), self.status.lost_count());
        let all: Vec<Event> = self.waiting(lost, now).chain(events).collect();
        if all.is_empty() {
            return Ok(());
        }
        let appended = append(&mut self.log, plan, all);
        self.last_write = now;
        match appended {
            Ok(records) => {
                self.backlog.clear();
                self.failure = None;
                self.lost_stated = lost;
                self.written(&records);
                Ok(())
            }
            Err(error) => {
                let reason = self.status.fail(&plan.settings, &error);
                let failure = self.failure.get_or_insert(Failure { since: now, reason: String::new() });
                failure.reason.clone_from(&reason);
                Err(reason)
            }
        }
    }

    /// Returns the events that wait, and the record of a time in which the log could not be written or was too slow for
    /// the events. `lost`: the lost events so far.
    fn waiting(&self, lost: u64, now: Timestamp) -> impl Iterator<Item = Event> {
        let lost = lost - self.lost_stated;
        let gap = (self.failure.is_some() || lost > 0).then(|| {
            let path = self.plan.as_ref().map(|plan| plan.settings.path.display().to_string()).unwrap_or_default();
            let hung = || (self.last_write, format!("the disk of the audit log {path} did not answer in time"));
            let failure = self.failure.as_ref().map(|failure| (failure.since, failure.reason.clone()));
            let ((since, reason), waited) = (failure.unwrap_or_else(hung), self.backlog.len());
            let (kept, dropped) = (pluralize(waited as u64, "record"), pluralize(lost, "record"));
            let what = format!("{reason}; {kept} waited from {since} to {now}, and outgate lost {dropped}");
            let event = Event::new(AUDIT_GAP, path, now, what);
            event.with("since", since.to_string()).with("waited", waited).with("lost", lost)
        });
        self.backlog.iter().cloned().chain(gap)
    }

    fn written(&self, records: &[WrittenRecord]) {
        if !records.is_empty() {
            self.status.succeeded(records.len());
            if !self.sinks.is_empty() {
                records.iter().for_each(|record| self.sinks.send(&Arc::new(to_message(record))));
            }
        }
    }
}

fn to_message(record: &WrittenRecord) -> SinkMessage {
    let WrittenRecord { line, event_type, at } = record;
    SinkMessage {
        at: *at,
        facility: Facility::Audit,
        severity: event_type.syslog_severity(),
        id: event_type.name,
        line: line.clone(),
        journal_fields,
    }
}

fn journal_fields(line: &[u8]) -> io::Result<JournalFields> {
    let record: Record = serde_json::from_slice(line)?;
    Ok(vec![
        ("MESSAGE", format!("audit: {}", record.description)),
        ("OUTGATE_AUDIT_SEQ", record.seq.to_string()),
        ("OUTGATE_AUDIT_EVENT", record.event_type),
        ("OUTGATE_AUDIT_ACTOR", record.actor_sid.unwrap_or_default()),
        ("OUTGATE_AUDIT_RESOURCE", record.resource_sid),
        ("OUTGATE_AUDIT_RECORD", String::from_utf8_lossy(line).into_owned()),
    ])
}

/// Appends to the log, and opens it first if it could not be opened before.
fn append(log: &mut Option<AuditLog>, plan: &AuditPlan, events: Vec<Event>) -> io::Result<Vec<WrittenRecord>> {
    let log = match log {
        Some(log) => log,
        None => log.insert(AuditLog::open(plan.settings.clone())?),
    };
    log.append(events)
}
