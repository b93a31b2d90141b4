//! The source addresses with their health, and the circuits of the targets.
//! From which addresses can outgate send, and which targets does it leave alone?

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::gauges;
use crate::names::{ClientName, RouteName};
use crate::policy::egress::{AnnouncedRange, Pool};
use crate::state::Runtime;
use crate::state::fleet::hints::Hint;
use crate::state::upstreams::breaker::CircuitReport;

/// Limits the addresses and the circuits of one response.
const ROWS_MAX: usize = 1000;

/// Describes the pools, and the addresses that have connections or get no answer.
pub(super) fn report(runtime: &Runtime, now: Timestamp) -> Value {
    let (snapshot, active) = (runtime.sources.snapshot(), runtime.active_config());
    let pool = |pool: &Pool| {
        let count = snapshot.count(pool, now);
        let usable: Vec<String> =
            snapshot.usable_ranges(&pool.active_ranges(now)).iter().map(IpNet::to_string).collect();
        json!({
            "pool": pool.name().as_str(),
            "select": pool.select().as_str(),
            "failover": pool.failover(),
            "configured": count.configured.to_string(),
            "usable": count.usable.to_string(),
            "usable_ranges": usable,
            "ranges": pool.announced_ranges(now).map(|range| range_json(&range)).collect::<Vec<_>>(),
        })
    };
    let ejected: BTreeSet<IpAddr> = runtime.source_health.ejected().into_iter().collect();
    let (_, sources) = gauges::source_reports(&active.plan, now);
    let addresses = sources.into_iter().take(ROWS_MAX).map(|(pool, address, report)| {
        json!({
            "address": address, "pool": pool.as_str(), "open": report.open, "time_wait": report.time_wait,
            "ports_left": report.ports_left, "answered": !ejected.contains(&address),
        })
    });
    json!({
        "pools": active.plan.pools.values().map(|found| pool(found)).collect::<Vec<_>>(),
        "addresses": addresses.collect::<Vec<_>>(),
        "unanswered": ejected,
        "suspected_gaps": runtime.source_health.gaps(),
        "hints": hints(runtime).iter().filter(|hint| hint.source.is_some()).map(hint_json).collect::<Vec<_>>(),
        "stale": runtime.sources.are_stale(),
    })
}

fn range_json(range: &AnnouncedRange) -> Value {
    json!({ "cidr": range.cidr.to_string(), "seen_as": range.seen_as.to_string(), "from": range.from, "until": range.until, "phase": range.phase })
}

/// Describes the circuits of targets that failed recently, the open ones first.
pub(super) fn circuits(runtime: &Runtime, _: Timestamp) -> Value {
    let (active, reports) = (runtime.active_config(), runtime.circuit_breakers.report(Instant::now()));
    let redactor = &active.plan.redactor;
    let circuit = |report: &CircuitReport| {
        let state = match report.retry_after {
            None => "closed",
            Some(Duration::ZERO) => "half_open",
            Some(_) => "open",
        };
        let (client, tenant) = report.client.clone().unzip();
        let tenant = tenant.flatten().map(|tenant| redactor.tenant(&tenant, true).as_str().to_owned());
        json!({
            "scheme": report.target.scheme.as_str(), "host": redactor.host(&report.target.host).as_str(),
            "port": report.target.port, "pool": report.pool.as_str(),
            "split_of": report.trial.as_ref().map(RouteName::as_str), "client": client.as_ref().map(ClientName::as_str),
            "tenant": tenant, "state": state,
            "reported_by": runtime.fleet.get().map(|fleet| fleet.circuit_hints(&report.target, &report.pool)).into_iter()
                .flatten().map(|hint| hint.instance).collect::<Vec<_>>(),
            "retry_after_seconds": report.retry_after.map(|wait| wait.as_secs_f64()),
        })
    };
    json!({
        "count": reports.len(), "circuits": reports.iter().take(ROWS_MAX).map(circuit).collect::<Vec<_>>(),
        "hints": hints(runtime).iter().filter(|hint| hint.source.is_none()).map(hint_json).collect::<Vec<_>>(),
    })
}

/// Returns what other instances of the fleet report, in the order of the targets' hashes.
fn hints(runtime: &Runtime) -> Vec<Hint> {
    let hints = runtime.fleet.get().map(|fleet| fleet.hints());
    let mut hints: Vec<_> = hints.iter().flat_map(|hints| hints.values().flatten().cloned()).collect();
    hints.sort_by_cached_key(Hint::to_string);
    hints
}

fn hint_json(hint: &Hint) -> Value {
    json!({ "target_hash": hint.target, "source": hint.source, "instance": hint.instance })
}
