//! `outgate history`: the configurations that were adopted.
//! What ran when, who put it into force, and how?

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::super::{DEFAULT_PATH, visible};
use super::ProxySelector;
use super::socket::{AdminRequest, send};
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
    pub(super) which: ProxySelector,
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
    pub(super) fn open(&self, which: &ProxySelector, running: Option<&Value>) -> history::History {
        let folder = match (&self.state, running.and_then(|running| running["history"].as_str())) {
            (Some(state), _) => state.join("history"),
            (None, Some(folder)) => PathBuf::from(folder),
            (None, None) => {
                let file = which.config.clone().unwrap_or_else(|| DEFAULT_PATH.into());
                let state = ControlPaths::read(&file).state;
                state.unwrap_or_else(|| history::DEFAULT_STATE.into()).join("history")
            }
        };
        history::History::at(folder)
    }
}

/// Why they cannot be read, and the exit code for it.
fn unread(history: &history::History, fault: &io::Error) -> ExitCode {
    let folder = history.folder().display();
    match fault.kind() {
        io::ErrorKind::PermissionDenied => eprintln!("outgate: {folder} is not for you: ask as root"),
        _ => eprintln!("outgate: no configurations are kept in {folder}: {fault}"),
    }
    ExitCode::from(sysexits::NO_INPUT)
}

/// Why one of them cannot be read.
pub(super) fn no_entry(history: &history::History, number: u64, fault: &io::Error) -> ExitCode {
    if fault.kind() == io::ErrorKind::NotFound && history.entries().is_ok() {
        eprintln!("outgate: there is no configuration {number}: `outgate history` lists them");
        return ExitCode::from(sysexits::USAGE);
    }
    if fault.kind() == io::ErrorKind::InvalidData {
        eprintln!("outgate: configuration {number} in {} is damaged: {fault}", history.folder().display());
        return ExitCode::from(sysexits::NO_INPUT);
    }
    unread(history, fault)
}

impl History {
    pub(in crate::cli) fn run(self) -> ExitCode {
        if let Err(code) = self.which.check() {
            return code;
        }
        let running: Option<Value> = send(&self.which.sockets(), &AdminRequest::get("/status")).ok();
        let history = self.location.open(&self.which, running.as_ref());
        let in_force = running.and_then(|running| running["configuration"]["number"].as_u64());
        let entries = match self.number {
            Some(number) => history.entry(number).map(|entry| vec![entry]),
            None => history.entries(),
        };
        let entries = match entries {
            Ok(entries) => entries,
            Err(fault) => {
                return self
                    .number
                    .map_or_else(|| unread(&history, &fault), |number| no_entry(&history, number, &fault));
            }
        };
        let newest_first = entries.iter().rev();
        if self.json {
            let entry = |entry: &HistoryEntry| {
                let mut entry_json = json!(entry);
                entry_json["in_force"] = (Some(entry.number) == in_force).into();
                entry_json
            };
            println!("{:#}", Value::from(newest_first.map(entry).collect::<Vec<_>>()));
            return ExitCode::SUCCESS;
        }
        for entry in newest_first {
            let mark = if Some(entry.number) == in_force { '*' } else { ' ' };
            let HistoryEntry { number, at, by, how, difference, .. } = entry;
            match self.number {
                Some(_) => {
                    println!("{mark}{number}  {at:.0}  {}  {}", visible(how), visible(by));
                    print!("{}", visible(&difference.to_string()));
                }
                None => println!("{mark}{number:<5} {at:.0}  {:<14} {}  {}", visible(how), visible(by), summary(entry)),
            }
        }
        ExitCode::SUCCESS
    }
}

fn summary(entry: &HistoryEntry) -> String {
    let count = entry.difference.changes.len() + entry.difference.more;
    let Some(first) = entry.difference.changes.first() else { return "-".to_owned() };
    let first = visible(first);
    let end = first.floor_char_boundary(SUMMARY_MAX);
    let cut = if end < first.len() { " …" } else { "" };
    match count {
        1 => format!("{}{cut}", &first[..end]),
        _ => format!("{}{cut} and {} more", &first[..end], count - 1),
    }
}
