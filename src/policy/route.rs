//! The table of routes, and the order in which they match.
//! Which route does this webhook take?

mod compile;
#[cfg(test)]
mod compile_tests;
mod credential;
mod guarded;
mod reach;
mod split;
mod table;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::iter::successors;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Connect, Plaintext, Timeouts};
use crate::names::{
    ClientName, CredentialName, Host, LimitName, PoolName, RouteName, SignerName, TenantName, TrustName,
};
use crate::policy::admit::Limit;
use crate::policy::credential::Credential;
use crate::policy::egress::Pool;
use crate::policy::sign::Signer;
use crate::policy::trust::Trust;
pub use guarded::check_reach;
pub use split::Split;
pub use table::Match;
use table::Table;

/// Bytes. A body that is signed, by us or by its client, is held in memory as a whole.
pub const WHOLE_BODY_MAX: u64 = 64 << 20;

/// How a webhook is treated.
#[derive(Clone)]
pub struct Route {
    pub name: RouteName,
    /// Beyond those that the guard allows everywhere.
    pub ports: Vec<u16>,
    pub pool: Arc<Pool>,
    pub trust: Arc<Trust>,
    pub signers: Vec<Arc<Signer>>,
    pub credential: Option<Arc<Credential>>,
    /// It names the tenants that it is for: what is fetched for one of them is no other's.
    pub is_for_tenants: bool,
    /// By name, so that all deliveries take their places in one order: see `live::limits`.
    pub limits: Vec<Arc<Limit>>,
    pub plaintext: Plaintext,
    pub connect: Connect,
    /// Bytes.
    pub body_max: u64,
    pub response_max: u64,
    pub timeouts: Timeouts,
    /// For some of its tenants and hosts it is another.
    pub split: Option<Split>,
    /// On which side of a split it is, in records and metrics.
    pub side: Option<&'static str>,
}

/// What routes name, compiled before them.
pub struct Tables<'a> {
    pub pools: &'a BTreeMap<PoolName, Arc<Pool>>,
    pub trusts: &'a BTreeMap<TrustName, Arc<Trust>>,
    pub signers: &'a BTreeMap<SignerName, Arc<Signer>>,
    pub credentials: &'a BTreeMap<CredentialName, Arc<Credential>>,
    pub limits: &'a BTreeMap<LimitName, Arc<Limit>>,
}

/// All routes. A host is looked up, not searched for: there may be a hundred thousand.
#[derive(Default)]
pub struct Routes {
    written: Vec<Arc<Route>>,
    exact: HashMap<Host, Table>,
    /// `*.acme.example` under `acme.example`.
    subdomains: HashMap<Arc<str>, Table>,
    any: Table,
    /// Those that only report.
    shadows: Option<Box<Routes>>,
}

impl Routes {
    /// The best match: an exact host before the longest wildcard before `*`; then the longest path; then a route that
    /// names the tenant, and one that names the client.
    ///
    /// `path` is without the query, as it will be sent. `/in` means `/in` and what is below it; `/in/` means what begins
    /// so. Bytes are compared as they are sent, nothing is decoded: only the target knows what it makes of `%2e` or `..`.
    /// So a path chooses how a webhook is treated, but fences nothing off: to this table `/in/../x` is below `/in/`, while
    /// to the target it may be `/x`. What must not be reached needs another host, or a target that refuses it.
    pub fn choose(
        &self,
        client: &ClientName,
        tenant: Option<&TenantName>,
        host: &Host,
        path: &str,
    ) -> Option<&Arc<Route>> {
        self.matching(client, tenant, host, path).next().map(|(_, found)| found.route.side_for(tenant, host))
    }

