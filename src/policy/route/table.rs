//! The routes of one host pattern, indexed by path, then tenant, then client.
//! Which of these routes matches this webhook, at constant cost?

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use super::Route;
use super::readings::readings;
use crate::config::{ConnectPolicy, PlaintextPolicy};
use crate::names::{ClientName, TenantName};

/// A matching route, and the dimensions that matched.
#[derive(Clone, Copy)]
pub struct Match<'t> {
    pub route: &'t Arc<Route>,
    /// The length of its path; 0 for all paths.
    pub path: usize,
    /// Whether the route names the tenant.
    pub tenant: bool,
    /// Whether the route names the client.
    pub client: bool,
}

/// A path to look up.
#[derive(Clone, Copy)]
pub(super) enum PathLookup<'q> {
    /// The path as sent. It is compared byte for byte with the configured prefixes.
    AsSent(&'q [u8]),
    /// A reading of the path. It is compared with the readings of the prefixes.
    Reading(&'q [u8]),
}

/// The table of one host pattern. It is small with one route, since most hosts have one.
#[derive(Default)]
pub(super) struct HostTable {
    /// Routes for every path.
    all_paths: TenantTable,
    paths: Option<Box<PathTable>>,
}

#[derive(Default)]
struct PathTable {
    by_prefix: HashMap<Box<[u8]>, TenantTable>,
    /// The lengths of the prefixes, the longest first.
    lengths: Vec<usize>,
    /// Routes with paths that inspect tunnels, and those that refuse them. The path of a tunnel is unknown.
    inspecting: TenantTable,
    refusing: TenantTable,
    /// Routes with paths that upgrade plaintext requests to TLS.
    upgrading: TenantTable,
    /// Routes indexed by the readings of their prefixes, if a prefix has several. It serves paths that are readings
    /// themselves.
    by_reading: Option<Box<PathTable>>,
}

/// The routes of one path.
#[derive(Default)]
#[expect(
    clippy::box_collection,
    reason = "a table for each of a hundred thousand hosts: a pointer is an eighth of a map"
)]
pub(super) struct TenantTable {
    by_tenant: Option<Box<HashMap<TenantName, ClientTable>>>,
    /// Routes for any tenant, and for deliveries without one.
    any_tenant: ClientTable,
}

/// The routes of one path and tenant.
#[derive(Default)]
#[expect(clippy::box_collection, reason = "as above")]
pub(super) struct ClientTable {
    by_client: Option<Box<HashMap<ClientName, Arc<Route>>>>,
    /// The route for any client.
    any_client: Option<Arc<Route>>,
}

impl HostTable {
    /// Inserts a route. Returns the existing route if there is one for the same key, and keeps it.
    pub(super) fn insert(
        &mut self,
        path: &str,
        tenant: Option<&TenantName>,
        client: Option<&ClientName>,
        route: &Arc<Route>,
    ) -> Option<Arc<Route>> {
        if path.is_empty() {
            return self.all_paths.insert(tenant, client, route);
        }
        self.paths.get_or_insert_default().entry(path.as_bytes()).insert(tenant, client, route)
    }

    /// Indexes the routes that decide about tunnels, the longest path first. It is called after the last insertion.
    pub(super) fn index_tunnels(&mut self) {
        let Some(paths) = &mut self.paths else { return };
        paths.by_reading = paths.index_readings();
        let mut prefixes: Vec<_> = paths.by_prefix.iter().collect();
        prefixes.sort_unstable_by_key(|(prefix, _)| (Reverse(prefix.len()), *prefix));
        for (tenant, client, route) in prefixes.into_iter().flat_map(|(_, tenant_table)| tenant_table.iter()) {
            match route.connect {
                ConnectPolicy::Inspect => drop(paths.inspecting.insert(tenant, client, route)),
                ConnectPolicy::Refuse => drop(paths.refusing.insert(tenant, client, route)),
                ConnectPolicy::Tunnel => {}
            }
            if route.plaintext == PlaintextPolicy::Upgrade {
                drop(paths.upgrading.insert(tenant, client, route));
            }
        }
    }

    pub(super) fn has_paths(&self) -> bool {
        self.paths.is_some()
    }

