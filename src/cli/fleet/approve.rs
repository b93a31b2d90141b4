//! `outgate fleet approve` and `outgate fleet abort`: statements of an operator about a rollout.
//! What does the rollout change, and who agrees?

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::super::control::{AdminRequest, ProxySelector};
use super::super::escape_control_characters;
use super::rollout::{ROLLOUT, read_key};
use crate::policy::rollout::bundle::Statement;

/// Limits the instances that are named with a reason.
const NAMES_MAX: usize = 5;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate fleet approve 12 --key bob.pem --dry-run
  outgate fleet approve 12 --key bob.pem

The command prints the change, as the instance of this host computes it, and the reasons of all instances that ask for an
approval. Then it signs the bundle. The author of a rollout cannot approve it.

Exit code 0: the rollout is approved. 1: there is no such rollout, or the key is of no operator or of the author. 69:
outgate refuses the signature, another rollout has replaced this one, or outgate is not running.")]
pub(in crate::cli) struct Approve {
    /// Print the change, and sign nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    statement: StatementArguments,
}

#[derive(Args)]
#[command(after_help = "Examples:
  outgate fleet abort 12 --key alice.pem

Exit code 0: the instances return to their former bundle. 1: there is no such rollout, or the key is of no operator. 69:
outgate refuses the signature, another rollout has replaced this one, or outgate is not running.")]
pub(in crate::cli) struct Abort {
    #[command(flatten)]
    statement: StatementArguments,
}

#[derive(Args)]
struct StatementArguments {
    /// The number of the rollout
    number: u64,
    /// The private Ed25519 key of an operator
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    proxy: ProxySelector,
}

impl Approve {
    pub(super) fn run(self) -> Result<ExitCode, ExitCode> {
        self.statement.make(Statement::Approve, "approved", self.dry_run)
    }
}

impl Abort {
    pub(super) fn run(self) -> Result<ExitCode, ExitCode> {
        self.statement.make(Statement::Abort, "aborted", false)
    }
}

impl StatementArguments {
    fn make(self, statement: Statement, done: &str, is_dry_run: bool) -> Result<ExitCode, ExitCode> {
        let known: Value = self.proxy.send(&AdminRequest::get(ROLLOUT))?;
        let (key, operator) = read_key(&self.key, &known)?;
        let rollout = &known["rollout"];
        if rollout["number"] != self.number {
            let last = rollout["number"].as_u64().map(|number| format!(": its last one is {number}"));
            eprintln!("outgate: the fleet has no rollout {}{}", self.number, last.unwrap_or_default());
            return Err(ExitCode::FAILURE);
        }
        if statement == Statement::Approve {
            print_change(&known);
            if rollout["author"] == operator.as_str() && !is_dry_run {
                let operator = escape_control_characters(&operator);
                eprintln!(
                    "outgate: {operator} is the author of rollout {}: another operator must approve it",
                    self.number
                );
                return Err(ExitCode::FAILURE);
            }
        }
        if is_dry_run {
            return Ok(ExitCode::SUCCESS);
        }
        let digest = rollout["digest"].as_str().unwrap_or_default();
        let signature = key.sign(&statement.text(digest));
        let body = json!({ "statement": statement, "digest": digest, "signature": signature });
        self.proxy.send(&AdminRequest::post(ROLLOUT, body.to_string().into_bytes()))?;
        eprintln!("rollout {} is {done} by {}", self.number, escape_control_characters(&operator));
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints what the rollout changes on this host, and why instances ask for an approval.
fn print_change(known: &Value) {
    let (rollout, instance) = (&known["rollout"], known["instance"].as_str().unwrap_or_default());
    let lines = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|line| line.as_str().map(str::to_owned)).collect()
    };
    let print = |line: &str| println!("{}", escape_control_characters(line));
    let changes = lines(&rollout["changes"]);
    changes.iter().for_each(|line| print(line));
    if let Some(more) = rollout["more"].as_u64().filter(|more| *more > 0) {
        println!("and {more} more changes");
    }
    if changes.is_empty() {
        print(&format!("the bundle changes nothing on {instance}: an instance that asks for approval shows more"));
    }
    let mut reasons = BTreeMap::<String, Vec<&str>>::new();
    for (name, report) in rollout["instances"].as_object().into_iter().flatten() {
        lines(&report["approval"]).into_iter().for_each(|reason| reasons.entry(reason).or_default().push(name));
    }
    for (reason, names) in reasons {
        let (first, more) = names.split_at(names.len().min(NAMES_MAX));
        let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        print(&format!("approval: {reason} (on {}{more})", first.join(", ")));
    }
}
