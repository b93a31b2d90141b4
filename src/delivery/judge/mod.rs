//! The order in which a request is judged: one order for webhooks, tunnels, `explain` and `egress probe`.
//! Which client sent the request, which route and target does it get, and which rule refuses it?
//!
//! Judging waits for nothing.

mod authn;
mod decisions;
mod shadow;

use std::sync::Arc;

use http::Method;
use http_body::Body;
use jiff::Timestamp;

pub(super) use decisions::{Decisions, RequestHead};

use super::errors;
use super::record::Record;
use super::refusal::{Code, Refusal};
use super::request::target::{InvalidTarget, RequestTarget};
use super::request::tunnel_mode::TunnelMode;
use super::request::{ProxyRequest, max_forwards, webhook_id};
use crate::config::AuthMethod;
use crate::names::{ClientName, Target, TenantName};
use crate::panics;
use crate::policy::Plan;
use crate::policy::authn::{Authenticated, BodyCheck, ReplayToken};
use crate::policy::route::Route;
use crate::state::Runtime;

/// A request to judge, or a question about one.
pub(super) struct JudgeInput<'a> {
    /// An error refuses the request before its client is authenticated.
    pub(super) request_target: Result<RequestTarget, Refusal>,
    pub(super) head: RequestHead<'a>,
}

impl<'a> JudgeInput<'a> {
    /// Returns a question about a request that no client has sent.
    pub(super) fn hypothetical(
        method: &'a Method,
        request_target: Result<RequestTarget, Refusal>,
        now: Timestamp,
    ) -> Self {
        Self { request_target, head: RequestHead { method, fields: None, body_min: 0, now } }
    }
}

/// The client that a request comes from.
pub(super) struct JudgedClient<'p> {
    pub(super) name: &'p ClientName,
    /// `None`: the configuration does not know the client. Only `egress probe`, which sends no request, allows this.
    pub(super) authenticated: Option<Authenticated<'p>>,
}

impl<'p> From<Authenticated<'p>> for JudgedClient<'p> {
    fn from(authenticated: Authenticated<'p>) -> Self {
        Self { name: authenticated.client().name(), authenticated: Some(authenticated) }
    }
}

/// The decisions about a request, and their outcome.
pub(super) struct Judgment<'p> {
    pub(super) decisions: Decisions<'p>,
    pub(super) outcome: Result<JudgmentOutcome<'p>, Refusal>,
}

#[expect(clippy::large_enum_variant, reason = "nearly every request is routed: a box would cost each an allocation")]
pub(super) enum JudgmentOutcome<'p> {
    /// outgate itself responds to `OPTIONS` with `Max-Forwards: 0` (RFC 9110 §7.6.2).
    LocalOptions,
    Routed(Routed<'p>),
}

/// A request that no rule refuses before it contacts its target.
pub(super) struct Routed<'p> {
    pub(super) request_target: RequestTarget,
    pub(super) client: &'p ClientName,
    pub(super) proof: Option<AuthMethod>,
    /// The client's signature, which no other instance of the fleet may have accepted.
    pub(super) replay_token: Option<ReplayToken>,
    /// The check of the body that the client's signature covers.
    pub(super) body_check: Option<BodyCheck>,
    pub(super) route: &'p Arc<Route>,
    pub(super) target: Target,
    /// `None`: a webhook.
    pub(super) tunnel_mode: Option<TunnelMode>,
}

/// Judges a request. `authenticate` gets the tenant that the request names.
pub(super) fn judge<'p>(
    plan: &'p Plan,
    input: JudgeInput<'_>,
    authenticate: impl FnOnce(Option<&TenantName>) -> Result<JudgedClient<'p>, Refusal>,
) -> Judgment<'p> {
    let mut decisions = Decisions::default();
    let outcome = decide(plan, input, authenticate, &mut decisions);
    Judgment { decisions, outcome }
}

/// Takes the steps of judging in their order.
fn decide<'p>(
    plan: &'p Plan,
    input: JudgeInput<'_>,
    authenticate: impl FnOnce(Option<&TenantName>) -> Result<JudgedClient<'p>, Refusal>,
    decisions: &mut Decisions<'p>,
) -> Result<JudgmentOutcome<'p>, Refusal> {
    let JudgeInput { request_target, head } = input;
    let request_target = request_target?;
    let tenant = request_target.tenant.as_ref();
    let JudgedClient { name: client, authenticated } = authenticate(tenant)?;
    authenticated.iter().try_for_each(|client| decisions::check_tenant(client.client(), tenant))?;
    decisions.client = Some(client);
    if max_forwards::is_for_outgate(head.method, head.fields)? {
        return Ok(JudgmentOutcome::LocalOptions);
    }
    decisions.shadow = shadow::judge_shadow(plan, client, &request_target, head);
    let route = choose_route(plan, client, &request_target, head)?;
    decisions.route = Some(route);
    let target = decisions::decide_by_route(plan, route, &request_target, head, decisions)?;
    let tunnel_mode = decisions.tunnel_mode;
    let proof = authenticated.as_ref().and_then(Authenticated::proof);
    let (replay_token, body_check) = authenticated.map_or((None, None), Authenticated::into_checks);
    Ok(JudgmentOutcome::Routed(Routed {
        request_target,
        client,
        proof,
        replay_token,
        body_check,
        route,
        target,
        tunnel_mode,
    }))
}

