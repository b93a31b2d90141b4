//! Routes that only report: which of them would have been taken, and what they would have refused.
//! What would change for this webhook if they were in force?

use http_body::Body;

use super::Inbound;
use super::ask::Ask;
use super::record::Record;
use super::refusal::{Code, Refusal};
use crate::config::Plaintext;
use crate::names::{ClientName, Target};
use crate::policy::Plan;
use crate::policy::route::Route;

/// As far as the head of the request tells.
pub(super) fn judge(plan: &Plan, client: &ClientName, ask: &Ask, body: &Inbound, record: &mut Record) {
    let Some((shadow, refused)) = taken(plan, client, ask) else { return };
    let is_too_large = body.size_hint().lower() > shadow.body_max;
    record.would_take(shadow, refused.or(is_too_large.then_some(Code::BodyTooLarge)));
}

/// The route that would be taken, and by what it would refuse all that is known before the body.
pub(super) fn taken<'p>(plan: &'p Plan, client: &ClientName, ask: &Ask) -> Option<(&'p Route, Option<Code>)> {
    let (shadow, agreed) = plan.routes.shadow(client, ask.tenant.as_ref(), &ask.host, ask.path())?;
    let judged = agreed
        .map_err(Refusal::from)
        .and_then(|()| ask.target(shadow))
        .and_then(|target| is_open(plan, shadow, &target));
    Some((shadow, judged.err().map(|refusal| refusal.code)))
}

pub(super) fn judge_tunnel(plan: &Plan, client: &ClientName, ask: &Ask, record: &mut Record) {
    if let Some((shadow, refused)) = taken_by_tunnel(plan, client, ask) {
        record.would_take(shadow, refused);
    }
}

/// Of a tunnel nobody knows the path, so only routes of all paths have a say.
pub(super) fn taken_by_tunnel<'p>(plan: &'p Plan, client: &ClientName, ask: &Ask) -> Option<(&'p Route, Option<Code>)> {
    let (shadow, _) = plan.routes.shadow(client, ask.tenant.as_ref(), &ask.host, "")?;
    let judged = is_open(plan, shadow, &ask.tunnel_target(shadow));
    let judged = judged.and_then(|()| ask.opens(shadow).map(drop));
    Some((shadow, judged.err().map(|refusal| refusal.code)))
}

fn is_open(plan: &Plan, shadow: &Route, target: &Target) -> Result<(), Refusal> {
    Ok(plan.guard.judge_name(target, &shadow.ports, shadow.plaintext == Plaintext::Allow)?)
}
