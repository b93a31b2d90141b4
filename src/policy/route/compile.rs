//! The compilation of routes, and their problems.
//! What does each route mean, and can every webhook be assigned to one route?

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::credential;
use super::{NamedTables, Route, Routes, Split, WHOLE_BODY_MAX, own_series, paths, reachability, split};
use crate::config::problem::closest_match;
use crate::config::{self, Config, ConnectPolicy, Located, PlaintextPolicy, Problem, Timeouts, WarningCode};
use crate::host::{self, HostPattern};
use crate::names::{ClientName, PoolName, RouteName, TenantName};
use crate::policy::authn::ANONYMOUS;
use crate::policy::egress::Pool;
use crate::policy::redact::RoutePaths;
use crate::policy::sign::Signer;
use crate::policy::trust::PUBLIC_TRUST;

const BODY_MAX_DEFAULT: u64 = 1 << 20;
const RESPONSE_MAX_DEFAULT: u64 = 64 << 20;

const POOL_DEFAULT: &str = "default";

impl Routes {
    pub fn compile(config: &Config, tables: &NamedTables<'_>, problems: &mut Vec<Problem>) -> Routes {
        let mut routes = Routes::default();
        let mut used = UsedNames::default();
        let alerts = config.alerts.webhook.as_ref().map(|_| &config.alerts.route.value);
        routes.alerts = alerts.and_then(|route| compile_route(route, &[], config, tables, &mut used, problems));
        let notices = (!config.notices.webhooks.is_empty()).then_some(&config.notices.route.value);
        routes.notices = notices.and_then(|route| compile_route(route, &[], config, tables, &mut used, problems));
        if config.routes.is_empty() {
            let message = "no route is configured: outgate would refuse every request as no_route";
            let problem = Problem::warning(WarningCode::NoRoute, None, message);
            problems.push(problem.help("add [[routes]] with name and hosts"));
            return routes;
        }
        if config.routes.iter().all(|route| route.report_only) {
            let help = "remove report_only from at least one route";
            let message = "every route is report_only: outgate would refuse every request as no_route";
            problems.push(Problem::warning(WarningCode::NoRoute, None, message).help(help));
        }
        check_unique_names(&config.routes, problems);
        own_series::check(&config.routes, problems);
        let log_servers = config.audit.syslog.iter().chain(&config.alerts.syslog);
        used.trusts.extend(log_servers.map(|server| server.trust.as_deref().unwrap_or(PUBLIC_TRUST)));
        let collectors = config.traces.iter();
        used.trusts.extend(collectors.map(|traces| traces.trust.as_ref().map_or(PUBLIC_TRUST, |trust| trust.as_str())));
        // The place of each route's name, for routes that match the same.
        let (mut names, mut ambiguous) = (HashMap::new(), BTreeSet::new());
        for written in &config.routes {
            let patterns = patterns(written, problems);
            let paths = paths::compile(written, problems);
            let (tenants, clients) = (tenants(written), clients(written, config, problems));
            let Some(route) = compile_route(written, &paths, config, tables, &mut used, problems).map(Arc::new) else {
                continue;
            };
            names.insert(Arc::as_ptr(&route), written.name.span);
            let into = match written.report_only {
                true => routes.shadows.get_or_insert_default(),
                false => &mut routes,
            };
            for pattern in patterns {
                let table = match pattern {
                    HostPattern::Exact(host) => into.exact.entry(host).or_default(),
                    HostPattern::Subdomains(parent) => into.subdomains.entry(parent).or_default(),
                    HostPattern::Any => &mut into.any_host,
                };
                for (path, tenant, client) in combinations(&paths, &tenants, &clients) {
                    if let Some(before) = table.insert(path, tenant, client, &route) {
                        ambiguous.insert((names[&Arc::as_ptr(&before)], written.name.span));
                    }
                }
            }
            let split = route.split.as_ref().map_or(0, |split| split.variant.body_max);
            into.body_max = into.body_max.max(route.body_max).max(split);
            into.routes.push(route);
        }
        problems.extend(ambiguous.into_iter().map(|(first, second)| {
            let problem = Problem::at(second, "this route matches the same requests as another route");
            problem
                .related(first, "this route matches the same requests")
                .help("give one of the routes another host, path, tenant or client")
        }));
        routes.index_tunnels();
        reachability::check(&routes, config, &names, problems);
        if let Some(shadows) = &routes.shadows {
            reachability::check(shadows, config, &names, problems);
        }
        warn_unused_sections(config, &used, problems);
        routes
    }
}

