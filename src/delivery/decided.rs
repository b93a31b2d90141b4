//! What is decided of a request, and what one route says of it.
//! Does this route refuse the request?

use std::sync::Arc;

use http::{HeaderMap, Method};
use jiff::Timestamp;

use super::refusal::{Code, Refusal};
use super::request_target::RequestTarget;
use super::tunnel_mode::TunnelMode;
use super::{errors, webhook};
use crate::config::PlaintextPolicy;
use crate::names::{ClientName, Target};
use crate::policy::Plan;
use crate::policy::route::Route;

/// What a request says beside its target.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) method: &'a Method,
    /// A question has none.
    pub(super) fields: Option<&'a HeaderMap>,
    /// Bytes that the body has at least.
    pub(super) body_min: u64,
    pub(super) now: Timestamp,
}

impl Head<'_> {
    pub(super) fn is_tunnel(&self) -> bool {
        self.method == Method::CONNECT
    }
}

/// The decisions in their order. Those behind a refusal are empty.
#[derive(Default)]
pub(super) struct Decided<'p> {
    /// The client may act for the tenant.
    pub(super) client: Option<&'p ClientName>,
    /// The route that would be taken if those that only report were in force, and the code by which it would refuse.
    pub(super) shadow: Option<(&'p Route, Option<Code>)>,
    /// On its side of a split.
    pub(super) route: Option<&'p Arc<Route>>,
    pub(super) target: Option<Target>,
    /// No rule forbids the target by its name or port.
    pub(super) is_target_allowed: bool,
    pub(super) opens: Option<TunnelMode>,
}

/// Decides what a route says of a request: the one that takes it, or one that only reports. Returns the target.
pub(super) fn decide_by_route(
    plan: &Plan,
    route: &Route,
    ask: &RequestTarget,
    head: Head<'_>,
    decided: &mut Decided<'_>,
) -> Result<Target, Refusal> {
    let Head { fields, now, .. } = head;
    let is_tunnel = head.is_tunnel();
    let target = if is_tunnel { ask.tunnel_target(route) } else { ask.target(route)? };
    decided.target = Some(target.clone());
    plan.guard.judge_name(&target, &route.ports, route.plaintext == PlaintextPolicy::Allow)?;
    decided.is_target_allowed = true;
    fields.map_or(Ok(()), |fields| errors::no_loop(fields, &plan.name))?;
    decided.opens = is_tunnel.then(|| ask.opens(route)).transpose()?;
    if !is_tunnel {
        errors::has_keys(route, ask.tenant.as_ref(), now)?;
        let signed = fields.filter(|_| !route.signers.is_empty());
        signed.map(webhook::given_id).transpose()?;
    }
    Ok(target)
}
