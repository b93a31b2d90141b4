//! The changes of a bundle that one operator cannot make alone.
//! Is the change large, and does it widen access?

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use jiff::Timestamp;

use super::super::Plan;
use crate::config::difference::Difference;
use crate::config::{PlaintextPolicy, VerifyMode};

/// The routes that verify no target, by the setting that says so.
pub type UnverifiedRoutes = BTreeMap<String, BTreeSet<String>>;

pub fn unverified_routes(plan: &Plan) -> UnverifiedRoutes {
    let mut unverified = UnverifiedRoutes::new();
    for route in plan.routes.enforced() {
        let name = || route.name.as_str().to_owned();
        if route.trust.verify == VerifyMode::None {
            unverified.entry(format!("trust.{}", route.trust.name)).or_default().insert(name());
        }
        if route.plaintext == PlaintextPolicy::Allow {
            unverified.entry("plaintext".to_owned()).or_default().insert(name());
        }
    }
    unverified
}

/// Returns why a change needs a second operator. Empty: its author suffices.
pub fn approval_reasons(
    before: &Plan,
    after: &Plan,
    difference: &Difference,
    approve_above: usize,
    now: Timestamp,
) -> Vec<String> {
    let count = difference.count();
    let mut reasons = Vec::new();
    if count > approve_above {
        reasons.push(format!("it changes {count} entries, and fleet.approve_above is {approve_above}"));
    }
    let verified = unverified_routes(before);
    for (setting, routes) in unverified_routes(after) {
        let none = BTreeSet::new();
        let new = routes.difference(verified.get(&setting).unwrap_or(&none));
        reasons.extend(new.map(|route| format!("{setting} turns verification off for the route {route}")));
    }
    let pinned: BTreeSet<_> = pinned_routes(before, true).collect();
    let unpinned = pinned_routes(after, false).filter(|route| pinned.contains(route));
    reasons.extend(unpinned.map(|route| format!("the route {route} has no pinned key any more")));
    reasons.extend(after.guard.widened_since(&before.guard));
    reasons.extend(after.clients.newly_unproven(&before.clients));
    let ranges = |plan: &Plan| -> Vec<IpNet> {
        plan.pools.values().flat_map(|pool| pool.announced_ranges(now)).map(|range| range.cidr).collect()
    };
    let known = ranges(before);
    let new = ranges(after).into_iter().filter(|range| !known.iter().any(|known| known.contains(range)));
    reasons.extend(new.map(|range| format!("the range {range} is new")));
    reasons
}

/// Returns the routes whose trust has pinned keys, or has none.
fn pinned_routes(plan: &Plan, is_pinned: bool) -> impl Iterator<Item = &str> {
    let routes = plan.routes.enforced().filter(move |route| route.trust.pins.is_empty() != is_pinned);
    routes.map(|route| route.name.as_str())
}
