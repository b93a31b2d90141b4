//! Pure decisions over tables compiled from the configuration.
//! May this webhook leave, from where, to whom, signed by whom?

pub mod addresses;
mod anchors;
pub mod authn;
pub mod breaker;
mod certified_key;
mod client_verifier;
pub mod credential;
pub mod egress;
pub mod expiry;
#[cfg(test)]
pub(crate) mod fixture;
pub mod guard;
pub mod inspect;
pub mod limits;
pub mod listener;
mod message;
mod revocation;
pub mod route;
pub mod sign;
mod signed_der;
pub mod trust;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::config::{Config, LoadError, Problem, Severity, SourceMap, Timeouts, remove_acknowledged};
use crate::names::{CredentialName, Host, PoolName, TrustName};

/// What the configuration means: every table compiled, immutable. To hold one is the proof that it is valid.
pub struct Plan {
    /// Our pseudonym in `Via` and `Proxy-Status`.
    pub pseudonym: String,
    pub clients: authn::Clients,
    pub routes: route::Routes,
    pub guard: guard::Guard,
    pub pools: BTreeMap<PoolName, Arc<egress::Pool>>,
    pub trusts: BTreeMap<TrustName, Arc<trust::Trust>>,
    pub signers: sign::Signers,
    pub credentials: BTreeMap<CredentialName, Arc<credential::Credential>>,
    pub listener: listener::Listener,
    /// Where routes inspect tunnels.
    pub inspection_ca: Option<inspect::InspectionCa>,
    /// When what stands in files ends.
    pub expiries: Vec<expiry::Expiry>,
    pub timeouts: Timeouts,
    /// `None`: no circuit ever opens.
    pub breaker: Option<breaker::BreakerConfig>,
    pub drain_timeout: Duration,
    pub max_connections: usize,
    /// As written; see [`Plan::connections_per_ip`].
    pub max_connections_per_ip: Option<usize>,
    pub max_deliveries: usize,
    /// Names by which the admin listener may be asked over TCP.
    pub admin_hosts: BTreeSet<Host>,
    pub digest: [u8; 32],
}

/// Connections of clients, where the configuration does not say.
const MAX_CONNECTIONS_DEFAULT: usize = 20_000;
/// A default of [`Plan::connections_per_ip`] that is lower would hold back honest senders where `max_connections` is low.
const MAX_CONNECTIONS_PER_IP_FLOOR: usize = 1000;

impl Plan {
    /// Connections of one client's address. By default half of all: one address cannot take every connection, and no
    /// sender keeps so many busy, since `max_deliveries` is 10,000.
    pub fn connections_per_ip(&self) -> usize {
        self.max_connections_per_ip.unwrap_or((self.max_connections / 2).max(MAX_CONNECTIONS_PER_IP_FLOOR))
    }
}

/// The one compiler: start, reload, `check` and `explain` all come through here. Gives the plan and its warnings (and what
/// is wrong with single tenants), or everything that is wrong.
pub fn compile(config: &Config, now: Timestamp) -> Result<(Plan, Vec<Problem>), Vec<Problem>> {
    recompile(config, None, now)
}

/// The same; of what is costly to compile, tenants' keys, what has not changed is that of the plan before.
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
    let plan = Plan {
        pseudonym: config.server.name.clone(),
        clients: authn::Clients::compile(config, &mut problems),
        routes,
        guard,
        listener: listener::compile(config, &mut problems),
        inspection_ca: inspect::compile(config, now, &mut problems),
        expiries: expiry::compile(config, now, &mut problems),
        timeouts: config.timeouts.clone(),
        breaker: breaker::BreakerConfig::compile(&config.circuit),
        drain_timeout: config.server.drain_timeout,
        max_connections: config
            .server
            .max_connections
            .as_ref()
            .map_or(MAX_CONNECTIONS_DEFAULT, |written| written.value),
        max_connections_per_ip: config.server.max_connections_per_ip,
        max_deliveries: config.server.max_deliveries,
        admin_hosts: config.admin.hosts.iter().cloned().collect(),
        digest: config.digest,
        pools,
        trusts,
        signers,
        credentials,
    };
    if problems.iter().any(|problem| problem.severity == Severity::Problem) {
        Err(problems)
    } else {
        Ok((plan, problems))
    }
}

/// What the text alone tells, and what the parts of it that could be read would mean.
pub fn all_problems(rejected: LoadError, now: Timestamp) -> (Vec<Problem>, SourceMap) {
    let LoadError { mut problems, sources, partial: rest, .. } = rejected;
    if let Some(rest) = rest {
        if let Err(new_problems) = compile(&rest, now) {
            // What is said of a section that was not read as a whole may be no more than the consequence.
            let broken = rest.declared_sections.broken_sections(&problems);
            let is_consequence = |problem: &Problem| problem.span.is_some_and(|place| broken.contains(&place));
            problems.extend(new_problems.into_iter().filter(|problem| !is_consequence(problem)));
        }
        problems = remove_acknowledged(problems, &rest.acknowledge);
    }
    (problems, sources)
}
