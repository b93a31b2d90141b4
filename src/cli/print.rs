//! `println!` and similar macros for commands. Unlike those of std, they do not panic on a closed pipe.
//! What happens to a command's output when its reader closes the pipe?
//!
//! The macros have the names of std's macros and shadow them within `cli`, so that no command panics when it prints.
//! A command with a closed pipe runs to its end, because some do more than print (`rollback`, `keys new`).

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::sysexits;

static IS_CLOSED: AtomicBool = AtomicBool::new(false);

/// The first failed write to stdout that was not due to a closed pipe, such as a full disk.
static FIRST_ERROR: Mutex<Option<io::Error>> = Mutex::new(None);

macro_rules! print {
    ($($words:tt)*) => { $crate::cli::print::to_stdout(format_args!($($words)*)) };
}

macro_rules! println {
    () => { $crate::cli::print::to_stdout(format_args!("\n")) };
    ($($words:tt)*) => { $crate::cli::print::to_stdout(format_args!("{}\n", format_args!($($words)*))) };
}

macro_rules! eprint {
    ($($words:tt)*) => { $crate::cli::print::to_stderr(format_args!($($words)*)) };
}

macro_rules! eprintln {
    ($($words:tt)*) => { $crate::cli::print::to_stderr(format_args!("{}\n", format_args!($($words)*))) };
}

pub(super) fn to_stdout(words: fmt::Arguments<'_>) {
    record_error(io::stdout().lock().write_fmt(words));
}

/// Ignores a failed write: there is no other stream to report it on.
pub(super) fn to_stderr(words: fmt::Arguments<'_>) {
    let _ = io::stderr().lock().write_fmt(words);
}

/// Returns `code`, or an I/O error if the command succeeded but its output could not be written.
pub(super) fn final_exit_code(code: ExitCode) -> ExitCode {
    record_error(io::stdout().lock().flush());
    match FIRST_ERROR.lock().take() {
        Some(error) if code == ExitCode::SUCCESS => {
            eprintln!("outgate: cannot write to stdout: {error}");
            ExitCode::from(sysexits::IO_ERROR)
        }
        _ => code,
    }
}

/// Returns whether the reader of stdout has closed the pipe.
pub(super) fn is_closed() -> bool {
    IS_CLOSED.load(Ordering::Relaxed)
}

fn record_error(result: io::Result<()>) {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => IS_CLOSED.store(true, Ordering::Relaxed),
        Err(error) => drop(FIRST_ERROR.lock().get_or_insert(error)),
        Ok(()) => {}
    }
}
