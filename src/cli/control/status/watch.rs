//! `outgate status --watch`: a live view on a terminal, and a line for each sample elsewhere.
//! How does the state change, and how is the terminal left behind?

use std::io::{IsTerminal, Write, stdout};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::super::super::local_runtime::new_tokio_runtime;
use super::super::admin_client::AdminError;
use super::lines::{Style, rates, status_lines};
use super::{Status, text};
use crate::cli::print;
use crate::sysexits;

/// The alternate screen of the terminal, without a cursor. Dropping it shows what was there before.
struct Screen;

impl Screen {
    fn open() -> Self {
        print!("\x1b[?1049h\x1b[?25l");
        Self
    }

    /// Replaces what the screen shows, row by row, so that it does not flicker.
    fn draw(&self, rows: &[String], style: &Style) {
        let rows: String = rows.iter().take(style.rows).map(|row| format!("{row}\x1b[K\n")).collect();
        print!("\x1b[H{}\x1b[K\x1b[J", rows.trim_end_matches('\n'));
        let _ = stdout().flush(); // a failure shows in the next write
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        print!("\x1b[?25h\x1b[?1049l");
        let _ = stdout().flush();
    }
}

impl Status {
    pub(super) fn watch(&self, interval: Duration) -> ExitCode {
        let runtime = match new_tokio_runtime() {
            Ok(runtime) => runtime,
            Err(code) => return code,
        };
        // Before the screen is taken: a signal must not end the process while the terminal is changed.
        let signals = runtime.block_on(async {
            Ok::<_, std::io::Error>((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
        });
        let Ok((mut interrupt, mut terminate)) = signals else { return ExitCode::from(sysexits::OS_ERROR) };
        let screen = (!self.json && stdout().is_terminal()).then(Screen::open);
        let mut before = None;
        while !print::is_closed() {
            let sample = self.sample();
            match (&screen, &sample) {
                (Some(screen), sample) => self.draw(screen, before.as_ref(), sample),
                (None, Ok(status)) if self.json => println!("{status}"),
                (None, Ok(status)) => println!("{}", plain(before.as_ref(), status)),
                (None, Err(AdminError::NotListening(message) | AdminError::Failed(message))) => println!("{message}"),
            }
            let _ = stdout().flush();
            before = sample.ok();
            let is_over = runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => true,
                    _ = terminate.recv() => true,
                    () = tokio::time::sleep(interval) => false,
                }
            });
            if is_over {
                break;
            }
        }
        ExitCode::SUCCESS
    }

    fn draw(&self, screen: &Screen, before: Option<&Value>, sample: &Result<Value, AdminError>) {
        let style = Style::of_stdout();
        let rows: Vec<String> = match sample {
            Ok(status) => {
                let rates = before.and_then(|before| rates(before, status));
                let at = format!("{}   Ctrl-C ends this view", text(&status["at"]).get(..19).unwrap_or_default());
                let mut lines = status_lines(status);
                // Beside the state, where a low terminal still shows it.
                lines.splice(2..2, rates);
                std::iter::once(at).chain(lines.iter().flat_map(|line| line.render(&style))).collect()
            }
            Err(AdminError::NotListening(message) | AdminError::Failed(message)) => {
                message.lines().map(str::to_owned).collect()
            }
        };
        screen.draw(&rows, &style);
    }
}

/// Describes a sample in one line.
fn plain(before: Option<&Value>, status: &Value) -> String {
    let rates = before.and_then(|before| rates(before, status));
    let rates = rates.map(|rates| format!(", {}", rates.plain())).unwrap_or_default();
    let state = if status["ready"] == true { "ready" } else { "not ready" };
    format!(
        "{} {state}, configuration {}, {} in flight, {} waiting{rates}",
        text(&status["at"]),
        status["configuration"]["number"],
        status["deliveries_in_flight"],
        status["deliveries_waiting"]
    )
}
