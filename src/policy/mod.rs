//! Pure decisions over tables that are compiled from the configuration.
//! May this webhook leave, from which address, to which target, with which signature?

pub mod addresses;
pub mod alerts;
mod anchors;
pub mod audit;
pub mod authn;
pub mod breaker;
pub mod capture;
mod certified_key;
mod client_verifier;
pub mod credential;
pub mod egress;
pub mod expiry;
#[cfg(test)]
pub(crate) mod fixture;
pub mod fleet;
pub mod guard;
pub mod inspect;
pub mod limits;
pub mod listener;
pub mod load;
pub mod message;
pub mod own_webhook;
mod percent;
pub mod publication;
pub mod redact;
mod revocation;
pub mod rollout;
pub mod route;
pub mod sign;
mod signed_der;
pub mod trace;
pub mod trust;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::config::{Config, LoadError, Problem, Severity, Timeouts, Traces, remove_acknowledged};
use crate::names::{CredentialName, Host, LimitName, PoolName, TrustName};
use egress::list::{EgressList, ListVersion};

/// The compiled configuration. A `Plan` is immutable, and holding one proves that the configuration is valid: only
/// [`compile`] makes one, because no other module can set the private field.
pub struct Plan {
    /// The pseudonym of outgate in `Via` and `Proxy-Status` (RFC 9110 §7.6.3).
    pub pseudonym: String,
    pub clients: authn::Clients,
    pub routes: route::Routes,
    pub guard: guard::Guard,
    pub pools: BTreeMap<PoolName, Arc<egress::Pool>>,
    pub trusts: BTreeMap<TrustName, Arc<trust::Trust>>,
    pub signers: sign::Signers,
    pub credentials: BTreeMap<CredentialName, Arc<credential::Credential>>,
    pub limits: BTreeMap<LimitName, Arc<limits::Limit>>,
    pub listener: listener::Listener,
    /// The authority that signs leaf certificates for inspected tunnels. `None` if no authority is configured.
    pub inspection_ca: Option<inspect::InspectionCa>,
    /// The expiry times of the certificates and revocation lists in the configuration's files.
    pub expiries: Vec<expiry::Expiry>,
    /// `None`: there is no audit log.
    pub audit: Option<Arc<audit::AuditPlan>>,
    /// `None`: outgate records no traces.
    pub traces: Option<Arc<Traces>>,
    pub alerts: alerts::AlertsPlan,
    pub publish: publication::PublishPlan,
    /// The receivers of webhooks about changes of the ranges.
    pub notice_receivers: Vec<own_webhook::OwnWebhook>,
    pub timeouts: Timeouts,
    pub redactor: Arc<redact::Redactor>,
    pub captures: Vec<Arc<capture::Capture>>,
    /// `None` disables circuit breaking.
    pub breaker: Option<breaker::BreakerConfig>,
    pub drain_grace: Duration,
    pub drain_timeout: Duration,
    pub max_connections: usize,
    /// The configured value; [`Plan::connections_per_ip`] applies the default.
    max_connections_per_ip: Option<usize>,
    pub max_deliveries: usize,
    /// Host names that the admin listener accepts in `Host` over TCP.
    pub admin_hosts: BTreeSet<Host>,
    pub admin_users: authn::AdminUsers,
    /// The operators who sign the bundles of the fleet.
    pub operators: rollout::Operators,
    pub digest: [u8; 32],
}

/// The default of `max_connections`: client connections that are open at once.
const MAX_CONNECTIONS_DEFAULT: usize = 20_000;
/// The lowest default of [`Plan::connections_per_ip`]. A lower one would limit honest senders when `max_connections` is
/// low.
const MAX_CONNECTIONS_PER_IP_FLOOR: usize = 1000;

impl Plan {
    /// Returns whether the address is a source address of a pool now.
    pub fn has_source(&self, address: IpAddr, now: Timestamp) -> bool {
        self.pools.values().any(|pool| pool.contains(address, now))
    }

    /// Returns the address that targets see for a source address of a pool.
    pub fn seen_as(&self, source: IpAddr, now: Timestamp) -> IpAddr {
        let seen = self.pools.values().map(|pool| pool.seen_as(source, now));
        seen.into_iter().find(|seen| *seen != source).unwrap_or(source)
    }

    /// Returns the list that customers see: of one pool, or of all. `version`: see [`Plan::list_version`].
    pub fn egress_list(&self, pool: Option<&PoolName>, version: &ListVersion, now: Timestamp) -> EgressList {
        EgressList::new(self.pools.values().map(|pool| &**pool), pool, self.routes.max_duration(), version, now)
    }

    /// Returns the version of the ranges. `changed_at`: the time of the change, if they differ from the `former` ones.
    pub fn list_version(&self, former: Option<&ListVersion>, changed_at: Timestamp, now: Timestamp) -> ListVersion {
        let pools = self.pools.values().map(|pool| &**pool);
        ListVersion::of(pools, self.routes.max_duration(), former, changed_at, now)
    }