fn choose_route<'p>(
    plan: &'p Plan,
    client: &ClientName,
    request_target: &RequestTarget,
    head: RequestHead<'_>,
) -> Result<&'p Arc<Route>, Refusal> {
    let RequestTarget { host, tenant, .. } = request_target;
    let route = match head.is_tunnel() {
        true => {
            plan.routes.select_for_tunnel(client, tenant.as_ref(), request_target.authority()).map(|(_, route)| route)
        }
        false => {
            let selected = plan.routes.select(client, tenant.as_ref(), host, request_target.path());
            selected.map_err(|error| errors::ambiguous_path(error, host, &plan.redactor))?
        }
    };
    let detail = || format!("no route matches {host} for this client, tenant and path");
    route.ok_or_else(|| Refusal::new(Code::NoRoute, detail()))
}

/// Judges a request that a client has sent, and records the decisions.
pub(super) fn judge_request<'p>(
    runtime: &Runtime,
    plan: &'p Plan,
    request: &ProxyRequest,
    record: &mut Record,
) -> Result<JudgmentOutcome<'p>, Refusal> {
    panics::catch(|| judge_and_record(runtime, plan, request, record))?
}

fn judge_and_record<'p>(
    runtime: &Runtime,
    plan: &'p Plan,
    request: &ProxyRequest,
    record: &mut Record,
) -> Result<JudgmentOutcome<'p>, Refusal> {
    let ProxyRequest { method, fields, body, caller, .. } = request;
    record.begin_trace(plan, fields);
    let read = RequestTarget::read(request);
    record_requested(&read, method, record);
    let admitted = runtime.check_draining(caller.listen());
    let request_target = admitted.map_err(Refusal::from).and(read.map_err(|invalid| invalid.refusal));
    let (body_min, now) = (body.size_hint().lower(), Timestamp::now());
    let input = JudgeInput { request_target, head: RequestHead { method, fields: Some(fields), body_min, now } };
    let Judgment { decisions, outcome } = judge(plan, input, |tenant| {
        record.for_tenant(tenant);
        let authenticated = authn::authenticate(runtime, plan, request, now, record)?;
        let proof = authenticated.proof().map_or(caller.unauthenticated_label(), AuthMethod::as_str);
        record.client(authenticated.client().name(), proof);
        Ok(authenticated.into())
    });
    if let Some((shadow, refused)) = decisions.shadow {
        record.would_take(shadow, refused);
    }
    if decisions.client.is_some() {
        record.tenant_is_proven();
    }
    decisions.route.into_iter().for_each(|route| record.route(route));
    decisions.target.into_iter().for_each(|target| record.route_target(target));
    if let Ok(JudgmentOutcome::Routed(Routed { route, tunnel_mode: None, .. })) = &outcome
        && !route.signers.is_empty()
    {
        record.webhook_id(webhook_id::given_or_generated(fields)?);
    }
    outcome
}

/// Judges a webhook of outgate itself, whose route and client the configuration gives.
pub(super) fn judge_own<'p>(
    plan: &Plan,
    route: &'p Arc<Route>,
    client: &'p ClientName,
    request: &ProxyRequest,
    record: &mut Record,
) -> Result<Routed<'p>, Refusal> {
    let read = RequestTarget::read(request);
    record_requested(&read, &request.method, record);
    record.client(client, "internal");
    record.route(route);
    let request_target = read.map_err(|invalid| invalid.refusal)?;
    let (fields, now) = (Some(&request.fields), Timestamp::now());
    let head = RequestHead { method: &request.method, fields, body_min: 0, now };
    let target = decisions::decide_by_route(plan, route, &request_target, head, &mut Decisions::default())?;
    Ok(Routed {
        request_target,
        client,
        proof: None,
        replay_token: None,
        body_check: None,
        route,
        target,
        tunnel_mode: None,
    })
}

/// Records the host and the path that the client asks for, as far as they can be read.
fn record_requested(read: &Result<RequestTarget, InvalidTarget>, method: &Method, record: &mut Record) {
    match read {
        Ok(target) => {
            let path = (*method != Method::CONNECT).then(|| target.shared_path());
            record.target(target.requested(), path);
        }
        Err(InvalidTarget { readable: Some((target, path)), .. }) => record.target(target.clone(), path.clone()),
        Err(InvalidTarget { readable: None, .. }) => {}
    }
}
