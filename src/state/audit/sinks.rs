//! The sinks that get a copy of each record: syslog servers and the journal.
//! Where do records go besides the file?

use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Weak};

use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, Sender};
use tokio::task::JoinHandle;

use super::status::{AuditStatus, SinkStatus};
use super::{journal, syslog};
use crate::audit::WrittenRecord;
use crate::config::SyslogServer;
use crate::host;
use crate::policy::audit::AuditPlan;
use crate::state::Runtime;

/// The records that wait for a server. Further ones are dropped and counted; the file has them.
const QUEUE_MAX: usize = 1000;

/// The open sinks.
pub(super) struct Sinks {
    runtime: Weak<Runtime>,
    tokio: Handle,
    /// The name of this host in syslog messages.
    host: String,
    servers: Vec<SyslogSink>,
    journal: Option<JournalSink>,
}

struct JournalSink {
    queue: SyncSender<WrittenRecord>,
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
    pub(super) fn new(runtime: Weak<Runtime>, tokio: Handle) -> Self {
        let host = host::own_name();
        // NILVALUE where the host has no name (RFC 5424 §6.2.4).
        let host = if host.is_empty() || host.contains(' ') { "-".to_owned() } else { host };
        Self { runtime, tokio, host, servers: Vec::new(), journal: None }
    }

    /// Opens the sinks of a plan and closes the others. A sink that stays keeps its connection.
    pub(super) fn set(&mut self, plan: Option<&AuditPlan>, status: &AuditStatus) {
        let mut before = std::mem::take(&mut self.servers);
        for server in plan.map_or(&[][..], |plan| &plan.syslog) {
            let kept = before.iter().position(|sink| sink.server == *server).map(|index| before.swap_remove(index));
            let sink = kept.unwrap_or_else(|| self.open(server.clone()));
            self.servers.push(sink);
        }
        match plan.is_some_and(|plan| plan.journald) {
            true if self.journal.is_none() => self.journal = Some(self.open_journal()),
            true => {}
            false => self.journal = None,
        }
        let servers = self.servers.iter().map(|sink| &sink.status);
        status.set_sinks(servers.chain(self.journal.iter().map(|sink| &sink.status)).cloned().collect());
    }

    /// Opens the journal on a thread that may wait for it.
    fn open_journal(&self) -> JournalSink {
        let (queue, records) = sync_channel(QUEUE_MAX);
        let status = Arc::new(SinkStatus::new("journald"));
        let reported = Arc::clone(&status);
        JournalSink { task: self.tokio.spawn_blocking(move || journal::run(records, &reported)), queue, status }
    }

    fn open(&self, server: SyslogServer) -> SyslogSink {
        let (queue, frames) = mpsc::channel(QUEUE_MAX);
        let status = Arc::new(SinkStatus::new(&server.url));
        let run = syslog::run(Weak::clone(&self.runtime), server.clone(), frames, Arc::clone(&status));
        SyslogSink { task: self.tokio.spawn(run), server, queue, status }
    }

    /// Queues records for all sinks. Never waits.
    pub(super) fn send(&self, records: &[WrittenRecord]) {
        for record in records {
            if let Some(sink) = &self.journal
                && sink.queue.try_send(record.clone()).is_err()
            {
                sink.status.count_dropped();
            }
            if self.servers.is_empty() {
                continue;
            }
            let frame: Arc<[u8]> = syslog::frame(record, &self.host).into();
            for sink in &self.servers {
                if sink.queue.try_send(Arc::clone(&frame)).is_err() {
                    sink.status.count_dropped();
                }
            }
        }
    }

    /// Closes the queues. The tasks end when they have sent what waits.
    pub(super) fn close(self) -> Vec<JoinHandle<()>> {
        let servers = self.servers.into_iter().map(|sink| sink.task);
        servers.chain(self.journal.map(|sink| sink.task)).collect()
    }
}
