//! The table of routes, and the order in which they match.
//! Which route does this webhook take?

mod compile;
#[cfg(test)]
mod compile_tests;
mod credential;
mod guard_check;
mod own_series;
mod paths;
mod reachability;
mod readings;
#[cfg(test)]
mod references_tests;
#[cfg(test)]
mod selection_tests;
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
use crate::policy::redact::RoutePaths;
use crate::policy::sign::Signer;
use crate::policy::trust::Trust;
pub use guard_check::check_guard;
pub use own_series::OWN_SERIES_MAX;
pub use split::Split;
pub use table::Match;
use table::{HostTable, PathLookup};

/// The maximum size in bytes of a body that outgate or its client signs, since it is held in memory.
pub const WHOLE_BODY_MAX: u64 = 64 << 20;

/// The settings for webhooks that match.
#[derive(Clone)]
pub struct Route {
    pub name: RouteName,
    /// Ports in addition to those that the guard allows everywhere.
    pub ports: Vec<u16>,
    pub pool: Arc<Pool>,
    pub trust: Arc<Trust>,
    pub signers: Vec<Arc<Signer>>,
    pub credential: Option<Arc<Credential>>,
    /// Whether the route names its tenants. A token that was fetched for one of them is not shared with others.
    pub is_for_tenants: bool,
    /// Sorted by name, so that all deliveries acquire permits in one order and cannot deadlock.
    pub limits: Vec<Arc<Limit>>,
    pub plaintext: PlaintextPolicy,
    pub connect: ConnectPolicy,
    pub interim: InterimPolicy,
    /// Bytes.
    pub body_max: u64,
    pub response_max: u64,
    pub response_head_max: ResponseHeadMax,
    pub client_connections: ClientConnections,
    /// Whether its deliveries are counted in series of their own.
    pub has_own_series: bool,
    pub timeouts: Timeouts,
    /// How records show the paths of requests.
    pub paths: RoutePaths,
    /// The variant of the route for some of its tenants and hosts.
    pub split: Option<Split>,
    /// The side of a split in records and metrics.
    pub side: Option<&'static str>,
}

/// The compiled tables that routes refer to by name.
pub struct NamedTables<'a> {
    pub pools: &'a BTreeMap<PoolName, Arc<Pool>>,
    pub trusts: &'a BTreeMap<TrustName, Arc<Trust>>,
    pub signers: &'a BTreeMap<SignerName, Arc<Signer>>,
    pub credentials: &'a BTreeMap<CredentialName, Arc<Credential>>,
    pub limits: &'a BTreeMap<LimitName, Arc<Limit>>,
}

/// A path that some servers read as another path, which another route takes.
#[derive(Debug)]
pub enum AmbiguousPath {
    DifferentRoute {
        /// The reading, at most as long as the path.
        reading: String,
        /// The steps by which a server reads the path so.
        steps: String,
        /// Whether a route takes the reading. A client must not learn which one.
        is_routed: bool,
    },
    TooManyReadings,
}

/// All routes, indexed by host, since there may be a hundred thousand.
#[derive(Default)]
pub struct Routes {
    routes: Vec<Arc<Route>>,
    exact: HashMap<Host, HostTable>,
    /// `*.acme.example` under `acme.example`.
    subdomains: HashMap<Arc<str>, HostTable>,
    any_host: HostTable,
    /// The largest `body_max` of all routes, in bytes.
    body_max: u64,
    /// Routes that only report.
    shadows: Option<Box<Routes>>,
    /// The route of outgate's own alerts, which no request matches.
    alerts: Option<Route>,
    /// The route of outgate's own notices of changed ranges, which no request matches.
    notices: Option<Route>,
}

impl Routes {
    /// Returns the route of alerts, if the configuration has a webhook for them.
    pub fn alerts(&self) -> Option<&Route> {
        self.alerts.as_ref()
    }

    /// Returns the route of notices, if the configuration has a webhook for them.
    pub fn notices(&self) -> Option<&Route> {
        self.notices.as_ref()
    }

    /// The largest `body_max` of all routes, in bytes; 0 without routes.
    pub fn body_max(&self) -> u64 {
        self.body_max
    }

    /// Returns the best match. An exact host precedes the longest wildcard, which precedes `*`; then the longest path
    /// wins. Then a route that names the tenant precedes others, then one that names the client.
    ///
    /// `path` has no query and is compared byte for byte as sent. `/in` matches `/in` and everything below it; `/in/`
    /// matches everything that starts with it. Servers read some paths differently: `/in/../x` or `/in/%2e%2e/x` may be
    /// `/x`. Such a path has a route only if all its readings have the same one.
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

    /// Returns the report-only route that would be selected if report-only routes were enforced. The error means that
    /// the path would be ambiguous instead.
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

    /// Returns the route of a CONNECT as configured, and its variant for the tenant and host. See
    /// [`Self::tunnel_route`].
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

    /// Returns the route that decides a CONNECT to port 80 if a route of its requests upgrades plaintext. outgate then
    /// reads the requests in the tunnel and routes each by itself.
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

    /// Returns the route that decides a CONNECT. Its path is unknown, so every route that a request in the tunnel could
    /// take counts, down to one for all paths. A route that inspects decides first, since each request is then routed
    /// by itself. A route that refuses decides next.
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

    /// Returns every matching route, the best first, with the distance of its host pattern from the name. A more
    /// specific pattern is nearer.
    pub fn candidates(
        &self,
        client: &ClientName,
        tenant: Option<&TenantName>,
        host: &Host,
        path: &str,
    ) -> Vec<(usize, Match<'_>)> {
        let mut candidates: Vec<(usize, Match<'_>)> = Vec::new();
        for (distance, found) in self.matches(client, tenant, host, PathLookup::AsSent(path.as_bytes())) {
            // A route may match by several of its hosts and paths.
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

    /// Returns every route, with the variants of splits and the report-only routes.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Route>> {
        let shadows = self.shadows.iter().flat_map(|shadows| &shadows.routes);
        let written = self.routes.iter().chain(shadows);
        written.flat_map(|route| [Some(route), route.split.as_ref().map(Split::variant)]).flatten()
    }

    /// Returns every route that deliveries take, with the variants of splits.
    pub fn enforced(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.iter().flat_map(|route| [Some(route), route.split.as_ref().map(Split::variant)]).flatten()
    }

    /// Returns the maximum duration of a delivery or tunnel.
    pub fn max_duration(&self) -> Duration {
        let longest = self.enforced().map(|route| route.timeouts.total.max(route.timeouts.tunnel)).max();
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

    /// Returns the tables of a host, the most specific first, each with its distance: 0 is the name itself, `*` is
    /// farthest.
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

/// Returns the result of `lookup` for the path as sent, if every reading of the path has the same result. Readings make
/// no difference unless `names_paths`: some route of the lookup names a path.
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
