//! What only a running proxy knows of a webhook: how full its limits are, whether its target is left alone, which of our
//! addresses can be used.
//! And what would happen right now?

use super::super::errors;
use super::super::judge::Routed;
use super::super::refusal::Code;
use super::super::tunnel_mode::TunnelMode;
use super::ExplainRequest;
use crate::names::Target;
use crate::policy::Plan;
use crate::policy::limits::{Limit, LimitDescriptor};
use crate::policy::route::Route;
use crate::state::Runtime;
use crate::state::limits::{LimitKind, LimitUsage};
use crate::state::upstreams::breaker::BreakerKey;
use crate::state::upstreams::sources;

/// What to say, and as what the webhook would be refused now. The order of the lines is not the order of the steps.
pub(super) struct Now {
    pub(super) lines: Vec<(&'static str, String)>,
    /// By its circuit or a limit, before the pool and the guard are asked.
    pub(super) not_admitted: Option<Code>,
    /// After that: no address of the pool is usable.
    pub(super) no_egress: Option<Code>,
}

pub(super) fn now(
    runtime: &Runtime,
    plan: &Plan,
    question: &ExplainRequest<'_>,
    &Routed { route, ref target, opens, .. }: &Routed<'_>,
) -> Now {
    // The CONNECT of a tunnel that ends at outgate contacts no target.
    let needs_source = opens.is_none_or(|opens| opens == TunnelMode::Passthrough);
    let who = LimitDescriptor {
        client: question.client,
        tenant: question.tenant,
        route: &route.name,
        host: &target.host,
        egress: route.pool.name(),
    };
    let limits: Vec<_> = route.limits.iter().map(|limit| (limit, runtime.limits.usage(limit, &who))).collect();
    // A delivery takes its place in every limit before its tokens.
    let refused = |exceeds: fn(&Limit, &LimitUsage) -> bool, kind: LimitKind| {
        let exceeded = limits.iter().any(|(limit, now)| !limit.report_only && exceeds(limit, now));
        exceeded.then(|| errors::limited(kind))
    };
    let limited = refused(is_full, LimitKind::Concurrency).or_else(|| refused(is_early, LimitKind::Rate));
    let (egress, no_egress) = egress(runtime, route, question, needs_source);
    let circuit = plan.fuse.and_then(|_| circuit(runtime, route, target, question));
    let open = circuit.as_ref().and_then(|(_, open)| *open);

    let mut words: Vec<String> = limits.iter().map(|(limit, now)| in_words(limit, now)).collect();
    words.push(egress);
    words.extend(circuit.map(|(words, _)| words));
    let lines = words.into_iter().map(|words| ("now", words)).collect();
    Now { lines, not_admitted: open.or(limited), no_egress }
}

/// Whether a delivery would be refused for want of a place. A limit with a wait holds it back instead.
fn is_full(limit: &Limit, now: &LimitUsage) -> bool {
    now.max_in_flight.is_some_and(|most| now.in_flight >= most) && limit.wait.is_zero()
}

/// Whether a delivery would be refused for want of a token: the next one comes later than the limit lets it wait.
fn is_early(limit: &Limit, now: &LimitUsage) -> bool {
    now.rate.is_some_and(|rate| rate.remaining == 0 && rate.next > limit.wait)
}

fn in_words(limit: &Limit, now: &LimitUsage) -> String {
    let mut parts = Vec::new();
    if let (Some(quota), Some(rate)) = (&limit.quota, &now.rate) {
        parts.push(format!("{} of {} left", rate.remaining, quota.burst));
        if rate.remaining == 0 {
            parts.push(format!("the next in {:?}", rate.next));
        }
    }
    match now.max_in_flight {
        Some(most) => parts.push(format!("{} of {most} under way", now.in_flight)),
        None => parts.push(format!("{} under way", now.in_flight)),
    }
    if now.waiting > 0 {
        parts.push(format!("{} waiting", now.waiting));
    }
    let refused = match () {
        () if limit.report_only => String::new(),
        () if is_full(limit, now) => format!(": refused as {}", errors::limited(LimitKind::Concurrency).name()),
        () if is_early(limit, now) => format!(": refused as {}", errors::limited(LimitKind::Rate).name()),
        () => String::new(),
    };
    format!("limit {}: {}{refused}", limit.name, parts.join(", "))
}

fn egress(runtime: &Runtime, route: &Route, question: &ExplainRequest<'_>, is_needed: bool) -> (String, Option<Code>) {
    let (view, ranges) = (runtime.sources.view(), route.pool.in_force(question.now));
    let (usable, all) = (view.count(&ranges), sources::total(&ranges));
    let words = format!("pool {}: {usable} of {all} addresses usable", route.pool.name());
    match is_needed && usable == 0 {
        true => (format!("{words}: refused as {}", Code::NoEgress.name()), Some(Code::NoEgress)),
        false => (words, None),
    }
}

fn circuit(
    runtime: &Runtime,
    route: &Route,
    target: &Target,
    question: &ExplainRequest<'_>,
) -> Option<(String, Option<Code>)> {
    let again_in = runtime.circuit_breakers.peek(&BreakerKey::of(route, target, question.client, question.tenant))?;
    Some(match again_in.is_zero() {
        true => ("its circuit is open, and the next delivery tries".to_owned(), None),
        false => {
            let seconds = again_in.as_secs() + 1;
            let words = format!("its circuit is open: refused as target_circuit_open for {seconds} s");
            (words, Some(Code::TargetCircuitOpen))
        }
    })
}