fn check_unique_names(routes: &[Located<config::Route>], problems: &mut Vec<Problem>) {
    let mut first = HashMap::new();
    for name in routes.iter().map(|route| &route.name) {
        match first.get(&name.value) {
            Some(&first) => {
                let problem = Problem::at(name.span, format!("two routes are named {:?}", name.value));
                problems.push(problem.related(first, "first here").help("rename one: records identify routes by name"));
            }
            None => drop(first.insert(&name.value, name.span)),
        }
    }
}

fn patterns(written: &config::Route, problems: &mut Vec<Problem>) -> Vec<HostPattern> {
    if written.hosts.is_empty() {
        let message = format!("the route {:?} matches no host", written.name.value);
        problems.push(Problem::at(written.name.span, message).help("write hosts = [\"*\"] to match every host"));
    }
    let mut patterns = Vec::new();
    for host in &written.hosts {
        match HostPattern::parse(host) {
            // A duplicate pattern has no effect.
            Ok(pattern) => patterns.push(pattern),
            Err(error) => {
                let only = host::of_url(host)
                    .map(|only| format!("write the host alone, \"{only}\": ports and paths are keys of the route"));
                let help =
                    only.unwrap_or_else(|| "write a host name, \"*.\" and a domain, \"*\", or an address".to_owned());
                problems.push(Problem::at(host.span, error.to_string()).help(help));
            }
        }
    }
    patterns
}

/// Returns the tenants that a route names.
fn tenants(written: &config::Route) -> Arc<[TenantName]> {
    written.tenants.iter().map(|tenant| TenantName::new(tenant.as_str())).collect()
}

fn clients(written: &config::Route, config: &Config, problems: &mut Vec<Problem>) -> Arc<[ClientName]> {
    let anonymous = config.server.allow_anonymous.value.then_some(ANONYMOUS);
    for client in &written.clients {
        if !config.declares("clients", client) && Some(client.as_str()) != anonymous {
            let known = config.clients.keys().map(ClientName::as_str).chain(anonymous);
            report_unknown_name("client", client, known, "clients", problems);
        }
    }
    written.clients.iter().map(|client| ClientName::new(client.as_str())).collect()
}

/// The names that routes refer to.
#[derive(Default)]
struct UsedNames<'a> {
    pools: BTreeSet<&'a str>,
    trusts: BTreeSet<&'a str>,
    signers: BTreeSet<&'a str>,
    credentials: BTreeSet<&'a str>,
    limits: BTreeSet<&'a str>,
}

fn compile_route<'a>(
    written: &'a config::Route,
    paths: &[Arc<str>],
    config: &Config,
    tables: &NamedTables<'_>,
    used: &mut UsedNames<'a>,
    problems: &mut Vec<Problem>,
) -> Option<Route> {
    let problems_before = problems.len();
    let pool = match &written.egress {
        Some(name) => resolve_name("egress pool", name, tables.pools, config, "egress", problems),
        None => default_pool(&written.name, tables.pools, problems),
    };
    used.pools.insert(written.egress.as_ref().map_or(POOL_DEFAULT, |name| name));
    let trust = match &written.trust {
        Some(name) => resolve_name("trust", name, tables.trusts, config, "trust", problems),
        None => tables.trusts.get(PUBLIC_TRUST),
    };
    used.trusts.insert(written.trust.as_ref().map_or(PUBLIC_TRUST, |name| name));
    let mut signers = Vec::new();
    for name in &written.sign {
        signers.extend(resolve_name("signer", name, tables.signers, config, "signers", problems));
    }
    used.signers.extend(written.sign.iter().map(|name| name.as_str()));
    check_header_conflicts(&signers, written, problems);
    warn_shared_secrets(&signers, written, problems);
    let credential = written
        .credential
        .as_ref()
        .and_then(|name| resolve_name("credential", name, tables.credentials, config, "credentials", problems));
    used.credentials.extend(written.credential.as_ref().map(|name| name.as_str()));
    if let Some(credential) = credential {
        credential::check(credential, written, &signers, trust, problems);
    }
    let mut limits = Vec::new();
    for name in &written.limits {
        limits.extend(resolve_name("limit", name, tables.limits, config, "limits", problems));
    }
    used.limits.extend(written.limits.iter().map(|name| name.as_str()));
    limits.sort_by(|a, b| a.name.cmp(&b.name));
    limits.dedup_by(|a, b| a.name == b.name);
    check_values(written, problems);
    let connect = connect(written);
    let split = match &written.split {
        None => None,
        Some(split) => {
            let mut variant_problems = Vec::new();
            let other = compile_route(&split.route, paths, config, tables, used, &mut variant_problems);
            // A problem of both sides is already reported.
            variant_problems.retain(|problem| !problems[problems_before..].contains(problem));
            problems.append(&mut variant_problems);
            let mut other = Route { side: Some(split::SPLIT), ..other? };
            other.connect = split::variant_connect(written, connect, other.connect, split.span, problems);
            Some(Split { share: split.share, variant: Arc::new(other) })
        }
    };
    Some(Route {
        name: RouteName::new(written.name.as_str()),
        ports: written.ports.iter().map(|port| port.value).collect(),
        pool: pool?.clone(),
        trust: trust?.clone(),
        signers: signers.into_iter().cloned().collect(),
        credential: credential.cloned(),
        is_for_tenants: !written.tenants.is_empty(),
        limits: limits.into_iter().cloned().collect(),
        plaintext: written.plaintext.value,
        connect,
        interim: written.interim,
        response_max: written.response_max.as_ref().map_or(RESPONSE_MAX_DEFAULT, |max| max.value),
        response_head_max: written.response_head_max,
        client_connections: written.client_connections,
        has_own_series: own_series::has_own(written),
        body_max: written.body_max.as_ref().map_or(BODY_MAX_DEFAULT, |max| max.value),
        timeouts: timeouts(written, config),
        paths: RoutePaths { form: written.path_form, conditions: paths.into() },
        side: split.is_some().then_some(split::MAIN),
        split,
    })
}

