//! The key of a circuit: a target as one pool reaches it, the requirements of a route, and the client and tenant.
//! Which deliveries does a failure of the target stop?

use std::time::Duration;

use crate::names::{ClientName, PoolName, RouteName, Target, TenantName};
use crate::policy::route::Route;
use crate::state::hashed::Hashed;

/// The target that a delivery contacts, its requirements, and its client and tenant.
#[derive(Clone, Debug)]
pub struct BreakerKey {
    pub(super) upstream: Hashed<Upstream>,
    pub(super) requirements: RouteRequirements,
    pub(super) client: ClientName,
    pub(super) tenant: Option<TenantName>,
}

/// A target, as the addresses of one pool reach it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Upstream {
    pub(super) target: Target,
    pub(super) pool: PoolName,
    /// The route whose trial side of a split contacts the target. A failure under the trial's settings may not be the target's,
    /// and must not stop the deliveries of the main side.
    pub(super) trial: Option<RouteName>,
}

/// The requirements of a route for its targets. Routes with different requirements have separate circuits: a target may fail
/// the one and serve the other.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct RouteRequirements {
    /// The timeouts for DNS, connect, TLS, body, response, and in total.
    pub(super) timeouts: [Duration; 6],
    /// The fingerprint of the trust, which has the TLS versions and the client certificate.
    pub(super) trust: [u8; 32],
}

/// The deliveries that a circuit stops. A failure after the request was sent may be due to the request's path, size or pace,
/// so it counts only for the same client and tenant.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum CircuitScope {
    AllClients,
    Client(ClientName, Option<TenantName>),
}

/// The kinds of failure of a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UpstreamFailure {
    /// No connection could be opened.
    Unreachable,
    /// The request was sent, at least in part, and got no response.
    NoResponse,
}

/// The kinds of success of a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UpstreamSuccess {
    /// A tunnel's connection is open. Whether the target responds to requests is unknown.
    Connection,
    Response,
}

impl UpstreamSuccess {
    /// Returns whether this success shows that the target does not fail in this way.
    pub(super) fn refutes(self, failure: UpstreamFailure) -> bool {
        self == Self::Response || failure == UpstreamFailure::Unreachable
    }
}

impl BreakerKey {
    pub fn of(route: &Route, target: &Target, client: &ClientName, tenant: Option<&TenantName>) -> Self {
        let trial = route.is_split_variant().then(|| route.name.clone());
        let times = &route.timeouts;
        Self {
            upstream: Hashed::new(Upstream { target: target.clone(), pool: route.pool.name().clone(), trial }),
            requirements: RouteRequirements {
                timeouts: [times.dns, times.connect, times.tls, times.body, times.response, times.total],
                trust: route.trust.fingerprint,
            },
            client: client.clone(),
            tenant: tenant.cloned(),
        }
    }

    /// The circuits that stop this delivery.
    pub(super) fn circuits(&self) -> [(RouteRequirements, CircuitScope); 2] {
        [UpstreamFailure::Unreachable, UpstreamFailure::NoResponse].map(|failure| self.circuit(failure))
    }

    pub(super) fn circuit(&self, failure: UpstreamFailure) -> (RouteRequirements, CircuitScope) {
        let scope = match failure {
            UpstreamFailure::Unreachable => CircuitScope::AllClients,
            UpstreamFailure::NoResponse => CircuitScope::Client(self.client.clone(), self.tenant.clone()),
        };
        (self.requirements.clone(), scope)
    }
}

impl CircuitScope {
    /// The failures that are counted here.
    pub(super) fn failure(&self) -> UpstreamFailure {
        match self {
            Self::AllClients => UpstreamFailure::Unreachable,
            Self::Client(..) => UpstreamFailure::NoResponse,
        }
    }
}
