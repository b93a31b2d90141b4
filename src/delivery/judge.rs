//! The order in which a request is judged: one for webhooks, tunnels, `explain` and `egress probe`. It waits for nothing.
//! Which client sends the request, by which route, to which target, and which rule refuses it?

use std::sync::Arc;

use http::Method;
use http_body::Body;
use jiff::Timestamp;

use super::decided::{Decided, Head, decide_by_route};
use super::record::Record;
use super::refusal::Refusal;
use super::request_target::{self, RequestTarget};
use super::tunnel_mode::TunnelMode;
use super::{ProxyRequest, authn, errors, shadow, webhook};
use crate::config::AuthMethod;
use crate::names::{ClientName, Target, TenantName};
use crate::policy::Plan;
use crate::policy::authn::{Authenticated, BodyCheck};
use crate::policy::route::Route;
use crate::state::Runtime;

/// A request to judge, or a question about one.
pub(super) struct JudgeInput<'a> {
    /// An error refuses the request before its client is identified.
    pub(super) request_target: Result<RequestTarget, Refusal>,
    pub(super) head: Head<'a>,
}

impl<'a> JudgeInput<'a> {
    /// Returns a question about a request that no client has sent.
    pub(super) fn question(method: &'a Method, ask: Result<RequestTarget, Refusal>, now: Timestamp) -> Self {
        Self { request_target: ask, head: Head { method, fields: None, body_min: 0, now } }
    }
}

/// The client that a request comes from.
pub(super) struct JudgedClient<'p> {
    pub(super) name: &'p ClientName,
    /// `None`: the configuration does not know it. Only `egress probe` goes on then, which sends no request.
    pub(super) known: Option<Authenticated<'p>>,
}

impl<'p> From<Authenticated<'p>> for JudgedClient<'p> {
    fn from(known: Authenticated<'p>) -> Self {
        Self { name: known.client.name(), known: Some(known) }
    }
}

/// What was decided, and what it came to.
pub(super) struct Judgment<'p> {
    pub(super) decided: Decided<'p>,
    pub(super) outcome: Result<JudgmentOutcome<'p>, Refusal>,
}

pub(super) enum JudgmentOutcome<'p> {
    /// `OPTIONS` with `Max-Forwards: 0` is for outgate itself (RFC 9110 §7.6.2).
    LocalOptions,
    Routed(Routed<'p>),
}

/// A request that may go on.
pub(super) struct Routed<'p> {
    pub(super) request_target: RequestTarget,
    pub(super) client: &'p ClientName,
    pub(super) proof: Option<AuthMethod>,
    /// What the client has signed of the body.
    pub(super) body_check: Option<BodyCheck>,
    pub(super) route: &'p Arc<Route>,
    pub(super) target: Target,
    /// `None`: a webhook.
    pub(super) opens: Option<TunnelMode>,
}

/// Judges a request. `authenticate` gets the tenant that the request names.
pub(super) fn judge<'p>(
    plan: &'p Plan,
    subject: JudgeInput<'_>,
    authenticate: impl FnOnce(Option<&TenantName>) -> Result<JudgedClient<'p>, Refusal>,
) -> Judgment<'p> {
    let mut decided = Decided::default();
    let outcome = decide(plan, subject, authenticate, &mut decided);
    Judgment { decided, outcome }
}

/// Each line is a step.
fn decide<'p>(
    plan: &'p Plan,
    subject: JudgeInput<'_>,
    authenticate: impl FnOnce(Option<&TenantName>) -> Result<JudgedClient<'p>, Refusal>,
    decided: &mut Decided<'p>,
) -> Result<JudgmentOutcome<'p>, Refusal> {
    let JudgeInput { request_target: ask, head } = subject;
    let ask = ask?;
    let tenant = ask.tenant.as_ref();
    let JudgedClient { name: client, known } = authenticate(tenant)?;
    known.iter().try_for_each(|known| errors::check_tenant(known.client, tenant))?;
    decided.client = Some(client);
    if head.fields.map(|fields| request_target::max_forwards(head.method, fields)).transpose()?.flatten() == Some(0) {
        return Ok(JudgmentOutcome::LocalOptions);
    }
    decided.shadow = shadow::taken(plan, client, &ask, head);
    let route = match head.is_tunnel() {
        true => plan.routes.choose_for_tunnel(client, tenant, ask.authority()).map(|(_, route)| route),
        false => plan.routes.choose(client, tenant, &ask.host, ask.path())?,
    };
    let route = route.ok_or_else(|| errors::no_route(&ask.host))?;
    decided.route = Some(route);
    let target = decide_by_route(plan, route, &ask, head, decided)?;
    let opens = decided.opens;
    let (proof, signed) = known.map_or((None, None), |known| (known.proof, known.signed));
    let pledge = signed.and_then(|signed| signed.body_check);
    Ok(JudgmentOutcome::Routed(Routed { request_target: ask, client, proof, body_check: pledge, route, target, opens }))
}

/// Judges a request that has arrived, and records what was decided.
pub(super) fn judge_arrival<'p>(
    runtime: &Runtime,
    plan: &'p Plan,
    arrival: &ProxyRequest,
    record: &mut Record,
) -> Result<JudgmentOutcome<'p>, Refusal> {
    let ProxyRequest { method, fields, body, .. } = arrival;
    let ask = RequestTarget::read(arrival, record);
    let ask = runtime.refuse_when_draining(arrival.caller.listen.as_deref()).map_err(Refusal::from).and(ask);
    let (body_min, now) = (body.size_hint().lower(), Timestamp::now());
    let subject = JudgeInput { request_target: ask, head: Head { method, fields: Some(fields), body_min, now } };
    let Judgment { decided, outcome } = judge(plan, subject, |tenant| {
        record.for_tenant(tenant);
        let known = authn::authenticate(runtime, plan, arrival, now, record)?;
        let proof = known.proof.map_or(arrival.caller.unproven(), AuthMethod::as_str);
        record.client(known.client.name(), proof);
        Ok(known.into())
    });
    if let Some((shadow, refused)) = decided.shadow {
        record.would_take(shadow, refused);
    }
    decided.route.into_iter().for_each(|route| record.route(route));
    decided.target.into_iter().for_each(|target| record.route_target(target));
    if let Ok(JudgmentOutcome::Routed(Routed { route, opens: None, .. })) = &outcome
        && !route.signers.is_empty()
    {
        let id = webhook::id(fields, record.request_id())?;
        record.webhook_id(&id);
    }
    outcome
}
