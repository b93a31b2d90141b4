//! The table of routes, and the order in which they match.
//! Which route does this webhook take?

mod compile;
#[cfg(test)]
mod compile_tests;
mod credential;
mod guard_check;
mod paths;
mod reachability;
mod readings;
mod split;
mod table;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::iter::successors;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{ClientConnections, ConnectPolicy, InterimPolicy, PlaintextPolicy, ResponseHeadMax, Timeouts};
use crate::names::{
    ClientName, CredentialName, Host, LimitName, PoolName, RouteName, Scheme, SignerName, TenantName, TrustName,
};
use crate::policy::credential::Credential;
use crate::policy::egress::Pool;
use crate::policy::limits::Limit;
use crate::policy::sign::Signer;
use crate::policy::trust::Trust;
pub use guard_check::check_guard;
pub use split::Split;
pub use table::Match;
use table::{HostTable, PathLookup};

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
    pub plaintext: PlaintextPolicy,
    pub connect: ConnectPolicy,
    pub interim: InterimPolicy,
    /// Bytes.
    pub body_max: u64,
    pub response_max: u64,
    pub response_head_max: ResponseHeadMax,
    pub client_connections: ClientConnections,
    pub timeouts: Timeouts,
    /// For some of its tenants and hosts it is another.
    pub split: Option<Split>,
    /// On which side of a split it is, in records and metrics.
    pub side: Option<&'static str>,
}

/// What routes name, compiled before them.
pub struct NamedTables<'a> {
    pub pools: &'a BTreeMap<PoolName, Arc<Pool>>,
    pub trusts: &'a BTreeMap<TrustName, Arc<Trust>>,
    pub signers: &'a BTreeMap<SignerName, Arc<Signer>>,
    pub credentials: &'a BTreeMap<CredentialName, Arc<Credential>>,
    pub limits: &'a BTreeMap<LimitName, Arc<Limit>>,
}

/// A path that servers can read as another one, which another route takes.
#[derive(Debug)]
pub enum AmbiguousPath {
    DifferentRoute {
        /// Of at most the bytes of the path itself.
        reading: String,
        /// What a server does to read the path so.
        steps: String,
        /// A route takes the reading. Which one is not for clients to know.
        is_routed: bool,
    },
    TooManyReadings,
}

/// All routes. A host is looked up, not searched for: there may be a hundred thousand.
#[derive(Default)]
pub struct Routes {
    routes: Vec<Arc<Route>>,
    exact: HashMap<Host, HostTable>,
    /// `*.acme.example` under `acme.example`.
    subdomains: HashMap<Arc<str>, HostTable>,
    any_host: HostTable,
    /// The largest of all, in bytes.
    body_max: u64,
    /// Those that only report.
    shadows: Option<Box<Routes>>,
}

impl Routes {
    /// The largest `body_max` of all routes, in bytes; 0 without routes.
    pub fn body_max(&self) -> u64 {
        self.body_max
    }

    /// The best match: an exact host before the longest wildcard before `*`; then the longest path; then a route that
    /// names the tenant, and one that names the client.
    ///
    /// `path` is without the query, as it will be sent. `/in` means `/in` and what is below it; `/in/` means what begins
    /// so. Bytes are compared as they are sent. Servers read some paths otherwise: `/in/../x` or `/in/%2e%2e/x` may be
    /// `/x`. Such a path has a route only if each of its readings has the same one.
    pub fn select(
        &self,
        client: &ClientName,
        tenant: Option<&TenantName>,
        host: &Host,
        path: &str,
    ) -> Result<Option<&Arc<Route>>, AmbiguousPath> {
        let found = unambiguous(path, self.names_paths(host), |path| {
            self.matches(client, tenant, host, path).next().map(|(_, found)| found.route)
        })?;
        Ok(found.map(|route| route.variant_for(tenant, host)))
    }

