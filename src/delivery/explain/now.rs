//! What only a running proxy knows of a webhook: how full its limits are, whether its target is left alone, which of our
//! addresses can be used.
//! And what would happen right now?

use super::super::ask::Ask;
use super::Question;
use super::way::Way;
use crate::live::Live;
use crate::live::circuits::Key;
use crate::live::limits::Fullness;
use crate::live::sources;
use crate::names::Target;
use crate::policy::Plan;
use crate::policy::admit::{Limit, Who};
use crate::policy::route::Route;

pub(super) fn lines(live: &Live, plan: &Plan, question: &Question<'_>) -> Vec<(&'static str, String)> {
    let ways = || {
        let ask = Ask::of(question.method, question.url, question.tenant.cloned()).ok()?;
        let route = Way::of(plan, question, &ask).ok()?.route;
        Some((route, question.target(&ask, route).ok()?))
    };
    // Refused before: there is nothing more to say.
    let Some((route, target)) = ways() else { return Vec::new() };
    let who = Who {
        client: question.client,
        tenant: question.tenant,
        route: &route.name,
        host: &target.host,
        egress: route.pool.name(),
    };
    let limits = route.limits.iter().map(|limit| in_words(limit, &live.limits.fullness(limit, &who)));
    let words = limits.chain([egress(live, route, question)]).chain(circuit(live, route, &target, question));
    words.map(|words| ("now", words)).collect()
}

fn in_words(limit: &Limit, now: &Fullness) -> String {
    let mut parts = Vec::new();
    if let (Some(quota), Some(rate)) = (&limit.quota, &now.rate) {
        parts.push(format!("{} of {} left", rate.remaining, quota.burst));
        if rate.remaining == 0 {
            parts.push(format!("the next in {:?}", rate.next));
        }
    }
    match now.maximum {
        Some(most) => parts.push(format!("{} of {most} under way", now.in_flight)),
        None => parts.push(format!("{} under way", now.in_flight)),
    }
    if now.waiting > 0 {
        parts.push(format!("{} waiting", now.waiting));
    }
    format!("limit {}: {}", limit.name, parts.join(", "))
}

fn egress(live: &Live, route: &Route, question: &Question<'_>) -> String {
    let (view, ranges) = (live.sources.view(), route.pool.in_force(question.now));
    let (usable, all) = (view.count(&ranges), sources::total(&ranges));
    format!("pool {}: {usable} of {all} addresses usable", route.pool.name())
}

fn circuit(live: &Live, route: &Route, target: &Target, question: &Question<'_>) -> Option<String> {
    let again_in = live.circuits.peek(&Key::of(route, target, question.client, question.tenant))?;
    Some(match again_in.is_zero() {
        true => "its circuit is open, and the next delivery tries".to_owned(),
        false => format!("its circuit is open: refused as target_circuit_open for {} s", again_in.as_secs() + 1),
    })
}