    /// The route that would be chosen if those that only report were in force, where it is one of them.
    pub fn shadow(
        &self,
        client: &ClientName,
        tenant: Option<&TenantName>,
        host: &Host,
        path: &str,
    ) -> Option<&Arc<Route>> {
        let rank = |(distance, found): (usize, Match<'_>)| {
            (distance, Reverse(found.path), Reverse(found.tenant), Reverse(found.client))
        };
        let shadow = self.shadows.as_ref()?.matching(client, tenant, host, path).next()?;
        let taken = self.matching(client, tenant, host, path).next();
        taken.is_none_or(|taken| rank(shadow) <= rank(taken)).then_some(shadow.1.route)
    }

    /// The route of a CONNECT: see [`Self::settling`].
    pub fn choose_for_tunnel(
        &self,
        client: &ClientName,
        tenant: Option<&TenantName>,
        host: &Host,
    ) -> Option<&Arc<Route>> {
        self.settling(client, tenant, host).map(|route| route.side_for(tenant, host))
    }

    /// The route that settles a CONNECT, whose path nobody sees before it is open. So every route that what is inside
    /// could take has a say, down to the one that takes every path: one that inspects settles it, since then each request
    /// is judged for itself; else one that refuses does.
    pub fn settling(&self, client: &ClientName, tenant: Option<&TenantName>, host: &Host) -> Option<&Arc<Route>> {
        let mut refuses = None;
        for (_, table) in self.tables(host) {
            let [inspecting, refusing, whole] = table.of_tunnels(client, tenant);
            let inspects = |route: &&Arc<Route>| route.connect == Connect::Inspect;
            if let Some(route) = inspecting.or(whole.filter(inspects)) {
                return Some(route);
            }
            refuses = refuses.or(refusing);
            if whole.is_some() {
                return refuses.or(whole);
            }
        }
        refuses
    }

