//! The audit log of the running proxy: its writer, its status and its sinks.
//! When may a change take effect, and what becomes of events that need no confirmation?

mod counts;
mod status;
mod writer;

use std::io;
use std::net::IpAddr;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::audit::{AuditLog, AuditSettings, Event};
use crate::policy::audit::AuditPlan;
use crate::state::Runtime;
use crate::state::sinks::Sinks;
pub use counts::CountedEvent;
use counts::EventCounts;
pub use status::AuditStatus;
pub use writer::NextLog;
use writer::{Change, Command, Writer};

/// The longest wait of a change for its record. A disk under load may need seconds for one write.
const APPEND_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest wait of the end of the process for its last records to be on the disk.
const LAST_APPEND_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest wait of the end of the process for the last records to reach the sinks.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The tasks that wait for the writer while its disk hangs. Further events are lost and counted.
const COMMANDS_MAX: usize = 1000;

/// The audit log of the process. Without `[audit]` it records nothing.
#[derive(Default)]
pub struct AuditTrail {
    /// Unset: the writer is not started.
    commands: OnceLock<SyncSender<Command>>,
    status: Arc<AuditStatus>,
    counts: EventCounts,
}

impl AuditTrail {
    /// Returns the status of the log and of its sinks.
    pub fn status(&self) -> &AuditStatus {
        &self.status
    }

    /// Starts the writer with the log of the active configuration.
    pub fn start(&self, runtime: &Arc<Runtime>) -> io::Result<()> {
        let sinks = Sinks::new("audit records", Arc::downgrade(runtime), tokio::runtime::Handle::current());
        let writer = Writer::new(runtime.active_config().plan.audit.clone(), Arc::clone(&self.status), sinks);
        let (commands, queue) = sync_channel(COMMANDS_MAX);
        thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run(&queue))?;
        let _ = self.commands.set(commands); // a process starts it once
        Ok(())
    }

    /// Opens the log of the next configuration, if its path is not the one of `present`.
    pub async fn prepare(
        &self,
        present: Option<&Arc<AuditPlan>>,
        plan: Option<&Arc<AuditPlan>>,
    ) -> io::Result<NextLog> {
        let path = |plan: &Arc<AuditPlan>| plan.settings.path.clone();
        let moved = plan.filter(|plan| present.map(path) != Some(path(plan)));
        let opened = match moved.map(|plan| plan.settings.clone()) {
            None => None,
            Some(settings) => {
                let opening = tokio::task::spawn_blocking(|| AuditLog::open(settings));
                let opened = timeout(APPEND_TIMEOUT, opening).await.map_err(|_| no_answer())?;
                Some(opened.map_err(io::Error::other)??)
            }
        };
        Ok(NextLog { plan: plan.cloned(), opened })
    }

    /// Records a change and waits until the record is on the disk. The writer then adopts the next log.
    ///
    /// # Errors
    ///
    /// The log cannot be written, or its disk does not answer in time: the change must not take effect. The writer appends
    /// `withdrawn` if the record reaches the disk later.
    pub async fn change(&self, events: Vec<Event>, next: NextLog, withdrawn: Event) -> Result<(), String> {
        let commands = self.commands.get().ok_or("the audit thread does not run")?;
        let (reply, mut recorded) = oneshot::channel();
        let settings = next.plan.as_ref().map(|plan| plan.settings.clone());
        let change = Command::Change(Box::new(Change { events, next, withdrawn, reply }));
        if commands.try_send(change).is_ok() {
            match timeout(APPEND_TIMEOUT, &mut recorded).await {
                Ok(Ok(recorded)) => return recorded,
                Ok(Err(_)) => {}
                Err(_) => {
                    // The reply may have come just now; later ones fail, and the writer withdraws the change.
                    recorded.close();
                    if let Ok(recorded) = recorded.try_recv() {
                        return recorded;
                    }
                }
            }
        }
        Err(self.unanswered(settings.as_ref()))
    }

    fn unanswered(&self, settings: Option<&AuditSettings>) -> String {
        settings.map_or_else(|| no_answer().to_string(), |settings| self.status.fail(settings, &no_answer()))
    }

    /// Records an event without waiting for the disk.
    pub fn record(&self, event: Event) {
        if let Some(commands) = self.commands.get().filter(|_| self.status.is_on())
            && commands.try_send(Command::Record(event)).is_err()
        {
            self.status.count_lost();
        }
    }

    /// Records an event, and waits until it is on the disk. Returns the number of its record; `None`: there is no log.
    ///
    /// # Errors
    ///
    /// The log cannot be written, or its disk does not answer in time.
    pub async fn confirm(&self, event: Event) -> Result<Option<u64>, String> {
        let Some(commands) = self.commands.get().filter(|_| self.status.is_on()) else { return Ok(None) };
        let (reply, recorded) = oneshot::channel();
        let _ = commands.try_send(Command::Confirm(event, reply)); // without a place in the queue, `recorded` fails at once
        match timeout(APPEND_TIMEOUT, recorded).await {
            Ok(Ok(recorded)) => recorded,
            _ => Err(no_answer().to_string()),
        }
    }

    /// Counts an event that is too frequent for a record of its own.
    pub fn count(&self, counted: CountedEvent, address: Option<IpAddr>, now: Timestamp) {
        if self.status.is_on() {
            self.counts.add(counted, address, now);
        }
    }

    /// Records the counts of a minute that is over.
    pub fn record_counts(&self, now: Timestamp) {
        self.counts.take_due(now, false).into_iter().for_each(|event| self.record(event));
    }

    /// Records the counts and the last event of the process in one write, and ends the writer.
    pub async fn close(&self, last: Event, now: Timestamp) {
        let Some(commands) = self.commands.get() else { return };
        let events = self.counts.take_due(now, true).into_iter().chain([last]).collect();
        let (reply, closed) = oneshot::channel();
        if commands.try_send(Command::Close(events, reply)).is_err() {
            return;
        }
        let Ok(Ok(sinks)) = timeout(LAST_APPEND_TIMEOUT, closed).await else { return };
        let closing = async {
            for task in sinks {
                let _ = task.await; // a task that panicked sends nothing more
            }
        };
        let _ = timeout(CLOSE_TIMEOUT, closing).await;
    }
}

fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("its disk has not answered for {} s", APPEND_TIMEOUT.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::CONFIGURATION_WITHDRAWN;

    #[tokio::test]
    async fn change_is_refused_while_no_thread_can_record_it() {
        let withdrawn = Event::new(CONFIGURATION_WITHDRAWN, "file", Timestamp::UNIX_EPOCH, "withdrawn");
        let refused = AuditTrail::default().change(Vec::new(), NextLog::default(), withdrawn).await;
        assert_eq!(refused, Err("the audit thread does not run".to_owned()));
    }
}
