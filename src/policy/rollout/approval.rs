//! The changes of a bundle that one operator cannot make alone.
//! Is the change large, and does it widen access?

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;

use super::super::Plan;
use super::super::credential::CredentialValue;
use super::super::route::Route;
use crate::config::difference::Difference;
use crate::config::{PlaintextPolicy, VerifyMode};
use crate::names::{CredentialName, Target};

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
    reasons.extend(newly_unpinned_routes(before, after));
    reasons.extend(newly_trusting_routes(before, after));
    reasons.extend(moved_credentials(before, after));
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

/// Returns the routes that trust a root which they did not trust before. A new route may trust what another one did.
fn newly_trusting_routes<'a>(before: &'a Plan, after: &'a Plan) -> impl Iterator<Item = String> + 'a {
    let is_wider = |route: &&Arc<Route>| {
        let has_name = |former: &&Arc<Route>| former.name == route.name; // a split route has two trusts
        let is_new = !before.routes.enforced().any(|former| has_name(&former));
        let mut compared = before.routes.enforced().filter(|former| is_new || has_name(former));
        !compared.any(|former| former.trust.roots_include(&route.trust))
    };
    after.routes.enforced().filter(is_wider).map(|route| format!("the route {} trusts a new root", route.name))
}

/// Returns the new routes without a pinned key, if a route with one is gone: it may have another name now.
fn newly_unpinned_routes<'a>(before: &'a Plan, after: &'a Plan) -> impl Iterator<Item = String> + 'a {
    let names = |plan: &'a Plan| plan.routes.enforced().map(|route| route.name.as_str()).collect::<BTreeSet<_>>();
    let (former, now) = (names(before), names(after));
    let is_gone = pinned_routes(before, true).any(|route| !now.contains(route));
    let new = pinned_routes(after, false).filter(move |route| is_gone && !former.contains(route));
    new.map(|route| format!("the new route {route} has no pinned key, and a route with one is gone"))
}

/// Returns the credentials whose secret an endpoint gets that got none before under this name, or at all.
fn moved_credentials<'a>(before: &'a Plan, after: &'a Plan) -> impl Iterator<Item = String> + 'a {
    let is_moved = |name: &&CredentialName| match (token_endpoint(before, name), token_endpoint(after, name)) {
        (_, None) => false,
        (Some(former), Some(now)) => former != now,
        (None, now) => !before.credentials.keys().any(|name| token_endpoint(before, name) == now),
    };
    after.credentials.keys().filter(is_moved).map(|name| format!("the credential {name} has another token endpoint"))
}

fn token_endpoint<'a>(plan: &'a Plan, name: &CredentialName) -> Option<&'a Target> {
    match &plan.credentials.get(name)?.value {
        CredentialValue::OAuth2(oauth2) => Some(&oauth2.endpoint),
        CredentialValue::Static(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};

    use super::*;
    use crate::config::{self, SourceSnapshot};
    use crate::policy;

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

    /// A route whose name changes could lose its pinned key unnoticed.
    #[test]
    fn approval_is_needed_for_a_new_route_without_a_pinned_key_in_place_of_one_with_it() {
        let route = |name: &str, host: &str, trust: &str| {
            format!("[[routes]]\nname = \"{name}\"\nhosts = [\"{host}\"]\ntrust = \"{trust}\"\n")
        };
        let base = BASE.split("[[routes]]").next().unwrap();
        let pinned = route("r", "b.example", "t");
        let lost = "the new route s has no pinned key, and a route with one is gone";
        for (before, after, expected) in [
            (pinned.clone(), route("s", "b.example", "u"), Some(lost)),
            (pinned.clone(), route("s", "b.example", "t"), None),
            (pinned.clone(), pinned.clone() + &route("s", "c.example", "u"), None),
            (pinned.clone() + &route("s", "c.example", "u"), route("s", "c.example", "u"), None),
            (route("r", "b.example", "u"), route("s", "b.example", "u"), None),
        ] {
            let ((before, _), (after, _)) =
                (compiled(&(base.to_owned() + &before)), compiled(&(base.to_owned() + &after)));
            let found: Vec<String> = newly_unpinned_routes(&before, &after).collect();
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        }
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

    fn root(name: &str) -> String {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    /// A target could present a certificate of the new root, and the endpoint gets the client's secret.
    #[test]
    fn approval_is_needed_for_a_new_root_and_another_token_endpoint() {
        const USUAL: &str = r#"
[egress.default]
ranges = ["192.0.2.0/28"]
[clients.a]
networks = ["198.51.100.0/25"]
[trust.corporate]
roots = ["a.pem"]
[trust.wider]
roots = ["a.pem", "b.pem"]
[credentials.partner]
type = "oauth2"
token_url = "https://login.partner.com/token"
client_id = "us"
client_secret = "file:secret"
[[routes]]
name = "partner"
hosts = ["*.partner.com"]
trust = "corporate"
credential = "partner"
"#;
        let folder = std::env::temp_dir().join(format!("outgate-approval-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["a", "b"] {
            std::fs::write(folder.join(format!("{name}.pem")), root(name)).unwrap();
        }
        std::fs::write(folder.join("secret"), "hunter2").unwrap();
        std::fs::set_permissions(folder.join("secret"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let plan = |text: &str| {
            let loaded = config::parse(text, &folder.join("config.toml")).unwrap_or_else(|error| panic!("{error:?}"));
            policy::compile(&loaded.config, Timestamp::UNIX_EPOCH).unwrap_or_else(|problems| panic!("{problems:?}")).0
        };
        let found = [
            ("[\"a.pem\"]", "[\"a.pem\", \"b.pem\"]"),
            ("trust = \"corporate\"\n", "trust = \"wider\"\n"),
            ("login.partner", "login.other"),
            ("/token", "/token?scope=x"),
            ("*.partner.com", "partner.com"),
            ("name = \"partner\"", "name = \"other\""),
            ("name = \"partner\"\nhosts = [\"*.partner.com\"]\ntrust = \"corporate\"", "name = \"other\"\nhosts = [\"*.partner.com\"]\ntrust = \"wider\""),
            ("[[routes]]", "[credentials.other]\ntype = \"oauth2\"\ntoken_url = \"https://login.other.com/\"\nclient_id = \"us\"\nclient_secret = \"file:secret\"\n[[routes]]"),
        ]
        .map(|(old, new)| {
            let after = USUAL.replacen(old, new, 1);
            assert_ne!(after, USUAL);
            approval_reasons(&plan(USUAL), &plan(&after), &Difference::default(), 100, Timestamp::UNIX_EPOCH)
        });
        // A route may not trust what only another route did.
        let two = format!("{USUAL}[[routes]]\nname = \"wide\"\nhosts = [\"wide.example\"]\ntrust = \"wider\"\n");
        let wider = two.replacen("trust = \"corporate\"", "trust = \"wider\"", 1);
        let of_two = approval_reasons(&plan(&two), &plan(&wider), &Difference::default(), 100, Timestamp::UNIX_EPOCH);
        std::fs::remove_dir_all(&folder).unwrap();
        let root = "the route partner trusts a new root";
        assert_eq!(
            found.map(|reasons| reasons.join(", ")),
            [
                root,
                root,
                "the credential partner has another token endpoint",
                "",
                "",
                "",
                "the route other trusts a new root",
                "the credential other has another token endpoint"
            ]
        );
        assert_eq!(of_two, [root]);
    }
}
