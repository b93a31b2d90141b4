//! `outgate egress probe`: knocks at a target from the addresses that deliveries leave from.
//! From which source addresses does this target accept connections?

mod bulk;
mod mail;
mod measurement;
mod report;
mod targets;
mod verdict;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::super::local_runtime::{SenderArgs, run_locally, usage_error};
use super::super::table::format_table;
use super::super::{escape_control_characters, json_number, load_or_report};
use crate::config::duration_argument;
use crate::delivery::refusal::{Code, Refusal};
use crate::delivery::{self, ProbeReport, ProbeRequest, ProbeResult, milliseconds};
use crate::names::PoolName;
use crate::policy::egress::NewRanges;
use crate::policy::redact::Redactor;
use crate::sysexits;
use bulk::{BulkArgs, BulkSettings, named_ranges};
#[cfg(any(test, fuzzing))]
pub use targets::probe_targets;

/// Connections that the probe of one target opens at the same time. The target must not take it for an attack.
const CONNECTIONS_MAX: usize = 16;

/// The default of --sample.
const SAMPLE: u16 = 32;
/// The default of --sample with --targets: every address of most pools. A target must not take the probe for an attack, so
/// the /64 of an IPv6 range has a sample.
const BULK_SAMPLE: u16 = 256;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate egress probe https://hooks.acme.example/in
  outgate egress probe https://hooks.acme.example/in --pool next --timeout 2s
  outgate egress probe https://hooks.acme.example/in --json | jq -r '.gaps[].lacks[]'
  outgate egress probe --targets customers.csv --range 203.0.113.0/28 --csv > report.csv
  outgate egress probe --targets customers.csv --mail mails --list-url https://ranges.example.com/

The command checks DNS, TCP, TLS and the certificate from every usable address of the pool. It uses the route, guard,
resolver and trust of the configuration, as a delivery would, and sends no request. If the target responds to some
addresses only, the output lists the others: the allow-list of the target may lack them. The guard must allow the target
and its port, and a route must match the target.

With --targets, the command compares the active addresses with those of the new ranges: the ranges that --range names, or
else those whose `from` is in the future. This host must have their addresses. The command opens at most four connections
to one host name at a time, and tries two rejected sources of each range again. It sends no request: it cannot see a rule that a web server
or an application firewall (WAF) applies after the handshake. A target of plain HTTP accepts a TCP connection, and no more is
known. Ctrl-C prints what is known. The page \"Egress lists\" explains the verdicts.

Exit code 0: every address reaches the target and its certificate is good; with --targets, each target answers every
address. 69: some do not, or none. 2: wrong usage. 65: a line of FILE is wrong. 66: FILE cannot be read. 73: the mails
cannot be written. 78: the configuration has problems.")]
pub(in super::super) struct Probe {
    /// The target, an https or http URL
    #[arg(required_unless_present = "targets", conflicts_with = "targets")]
    url: Option<String>,
    #[command(flatten)]
    bulk: BulkArgs,
    /// Also probe from this range of a pool, although its `from` may be in the future; repeatable
    #[arg(long, value_name = "CIDR")]
    range: Vec<IpNet>,
    /// The pool, instead of the pool of the route that matches the target
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    #[command(flatten)]
    sender: SenderArgs,
    /// The number of addresses to probe; from a larger pool, the command takes a sample spread over the ranges. New
    /// ranges have a sample of their own. Default: 32; with --targets, 256
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    sample: Option<u16>,
    /// The timeout of DNS, TCP and TLS each, such as 2s. Default: the timeouts of the route
    #[arg(long, value_name = "TIME", value_parser = duration_argument)]
    timeout: Option<Duration>,
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Probe {
    pub(in super::super) fn run(self) -> ExitCode {
        self.probe().unwrap_or_else(|code| code)
    }

    fn probe(mut self) -> Result<ExitCode, ExitCode> {
        let valid = load_or_report(self.config.as_deref())?;
        let client = self.sender.client(&valid.plan)?;
        let pool = match &self.pool {
            None => None,
            Some(name) => match valid.plan.pools.get(&PoolName::new(name.as_str())) {
                Some(pool) => Some(pool.clone()),
                None => {
                    return Err(usage_error(&format!(
                        "there is no pool {name:?}; `outgate egress list` shows the pools"
                    )));
                }
            },
        };
        let (tenant, redactor) = (self.sender.tenant(), Arc::clone(&valid.plan.redactor));
        let named = if self.range.is_empty() { None } else { Some(named_ranges(&valid, &self.range)?) };
        let default = if self.bulk.targets.is_some() { BULK_SAMPLE } else { SAMPLE };
        let sources_max = self.sample.unwrap_or(default).into();
        if let Some(file) = self.bulk.targets.take() {
            let new = named.unwrap_or(NewRanges::Upcoming);
            let (timeout, limit) = (self.timeout, self.bulk.target_timeout);
            let settings = BulkSettings { client, tenant, pool, new, sources_max, timeout, limit };
            return self.bulk.run(&file, valid, settings, self.json);
        }
        let url = self.url.unwrap_or_default(); // clap requires it
        let request = ProbeRequest {
            url: &url,
            client: &client,
            tenant: tenant.as_ref(),
            pool: pool.as_ref(),
            new: &named.unwrap_or(NewRanges::None),
            max_sources: sources_max,
            connections_max: CONNECTIONS_MAX,
            confirms: false,
            limit: None,
            timeout: self.timeout,
            echo: None,
        };
        let report = run_locally(valid, async |runtime| delivery::probe(runtime, &request).await)?;
        match &report {
            Ok(report) if self.json => println!("{:#}", as_json(report, &redactor)),
            Ok(report) => print_report(report, &redactor),
            Err(refusal) if refusal.code == Code::RequestMalformed => {
                return Err(usage_error(refusal.detail(&redactor).as_str()));
            }
            Err(refusal) if self.json => println!("{:#}", json!({ "refusal": refusal_as_json(refusal, &redactor) })),
            Err(refusal) => println!("{}", refused(refusal, &redactor)),
        }
        let all = report.is_ok_and(|report| report.results.iter().all(|result| result.outcome.is_ok()));
        Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(sysexits::UNAVAILABLE) })
    }
}

