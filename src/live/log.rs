//! The operator's log: lines for stderr, written by a thread of its own.
//! What becomes of a log line when nobody reads stderr, or when stderr is gone?
//!
//! `tracing-appender` has such a queue, but it bounds lines instead of bytes, and does not count the lines that its
//! writer could not write: a stderr that is gone would go unnoticed. So this is the queue of the delivery records.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Duration;

use tracing::warn;
use tracing_subscriber::EnvFilter;

use super::lines::{Lines, Pace, Sink};

/// Some ten thousand lines that wait for a reader of stderr; further ones are lost and counted.
const BACKLOG_MAX: usize = 1 << 20;
/// The writer sleeps until a line wakes it; a wake-up that it missed costs this long.
const FLUSH_AFTER: Duration = Duration::from_secs(1);
/// For the last lines to be written when the process ends.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// One for the process, like stderr.
static LOG: OnceLock<Lines> = OnceLock::new();

/// Starts the writer. Before this, and where there is no thread for it, lines are dropped.
pub fn start() -> io::Result<()> {
    let pace = Pace { backlog_max: BACKLOG_MAX, flush_size: 1, flush_after: FLUSH_AFTER };
    let (lines, _) = Lines::open("log", pace, Sink::stderr()?, |lost| {
        warn!("{lost} log lines were lost: stderr did not take them");
    })?;
    let _ = LOG.set(lines); // a second start changes nothing
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = Backtrace::capture();
        let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| format!("\n{backtrace}"));
        let thread = std::thread::current();
        text(&format!("thread {} {panic}{}", thread.name().unwrap_or("?"), backtrace.unwrap_or_default()));
        // Where a panic aborts, nothing is written after this.
        flush();
    }));
    Ok(())
}

/// Logs what is at least as severe as `level`. Under systemd the journal adds the time.
pub fn subscribe(level: &str) {
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Line).with_target(false);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().with_ansi(false).init();
    } else {
        log.with_ansi(io::stderr().is_terminal()).init();
    }
}

/// Writes text that is not a log event, such as the problems of a configuration.
pub fn text(text: &str) {
    push(format!("{text}\n").as_bytes());
}

/// Lines that stderr did not take since the process started.
pub fn lost() -> u64 {
    LOG.get().map_or(0, Lines::lost)
}

/// Lines that stderr did not take, and that the log has not reported yet: it cannot be written at the moment.
pub fn unreported() -> u64 {
    LOG.get().map_or(0, Lines::unreported)
}

/// Waits until all lines are written, for at most [`CLOSE_PATIENCE`].
pub fn flush() {
    if let Some(lines) = LOG.get() {
        lines.flush(CLOSE_PATIENCE);
    }
}

fn push(line: &[u8]) {
    if let Some(lines) = LOG.get() {
        lines.push(line);
    }
}

/// One event: the subscriber writes a whole line at once.
struct Line;

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