/// Returns the table entry that a route names. `None` is already reported: the name is unknown, or its section has a
/// problem.
fn resolve_name<'t, N: Ord + Borrow<str>, T>(
    kind: &str,
    name: &Located<String>,
    compiled: &'t BTreeMap<N, T>,
    config: &Config,
    section: &str,
    problems: &mut Vec<Problem>,
) -> Option<&'t T> {
    let found = compiled.get(name.as_str());
    if found.is_none() && !config.declares(section, name) {
        report_unknown_name(kind, name, compiled.keys().map(N::borrow), section, problems);
    }
    found
}

fn report_unknown_name<'a>(
    kind: &str,
    name: &Located<String>,
    known: impl Iterator<Item = &'a str>,
    section: &str,
    problems: &mut Vec<Problem>,
) {
    let help = match closest_match(name, known) {
        Some(near) => format!("did you mean {near:?}?"),
        None => format!("add [{section}.{}]", name.value),
    };
    problems.push(Problem::at(name.span, format!("no {kind} is named {:?}", name.value)).help(help));
}

/// Returns the pool of a route that names none.
fn default_pool<'t>(
    route: &Located<String>,
    pools: &'t BTreeMap<PoolName, Arc<Pool>>,
    problems: &mut Vec<Problem>,
) -> Option<&'t Arc<Pool>> {
    let found = pools.get(POOL_DEFAULT);
    if found.is_none() {
        let message =
            format!("the route {:?} names no egress pool, and no pool is named {POOL_DEFAULT:?}", route.value);
        problems.push(Problem::at(route.span, message).help("add egress = \"NAME\" or [egress.default]"));
    }
    found
}

/// Warns about a symmetric signer for every host. Standard Webhooks requires a secret for each endpoint (spec,
/// Signature scheme).
fn warn_shared_secrets(signers: &[&Arc<Signer>], written: &config::Route, problems: &mut Vec<Problem>) {
    let Some(any) = written.hosts.iter().find(|host| host.value == "*") else { return };
    for signer in signers.iter().filter(|signer| signer.shares_a_secret()) {
        let message = format!("every receiver on this route shares the secret of the signer {}", signer.name());
        let help = "a tenant with this key can forge webhooks to every other tenant: use a key_dir with a key for each tenant, or a scheme with key pairs";
        problems.push(Problem::warning(WarningCode::SharedSecret, Some(any.span), message).help(help));
    }
}

/// Reports signers that set the same header: the receiver would take one value and find it invalid.
fn check_header_conflicts(signers: &[&Arc<Signer>], written: &config::Route, problems: &mut Vec<Problem>) {
    for (i, signer) in signers.iter().enumerate() {
        let conflict = signers[..i].iter().find(|first| first.headers().iter().any(|h| signer.headers().contains(h)));
        if let Some(first) = conflict {
            let place = written.sign.iter().find(|name| name.value == signer.name().as_str()).map(|name| name.span);
            let message = format!("the signers {} and {} write the same headers", first.name(), signer.name());
            let help = "to sign with two keys, give both to one signer";
            problems.push(Problem::at(place.unwrap_or(written.name.span), message).help(help));
        }
    }
}

