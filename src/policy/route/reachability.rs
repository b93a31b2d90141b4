//! Routes that no webhook can take, because of the configured clients and the other routes.
//! Is there a webhook for which this route is the best match?
//!
//! Two cases are not found: a route whose longer paths leave no path for it, and one whose clients have networks that
//! no listener can see.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::table::ClientTable;
use super::{Route, Routes};
use crate::config::problem::SourceSpan;
use crate::config::{Config, Problem};
use crate::names::{ClientName, TenantName};
use crate::policy::authn::ANONYMOUS;

/// The configured clients and their tenants.
struct Callers<'a> {
    /// The tenants of each client; `None` for every tenant.
    all: HashMap<ClientName, Option<HashSet<&'a str>>>,
    /// The tenants that any client may send for; `None` for all.
    tenants: Option<HashSet<&'a str>>,
}

impl<'a> Callers<'a> {
    fn of(config: &'a Config) -> Self {
        let tenants = |client: &'a crate::config::Client| {
            let named: HashSet<&str> = client.tenants.iter().map(|tenant| tenant.as_str()).collect();
            (!named.contains("*")).then_some(named)
        };
        let mut all: HashMap<ClientName, _> =
            config.clients.iter().map(|(name, client)| (name.clone(), tenants(&client.value))).collect();
        if config.server.allow_anonymous.value {
            all.entry(ClientName::new(ANONYMOUS)).or_insert_with(|| Some(HashSet::new()));
        }
        let tenants = all.values().map(Option::as_ref).collect::<Option<Vec<_>>>();
        let tenants = tenants.map(|named| named.into_iter().flatten().copied().collect());
        Self { all, tenants }
    }

    fn may_send(&self, client: &ClientName, tenant: Option<&TenantName>) -> bool {
        let tenants = self.all.get(client).map(Option::as_ref);
        tenants
            .is_some_and(|named| tenant.is_none_or(|tenant| named.is_none_or(|named| named.contains(tenant.as_str()))))
    }

    fn anyone_may_send(&self, tenant: Option<&TenantName>) -> bool {
        tenant.is_none_or(|tenant| self.tenants.as_ref().is_none_or(|named| named.contains(tenant.as_str())))
    }

    /// Returns whether every client that may send for the tenant has its own route.
    fn all_have_own_route(&self, client_table: &ClientTable, tenant: Option<&TenantName>) -> bool {
        self.all.keys().all(|client| client_table.for_client(client).is_some() || !self.may_send(client, tenant))
    }
}

pub(super) fn check(
    routes: &Routes,
    config: &Config,
    names: &HashMap<*const Route, SourceSpan>,
    problems: &mut Vec<Problem>,
) {
    let callers = Callers::of(config);
    // A configuration without clients is reported elsewhere.
    if callers.all.is_empty() {
        return;
    }
    let mut reachable: HashSet<*const Route> = HashSet::new();
    // The preferred route, or `None` if the configured clients and tenants leave no sender.
    let mut unreachable: HashMap<*const Route, Option<SourceSpan>> = HashMap::new();
    let tables = routes.exact.values().chain(routes.subdomains.values()).chain([&routes.any_host]);
    for (tenant, client_table) in tables.flat_map(|table| table.client_tables()) {
        for (client, route) in client_table.clients() {
            // An unknown client is already reported.
            if callers.may_send(client, tenant) || !callers.all.contains_key(client) {
                reachable.insert(Arc::as_ptr(route));
            } else {
                unreachable.entry(Arc::as_ptr(route)).or_default();
            }
        }
        let Some(route) = client_table.for_any_client() else { continue };
        let winner = client_table.clients().next().and_then(|(_, preferred)| names.get(&Arc::as_ptr(preferred)));
        if !callers.anyone_may_send(tenant) {
            unreachable.entry(Arc::as_ptr(route)).or_default();
        } else if winner.is_some() && callers.all_have_own_route(client_table, tenant) {
            unreachable.insert(Arc::as_ptr(route), winner.copied());
        } else {
            reachable.insert(Arc::as_ptr(route));
        }
    }
    // The tables are unordered; their problems are sorted.
    let unreached = unreachable.into_iter().filter(|(route, _)| !reachable.contains(route));
    let mut unreached: Vec<_> = unreached.filter_map(|(route, winner)| Some((*names.get(&route)?, winner))).collect();
    unreached.sort_unstable();
    problems.extend(unreached.into_iter().map(|(place, winner)| {
        match winner {
            Some(winner) => Problem::at(
                place,
                "no webhook can match this route: every client has a route of its own for the same requests",
            )
            .related(winner, "for example this route")
            .help("remove the route, or give it another host or path"),
            None => {
                let problem =
                    Problem::at(place, "no webhook can match this route: none of its clients may send for its tenants");
                match config.clients.values().next() {
                    Some(client) => {
                        problem.related(client.span, "`tenants` of a client lists the tenants that it may send for")
                    }
                    None => problem,
                }
                .help("add the tenants to `tenants` of a client of the route")
            }
        }
    }));
}
