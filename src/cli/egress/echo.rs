//! Asks an echo service from each source address which address it sees.
//! Does the outside world see the addresses that customers allow, or does a NAT replace them?

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;

use jiff::Timestamp;

use super::super::ValidConfig;
use super::super::doctor::Finding;
use super::super::local_runtime::{run_locally, usage_error};
use crate::config::{self, Located, PlaintextPolicy, Route};
use crate::delivery::{self, ProbeReport, ProbeRequest};
use crate::names::{ClientName, PoolName, pluralize};
use crate::policy;
use crate::policy::authn::ANONYMOUS;
use crate::policy::egress::NewRanges;
use crate::policy::redact::Redactor;

/// The most addresses of a pool that ask; of a larger pool, a sample spread over the ranges.
const SOURCES_MAX: usize = 256;
/// The most connections to the service at the same time.
const CONNECTIONS_MAX: usize = 16;
/// The most addresses that one finding names.
const ADDRESSES_SHOWN_MAX: usize = 20;

/// Asks the service at `url` from the addresses of every pool. The guard, the resolver and the trust "public" of the
/// configuration apply; no route need match.
pub(super) fn ask_from_all(valid: &ValidConfig, url: &str) -> Result<Vec<Finding>, ExitCode> {
    let (target, path) = config::parse_url(url).map_err(|reason| usage_error(&format!("--echo {url}: {reason}")))?;
    let mut config = valid.config.clone();
    let located = |value| Located { value, span: config::SourceSpan::default() };
    let mut route = Route::new(located("echo".to_owned()));
    route.hosts.push(located("*".to_owned()));
    route.egress = config.egress.keys().next().map(|pool| located(pool.as_str().to_owned()));
    route.ports.push(Located { value: target.port, span: route.name.span });
    route.plaintext.value = PlaintextPolicy::Allow;
    config.routes = vec![Located { span: route.name.span, value: route }];
    // They may name the routes that are gone.
    config.captures.clear();
    let Ok((plan, _)) = policy::compile(&config, Timestamp::now()) else {
        return Err(usage_error("the configuration has no pool to ask from"));
    };
    let valid = ValidConfig { path: None, config, plan, warnings: Vec::new(), acknowledged: 0 };
    let (pools, redactor) = (valid.plan.pools.clone(), Arc::clone(&valid.plan.redactor));
    let client = ClientName::new(ANONYMOUS);
    run_locally(valid, async |runtime| {
        let mut findings = Vec::new();
        for (name, pool) in &pools {
            let request = ProbeRequest {
                url,
                new: &NewRanges::None,
                connections_max: CONNECTIONS_MAX,
                confirms: false,
                limit: None,
                client: &client,
                tenant: None,
                pool: Some(pool),
                max_sources: SOURCES_MAX,
                timeout: None,
                echo: Some(path.as_str()),
            };
            findings.extend(match delivery::probe(runtime, &request).await {
                Ok(report) => judge(name, &report, &redactor),
                Err(refusal) => vec![unanswered(name, &refusal.detail(&redactor).to_string(), url)],
            });
        }
        findings
    })
}

fn judge(pool: &PoolName, report: &ProbeReport, redactor: &Redactor) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (mut seen, mut errors) = (BTreeSet::new(), BTreeSet::new());
    for result in &report.results {
        match (&result.echo, &result.outcome) {
            (Some(Ok(address)), _) => drop(seen.insert((result.hop.seen_as(), *address))),
            (Some(Err(error)), _) => drop(errors.insert(format!("{}: {error}", result.hop.from()))),
            (None, Err(refusal)) => drop(errors.insert(format!("{}: {}", result.hop.from(), refusal.detail(redactor)))),
            (None, Ok(_)) => {}
        }
    }
    let replaced: Vec<_> = seen.iter().filter(|(expected, seen)| expected != seen).collect();
    let sample = if report.survey.is_sample() { ", a sample of the pool" } else { "" };
    if !replaced.is_empty() {
        let shown = replaced.iter().take(ADDRESSES_SHOWN_MAX);
        let shown: Vec<_> = shown.map(|(expected, seen)| format!("{expected} as {seen}")).collect();
        let message = format!(
            "pool {pool}: the outside world sees {} under another address: {}",
            pluralize(replaced.len(), "address"),
            shown.join(", ")
        );
        let fix = "write the outside addresses into `seen_as` of the range, and announce them to customers\nor remove the \
                   rule that translates them, which this shows: nft list ruleset | grep -E 'snat|masquerade'";
        findings.push(Finding::problem(message, fix));
    }
    if let Some(first) = errors.first() {
        let message = format!("{} get no answer{sample}, such as {first}", pluralize(errors.len(), "address"));
        findings.push(unanswered(pool, &message, &format!("{}/", report.target)));
    }
    if findings.is_empty() {
        let message =
            format!("pool {pool}: the outside world sees {} as configured{sample}", pluralize(seen.len(), "address"));
        findings.push(Finding::ok(message));
    }
    findings
}

fn unanswered(pool: &PoolName, message: &str, url: &str) -> Finding {
    Finding::problem(format!("pool {pool}: {message}"), format!("outgate egress probe {url} --pool {pool}"))
}
