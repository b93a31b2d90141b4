//! The decisions that a request gets, and those that one route makes.
//! Does this route refuse the request?

use std::sync::Arc;

use http::Method;
use jiff::Timestamp;

use crate::config::PlaintextPolicy;
use crate::delivery::errors;
use crate::delivery::refusal::{Code, Refusal};
use crate::delivery::request::target::RequestTarget;
use crate::delivery::request::tunnel_mode::TunnelMode;
use crate::delivery::request::{fields, webhook_id};
use crate::http_message::Fields;
use crate::names::{ClientName, Target, TenantName};
use crate::policy::Plan;
use crate::policy::authn::Client;
use crate::policy::route::Route;
use crate::policy::sign::SignError;

/// The part of a request's head that is not its target.
#[derive(Clone, Copy)]
pub(in crate::delivery) struct RequestHead<'a> {
    pub(in crate::delivery) method: &'a Method,
    /// `None`: a question of `explain` or `probe`, which has no header fields.
    pub(in crate::delivery) fields: Option<&'a Fields>,
    /// The lower bound of the body's length, in bytes.
    pub(in crate::delivery) body_min: u64,
    pub(in crate::delivery) now: Timestamp,
}

impl RequestHead<'_> {
    pub(in crate::delivery) fn is_tunnel(&self) -> bool {
        self.method == Method::CONNECT
    }
}

/// The decisions in the order of judging. Those after a refusal are empty.
#[derive(Default)]
pub(in crate::delivery) struct Decisions<'p> {
    /// Set once the client may act for the tenant.
    pub(in crate::delivery) client: Option<&'p ClientName>,
    /// The route that a request would take if report-only routes were enforced, and the code of its refusal.
    pub(in crate::delivery) shadow: Option<(&'p Route, Option<Code>)>,
    /// The route, on its side of a split.
    pub(in crate::delivery) route: Option<&'p Arc<Route>>,
    pub(in crate::delivery) target: Option<Target>,
    /// No rule forbids the target by its name or port.
    pub(in crate::delivery) is_target_allowed: bool,
    pub(in crate::delivery) tunnel_mode: Option<TunnelMode>,
}

/// Applies the rules of a route to a request, and returns the target. The route is the one taken, or a report-only one.
pub(super) fn decide_by_route(
    plan: &Plan,
    route: &Route,
    request_target: &RequestTarget,
    head: RequestHead<'_>,
    decisions: &mut Decisions<'_>,
) -> Result<Target, Refusal> {
    let RequestHead { fields, now, .. } = head;
    let target =
        if head.is_tunnel() { request_target.tunnel_target(route) } else { request_target.upstream_target(route)? };
    decisions.target = Some(target.clone());
    plan.guard.check_name(&target, &route.ports, route.plaintext == PlaintextPolicy::Allow)?;
    decisions.is_target_allowed = true;
    fields.map_or(Ok(()), |fields| check_loop(fields, &plan.pseudonym))?;
    if head.is_tunnel() {
        decisions.tunnel_mode = Some(request_target.tunnel_mode(route)?);
        return Ok(target);
    }
    check_keys(route, request_target.tenant.as_ref(), now)?;
    let signed = fields.filter(|_| !route.signers.is_empty());
    signed.map(webhook_id::given).transpose()?;
    Ok(target)
}

pub(super) fn check_tenant(client: &Client, tenant: Option<&TenantName>) -> Result<(), Refusal> {
    match tenant {
        Some(tenant) if !client.may_act_for(tenant) => {
            Err(Refusal::new(Code::ClientForbidden, "this client may not send for the tenant in Outgate-Tenant"))
        }
        _ => Ok(()),
    }
}

fn check_loop(fields: &Fields, pseudonym: &str) -> Result<(), Refusal> {
    if fields::has_via(fields, pseudonym) {
        let detail = format!("Via shows that the request has already passed {pseudonym}");
        return Err(Refusal::new(Code::TargetLoopsBack, detail));
    }
    Ok(())
}

/// Checks that every signer of the route has a key in force for this tenant.
fn check_keys(route: &Route, tenant: Option<&TenantName>, now: Timestamp) -> Result<(), Refusal> {
    route.signers.iter().try_for_each(|signer| match signer.keys_of(tenant) {
        Err(error) => Err(errors::unsigned(signer, error)),
        Ok(_) if signer.signing_keys(tenant, now).next().is_none() => {
            Err(errors::unsigned(signer, SignError::NoActiveKey))
        }
        Ok(_) => Ok(()),
    })
}
