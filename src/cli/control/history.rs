//! `outgate history`: lists the adopted configurations.
//! Which configuration was active when, who activated it, and how?

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::super::{DEFAULT_PATH, escape_control_characters};
use super::ProxySelector;
use super::admin_client::{AdminRequest, send};
use crate::config::ControlPaths;
use crate::history::{self, HistoryEntry};
use crate::sysexits;

/// The most bytes of a change that the list shows.
const SUMMARY_MAX: usize = 70;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate history
  outgate history 41
  outgate history --json | jq '.[] | select(.how == \"reload\") | .by'

The newest configuration is first; * marks the active one. The history is in the directory of `server.state`, or in the
state directory of systemd. Root and the user of outgate can read it.")]
pub(in crate::cli) struct History {
    /// Show the changes of this configuration
    number: Option<u64>,
    #[command(flatten)]
    pub(super) proxy: ProxySelector,
    #[command(flatten)]
    pub(super) location: HistoryLocation,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The argument that selects the state directory.
#[derive(Args)]
pub(super) struct HistoryLocation {
    /// The directory of server.state. Default: that of the running proxy, else that of the configuration
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

impl HistoryLocation {
    /// Opens the history of `--state`, else of the running proxy, else of the configuration.
    pub(super) fn open(&self, proxy: &ProxySelector, running: Option<&Value>) -> history::History {
        match (&self.state, running.and_then(|running| running["history"].as_str())) {
            (Some(state), _) => history::History::of_state(Some(state)),
            (None, Some(folder)) => history::History::for_reading(PathBuf::from(folder)),
            (None, None) => {
                let file = proxy.config.clone().unwrap_or_else(|| DEFAULT_PATH.into());
                history::History::of_state(ControlPaths::read(&file).state_dir.as_deref())
            }
        }
    }
}

/// Reports that the history cannot be read, and returns the exit code.
fn report_unreadable(history: &history::History, error: &io::Error) -> ExitCode {
    let folder = history.folder().display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            eprintln!("outgate: permission denied for {folder}: run this command as root")
        }
        io::ErrorKind::NotFound => eprintln!(
            "outgate: there is no history in {folder}: outgate keeps one if the configuration has server.state, or if this \
             folder exists (--state DIR names another)"
        ),
        _ => eprintln!("outgate: cannot read the history in {folder}: {error}"),
    }
    ExitCode::from(sysexits::NO_INPUT)
}

/// Reports that one configuration of the history cannot be read, and returns the exit code.
pub(super) fn report_missing_entry(history: &history::History, number: u64, error: &io::Error) -> ExitCode {
    if error.kind() == io::ErrorKind::NotFound && history.entries().is_ok() {
        eprintln!("outgate: the history has no configuration {number}: run `outgate history` to list them");
        return ExitCode::from(sysexits::USAGE);
    }
    if error.kind() == io::ErrorKind::InvalidData {
        eprintln!("outgate: configuration {number} in {} is damaged: {error}", history.folder().display());
        return ExitCode::from(sysexits::NO_INPUT);
    }
    report_unreadable(history, error)
}

impl History {
    pub(in crate::cli) fn run(self) -> ExitCode {
        if let Err(code) = self.proxy.check() {
            return code;
        }
        let running: Option<Value> = send(&self.proxy.sockets(), &AdminRequest::get("/v1/status")).ok();
        let history = self.location.open(&self.proxy, running.as_ref());
        let active_number = running.and_then(|running| running["configuration"]["number"].as_u64());
        let entries = match self.number {
            Some(number) => history.entry(number).map(|entry| vec![entry]),
            None => history.entries(),
        };
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => {
                return self.number.map_or_else(
                    || report_unreadable(&history, &error),
                    |number| report_missing_entry(&history, number, &error),
                );
            }
        };
        let newest_first = entries.iter().rev();
        if self.json {
            let entry = |entry: &HistoryEntry| {
                let mut entry_json = json!(entry);
                entry_json["in_force"] = (Some(entry.number) == active_number).into();
                entry_json
            };
            println!("{:#}", Value::from(newest_first.map(entry).collect::<Vec<_>>()));
            return ExitCode::SUCCESS;
        }
        for entry in newest_first {
            let mark = if Some(entry.number) == active_number { '*' } else { ' ' };
            let HistoryEntry { number, at, by, how, difference, .. } = entry;
            match self.number {
                Some(_) => {
                    println!(
                        "{mark}{number}  {at:.0}  {}  {}",
                        escape_control_characters(how),
                        escape_control_characters(by)
                    );
                    print!("{}", escape_control_characters(&difference.to_string()));
                }
                None => println!(
                    "{mark}{number:<5} {at:.0}  {:<14} {}  {}",
                    escape_control_characters(how),
                    escape_control_characters(by),
                    summary(entry)
                ),
            }
        }
        ExitCode::SUCCESS
    }
}

fn summary(entry: &HistoryEntry) -> String {
    let count = entry.difference.count();
    let Some(first) = entry.difference.changes.first() else { return "-".to_owned() };
    let first = escape_control_characters(first);
    let end = first.floor_char_boundary(SUMMARY_MAX);
    let ellipsis = if end < first.len() { " …" } else { "" };
    match count {
        1 => format!("{}{ellipsis}", &first[..end]),
        _ => format!("{}{ellipsis} and {} more", &first[..end], count - 1),
    }
}
