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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, SourceSnapshot};
    use crate::policy;
    use std::path::Path;

    const BASE: &str = r#"
[server]
allow_anonymous = true
[egress.default]
ranges = ["192.0.2.0/28"]
[clients.a]
networks = ["198.51.100.0/25"]
[guard]
allow = ["10.1.0.0/16"]
deny = ["203.0.113.0/24"]
[resolver.hosts]
"a.example" = ["192.0.2.200"]
[trust.t]
pins = ["sha256/47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", "sha256/n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg="]
[trust.u]
roots = ["mozilla"]
[[routes]]
name = "r"
hosts = ["b.example"]
trust = "t"
"#;

    fn compiled(text: &str) -> (Plan, SourceSnapshot) {
        let loaded = config::parse(text, Path::new("/nowhere/config.toml")).unwrap();
        let plan = policy::compile(&loaded.config, Timestamp::UNIX_EPOCH);
        let (plan, _) = plan.unwrap_or_else(|problems| panic!("{problems:?}"));
        (plan, (*loaded.config.snapshot).clone())
    }

    fn reasons(after: &str, approve_above: usize) -> Vec<String> {
        let ((before, was), (after, is)) = (compiled(BASE), compiled(after));
        let difference = Difference::between(&was, &is);
        approval_reasons(&before, &after, &difference, approve_above, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn approval_is_needed_for_each_change_that_widens_access() {
        for (old, new, expected) in [
            ("10.1.0.0/16", "10.0.0.0/8", "guard.allow has 10.0.0.0/8"),
            ("deny = [\"203.0.113.0/24\"]", "deny = []", "guard.deny lacks 203.0.113.0/24"),
            (
                "\"203.0.113.0/24\"",
                "{ cidr = \"203.0.113.0/24\", report_only = true }",
                "guard.deny lacks 203.0.113.0/24",
            ),
            ("[resolver", "ports = [443, 8443]\n[resolver", "guard.ports has 8443"),
            ("192.0.2.200", "192.0.2.201", "resolver.hosts has other addresses for a.example"),
            ("198.51.100.0/25", "198.51.100.0/24", "the client a needs no proof but its network 198.51.100.0/24"),
            ("192.0.2.0/28", "192.0.2.0/27", "the range 192.0.2.0/27 is new"),
            ("trust = \"t\"", "trust = \"u\"", "the route r has no pinned key any more"),
            (
                "trust = \"t\"",
                "trust = \"t\"\nplaintext = \"allow\"",
                "plaintext turns verification off for the route r",
            ),
        ] {
            assert_eq!(BASE.matches(old).count(), 1, "{old}");
            let found = reasons(&BASE.replace(old, new), 100);
            assert!(found.iter().any(|reason| reason == expected), "{new}: {found:?}");
        }
        let unverified =
            BASE.replace("roots = [\"mozilla\"]", "verify = \"none\"").replace("trust = \"t\"", "trust = \"u\"");
        let found = reasons(&unverified, 100);
        assert!(found.contains(&"trust.u turns verification off for the route r".to_owned()), "{found:?}");
    }

    #[test]
    fn approval_is_not_needed_for_a_small_change_that_narrows_access() {
        for (old, new) in [
            ("10.1.0.0/16", "10.1.2.0/24"),
            ("deny = [\"203.0.113.0/24\"]", "deny = [\"203.0.112.0/23\"]"),
            ("198.51.100.0/25", "198.51.100.0/26"),
            ("192.0.2.0/28", "192.0.2.0/29"),
            ("b.example", "c.example"),
        ] {
            let after = BASE.replace(old, new);
            assert_ne!(after, BASE);
            assert!(reasons(&after, 100).is_empty(), "{new}: {:?}", reasons(&after, 100));
            assert_eq!(reasons(&after, 0).len(), 1, "{new}");
        }
        assert!(reasons(BASE, 0).is_empty());
    }
}
