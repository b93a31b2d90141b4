//! The part of an explanation that depends on the state of the running proxy: limits, circuits and usable sources.
//! What would happen to this webhook right now?

use super::ExplainRequest;
use crate::delivery::judge::Routed;
use crate::delivery::refusal::Code;
use crate::delivery::request::tunnel_mode::TunnelMode;
use crate::names::{Target, pluralize};
use crate::policy::Plan;
use crate::policy::limits::{Limit, LimitDescriptor};
use crate::policy::route::Route;
use crate::state::Runtime;
use crate::state::fleet::hints::Hint;
use crate::state::limits::{LimitKind, LimitUsage};
use crate::state::upstreams::breaker::BreakerKey;
use crate::state::upstreams::sources::AddressCount;

/// The lines about the current state, and the refusals that it implies.
pub(super) struct CurrentState {
    /// The order of the lines is not that of the steps.
    pub(super) lines: Vec<(&'static str, String)>,
    /// The circuit or a limit would refuse the delivery, before the pool and the guard decide.
    pub(super) not_admitted: Option<Code>,
    /// No address of the pool is usable.
    pub(super) no_egress: Option<Code>,
}

pub(super) fn explain_current_state(
    runtime: &Runtime,
    plan: &Plan,
    request: &ExplainRequest<'_>,
    &Routed { route, ref target, tunnel_mode, .. }: &Routed<'_>,
) -> CurrentState {
    // The CONNECT of a tunnel that ends at outgate contacts no target.
    let needs_source = tunnel_mode.is_none_or(|mode| mode == TunnelMode::Passthrough);
    let descriptor = LimitDescriptor {
        client: request.client,
        tenant: request.tenant,
        route: &route.name,
        host: &target.host,
        egress: route.pool.name(),
    };
    let limits: Vec<_> = route.limits.iter().map(|limit| (limit, runtime.limits.usage(limit, &descriptor))).collect();
    // A delivery takes its place under every limit before its tokens.
    let refusals = || limits.iter().filter_map(|(limit, usage)| refusal_of(limit, usage)).map(Code::from);
    let limited = refusals().find(|code| *code == Code::ConcurrencyLimited).or_else(|| refusals().next());
    let (egress, no_egress) = describe_egress(runtime, route, request, needs_source);
    let circuit = plan.breaker.and_then(|_| describe_circuit(runtime, route, target, request));
    let open = circuit.as_ref().and_then(|(_, open)| *open);

    let mut texts: Vec<String> = limits.iter().map(|(limit, usage)| describe_usage(limit, usage)).collect();
    if route.limits.iter().any(|limit| limit.is_fleet_wide) {
        texts.extend(runtime.fleet.get().and_then(|fleet| fleet.degraded_reason()));
    }
    texts.push(egress);
    texts.extend(circuit.map(|(text, _)| text));
    texts.extend(describe_hints(runtime, plan, route, target));
    let lines = texts.into_iter().map(|text| ("now", text)).collect();
    CurrentState { lines, not_admitted: open.or(limited), no_egress }
}

/// Returns the reason why the limit would refuse a delivery. A limit with a wait delays the delivery for that long instead.
fn refusal_of(limit: &Limit, usage: &LimitUsage) -> Option<LimitKind> {
    let is_full = usage.max_in_flight.is_some_and(|max| usage.in_flight >= max) && limit.wait.is_zero();
    let lacks_token = usage.rate.is_some_and(|rate| rate.remaining == 0 && rate.retry_after > limit.wait);
    match (is_full, lacks_token) {
        _ if limit.report_only => None,
        (true, _) => Some(LimitKind::Concurrency),
        (false, true) => Some(LimitKind::Rate),
        (false, false) => None,
    }
}

fn describe_usage(limit: &Limit, usage: &LimitUsage) -> String {
    let mut parts = Vec::new();
    if let (Some(quota), Some(rate)) = (&limit.quota, &usage.rate) {
        parts.push(format!("{} of {} left", rate.remaining, quota.burst));
        if rate.remaining == 0 {
            parts.push(format!("the next token in {:?}", rate.retry_after));
        }
    }
    match usage.max_in_flight {
        Some(max) => parts.push(format!("{} of {max} in flight", usage.in_flight)),
        None => parts.push(format!("{} in flight", usage.in_flight)),
    }
    if usage.waiting > 0 {
        parts.push(format!("{} waiting", usage.waiting));
    }
    let refused = refusal_of(limit, usage).map(|kind| format!(": refused as {}", Code::from(kind).name()));
    let refused = refused.unwrap_or_default();
    format!("limit {}: {}{refused}", limit.name, parts.join(", "))
}

fn describe_egress(
    runtime: &Runtime,
    route: &Route,
    request: &ExplainRequest<'_>,
    is_needed: bool,
) -> (String, Option<Code>) {
    let snapshot = runtime.sources.snapshot();
    let AddressCount { configured, usable } = snapshot.count(&route.pool, request.now);
    let note = snapshot.withheld_note(&route.pool, request.now);
    let text = format!("pool {}: {usable} of {configured} addresses usable{note}", route.pool.name());
    match is_needed && usable == 0 {
        true => (format!("{text}: refused as {}", Code::NoEgress.name()), Some(Code::NoEgress)),
        false => (text, None),
    }
}

fn describe_circuit(
    runtime: &Runtime,
    route: &Route,
    target: &Target,
    request: &ExplainRequest<'_>,
) -> Option<(String, Option<Code>)> {
    let key = BreakerKey::of(route, target, request.client, request.tenant);
    let retry_after = runtime.circuit_breakers.retry_after(&key, std::time::Instant::now())?;
    Some(match retry_after.is_zero() {
        true => ("the circuit of the target is open; the next delivery is a probe".to_owned(), None),
        false => {
            let seconds = retry_after.as_secs() + 1;
            let text = format!("the circuit of the target is open: refused as target_circuit_open for {seconds} s");
            (text, Some(Code::TargetCircuitOpen))
        }
    })
}

/// Describes what other instances of the fleet report of the target.
fn describe_hints(runtime: &Runtime, plan: &Plan, route: &Route, target: &Target) -> Vec<String> {
    let Some(fleet) = runtime.fleet.get() else { return Vec::new() };
    let circuit = |hint: Hint| {
        let failures = pluralize(plan.breaker?.with_hint().failures(), "failure");
        Some(format!(
            "{} reports that the circuit of the target is open: it opens here after {failures}",
            hint.instance
        ))
    };
    let circuits = fleet.circuit_hints(target, route.pool.name()).into_iter().filter_map(circuit);
    let gap = |hint: Hint| {
        Some(format!("{} reports that the target does not respond to source {}", hint.instance, hint.source?))
    };
    circuits.chain(fleet.gap_hints(target).into_iter().filter_map(gap)).collect()
}
