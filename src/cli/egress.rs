//! `outgate egress`: lists and verifies the source addresses that customers allow.
//! Which addresses does outgate send from, and does this host have them?

mod echo;
mod probe;
mod publish;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::{ValidConfig, load_or_report};
use crate::config::pending_rollback;
use crate::history::History;
use crate::names::PoolName;
use crate::policy::egress::list::ListVersion;
use crate::policy::egress::list::format::{FORMATS, Format};
use crate::sysexits;
#[cfg(any(test, fuzzing))]
pub use probe::probe_targets;

#[derive(Subcommand)]
pub(super) enum Egress {
    /// List the ranges that customers must allow, as exact CIDRs
    List(ListRanges),
    /// Check that this host has every address of every pool, and can send from it
    Verify(verify::VerifySources),
    /// Connect to a target, or to those of a file, from every address, and show which addresses an allow-list may lack
    Probe(Box<probe::Probe>),
    /// Write the lists, a page, feeds and a signed manifest as a static site
    Publish(publish::Publish),
}

#[derive(Args)]
#[command(after_help = "Examples:
  outgate egress list
  outgate egress list --format json --pool default
  outgate egress list --format nftables > /etc/nftables/outgate.conf

The list has announced, active and retiring ranges: customers allow them all. docs/egress-lists.md describes each format.
The serial is the Unix time of the last change; the history of the configuration keeps it.")]
pub(super) struct ListRanges {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The format of a firewall, a cloud or a router
    #[arg(long, default_value = "text", value_parser = format_parser())]
    format: &'static Format,
    /// Only this pool
    #[arg(long)]
    pool: Option<String>,
}

impl Egress {
    pub(super) fn run(self) -> ExitCode {
        match self {
            Egress::List(list) => list.run(),
            Egress::Verify(verify) => verify.run(),
            Egress::Probe(probe) => probe.run(),
            Egress::Publish(publish) => publish.run(),
        }
    }
}

impl ListRanges {
    fn run(self) -> ExitCode {
        let valid = match load_or_report(self.config.as_deref()) {
            Ok(valid) => valid,
            Err(code) => return code,
        };
        let pool = self.pool.as_deref().map(PoolName::new);
        if let Some(pool) = pool.as_ref().filter(|pool| !valid.plan.pools.contains_key(*pool)) {
            let pools: Vec<_> = valid.plan.pools.keys().map(PoolName::as_str).collect();
            eprintln!("outgate: there is no pool {pool:?}; the pools are {}", pools.join(", "));
            return ExitCode::from(sysexits::USAGE);
        }
        let now = Timestamp::now();
        let version = list_version(&valid, now);
        print!("{}", self.format.render(&valid.plan.egress_list(pool.as_ref(), &version, now)));
        ExitCode::SUCCESS
    }
}

fn format_parser() -> impl TypedValueParser<Value = &'static Format> {
    let names = PossibleValuesParser::new(
        FORMATS.iter().map(|format| PossibleValue::new(format.name.as_str()).help(format.usage.as_str())),
    );
    names.try_map(|name| Format::find(&name).ok_or("no such format"))
}

/// Returns the version of the ranges. The history of the proxy knows it if it belongs to this configuration.
fn list_version(valid: &ValidConfig, now: Timestamp) -> ListVersion {
    let snapshot = &valid.config.snapshot;
    let last = History::of_state(valid.config.server.state.as_deref()).last();
    let former = last.filter(|last| last.files.first() == Some(&pending_rollback::absolute(snapshot.main_path())));
    let changed_at = snapshot.modified_at().unwrap_or(now);
    valid.plan.list_version(former.and_then(|former| former.list).as_ref(), changed_at, now)
}
