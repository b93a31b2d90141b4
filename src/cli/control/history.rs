//! `outgate history`: the configurations that were adopted.
//! What ran when, who put it into force, and how?

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

/// Of its changes, in the list.
const SUMMARY_MAX: usize = 70;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate history
  outgate history 41
  outgate history --json | jq '.[] | select(.how == \"reload\") | .by'

The newest first; * marks the one in force. They stand in the folder that `server.state` or systemd names, and are read by root and
by the user that outgate runs as.")]
pub(in crate::cli) struct History {
    /// What this one changed
    number: Option<u64>,
    #[command(flatten)]
    pub(super) proxy: ProxySelector,
    #[command(flatten)]
    pub(super) location: HistoryLocation,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Where they are kept.
#[derive(Args)]
pub(super) struct HistoryLocation {
    /// The folder of server.state. Default: the running proxy's, else what the configuration says
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

impl HistoryLocation {
    /// As the one that runs says, where one does.
    pub(super) fn open(&self, proxy: &ProxySelector, running: Option<&Value>) -> history::History {
        let folder = match (&self.state, running.and_then(|running| running["history"].as_str())) {
            (Some(state), _) => state.join("history"),
            (None, Some(folder)) => PathBuf::from(folder),
            (None, None) => {
                let file = proxy.config.clone().unwrap_or_else(|| DEFAULT_PATH.into());
                let state = ControlPaths::read(&file).state_dir;
                state.unwrap_or_else(|| history::DEFAULT_STATE.into()).join("history")
            }
        };
        history::History::for_reading(folder)
    }
}

/// Why they cannot be read, and the exit code for it.
fn report_unreadable(history: &history::History, error: &io::Error) -> ExitCode {
    let folder = history.folder().display();
    match error.kind() {
        io::ErrorKind::PermissionDenied => eprintln!("outgate: {folder} is not for you: ask as root"),
        _ => eprintln!("outgate: no configurations are kept in {folder}: {error}"),
    }
    ExitCode::from(sysexits::NO_INPUT)
}

/// Why one of them cannot be read.
pub(super) fn report_missing_entry(history: &history::History, number: u64, error: &io::Error) -> ExitCode {
    if error.kind() == io::ErrorKind::NotFound && history.entries().is_ok() {
        eprintln!("outgate: there is no configuration {number}: `outgate history` lists them");
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
        let running: Option<Value> = send(&self.proxy.sockets(), &AdminRequest::get("/status")).ok();
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
    let count = entry.difference.changes.len() + entry.difference.more;
    let Some(first) = entry.difference.changes.first() else { return "-".to_owned() };
    let first = escape_control_characters(first);
    let end = first.floor_char_boundary(SUMMARY_MAX);
    let ellipsis = if end < first.len() { " …" } else { "" };
    match count {
        1 => format!("{}{ellipsis}", &first[..end]),
        _ => format!("{}{ellipsis} and {} more", &first[..end], count - 1),
    }
}