    /// The route that would be chosen if those that only report were in force, where it is one of them. The error: it
    /// would not be chosen, since the path would be ambiguous.
    pub fn shadow(
        &self,
        client: &ClientName,
        tenant: Option<&TenantName>,
        host: &Host,
        path: &str,
    ) -> Option<(&Arc<Route>, Result<(), AmbiguousPath>)> {
        let shadows = self.shadows.as_ref()?;
        let rank = |(distance, found): (usize, Match<'_>)| {
            (distance, Reverse(found.path), Reverse(found.tenant), Reverse(found.client))
        };
        let lookup = |path: PathLookup<'_>| {
            let shadow = shadows.matches(client, tenant, host, path).next();
            let taken = self.matches(client, tenant, host, path).next();
            match (shadow, taken) {
                (Some(shadow), Some(taken)) if rank(taken) < rank(shadow) => Some((taken.1.route, false)),
                (Some(shadow), _) => Some((shadow.1.route, true)),
                (None, taken) => taken.map(|taken| (taken.1.route, false)),
            }
        };
        let (shadow, _) = lookup(PathLookup::AsSent(path.as_bytes())).filter(|(_, is_shadow)| *is_shadow)?;
        let names_paths = self.names_paths(host) || shadows.names_paths(host);
        Some((shadow, unambiguous(path, names_paths, |path| lookup(path).map(|(route, _)| route)).map(drop)))
    }

    fn names_paths(&self, host: &Host) -> bool {
        self.tables(host).any(|(_, table)| table.has_paths())
    }

    /// The route of a CONNECT, as it is written and as it is for the tenant and host: see [`Self::settling`].
    pub fn select_for_tunnel(
        &self,
        client: &ClientName,
        tenant: Option<&TenantName>,
        (host, port): (&Host, u16),
    ) -> Option<(&Arc<Route>, &Arc<Route>)> {
        let upgrades = port == Scheme::Http.default_port();
        let upgrading = upgrades.then(|| self.upgrade_route(client, tenant, host)).flatten();
        let written = upgrading.or_else(|| self.tunnel_route(client, tenant, host))?;
        Some((written, written.variant_for(tenant, host)))
    }

    /// The route that settles a CONNECT to port 80, where one of those that what is inside could take upgrades plaintext:
    /// the requests inside are read, and each is judged for itself.
    fn upgrade_route(&self, client: &ClientName, tenant: Option<&TenantName>, host: &Host) -> Option<&Arc<Route>> {
        for (_, table) in self.tables(host) {
            let [for_some_paths, for_all_paths] = table.upgrade_routes(client, tenant);
            let upgrades = |route: &&Arc<Route>| route.plaintext == PlaintextPolicy::Upgrade;
            if let Some(route) = for_some_paths.or(for_all_paths.filter(upgrades)) {
                return Some(route);
            }
            if for_all_paths.is_some() {
                return None;
            }
        }
        None
    }

    /// The route that settles a CONNECT, whose path nobody sees before it is open. So every route that what is inside
    /// could take has a say, down to the one that takes every path: one that inspects settles it, since then each request
    /// is judged for itself; else one that refuses does.
    fn tunnel_route(&self, client: &ClientName, tenant: Option<&TenantName>, host: &Host) -> Option<&Arc<Route>> {
        let mut refusing_route = None;
        for (_, table) in self.tables(host) {
            let [inspecting, refusing, for_all_paths] = table.tunnel_routes(client, tenant);
            let inspects = |route: &&Arc<Route>| route.connect == ConnectPolicy::Inspect;
            if let Some(route) = inspecting.or(for_all_paths.filter(inspects)) {
                return Some(route);
            }
            refusing_route = refusing_route.or(refusing);
            if for_all_paths.is_some() {
                return refusing_route.or(for_all_paths);
            }
        }
        refusing_route
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
        for (distance, found) in self.matches(client, tenant, host, PathLookup::AsSent(path.as_bytes())) {
            // A route may match by more than one of its hosts and paths.
            if !candidates.iter().any(|(_, candidate)| Arc::ptr_eq(candidate.route, found.route)) {
                candidates.push((distance, found));
            }
        }
        candidates
    }

    fn index_tunnels(&mut self) {
        let tables = self.exact.values_mut().chain(self.subdomains.values_mut()).chain([&mut self.any_host]);
        tables.for_each(HostTable::index_tunnels);
        self.shadows.iter_mut().for_each(|shadows| shadows.index_tunnels());
    }

    /// Every route, with the other side of a split and those that only report.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Route>> {
        let shadows = self.shadows.iter().flat_map(|shadows| &shadows.routes);
        let written = self.routes.iter().chain(shadows);
        written.flat_map(|route| [Some(route), route.split.as_ref().map(Split::variant)]).flatten()
    }

    /// How long a delivery or a tunnel may last at most.
    pub fn max_duration(&self) -> Duration {
        let sides = self.routes.iter().flat_map(|route| [Some(route), route.split.as_ref().map(Split::variant)]);
        let longest = sides.flatten().map(|route| route.timeouts.total.max(route.timeouts.tunnel)).max();
        longest.unwrap_or_default()
    }

    fn matches<'t, 'q>(
        &'t self,
        client: &'q ClientName,
        tenant: Option<&'q TenantName>,
        host: &'q Host,
        path: PathLookup<'q>,
    ) -> impl Iterator<Item = (usize, Match<'t>)> {
        self.tables(host).flat_map(move |(at, table)| table.matches(client, tenant, path).map(move |found| (at, found)))
    }

    /// All that is said of a host, the most specific first, each with its distance: 0 is the name itself, `*` is farthest.
    fn tables<'t, 'q>(&'t self, host: &'q Host) -> impl Iterator<Item = (usize, &'t HostTable)> {
        let name = match host {
            Host::Name(name) => Some(&**name),
            Host::Ip(_) => None,
        };
        let parent = |name: &&'q str| name.split_once('.').map(|(_, parent)| parent);
        let parents = successors(name.as_ref().and_then(parent), parent).zip(1..);
        let wildcards = parents.filter_map(|(parent, distance)| Some((distance, self.subdomains.get(parent)?)));
        let exact = self.exact.get(host).map(|table| (0, table));
        exact.into_iter().chain(wildcards).chain([(usize::MAX, &self.any_host)])
    }
}

/// Returns what `look` finds for the path as it was sent, if it finds the same for every reading of it. `names_paths`:
/// some route that `look` asks names a path, else readings make no difference.
fn unambiguous<'t>(
    path: &str,
    names_paths: bool,
    lookup: impl Fn(PathLookup<'_>) -> Option<&'t Arc<Route>>,
) -> Result<Option<&'t Arc<Route>>, AmbiguousPath> {
    let found = lookup(PathLookup::AsSent(path.as_bytes()));
    if !names_paths {
        return Ok(found);
    }
    for reading in readings::readings(path.as_bytes()) {
        let reading = reading.map_err(|readings::TooManyReadings| AmbiguousPath::TooManyReadings)?;
        let found_for_reading = lookup(PathLookup::Reading(&reading.path));
        if found_for_reading.map(Arc::as_ptr) != found.map(Arc::as_ptr) {
            return Err(AmbiguousPath::DifferentRoute {
                reading: String::from_utf8_lossy(&reading.path).into_owned(),
                steps: reading.steps.join(", then "),
                is_routed: found_for_reading.is_some(),
            });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
