//! Messages for systemd's journal, as entries with fields of their own.
//! What happens to messages while the journal is away?

use std::io;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;

use super::SinkMessage;
use super::status::SinkStatus;
use crate::state::observability::journald::Journal;

/// The attempts for one message. The journal may restart meanwhile.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// Sends the messages of the queue until it is closed. A message that the journal does not take is dropped.
pub(super) fn run(mut queue: Receiver<Arc<SinkMessage>>, status: &SinkStatus) {
    let mut journal = None;
    while let Some(message) = queue.blocking_recv() {
        for attempt in 1..=ATTEMPTS {
            match send(&mut journal, &message) {
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

fn send(journal: &mut Option<Journal>, message: &SinkMessage) -> io::Result<()> {
    let journal = match journal {
        Some(journal) => journal,
        None => journal.insert(Journal::open()?),
    };
    let own = (message.journal_fields)(&message.line)?;
    let mut fields = vec![("PRIORITY", message.severity.as_str()), ("SYSLOG_IDENTIFIER", "outgate")];
    fields.extend(own.iter().map(|(name, value)| (*name, value.as_str())));
    journal.send(&fields)
}
