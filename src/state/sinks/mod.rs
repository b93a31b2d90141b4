//! The sinks that get audit records and alerts: syslog servers and the journal.
//! Where do messages go besides outgate's own files?

mod journal;
mod status;
mod syslog;

use std::io;
use std::sync::{Arc, Weak};

use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::JoinHandle;

use crate::config::SyslogServer;
use crate::host;
use crate::names::SyslogSeverity;
use crate::state::Runtime;
pub use status::SinkStatus;

/// The messages that wait for a sink. Further ones are dropped and counted.
const QUEUE_MAX: usize = 1000;

/// The facilities of syslog (RFC 5424 §6.2.1) that outgate uses.
#[derive(Clone, Copy, Debug)]
pub enum Facility {
    Audit = 13,
    Alert = 14,
}

/// The fields of a journal entry, besides its priority and its identifier.
pub type JournalFields = Vec<(&'static str, String)>;

/// A message, in the forms that the sinks need.
pub struct SinkMessage {
    pub at: Timestamp,
    pub facility: Facility,
    pub severity: SyslogSeverity,
    /// The identifier of a syslog message: the kind of event.
    pub id: &'static str,
    /// One line of JSON, without a line feed.
    pub line: Vec<u8>,
    /// Reads the line as a journal entry.
    pub journal_fields: fn(&[u8]) -> io::Result<JournalFields>,
}

/// The open sinks.
pub struct Sinks {
    /// The messages in words: `audit records`.
    messages: &'static str,
    runtime: Weak<Runtime>,
    tokio: Handle,
    /// The name of this host in syslog messages.
    host: String,
    servers: Vec<(SyslogServer, SinkQueue<Arc<[u8]>>)>,
    journal: Option<SinkQueue<Arc<SinkMessage>>>,
}

/// The queue of one sink, and the task that empties it.
pub struct SinkQueue<T> {
    pub queue: Sender<T>,
    pub status: Arc<SinkStatus>,
    pub task: JoinHandle<()>,
}

impl<T> SinkQueue<T> {
    /// Queues a message, and returns whether it could. Never waits: a message that finds the queue full is dropped and
    /// counted.
    pub fn send(&self, message: T) -> bool {
        let is_queued = self.queue.try_send(message).is_ok();
        if !is_queued {
            self.status.count_dropped();
        }
        is_queued
    }
}

impl Sinks {
    pub fn new(messages: &'static str, runtime: Weak<Runtime>, tokio: Handle) -> Self {
        let host = host::own_name();
        // NILVALUE where the host has no name (RFC 5424 §6.2.4).
        let host = if host.is_empty() || host.contains(' ') { "-".to_owned() } else { host };
        Self { messages, runtime, tokio, host, servers: Vec::new(), journal: None }
    }

    /// Opens these sinks and closes the others. A sink that stays keeps its connection. Returns the status of each.
    pub fn set(&mut self, servers: &[SyslogServer], journald: bool) -> Vec<Arc<SinkStatus>> {
        let mut before = std::mem::take(&mut self.servers);
        for server in servers {
            let kept = before.iter().position(|(kept, _)| kept == server).map(|index| before.swap_remove(index));
            let sink = kept.unwrap_or_else(|| (server.clone(), self.open(server)));
            self.servers.push(sink);
        }
        let before = self.journal.take();
        self.journal = journald.then(|| before.unwrap_or_else(|| self.open_journal()));
        let servers = self.servers.iter().map(|(_, sink)| &sink.status);
        servers.chain(self.journal.iter().map(|sink| &sink.status)).cloned().collect()
    }

    /// Opens the journal on a thread that may wait for it.
    fn open_journal(&self) -> SinkQueue<Arc<SinkMessage>> {
        let (queue, messages) = channel(QUEUE_MAX);
        let status = Arc::new(SinkStatus::new(self.messages, "journald"));
        let reported = Arc::clone(&status);
        SinkQueue { task: self.tokio.spawn_blocking(move || journal::run(messages, &reported)), queue, status }
    }

    fn open(&self, server: &SyslogServer) -> SinkQueue<Arc<[u8]>> {
        let (queue, frames) = channel(QUEUE_MAX);
        let status = Arc::new(SinkStatus::new(self.messages, &server.url));
        let run = syslog::run(Weak::clone(&self.runtime), server.clone(), frames, Arc::clone(&status));
        SinkQueue { task: self.tokio.spawn(run), queue, status }
    }

    pub fn is_empty(&self) -> bool {
        self.journal.is_none() && self.servers.is_empty()
    }

    /// Queues a message for all sinks. Never waits.
    pub fn send(&self, message: &Arc<SinkMessage>) {
        self.journal.iter().for_each(|sink| _ = sink.send(Arc::clone(message)));
        if self.servers.is_empty() {
            return;
        }
        let frame: Arc<[u8]> = syslog::frame(message, &self.host).into();
        self.servers.iter().for_each(|(_, sink)| _ = sink.send(Arc::clone(&frame)));
    }

    /// Closes the queues. The tasks end when they have sent what waits.
    pub fn close(self) -> Vec<JoinHandle<()>> {
        let servers = self.servers.into_iter().map(|(_, sink)| sink.task);
        servers.chain(self.journal.map(|sink| sink.task)).collect()
    }
}
