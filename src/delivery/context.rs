//! The context that the steps of one delivery share.
//! Which configuration, route, client, tenant and target does this delivery have?

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::capture::CaptureTap;
use super::judge::Routed;
use crate::config::ClientConnections;
use crate::names::{ClientName, Target, TenantName};
use crate::policy::limits::LimitDescriptor;
use crate::policy::route::Route;
use crate::state::Runtime;
use crate::state::config::ActiveConfig;
use crate::state::upstreams::breaker::BreakerKey;

/// The time by which a delivery may exceed the total timeout. tokio's timers have a resolution of 1 ms, so a step that
/// the total timeout ends needs it to report its own refusal.
pub(super) const TIMER_SLACK: Duration = Duration::from_millis(2);

/// A webhook, a tunnel, a request for a token, or a probe.
///
/// The fields are fixed when the delivery starts. A reload changes none of them.
#[derive(Clone, Copy)]
pub(super) struct Delivery<'a> {
    pub(super) runtime: &'a Arc<Runtime>,
    pub(super) active: &'a Arc<ActiveConfig>,
    pub(super) route: &'a Arc<Route>,
    /// The client that sent the request.
    pub(super) client: &'a ClientName,
    /// The tenant that the request is for. Tenants share no connections and no TLS sessions.
    pub(super) tenant: Option<&'a TenantName>,
    pub(super) target: &'a Target,
    /// Whether the delivery and other clients use separate connections.
    pub(super) separates_clients: bool,
    /// The start of the delivery.
    pub(super) started: Instant,
    /// The copy of the delivery, if a capture selects it.
    pub(super) capture: Option<&'a Arc<CaptureTap>>,
}

impl<'a> Delivery<'a> {
    pub(super) fn new(
        runtime: &'a Arc<Runtime>,
        active: &'a Arc<ActiveConfig>,
        routed: &'a Routed<'a>,
        started: Instant,
    ) -> Self {
        let Routed { request_target, client, route, target, .. } = routed;
        let separates_clients = route.client_connections == ClientConnections::Separate;
        let tenant = request_target.tenant.as_ref();
        Self { runtime, active, route, client, tenant, target, separates_clients, started, capture: None }
    }

    pub(super) fn pseudonym(&self) -> &'a str {
        &self.active.plan.pseudonym
    }

    pub(super) fn breaker_key(&self) -> BreakerKey {
        BreakerKey::of(self.route, self.target, self.client, self.tenant)
    }

    pub(super) fn limit_descriptor(&self) -> LimitDescriptor<'a> {
        let Self { route, client, tenant, target, .. } = *self;
        LimitDescriptor { client, tenant, route: &route.name, host: &target.host, egress: route.pool.name() }
    }
}