    /// Returns every matching route, the best first: the longest path, then a named tenant, then a named client.
    pub(super) fn matches<'t, 'q>(
        &'t self,
        client: &'q ClientName,
        tenant: Option<&'q TenantName>,
        path: PathLookup<'q>,
    ) -> impl Iterator<Item = Match<'t>> + use<'t, 'q> {
        let by_path = self.paths.iter().flat_map(move |paths| paths.matching_prefixes(path));
        by_path.chain([(0, &self.all_paths)]).flat_map(move |(path, tenant_table)| {
            tenant_table.matches(client, tenant).map(move |found| Match { path, ..found })
        })
    }

    /// Returns a route with paths that inspects tunnels, one that refuses them, and the route for all paths.
    pub(super) fn tunnel_routes(&self, client: &ClientName, tenant: Option<&TenantName>) -> [Option<&Arc<Route>>; 3] {
        let lookup = |select| self.route_for_some_paths(select, client, tenant);
        [lookup(|paths| &paths.inspecting), lookup(|paths| &paths.refusing), self.route_for_all_paths(client, tenant)]
    }

    /// Returns a route with paths that upgrades plaintext, and the route for all paths.
    pub(super) fn upgrade_routes(&self, client: &ClientName, tenant: Option<&TenantName>) -> [Option<&Arc<Route>>; 2] {
        [self.route_for_some_paths(|paths| &paths.upgrading, client, tenant), self.route_for_all_paths(client, tenant)]
    }

    fn route_for_some_paths(
        &self,
        select: fn(&PathTable) -> &TenantTable,
        client: &ClientName,
        tenant: Option<&TenantName>,
    ) -> Option<&Arc<Route>> {
        let found = self.paths.as_ref().and_then(|paths| select(paths).matches(client, tenant).next());
        found.map(|found| found.route)
    }

    fn route_for_all_paths(&self, client: &ClientName, tenant: Option<&TenantName>) -> Option<&Arc<Route>> {
        self.all_paths.matches(client, tenant).next().map(|found| found.route)
    }

    /// Returns the client tables, each with its tenant if it is for one.
    pub(super) fn client_tables(&self) -> impl Iterator<Item = (Option<&TenantName>, &ClientTable)> {
        let tenant_table = self.paths.iter().flat_map(|paths| paths.by_prefix.values()).chain([&self.all_paths]);
        tenant_table.flat_map(TenantTable::client_tables)
    }
}

impl PathTable {
    /// Returns the tables of the prefixes of a path, the longest first. The comparison is by bytes, so no character is
    /// cut. There is one lookup for each distinct prefix length, whatever the length of the path.
    fn matching_prefixes<'t, 'q>(
        &'t self,
        path: PathLookup<'q>,
    ) -> impl Iterator<Item = (usize, &'t TenantTable)> + use<'t, 'q> {
        let (paths, path) = match path {
            PathLookup::AsSent(path) => (self, path),
            PathLookup::Reading(path) => (self.by_reading.as_deref().unwrap_or(self), path),
        };
        let may_end = move |length: &&usize| {
            let (length, slash) = (**length, Some(&b'/'));
            length <= path.len() && (path.get(length - 1) == slash || length == path.len() || path.get(length) == slash)
        };
        paths
            .lengths
            .iter()
            .filter(may_end)
            .filter_map(move |&length| Some((length, paths.by_prefix.get(&path[..length])?)))
    }

    /// Indexes the readings of the prefixes. A configured prefix precedes a reading of another one. If prefixes of
    /// different routes share a reading, no route is found by it, since a server could mean either.
    fn index_readings(&self) -> Option<Box<PathTable>> {
        let others: Vec<(Vec<u8>, &TenantTable)> = self
            .by_prefix
            .iter()
            // A prefix with too many readings is reported as a problem of the configuration.
            .flat_map(|(prefix, tenant_table)| {
                readings(prefix).filter_map(Result::ok).map(move |found| (found.path, tenant_table))
            })
            .collect();
        if others.is_empty() {
            return None;
        }
        let mut read = Box::<PathTable>::default();
        for (prefix, tenant_table) in &self.by_prefix {
            for (tenant, client, route) in tenant_table.iter() {
                read.entry(prefix).insert(tenant, client, route);
            }
        }
        for (reading, tenant_table) in others {
            let written = self.by_prefix.get(reading.as_slice());
            for (tenant, client, route) in tenant_table.iter() {
                let is_written = written.is_some_and(|tenant_table| tenant_table.has(tenant, client));
                if !is_written && read.entry(&reading).insert(tenant, client, route).is_some() {
                    // A copy differs from every route that a path as sent can have.
                    read.entry(&reading).replace(tenant, client, Arc::new(Route::clone(route)));
                }
            }
        }
        Some(read)
    }

