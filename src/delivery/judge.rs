//! The order in which a request is judged: one for webhooks, tunnels, `explain` and `egress probe`. It waits for nothing.
//! Which client sends the request, by which route, to which target, and which rule refuses it?

use std::sync::Arc;

use http::Method;
use http_body::Body;
use jiff::Timestamp;

use super::ask::{self, Ask};
use super::decided::{Decided, Head, decide_by_route};
use super::opens::Opens;
use super::record::Record;
use super::refusal::Refusal;
use super::{Arrival, caller, shadow, verdict, webhook};
use crate::config::Proof;
use crate::live::Live;
use crate::names::{ClientName, Target, TenantName};
use crate::policy::Plan;
use crate::policy::identify::{Identified, Pledge};
use crate::policy::route::Route;

/// A request to judge, or a question about one.
pub(super) struct Subject<'a> {
    /// An error refuses the request before its client is identified.
    pub(super) ask: Result<Ask, Refusal>,
    pub(super) head: Head<'a>,
}

impl<'a> Subject<'a> {
    /// Returns a question about a request that no client has sent.
    pub(super) fn question(method: &'a Method, ask: Result<Ask, Refusal>, now: Timestamp) -> Self {
        Self { ask, head: Head { method, fields: None, body_min: 0, now } }
    }
}

/// The client that a request comes from.
pub(super) struct Identity<'p> {
    pub(super) name: &'p ClientName,
    /// `None`: the configuration does not know it. Only `egress probe` goes on then, which sends no request.
    pub(super) known: Option<Identified<'p>>,
}

impl<'p> From<Identified<'p>> for Identity<'p> {
    fn from(known: Identified<'p>) -> Self {
        Self { name: known.client.name(), known: Some(known) }
    }
}

/// What was decided, and what it came to.
pub(super) struct Judgment<'p> {
    pub(super) decided: Decided<'p>,
    pub(super) outcome: Result<Outcome<'p>, Refusal>,
}

pub(super) enum Outcome<'p> {
    /// `OPTIONS` with `Max-Forwards: 0` is for outgate itself (RFC 9110 §7.6.2).
    Options,
    Routed(Routed<'p>),
}

/// A request that may go on.
pub(super) struct Routed<'p> {
    pub(super) ask: Ask,
    pub(super) client: &'p ClientName,
    pub(super) proof: Option<Proof>,
    /// What the client has signed of the body.
    pub(super) pledge: Option<Pledge>,
    pub(super) route: &'p Arc<Route>,
    pub(super) target: Target,
    /// `None`: a webhook.
    pub(super) opens: Option<Opens>,
}

/// Judges a request. `identify` is told the tenant that the request names.
pub(super) fn judge<'p>(
    plan: &'p Plan,
    subject: Subject<'_>,
    identify: impl FnOnce(Option<&TenantName>) -> Result<Identity<'p>, Refusal>,
) -> Judgment<'p> {
    let mut decided = Decided::default();
    let outcome = decide(plan, subject, identify, &mut decided);
    Judgment { decided, outcome }
}

/// Each line is a step.
fn decide<'p>(
    plan: &'p Plan,
    subject: Subject<'_>,
    identify: impl FnOnce(Option<&TenantName>) -> Result<Identity<'p>, Refusal>,
    decided: &mut Decided<'p>,
) -> Result<Outcome<'p>, Refusal> {
    let Subject { ask, head } = subject;
    let ask = ask?;
    let tenant = ask.tenant.as_ref();
    let Identity { name: client, known } = identify(tenant)?;
    known.iter().try_for_each(|known| verdict::speaks_for(known.client, tenant))?;
    decided.client = Some(client);
    if head.fields.map(|fields| ask::max_forwards(head.method, fields)).transpose()?.flatten() == Some(0) {
        return Ok(Outcome::Options);
    }
    decided.shadow = shadow::taken(plan, client, &ask, head);
    let route = match head.is_tunnel() {
        true => plan.routes.choose_for_tunnel(client, tenant, ask.authority()).map(|(_, route)| route),
        false => plan.routes.choose(client, tenant, &ask.host, ask.path())?,
    };
    let route = route.ok_or_else(|| verdict::no_route(&ask.host))?;
    decided.route = Some(route);
    let target = decide_by_route(plan, route, &ask, head, decided)?;
    let opens = decided.opens;
    let (proof, signed) = known.map_or((None, None), |known| (known.proof, known.signed));
    let pledge = signed.and_then(|signed| signed.pledge);
    Ok(Outcome::Routed(Routed { ask, client, proof, pledge, route, target, opens }))
}

/// Judges a request that has arrived, and records what was decided.
pub(super) fn judge_arrival<'p>(
    live: &Live,
    plan: &'p Plan,
    arrival: &Arrival,
    record: &mut Record,
) -> Result<Outcome<'p>, Refusal> {
    let Arrival { method, fields, body, .. } = arrival;
    let ask = Ask::read(arrival, record);
    let ask = live.refuse_when_draining(arrival.caller.listen.as_deref()).map_err(Refusal::from).and(ask);
    let path = ask.as_ref().ok().filter(|_| method != Method::CONNECT).map(|ask| ask.path().to_owned());
    let body_min = body.size_hint().lower();
    let subject = Subject { ask, head: Head { method, fields: Some(fields), body_min, now: Timestamp::now() } };
    let Judgment { decided, outcome } = judge(plan, subject, |tenant| {
        record.for_tenant(tenant);
        let known = caller::identify(live, plan, arrival, record)?;
        let proof = known.proof.map_or(arrival.caller.unproven(), Proof::as_str);
        record.client(known.client.name(), proof);
        Ok(known.into())
    });
    if let Some((shadow, refused)) = decided.shadow {
        record.would_take(shadow, refused);
    }
    decided.route.into_iter().for_each(|route| record.route(route));
    decided.target.iter().for_each(|target| record.target(target, path.as_deref()));
    if let Ok(Outcome::Routed(Routed { route, opens: None, .. })) = &outcome
        && !route.signers.is_empty()
    {
        let id = webhook::id(fields, record.request_id())?;
        record.webhook_id(&id);
    }
    outcome
}