    /// Everything that matches, the best first, each with how far the host pattern that it matches by is from the name: a
    /// more specific one is nearer.
    pub fn candidates(
        &self,
        client: &ClientName,
        tenant: Option<&TenantName>,
        host: &Host,
        path: &str,
    ) -> Vec<(usize, Match<'_>)> {
        let mut candidates: Vec<(usize, Match<'_>)> = Vec::new();
        for (distance, found) in self.matching(client, tenant, host, path) {
            // A route may match by more than one of its hosts and paths.
            if !candidates.iter().any(|(_, candidate)| Arc::ptr_eq(candidate.route, found.route)) {
                candidates.push((distance, found));
            }
        }
        candidates
    }

    /// How long a delivery or a tunnel may last at most.
    pub fn longest(&self) -> Duration {
        let sides = self.written.iter().flat_map(|route| [Some(route), route.split.as_ref().map(Split::other)]);
        let longest = sides.flatten().map(|route| route.timeouts.total.max(route.timeouts.tunnel)).max();
        longest.unwrap_or_default()
    }

    fn matching<'t, 'q>(
        &'t self,
        client: &'q ClientName,
        tenant: Option<&'q TenantName>,
        host: &'q Host,
        path: &'q str,
    ) -> impl Iterator<Item = (usize, Match<'t>)> {
        self.tables(host)
            .flat_map(move |(at, table)| table.matching(client, tenant, path).map(move |found| (at, found)))
    }

    /// All that is said of a host, the most specific first, each with its distance: 0 is the name itself, `*` is farthest.
    fn tables<'t, 'q>(&'t self, host: &'q Host) -> impl Iterator<Item = (usize, &'t Table)> {
        let name = match host {
            Host::Name(name) => Some(&**name),
            Host::Ip(_) => None,
        };
        let parent = |name: &&'q str| name.split_once('.').map(|(_, parent)| parent);
        let parents = successors(name.as_ref().and_then(parent), parent).zip(1..);
        let wildcards = parents.filter_map(|(parent, distance)| Some((distance, self.subdomains.get(parent)?)));
        let exact = self.exact.get(host).map(|table| (0, table));
        exact.into_iter().chain(wildcards).chain([(usize::MAX, &self.any)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::fixture::{self, at, config, route};
    use crate::policy::{egress, trust};
    use proptest::prelude::*;

    /// (name, host, path, tenant, client), the last three empty where the route does not say.
    type Written<'a> = (&'a str, &'a str, &'a str, &'a str, &'a str);

    fn routes(written: &[Written<'_>]) -> Routes {
        let mut config = config();
        for (i, (name, host, path, tenant, client)) in written.iter().enumerate() {
            let mut route = route(100 + 10 * i as u32, name, host);
            let named = |text: &str| Vec::from_iter((!text.is_empty()).then(|| at(99, text.to_owned())));
            (route.value.paths, route.value.tenants, route.value.clients) = (named(path), named(tenant), named(client));
            config.routes.push(route);
            // And one more than the routes name, for those that name none.
            for name in [client, "anybody"].into_iter().filter(|name| !name.is_empty()) {
                let client = crate::config::Client { tenants: vec![at(97, "*".into())], ..fixture::client() };
                config.clients.insert(ClientName::new(name), at(98, client));
            }
        }
        let mut problems = vec![];
        let (pools, trusts) =
            (egress::compile(&config, jiff::Timestamp::UNIX_EPOCH, &mut vec![]), trust::compile(&config, &mut vec![]));
        let (signers, credentials, limits) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let tables =
            Tables { pools: &pools, trusts: &trusts, signers: &signers, credentials: &credentials, limits: &limits };
        let routes = Routes::compile(&config, &tables, &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        routes
    }

    fn names(routes: &Routes, host: &str, path: &str, tenant: &str, client: &str) -> Vec<String> {
        let tenant = Some(TenantName::new(tenant)).filter(|tenant| !tenant.as_str().is_empty());
        let (client, host) = (ClientName::new(client), crate::host::canonical(host).unwrap());
        let candidates = routes.candidates(&client, tenant.as_ref(), &host, path);
        let first = routes.choose(&client, tenant.as_ref(), &host, path).map(|route| route.name.to_string());
        assert_eq!(first.as_ref(), candidates.first().map(|(_, found)| found.route.name.to_string()).as_ref());
        candidates.iter().map(|(_, found)| found.route.name.to_string()).collect()
    }

    #[test]
    fn the_best_match_first() {
        let routes = routes(&[
            ("any", "*", "", "", ""),
            ("client", "hooks.acme.example", "", "", "billing"),
            ("tenant", "hooks.acme.example", "", "acme", ""),
            ("both", "hooks.acme.example", "", "acme", "billing"),
            ("host", "hooks.acme.example", "", "", ""),
            ("deep", "hooks.acme.example", "/in/deep", "", ""),
            ("path", "hooks.acme.example", "/in", "", ""),
            ("acme", "*.acme.example", "", "", ""),
            ("acme-path", "*.acme.example", "/in/deep", "", ""),
            ("eu", "*.eu.acme.example", "", "", ""),
            ("address", "192.0.2.1", "", "", ""),
        ]);
        let all = ["both", "tenant", "client", "host", "acme", "any"];
        for (host, path, tenant, client, expected) in [
            ("hooks.acme.example", "/", "acme", "billing", &all[..]),
            ("hooks.acme.example", "/", "acme", "other", &["tenant", "host", "acme", "any"]),
            ("hooks.acme.example", "/", "", "billing", &["client", "host", "acme", "any"]),
            ("hooks.acme.example", "/", "other", "other", &["host", "acme", "any"]),
            // A longer path goes before whom the route is for, a host before any path.
            ("hooks.acme.example", "/in/deep/x", "", "x", &["deep", "path", "host", "acme-path", "acme", "any"]),
            ("hooks.acme.example", "/in/deeper", "", "x", &["path", "host", "acme", "any"]),
            ("a.eu.acme.example", "/in/deep", "", "x", &["eu", "acme-path", "acme", "any"]),
            ("eu.acme.example", "/", "", "x", &["acme", "any"]),
            ("acme.example", "/", "", "x", &["any"]),
            ("xacme.example", "/", "", "x", &["any"]),
            ("192.0.2.1", "/", "", "x", &["address", "any"]),
            ("192.0.2.2", "/", "", "x", &["any"]),
        ] {
            assert_eq!(names(&routes, host, path, tenant, client), expected, "{host}{path} {tenant} {client}");
        }
    }

    #[test]
    fn paths() {
        for (prefix, path, expected) in [
            ("/in", "/in", true),
            ("/in", "/in/", true),
            ("/in", "/in/x", true),
            ("/in", "/inn", false),
            ("/in", "/i", false),
            ("/in", "/IN", false),
            ("/in/", "/in", false),
            ("/in/", "/in/", true),
            ("/in/", "/in/x", true),
            ("/", "/anything", true),
            // Nothing is decoded, nothing resolved.
            ("/in", "/%69n", false),
            ("/in/", "/in/../x", true),
            ("/in/", "/in/%2e%2e/x", true),
            ("/in/", "/x/../in/", false),
        ] {
            let routes = routes(&[("r", "*", prefix, "", "")]);
            assert_eq!(names(&routes, "a.example", path, "", "c").len(), usize::from(expected), "{prefix} {path}");
        }
    }

    proptest! {
        /// The tables find what asking each pattern would find.
        #[test]
        fn a_lookup_is_a_search(
            patterns in prop::collection::btree_set("(\\*|(\\*\\.)?([ab]\\.){0,3}acme\\.example)", 1..12),
            host in "([ab]\\.){0,4}acme\\.example",
        ) {
            let written: Vec<Written<'_>> = patterns.iter().map(|text| (&**text, &**text, "", "", "")).collect();
            let routes = routes(&written);
            let target = crate::host::canonical(&host).unwrap();
            let matches = |pattern: &&String| crate::host::HostPattern::parse(pattern).unwrap().matches(&target);
            let mut expected: Vec<String> = patterns.iter().filter(matches).cloned().collect();
            expected.sort_by_key(|pattern| (pattern.starts_with('*'), std::cmp::Reverse(pattern.len())));
            prop_assert_eq!(names(&routes, &host, "/", "", "c"), expected);
        }

        /// And so it is with paths, tenants and clients.
        #[test]
        fn the_best_of_all_that_match(
            written in prop::collection::btree_set(
                ("(\\*|(\\*\\.)?a\\.example)", "(|(/[ab]?){1,3})", "(|[tu])", "(|[cd])"), 1..20),
            asked in prop::collection::vec(("(a|b)\\.a\\.example|a\\.example|z", "(/[abc]?){1,4}", "(|[tuv])", "[cde]"), 1..20),
        ) {
            let written: Vec<_> = written.into_iter().enumerate().map(|(i, it)| (format!("r{i}"), it)).collect();
            let list: Vec<Written<'_>> =
                written.iter().map(|(name, (host, path, tenant, client))| (&**name, &**host, &**path, &**tenant, &**client)).collect();
            let routes = routes(&list);
            for (host, path, tenant, client) in asked {
                let target = crate::host::canonical(&host).unwrap();
                let below = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| {
                    prefix.is_empty() || prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/')
                });
                let mut expected: Vec<&Written<'_>> = list.iter().filter(|(_, pattern, prefix, of, by)| {
                    crate::host::HostPattern::parse(pattern).unwrap().matches(&target) && below(prefix)
                        && (of.is_empty() || *of == tenant) && (by.is_empty() || *by == client)
                }).collect();
                expected.sort_by_key(|(_, pattern, prefix, of, by)| {
                    (pattern.starts_with('*'), std::cmp::Reverse((pattern.len(), prefix.len())), of.is_empty(), by.is_empty())
                });
                let expected: Vec<String> = expected.iter().map(|(name, ..)| (*name).to_owned()).collect();
                prop_assert_eq!(names(&routes, &host, &path, &tenant, &client), expected, "{} {} {} {}", host, path, tenant, client);
            }
        }
    }
}
