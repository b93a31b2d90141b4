//! `outgate egress`: lists and verifies the source addresses that customers allow.
//! Which addresses does outgate send from, and does this host have them?

mod probe;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::json;

use super::{json_number, load_or_report};
use crate::names::PoolName;
use crate::net::dial;
use crate::policy::egress::{AnnouncedRange, Pool, RangePhase};
use crate::state::upstreams::sources::{AddressCount, Sources};
use crate::sysexits;

#[derive(Subcommand)]
pub(super) enum Egress {
    /// List the ranges that customers must allow, as exact CIDRs
    List(ListRanges),
    /// Check that this host has every address of every pool
    Verify(VerifySources),
    /// Connect to a target from every address, and show which addresses its allow-list may lack
    Probe(probe::Probe),
}

#[derive(Clone, Copy, ValueEnum)]
enum RangeFormat {
    /// One CIDR per line
    Text,
    /// JSON with the pool, the validity period and the state of each range
    Json,
}

#[derive(Args)]
#[command(after_help = "Examples:
  outgate egress list
  outgate egress list --format json --pool default")]
pub(super) struct ListRanges {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "text")]
    format: RangeFormat,
    /// Only this pool
    #[arg(long)]
    pool: Option<String>,
}

#[derive(Args)]
#[command(after_help = "Examples:
  outgate egress verify
  outgate egress verify --json

Exit code 0: every address is usable. 1: some are not; the output names them. To give this host a whole range without
adding each address: `ip route add local 198.51.100.16/28 dev lo`.")]
pub(super) struct VerifySources {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The most addresses per range that are bound as a test; of a larger range, the first ones.
const CHECKED_PER_RANGE_MAX: usize = 4096;

impl Egress {
    pub(super) fn run(self) -> ExitCode {
        match self {
            Egress::List(list) => list.run(),
            Egress::Verify(verify) => verify.run(),
            Egress::Probe(probe) => probe.run(),
        }
    }
}

impl ListRanges {
    fn run(self) -> ExitCode {
        let plan = match load_or_report(self.config.as_deref()) {
            Ok(valid) => valid.plan,
            Err(code) => return code,
        };
        let is_selected = |name: &PoolName| self.pool.as_deref().is_none_or(|pool| pool == name.as_str());
        let pools: Vec<_> = plan.pools.iter().filter(|(name, _)| is_selected(name)).collect();
        if let (Some(pool), true) = (&self.pool, pools.is_empty()) {
            eprintln!("outgate: there is no pool {pool:?}; `outgate egress list` shows the pools");
            return ExitCode::from(sysexits::USAGE);
        }
        let (now, longest) = (Timestamp::now(), plan.routes.max_duration());
        match self.format {
            RangeFormat::Text => {
                let mut ranges: Vec<IpNet> = pools
                    .iter()
                    .flat_map(|(_, pool)| announced_ranges(pool, longest, now))
                    .map(|range| range.cidr)
                    .collect();
                ranges = IpNet::aggregate(&ranges);
                ranges.iter().for_each(|range| println!("{range}"));
            }
            RangeFormat::Json => {
                println!(
                    "{:#}",
                    json!(pools.iter().map(|(name, pool)| pool_json(name, pool, longest, now)).collect::<Vec<_>>())
                )
            }
        }
        ExitCode::SUCCESS
    }
}

fn pool_json(name: &PoolName, pool: &Pool, longest: Duration, now: Timestamp) -> serde_json::Value {
    let ranges: Vec<_> = announced_ranges(pool, longest, now)
        .map(|range| json!({ "cidr": range.cidr.to_string(), "from": range.from, "until": range.until, "state": range_state(&range) }))
        .collect();
    json!({ "pool": name.as_str(), "ranges": ranges })
}

/// Returns the ranges that customers must allow: active and announced ranges, and those that ended while earlier
/// deliveries may still run.
fn announced_ranges(pool: &Pool, longest: Duration, now: Timestamp) -> impl Iterator<Item = AnnouncedRange> {
    let is_gone = move |range: &AnnouncedRange| {
        range.phase == RangePhase::Ended
            && range.until.is_none_or(|until| now.duration_since(until).unsigned_abs() > longest)
    };
    pool.announced_ranges(now).filter(move |range| !is_gone(range))
}

fn range_state(range: &AnnouncedRange) -> &'static str {
    match (range.phase, range.until) {
        (RangePhase::Upcoming, _) => "announced",
        (_, Some(_)) => "retiring",
        (_, None) => "active",
    }
}

impl VerifySources {
    fn run(self) -> ExitCode {
        let plan = match load_or_report(self.config.as_deref()) {
            Ok(valid) => valid.plan,
            Err(code) => return code,
        };
        let sources = Sources::new();
        sources.refresh();
        let (now, view) = (Timestamp::now(), sources.snapshot());
        let mut report = Vec::new();
        let mut all_usable = true;
        for (name, pool) in &plan.pools {
            let ranges = pool.active_ranges(now);
            let missing: Vec<_> = ranges
                .iter()
                .flat_map(|range| range.all_addresses().take(CHECKED_PER_RANGE_MAX))
                .filter(|source| !view.has(*source) || dial::check_source(*source).is_err())
                .collect();
            let AddressCount { configured, usable } = view.count(pool, now);
            let ok = missing.is_empty() && usable == configured && configured > 0;
            all_usable &= ok;
            if !self.json {
                println!("{name}: {usable} usable of {configured} addresses{}", if ok { "" } else { ", missing:" });
                missing.iter().for_each(|source| println!("  {source}"));
            }
            report.push(json!({
                "pool": name.as_str(), "configured": json_number(configured), "usable": json_number(usable), "missing": missing,
            }));
        }
        if self.json {
            println!("{:#}", serde_json::Value::from(report));
        }
        if all_usable { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

trait AllAddresses {
    fn all_addresses(&self) -> Box<dyn Iterator<Item = std::net::IpAddr>>;
}

impl AllAddresses for IpNet {
    /// Returns every address of the range. The first and the last are usable, because the whole range is routed to
    /// the host.
    fn all_addresses(&self) -> Box<dyn Iterator<Item = std::net::IpAddr>> {
        match *self {
            IpNet::V4(net) => {
                let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
                Box::new((first..=last).map(|bits| std::net::Ipv4Addr::from(bits).into()))
            }
            IpNet::V6(net) => {
                let (first, last) = (u128::from(net.network()), u128::from(net.broadcast()));
                Box::new((first..=last).map(|bits| std::net::Ipv6Addr::from(bits).into()))
            }
        }
    }
}
