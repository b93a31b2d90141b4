//! The sinks that get audit records and alerts: syslog servers and the journal.
//! Where do messages go besides outgate's own files?

mod journal;
mod status;
mod syslog;

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Weak};

use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, Sender};
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
    servers: Vec<SyslogSink>,
    journal: Option<JournalSink>,
}

struct JournalSink {
    queue: SyncSender<Arc<SinkMessage>>,
    status: Arc<SinkStatus>,
    task: JoinHandle<()>,
}

struct SyslogSink {
    server: SyslogServer,
    queue: Sender<Arc<[u8]>>,
    status: Arc<SinkStatus>,
    task: JoinHandle<()>,
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
            let kept = before.iter().position(|sink| sink.server == *server).map(|index| before.swap_remove(index));
            let sink = kept.unwrap_or_else(|| self.open(server.clone()));
            self.servers.push(sink);
        }
        match journald {
            true if self.journal.is_none() => self.journal = Some(self.open_journal()),
            true => {}
            false => self.journal = None,
        }
        let servers = self.servers.iter().map(|sink| &sink.status);
        servers.chain(self.journal.iter().map(|sink| &sink.status)).cloned().collect()
    }

    /// Opens the journal on a thread that may wait for it.
    fn open_journal(&self) -> JournalSink {
        let (queue, messages) = sync_channel(QUEUE_MAX);
        let status = Arc::new(SinkStatus::new(self.messages, "journald"));
        let reported = Arc::clone(&status);
        JournalSink { task: self.tokio.spawn_blocking(move || journal::run(&messages, &reported)), queue, status }
    }

    fn open(&self, server: SyslogServer) -> SyslogSink {
        let (queue, frames) = mpsc::channel(QUEUE_MAX);
        let status = Arc::new(SinkStatus::new(self.messages, &server.url));
        let run = syslog::run(Weak::clone(&self.runtime), server.clone(), frames, Arc::clone(&status));
        SyslogSink { task: self.tokio.spawn(run), server, queue, status }
    }

    pub fn is_empty(&self) -> bool {
        self.journal.is_none() && self.servers.is_empty()
    }

    /// Queues a message for all sinks. Never waits.
    pub fn send(&self, message: &Arc<SinkMessage>) {
        if let Some(sink) = &self.journal
            && sink.queue.try_send(Arc::clone(message)).is_err()
        {
            sink.status.count_dropped();
        }
        if self.servers.is_empty() {
            return;
        }
        let frame: Arc<[u8]> = syslog::frame(message, &self.host).into();
        for sink in &self.servers {
            if sink.queue.try_send(Arc::clone(&frame)).is_err() {
                sink.status.count_dropped();
            }
        }
    }

    /// Closes the queues. The tasks end when they have sent what waits.
    pub fn close(self) -> Vec<JoinHandle<()>> {
        let servers = self.servers.into_iter().map(|sink| sink.task);
        servers.chain(self.journal.map(|sink| sink.task)).collect()
    }
}
