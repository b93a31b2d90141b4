//! The destinations of lines, each used by one writer thread: the interface, standard streams, and the journal.
//! What becomes of a line in its destination?

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::PIPE_BUF;

use crate::names::SyslogSeverity;
use crate::state::observability::delivery_line::{LogLine, one_line};
use crate::state::observability::journald::Journal;

/// A write that failed, and the number of lines that are not written.
pub(in crate::state) struct WriteError {
    pub(in crate::state) error: io::Error,
    pub(in crate::state) lost: u64,
}

impl WriteError {
    pub(in crate::state) fn of_all(lines: &[u8], error: io::Error) -> Self {
        Self { error, lost: count_lines(lines) }
    }
}

/// The destination of lines.
pub(in crate::state) trait LineSink: Send {
    /// Opens the destination, unless it is open. The disk may hang.
    fn open(&mut self) -> io::Result<()>;
    fn is_open(&self) -> bool;
    /// Writes whole lines.
    fn write(&mut self, lines: &[u8]) -> Result<(), WriteError>;
    /// Returns the path of a file.
    fn path(&self) -> Option<&Path> {
        None
    }
    /// Does what is due, even if there is no line to write. The writer calls it several times a second.
    fn maintain(&mut self) {}
}

pub(in crate::state) fn count_lines(text: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', text).count() as u64
}

/// Returns the length of the whole lines at the start of a text.
pub(in crate::state) fn whole_lines(text: &[u8]) -> usize {
    memchr::memrchr(b'\n', text).map_or(0, |at| at + 1)
}

/// Writes all bytes. On an error, returns it with the number of bytes that are written.
pub(in crate::state) fn write_all(file: &mut File, bytes: &[u8]) -> Result<(), (io::Error, usize)> {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return Err((io::ErrorKind::WriteZero.into(), written)),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process may share the stream and have made it non-blocking.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(file, PollFlags::OUT)], None).map_err(|error| (error.into(), written))?;
            }
            Err(error) => return Err((error, written)),
        }
    }
    Ok(())
}

/// A duplicate of a standard stream's descriptor: the stream of std would buffer, lock, and flush at exit.
pub(in crate::state) struct StreamSink {
    file: File,
    /// A write has ended within a line: a line feed keeps the next line from continuing it.
    is_torn: bool,
    /// People read the stream: records are lines of text.
    is_terminal: bool,
}

impl StreamSink {
    #[expect(clippy::disallowed_methods, reason = "duplicates the descriptor: no write passes through the stream")]
    pub(in crate::state) fn stdout() -> io::Result<Self> {
        let is_terminal = io::IsTerminal::is_terminal(&io::stdout());
        Ok(Self { file: io::stdout().as_fd().try_clone_to_owned()?.into(), is_torn: false, is_terminal })
    }

    #[expect(clippy::disallowed_methods, reason = "duplicates the descriptor: no write passes through the stream")]
    pub(in crate::state) fn stderr() -> io::Result<Self> {
        Ok(Self { file: io::stderr().as_fd().try_clone_to_owned()?.into(), is_torn: false, is_terminal: false })
    }
}

impl StreamSink {
    /// Writes a line if the stream takes it without a wait.
    pub(in crate::state) fn write_now(&mut self, line: &[u8]) {
        let ready = poll(&mut [PollFd::new(&self.file, PollFlags::OUT)], Some(&Timespec::default()));
        if ready.is_ok_and(|count| count > 0) {
            // A pipe that is ready has room for this many bytes (pipe(7)).
            let _ = self.file.write(&line[..line.len().min(PIPE_BUF)]); // there is no other place to report to
        }
    }
}

