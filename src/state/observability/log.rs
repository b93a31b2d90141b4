//! The operator's log: lines for stderr, which one thread writes.
//! What happens to a log line when no program reads stderr, or when stderr is closed?
//!
//! `tracing-appender` has such a queue, but it bounds lines instead of bytes, and does not count the lines that its
//! writer could not write: a closed stderr would go unnoticed. The log therefore uses the queue of the delivery records.

mod format;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Duration;

use tracing::{Level, warn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use self::format::{EventFormat, LogStyle};
use crate::config::{Log, LogFormat};
use crate::names::pluralize;
use crate::panics;
use crate::policy::redact::Redactor;
use crate::state::observability::line_queue::{LineQueue, LineQueueConfig, LossReporting};
use crate::state::observability::line_sink::StreamSink;

/// The bytes that wait for a reader of stderr: about ten thousand lines. Further lines are lost and counted.
const BACKLOG_MAX: usize = 1 << 20;
/// The writer sleeps until a line wakes it; a wake-up that it missed costs this long.
const FLUSH_AFTER: Duration = Duration::from_secs(1);
/// The longest wait for the last lines when the process ends.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// The log of the process, which has one stderr.
static LOG: OnceLock<LineQueue> = OnceLock::new();
/// Changes the level of the process's subscriber.
static LEVEL: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts the writer. Lines before the start are dropped, and all lines where the thread cannot start.
pub fn start() -> io::Result<()> {
    let config = LineQueueConfig { backlog_max: BACKLOG_MAX, flush_size: 1, flush_after: FLUSH_AFTER };
    let reporting = LossReporting::Call(|lost| warn!("stderr did not accept {}", pluralize(lost, "log line")));
    let (lines, _) = LineQueue::open("log", config, Box::new(StreamSink::stderr()?), reporting)?;
    let _ = LOG.set(lines); // a second start changes nothing
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| format!("\n{backtrace}"));
        let thread = std::thread::current();
        // A failed assertion may show a part of a request.
        let message = panic.to_string().replacen(":\n", ": ", 1);
        let message = Redactor::default().message(&message).into_owned();
        let is_contained = panics::observe(panic);
        let consequence = match is_contained {
            true => "only this delivery or connection ends",
            false => "the process ends",
        };
        let line = format::text(
            Level::ERROR,
            &format!(
                "outgate has a bug: thread {} {message}; {consequence}; please report it{}",
                thread.name().unwrap_or("?"),
                backtrace.unwrap_or_default()
            ),
        );
        if is_contained {
            push(line.as_bytes());
        } else {
            push_last(line.as_bytes());
            std::process::abort();
        }
    }));
    Ok(())
}

/// Adopts the journal's form for later lines, where stderr is the journal.
pub fn find_style() {
    if is_journal() {
        LogStyle::Journal.put_in_force();
    }
}

/// Adopts the level and the format of the configuration for later lines. The journal has its own form, unless the
/// configuration asks for JSON.
pub fn configure(log: &Log) {
    let style = match log.format {
        LogFormat::Json => LogStyle::Json,
        LogFormat::Text if is_journal() => LogStyle::Journal,
        LogFormat::Text => LogStyle::Text,
    };
    style.put_in_force();
    let filter = EnvFilter::try_new(&log.level).unwrap_or_else(|_| EnvFilter::new("info"));
    if let Some(level) = LEVEL.get() {
        let _ = level.reload(filter); // it fails only where the subscriber is gone
        return;
    }
    let (filter, level) = reload::Layer::new(filter);
    let lines = fmt::layer().event_format(EventFormat::new()).with_writer(|| LogWriter).with_ansi(has_colours());
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        let _ = LEVEL.set(level);
    }
}

/// Returns whether text on stderr has colours: on a terminal, unless `NO_COLOR` is set to something (no-color.org).
#[expect(clippy::disallowed_methods, reason = "asks about the descriptor and writes nothing")]
pub fn has_colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Returns whether colours would break the form of the lines.
pub fn is_formatted() -> bool {
    LogStyle::now() != LogStyle::Text
}

/// systemd.exec(5): `JOURNAL_STREAM` has device and inode of the journal, which stderr may have left since.
#[expect(clippy::disallowed_methods, reason = "asks about the descriptor and writes nothing")]
fn is_journal() -> bool {
    let Some(journal) = std::env::var("JOURNAL_STREAM").ok() else { return false };
    let stat = rustix::fs::fstat(io::stderr());
    stat.is_ok_and(|stat| journal == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Writes text that is not a log event, such as the problems of a configuration.
pub fn text(level: Level, text: &str) {
    push(format::text(level, text).as_bytes());
}

/// Returns the number of lines that stderr did not take since the process started.
pub fn lost_lines() -> u64 {
    LOG.get().map_or(0, LineQueue::lost_count)
}

/// Returns the number of lines that stderr did not take and that the log has not reported yet.
pub fn unreported() -> u64 {
    LOG.get().map_or(0, LineQueue::unreported)
}

/// Waits until all lines are written, for at most [`CLOSE_PATIENCE`].
pub fn flush() {
    LOG.get().into_iter().for_each(|lines| lines.flush(CLOSE_PATIENCE));
}

fn push(line: &[u8]) {
    LOG.get().into_iter().for_each(|lines| lines.push(line));
}

/// Writes the last line of a process that a panic ends, by itself if the panic has stopped the queue.
fn push_last(line: &[u8]) {
    let is_written = LOG.get().is_some_and(|lines| lines.push_last(line, CLOSE_PATIENCE));
    if let (false, Ok(mut stderr)) = (is_written, StreamSink::stderr()) {
        stderr.write_now(line);
    }
}

/// The writer of one event: the subscriber writes a whole line at once.
struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
