//! The key of a circuit: a target as one pool reaches it, the terms of a route, and the client and tenant.
//! Whose deliveries does a failure of the target stop?

use std::time::Duration;

use crate::names::{ClientName, PoolName, RouteName, Target, TenantName};
use crate::policy::route::Route;

/// What a delivery contacts, for which client, and under which terms.
#[derive(Clone, Debug)]
pub struct BreakerKey {
    pub(super) upstream: Upstream,
    pub(super) terms: RouteRequirements,
    pub(super) client: ClientName,
    pub(super) tenant: Option<TenantName>,
}

/// A target, as the addresses of one pool reach it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Upstream {
    pub(super) target: Target,
    pub(super) pool: PoolName,
    /// The route on whose other side of a split it is tried: what is too strict or too short there says nothing of the
    /// target, and must not stop the deliveries of the main side.
    pub(super) trial: Option<RouteName>,
}

/// What a route asks of its targets. Routes that ask for different things do not decide each other's circuits: a target
/// may fail the one and serve the other.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct RouteRequirements {
    /// DNS, connect, TLS, body, response, total.
    pub(super) timeouts: [Duration; 6],
    /// The fingerprint of the trust, which has the TLS versions and the client certificate.
    pub(super) trust: [u8; 32],
}

/// Whose deliveries a circuit stops. One client's request can cause what comes after the request was sent, by its path,
/// its size or its pace, so those failures count for the same client and tenant alone.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum CircuitScope {
    AllClients,
    Client(ClientName, Option<TenantName>),
}

/// What a failure says of the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UpstreamFailure {
    /// There was no connection to send the request over.
    Unreachable,
    /// The request was sent, or a part of it, and there is no response.
    NoResponse,
}

/// What a success shows of the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UpstreamSuccess {
    /// A tunnel's connection is open. Whether the target responds to requests is unknown.
    Connection,
    Response,
}

impl UpstreamSuccess {
    /// Returns whether this shows that the target does not fail in this way.
    pub(super) fn refutes(self, failure: UpstreamFailure) -> bool {
        self == Self::Response || failure == UpstreamFailure::Unreachable
    }
}

impl BreakerKey {
    pub fn of(route: &Route, target: &Target, client: &ClientName, tenant: Option<&TenantName>) -> Self {
        let trial = route.is_split_variant().then(|| route.name.clone());
        let times = &route.timeouts;
        Self {
            upstream: Upstream { target: target.clone(), pool: route.pool.name().clone(), trial },
            terms: RouteRequirements {
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
        (self.terms.clone(), scope)
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
