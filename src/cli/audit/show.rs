//! `outgate audit show`: a table of the records of the audit log.
//! Who did what, and when?

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::{find_files, report_fault};
use crate::audit::{self, Kind, Record};
use crate::cli::escape_control_characters;
use crate::config::duration_argument;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate audit show --since 24h
  outgate audit show --kind actor
  outgate audit show --type key.updated --since 2026-11-01T00:00:00Z
  outgate audit show --json | jq -r 'select(.severity_id >= 4) | .description'

The kinds are account (the configuration, clients, keys and tokens), address (the source addresses), other (the process,
refusals and the log itself) and actor: every record of a change or call that a person or client made.

Exit code 65: a record was changed, removed or added; the records before it are shown. 66: a file is unreadable.")]
pub(in crate::cli) struct Show {
    /// The files, in any order. Default: those of audit.file
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Only records of this kind
    #[arg(long, value_enum)]
    kind: Option<KindArgument>,
    /// Only records since a time, or within a duration until now: 2026-11-01T00:00:00Z, 24h
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<Timestamp>,
    /// Only records of this user or client
    #[arg(long)]
    actor: Option<String>,
    /// Only records of this event type, or of all types that begin so: key.updated, key
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the records as JSON, one a line
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum KindArgument {
    Account,
    Address,
    Other,
    Actor,
}

/// Parses a time, or a duration before now.
fn parse_since(text: &str) -> Result<Timestamp, String> {
    match text.parse() {
        Ok(time) => Ok(time),
        Err(_) => Ok(Timestamp::now() - duration_argument(text)?),
    }
}

impl Show {
    pub(super) fn run(self) -> ExitCode {
        let files = match find_files(&self.files, self.config.as_deref()) {
            Ok(files) => files,
            Err(code) => return code,
        };
        if !self.json {
            println!("{:<20}  {:<24}  {:<16}  {:<24}  DESCRIPTION", "TIME", "EVENT", "ACTOR", "RESOURCE");
        }
        let shown = audit::verify(&files, None, |record| {
            if self.matches(&record) {
                self.print(&record);
            }
        });
        shown.map_or_else(|fault| report_fault(&fault), |_| ExitCode::SUCCESS)
    }

    fn matches(&self, record: &Record) -> bool {
        let is_of_kind = |kind: KindArgument| match kind {
            KindArgument::Account => record.kind == Kind::Account,
            KindArgument::Address => record.kind == Kind::Address,
            KindArgument::Other => record.kind == Kind::Other,
            KindArgument::Actor => record.kind == Kind::Actor || record.actor_sid.is_some(),
        };
        let is_of_type = |event_type: &String| {
            let rest = record.event_type.strip_prefix(event_type.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || event_type.ends_with('.'))
        };
        self.kind.is_none_or(is_of_kind)
            && self.since.is_none_or(|since| record.event_date >= since)
            && self.actor.as_ref().is_none_or(|actor| record.actor_sid.as_ref() == Some(actor))
            && self.event_type.as_ref().is_none_or(is_of_type)
    }

    fn print(&self, record: &Record) {
        if self.json {
            println!("{}", serde_json::json!(record));
            return;
        }
        let actor = record.actor_sid.as_deref().unwrap_or("-");
        let row = format!(
            "{:<20.0}  {:<24}  {actor:<16}  {:<24}  {}",
            record.event_date, record.event_type, record.resource_sid, record.description
        );
        println!("{}", escape_control_characters(&row).replace('\n', " "));
    }
}