impl LineSink for StreamSink {
    fn open(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn is_open(&self) -> bool {
        true
    }

    fn write(&mut self, lines: &[u8]) -> Result<(), WriteError> {
        let text = if self.is_terminal { terminal_text(lines) } else { Vec::new() };
        let lines = if self.is_terminal { &text } else { lines };
        if self.is_torn {
            write_all(&mut self.file, b"\n").map_err(|(error, _)| WriteError::of_all(lines, error))?;
            self.is_torn = false;
        }
        write_all(&mut self.file, lines).map_err(|(error, written)| {
            let whole = whole_lines(&lines[..written]);
            self.is_torn = whole < written;
            WriteError::of_all(&lines[whole..], error)
        })
    }
}

/// Returns records as lines of text for people.
fn terminal_text(lines: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(lines.len());
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        let shown = match LogLine::parse(line) {
            Some(LogLine::Delivery(delivery)) => format!("{:.3} {}\n", delivery.time, delivery.summary()),
            Some(LogLine::Gap(line)) => format!("{:.3} {}\n", line.time, line.gap.to_text()),
            None => one_line(&String::from_utf8_lossy(line)).trim_end().to_owned() + "\n",
        };
        text.extend_from_slice(shown.as_bytes());
    }
    text
}

/// The journal of systemd. A record is an entry with fields of its own.
#[derive(Default)]
pub(in crate::state) struct JournalSink(Option<Journal>);

impl LineSink for JournalSink {
    fn open(&mut self) -> io::Result<()> {
        if self.0.is_none() {
            self.0 = Some(Journal::open()?);
        }
        Ok(())
    }

    fn is_open(&self) -> bool {
        self.0.is_some()
    }

    fn write(&mut self, lines: &[u8]) -> Result<(), WriteError> {
        self.open().map_err(|error| WriteError::of_all(lines, error))?;
        let Some(journal) = &mut self.0 else { return Ok(()) };
        let mut sent = 0;
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            send_line(journal, line).map_err(|error| WriteError::of_all(&lines[sent..], error))?;
            sent += line.len();
        }
        Ok(())
    }
}

fn send_line(journal: &mut Journal, line: &[u8]) -> io::Result<()> {
    let text = String::from_utf8_lossy(line);
    let record = ("OUTGATE_RECORD", text.trim_end());
    let identifier = ("SYSLOG_IDENTIFIER", "outgate");
    let priority = |priority: SyslogSeverity| ("PRIORITY", priority.as_str());
    match LogLine::parse(line) {
        Some(LogLine::Delivery(delivery)) => {
            let level = match delivery.blame.as_deref() {
                _ if delivery.is_success() => SyslogSeverity::Informational,
                Some("outgate") => SyslogSeverity::Error,
                _ => SyslogSeverity::Warning,
            };
            let summary = delivery.summary();
            let mut fields = vec![("MESSAGE", summary.as_str()), priority(level), identifier];
            let known = [
                ("OUTGATE_TENANT", delivery.tenant.as_deref()),
                ("OUTGATE_ROUTE", delivery.route.as_deref()),
                ("OUTGATE_HOST", delivery.host.as_deref()),
                ("OUTGATE_CODE", Some(delivery.code.as_str())),
                ("OUTGATE_BLAME", delivery.blame.as_deref()),
                ("OUTGATE_REQUEST_ID", Some(delivery.request_id.as_str())),
                ("OUTGATE_SOURCE", delivery.source.as_deref()),
                ("OUTGATE_TRACE_ID", delivery.trace_id.as_deref()),
            ];
            fields.extend(known.into_iter().filter_map(|(name, value)| Some((name, value?))));
            fields.push(record);
            journal.send(&fields)
        }
        Some(LogLine::Gap(line)) => {
            let message = line.gap.to_text();
            journal.send(&[("MESSAGE", message.as_str()), priority(SyslogSeverity::Error), identifier, record])
        }
        None => journal.send(&[("MESSAGE", record.1), priority(SyslogSeverity::Informational), identifier]),
    }
}

/// Checks that a journal listens.
pub(in crate::state) fn probe_journal() -> io::Result<()> {
    Journal::open().map(drop)
}