    fn entry(&mut self, prefix: &[u8]) -> &mut TenantTable {
        if let Err(at) = self.lengths.binary_search_by(|length| prefix.len().cmp(length)) {
            self.lengths.insert(at, prefix.len());
        }
        self.by_prefix.entry(prefix.into()).or_default()
    }
}

impl TenantTable {
    fn insert(
        &mut self,
        tenant: Option<&TenantName>,
        client: Option<&ClientName>,
        route: &Arc<Route>,
    ) -> Option<Arc<Route>> {
        let client_table = self.client_table_mut(tenant);
        let existing = match client {
            Some(client) => {
                client_table.by_client.get_or_insert_default().entry(client.clone()).or_insert_with(|| route.clone())
            }
            None => client_table.any_client.get_or_insert_with(|| route.clone()),
        };
        (!Arc::ptr_eq(existing, route)).then(|| existing.clone())
    }

    fn replace(&mut self, tenant: Option<&TenantName>, client: Option<&ClientName>, route: Arc<Route>) {
        let client_table = self.client_table_mut(tenant);
        match client {
            Some(client) => drop(client_table.by_client.get_or_insert_default().insert(client.clone(), route)),
            None => client_table.any_client = Some(route),
        }
    }

    fn client_table_mut(&mut self, tenant: Option<&TenantName>) -> &mut ClientTable {
        match tenant {
            Some(tenant) => self.by_tenant.get_or_insert_default().entry(tenant.clone()).or_default(),
            None => &mut self.any_tenant,
        }
    }

    /// Returns whether a route exists for exactly this tenant and client.
    fn has(&self, tenant: Option<&TenantName>, client: Option<&ClientName>) -> bool {
        let client_table = match tenant {
            Some(tenant) => self.by_tenant.as_ref().and_then(|tenants| tenants.get(tenant)),
            None => Some(&self.any_tenant),
        };
        let route = client_table.and_then(|client_table| {
            client.map_or(client_table.for_any_client(), |client| client_table.for_client(client))
        });
        route.is_some()
    }

    fn client_tables(&self) -> impl Iterator<Item = (Option<&TenantName>, &ClientTable)> {
        let by_tenant = self.by_tenant.iter().flat_map(|tenants| tenants.iter());
        by_tenant.map(|(tenant, client_table)| (Some(tenant), client_table)).chain([(None, &self.any_tenant)])
    }

    fn iter(&self) -> impl Iterator<Item = (Option<&TenantName>, Option<&ClientName>, &Arc<Route>)> {
        self.client_tables().flat_map(|(tenant, client_table)| {
            let by_client = client_table.clients().map(move |(client, route)| (tenant, Some(client), route));
            by_client.chain(client_table.any_client.iter().map(move |route| (tenant, None, route)))
        })
    }

    fn matches<'t, 'q>(
        &'t self,
        client: &'q ClientName,
        tenant: Option<&'q TenantName>,
    ) -> impl Iterator<Item = Match<'t>> + use<'t, 'q> {
        let of_tenant =
            tenant.and_then(|tenant| self.by_tenant.as_ref()?.get(tenant)).map(|client_table| (true, client_table));
        of_tenant.into_iter().chain([(false, &self.any_tenant)]).flat_map(move |(tenant, client_table)| {
            let found = [(true, client_table.for_client(client)), (false, client_table.for_any_client())];
            found.into_iter().filter_map(move |(client, route)| Some(Match { route: route?, path: 0, tenant, client }))
        })
    }
}

impl ClientTable {
    pub(super) fn for_client(&self, client: &ClientName) -> Option<&Arc<Route>> {
        self.by_client.as_ref()?.get(client)
    }

    pub(super) fn for_any_client(&self) -> Option<&Arc<Route>> {
        self.any_client.as_ref()
    }

    pub(super) fn clients(&self) -> impl Iterator<Item = (&ClientName, &Arc<Route>)> {
        self.by_client.iter().flat_map(|clients| clients.iter())
    }
}
