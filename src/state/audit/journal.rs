//! Audit records for systemd's journal, as entries with fields of their own.
//! What happens to records while the journal is away?

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::sleep;
use std::time::Duration;

use super::status::SinkStatus;
use crate::audit::{Record, WrittenRecord};
use crate::state::observability::journald::Journal;

/// The attempts for one record. The journal may restart meanwhile.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// Sends the records of the queue until it is closed. A record that the journal does not take is dropped: the file has it.
pub(super) fn run(queue: Receiver<WrittenRecord>, status: &Arc<SinkStatus>) {
    let mut journal = None;
    for record in queue {
        for attempt in 1..=ATTEMPTS {
            match send(&mut journal, &record) {
                Ok(()) => {
                    status.connected();
                    break;
                }
                Err(error) => status.fail(error.to_string()),
            }
            match attempt {
                ATTEMPTS => status.count_dropped(),
                _ => sleep(PAUSE),
            }
        }
    }
}

fn send(journal: &mut Option<Journal>, written: &WrittenRecord) -> io::Result<()> {
    let journal = match journal {
        Some(journal) => journal,
        None => journal.insert(Journal::open()?),
    };
    let record: Record = serde_json::from_slice(&written.line)?;
    journal.send(&[
        ("MESSAGE", &format!("audit: {}", record.description)),
        ("PRIORITY", written.event_type.syslog_severity().as_str()),
        ("SYSLOG_IDENTIFIER", "outgate"),
        ("OUTGATE_AUDIT_SEQ", &record.seq.to_string()),
        ("OUTGATE_AUDIT_EVENT", &record.event_type),
        ("OUTGATE_AUDIT_ACTOR", record.actor_sid.as_deref().unwrap_or_default()),
        ("OUTGATE_AUDIT_RESOURCE", &record.resource_sid),
        ("OUTGATE_AUDIT_RECORD", &String::from_utf8_lossy(&written.line)),
    ])
}