fn refused(refusal: &Refusal, redactor: &Redactor) -> String {
    let cause = refusal.cause(redactor).map(|cause| format!(" ({cause})")).unwrap_or_default();
    escape_control_characters(&format!(
        "refused before the first connection: {}: {}{cause}",
        code(refusal),
        refusal.detail(redactor)
    ))
}

/// Returns the code and the details of a refusal.
fn code(refusal: &Refusal) -> String {
    let details = refusal.details().map(|details| format!(": {details}")).unwrap_or_default();
    format!("{}{details}", refusal.code.name())
}

fn print_report(report: &ProbeReport, redactor: &Redactor) {
    let ProbeReport { target, route, survey, results, .. } = report;
    let target = redactor.text(&target.to_string()).to_string();
    println!("{target} by route {}, pool {}, trust {}", route.name, route.pool.name(), route.trust.name);
    let addresses: Vec<_> = report.addresses.iter().map(ToString::to_string).collect();
    println!("dns      {}: {}", format_time(report.resolved), addresses.join(", "));
    let sources = survey.sources.len();
    match survey.is_sample() {
        true => {
            println!("sources  {sources} of {} usable addresses, a sample spread over the ranges", survey.population)
        }
        false => println!("sources  {sources}, every usable address"),
    }
    println!();
    let mut table = vec![["SOURCE", "TARGET", "TCP", "TLS", "RESULT", "CERTIFICATE"].map(str::to_owned)];
    table.extend(results.iter().map(row));
    print!("{}", format_table(&table));
    let good = results.iter().filter(|result| result.outcome.is_ok()).count();
    println!("\n{good} of {} connections succeeded.", results.len());
    for gap in &report.gaps {
        println!(
            "{}{}",
            redactor.text(&gap.to_string()),
            if survey.is_sample() { " (from a sample of the pool)" } else { "" }
        );
    }
}

fn row(result: &ProbeResult) -> [String; 6] {
    let certificate = match &result.outcome {
        Ok(Some(handshake)) => {
            let unverified = if handshake.info.verified { "" } else { "NOT VERIFIED, " };
            escape_control_characters(&format!("{unverified}until {}, by {}", handshake.info.expires, handshake.issuer))
        }
        Ok(None) => "none: plaintext".to_owned(),
        Err(_) => String::new(),
    };
    [
        result.hop.seen_as().to_string(),
        result.hop.to().to_string(),
        format_time(result.connect),
        result.tls.map_or_else(|| "-".to_owned(), format_time),
        result.outcome.as_ref().map_or_else(code, |_| "ok".to_owned()),
        certificate,
    ]
}

fn format_time(time: Duration) -> String {
    format!("{:.1} ms", milliseconds(time))
}

fn as_json(report: &ProbeReport, redactor: &Redactor) -> Value {
    let ProbeReport { target, route, survey, .. } = report;
    let gaps = report.gaps.iter().map(|gap| {
        let mut value = json!(gap);
        value["target"] = redactor.text(&gap.target).as_str().into();
        value["words"] = redactor.text(&gap.to_string()).as_str().into();
        value
    });
    json!({
        "target": redactor.text(&target.to_string()),
        "route": route.name.as_str(),
        "pool": route.pool.name().as_str(),
        "trust": route.trust.name.as_str(),
        "dns": { "addresses": report.addresses, "ms": milliseconds(report.resolved) },
        "usable": json_number(survey.population),
        "probed": survey.sources.len(),
        "sampled": survey.is_sample(),
        "connections": report.results.iter().map(|result| result_as_json(result, redactor)).collect::<Vec<_>>(),
        "gaps": gaps.collect::<Vec<_>>(),
        "refusal": null,
    })
}

fn result_as_json(result: &ProbeResult, redactor: &Redactor) -> Value {
    let handshake = result.outcome.as_ref().ok().and_then(Option::as_ref);
    let certificate = handshake.map(|handshake| {
        let info = &handshake.info;
        json!({ "issuer": handshake.issuer, "expires": info.expires, "verified": info.verified })
    });
    json!({
        "source": result.hop.seen_as(),
        "local": result.hop.from(),
        "target": result.hop.to(),
        "ms": { "connect": milliseconds(result.connect), "tls": result.tls.map(milliseconds) },
        "tls": handshake.map(|handshake| json!({ "version": handshake.info.version, "suite": handshake.info.suite })),
        "certificate": certificate,
        "refusal": result.outcome.as_ref().err().map(|refusal| refusal_as_json(refusal, redactor)),
    })
}

fn refusal_as_json(refusal: &Refusal, redactor: &Redactor) -> Value {
    json!({
        "code": refusal.code.name(),
        "details": refusal.details(),
        "blame": refusal.effective_blame(),
        "detail": refusal.detail(redactor),
        "cause": refusal.cause(redactor),
    })
}