fn check_values(written: &config::Route, problems: &mut Vec<Problem>) {
    for port in written.ports.iter().filter(|port| port.value == 0) {
        problems.push(Problem::at(port.span, "0 is not a port").help("write a number from 1 to 65535"));
    }
    if let Some(max) = &written.body_max {
        if max.value == 0 {
            problems.push(Problem::at(max.span, "a body_max of 0 refuses every body").help("write e.g. \"1 MiB\""));
        }
        if max.value > WHOLE_BODY_MAX && !written.sign.is_empty() {
            let message = "outgate buffers signed bodies, up to 64 MiB each";
            problems.push(
                Problem::at(max.span, message).help("write at most \"64 MiB\", or remove `sign`: then bodies stream"),
            );
        }
    }
    let tunnel = written.connect.as_ref().filter(|connect| connect.value == ConnectPolicy::Tunnel);
    if let (Some(connect), false) = (tunnel, written.paths.is_empty()) {
        let message = "the path of a tunnel is unknown, so a route with paths opens no tunnel";
        let help = "write \"inspect\" to route the requests inside by path, or allow tunnels on a route of the same \
                    host without paths";
        problems.push(Problem::warning(WarningCode::TunnelPaths, Some(connect.span), message).help(help));
    }
    if let (Some(connect), false) = (tunnel, written.sign.is_empty()) {
        let message = "outgate does not sign requests inside a tunnel";
        let help = "write \"inspect\" to sign requests inside tunnels, or \"refuse\" so that clients send requests \
                    without a tunnel, which outgate signs";
        problems.push(Problem::warning(WarningCode::TunnelUnsigned, Some(connect.span), message).help(help));
    }
    if written.plaintext.value == PlaintextPolicy::Allow {
        let message = "outgate may send webhooks in plaintext, to targets whose identity is not verified";
        let help = "write \"upgrade\" to accept the same requests and send them over TLS";
        problems.push(Problem::warning(WarningCode::Plaintext, Some(written.plaintext.span), message).help(help));
    }
}

/// Returns the tunnel policy. outgate adds nothing inside a tunnel, so a route with signers or a credential permits
/// tunnels only if configured.
fn connect(written: &config::Route) -> ConnectPolicy {
    let adds_nothing = written.sign.is_empty() && written.credential.is_none();
    let default = if adds_nothing { ConnectPolicy::Tunnel } else { ConnectPolicy::Refuse };
    written.connect.as_ref().map_or(default, |connect| connect.value)
}

fn timeouts(written: &config::Route, config: &Config) -> Timeouts {
    let (overrides, all) = (&written.timeouts, &config.timeouts);
    Timeouts {
        dns: overrides.dns.unwrap_or(all.dns),
        connect: overrides.connect.unwrap_or(all.connect),
        tls: overrides.tls.unwrap_or(all.tls),
        body: overrides.body.unwrap_or(all.body),
        response: overrides.response.unwrap_or(all.response),
        idle: overrides.idle.unwrap_or(all.idle),
        total: overrides.total.unwrap_or(all.total),
        tunnel: overrides.tunnel.unwrap_or(all.tunnel),
        ..all.clone()
    }
}

/// Returns every combination of the route's paths, tenants and clients.
fn combinations<'a>(
    paths: &'a [Arc<str>],
    tenants: &'a [TenantName],
    clients: &'a [ClientName],
) -> impl Iterator<Item = (&'a str, Option<&'a TenantName>, Option<&'a ClientName>)> {
    let pairs = move |path: &'a Arc<str>| {
        each_or_any(tenants).flat_map(move |tenant| each_or_any(clients).map(move |client| (&**path, tenant, client)))
    };
    paths.iter().flat_map(pairs)
}

/// Returns each name, or `None` once if there are no names.
fn each_or_any<T>(names: &[T]) -> impl Iterator<Item = Option<&T>> {
    names.iter().map(Some).chain(names.is_empty().then_some(None))
}

fn warn_unused_sections(config: &Config, used: &UsedNames<'_>, problems: &mut Vec<Problem>) {
    warn_unused_names("egress pool", &config.egress, &used.pools, problems);
    warn_unused_names("trust", &config.trust, &used.trusts, problems);
    warn_unused_names("signer", &config.signers, &used.signers, problems);
    warn_unused_names("credential", &config.credentials, &used.credentials, problems);
    warn_unused_names("limit", &config.limits, &used.limits, problems);
}

fn warn_unused_names<N: Borrow<str>, T>(
    kind: &str,
    written: &BTreeMap<N, Located<T>>,
    used: &BTreeSet<&str>,
    problems: &mut Vec<Problem>,
) {
    for (name, at) in written.iter().filter(|(name, _)| !used.contains((*name).borrow())) {
        let message = format!("no route uses the {kind} {}", name.borrow());
        problems.push(Problem::warning(WarningCode::Unused, Some(at.span), message));
    }
}