    /// Returns the maximum number of connections from one client address. The default is half of all, so one address
    /// cannot take every connection. No sender keeps that many busy, since `max_deliveries` is 10,000.
    pub fn connections_per_ip(&self) -> usize {
        self.max_connections_per_ip.unwrap_or((self.max_connections / 2).max(MAX_CONNECTIONS_PER_IP_FLOOR))
    }
}

/// Compiles the configuration. Start, reload, `check` and `explain` all use this function.
/// Returns the plan with its warnings and the problems that affect single tenants, or every problem found.
pub fn compile(config: &Config, now: Timestamp) -> Result<(Plan, Vec<Problem>), Vec<Problem>> {
    recompile(config, None, now)
}

/// Compiles as [`compile`] does, and reuses the unchanged tenant keys of the previous plan, since they are costly to
/// compile.
pub fn recompile(
    config: &Config,
    previous: Option<&Plan>,
    now: Timestamp,
) -> Result<(Plan, Vec<Problem>), Vec<Problem>> {
    let mut problems = Vec::new();
    let pools = egress::compile(config, now, &mut problems);
    let trusts = trust::compile(config, &mut problems);
    let signers = sign::compile(config, previous.map(|before| &before.signers), &mut problems);
    problems.extend(signers.values().flat_map(|signer| signer.problems(now)));
    let credentials = credential::compile(config, &mut problems);
    let limits = limits::compile(config, &mut problems);
    let tables = route::NamedTables {
        pools: &pools,
        trusts: &trusts,
        signers: &signers,
        credentials: &credentials,
        limits: &limits,
    };
    let guard = guard::Guard::compile(config, &mut problems);
    credential::check_guard(config, &credentials, &guard, &mut problems);
    let routes = route::Routes::compile(config, &tables, &mut problems);
    route::check_guard(config, &routes, &guard, &mut problems);
    let mut notice_receivers = Vec::new();
    for (url, route) in config.notices.webhooks.iter().filter_map(|url| Some((url, routes.notices()?))) {
        notice_receivers.extend(own_webhook::compile("notices", url, route, &guard, now, &mut problems));
    }
    let alerts = alerts::compile(config, &trusts, routes.alerts(), &guard, now, &mut problems);
    let plan = Plan {
        pseudonym: config.server.name.clone(),
        clients: authn::Clients::compile(config, &mut problems),
        routes,
        guard,
        listener: listener::compile(config, &mut problems),
        inspection_ca: inspect::compile(config, now, &mut problems),
        expiries: expiry::compile(config, now, &mut problems),
        audit: audit::compile(config, &trusts, &mut problems),
        traces: trace::compile(config, &trusts, &mut problems),
        alerts,
        publish: publication::compile(config, &mut problems),
        notice_receivers,
        timeouts: config.timeouts.clone(),
        redactor: Arc::new(redact::Redactor::compile(&config.redact, &mut problems)),
        captures: capture::compile(config, &mut problems),
        breaker: breaker::BreakerConfig::compile(&config.circuit),
        drain_grace: config.server.drain_grace,
        drain_timeout: config.server.drain_timeout,
        max_connections: config
            .server
            .max_connections
            .as_ref()
            .map_or(MAX_CONNECTIONS_DEFAULT, |written| written.value),
        max_connections_per_ip: config.server.max_connections_per_ip,
        max_deliveries: config.server.max_deliveries,
        admin_hosts: config.admin.hosts.iter().cloned().collect(),
        admin_users: authn::AdminUsers::compile(config, &mut problems),
        operators: rollout::Operators::compile(config, &mut problems),
        digest: config.digest,
        pools,
        trusts,
        signers,
        credentials,
        limits,
    };
    if problems.iter().any(|problem| problem.severity == Severity::Problem) {
        Err(problems)
    } else {
        Ok((plan, problems))
    }
}

/// Returns every problem of a rejected configuration: those of its text, and those of the sections that could be read.
pub fn all_problems(rejected: &LoadError, now: Timestamp) -> Vec<Problem> {
    let mut problems = rejected.problems.clone();
    if let Some(rest) = &rejected.partial {
        if let Err(new_problems) = compile(rest, now) {
            // A problem of a section that was read only in part may be a consequence of an earlier problem.
            let broken = rest.declared_sections.broken_sections(&problems);
            let is_consequence = |problem: &Problem| {
                let related = problem.related.as_ref().map(|(place, _)| *place);
                problem.span.into_iter().chain(related).any(|place| broken.contains(&place))
            };
            problems.extend(new_problems.into_iter().filter(|problem| !is_consequence(problem)));
        }
        problems = remove_acknowledged(problems, &rest.acknowledge);
    }
    problems
}

#[cfg(test)]
mod tests;
