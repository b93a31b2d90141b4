//! Routes that only report: which of them would have been taken, and what they would have refused.
//! What would change for this webhook if they were in force?

use http_body::Body;

use super::Inbound;
use super::ask::Ask;
use super::record::Record;
use super::refusal::{Code, Refusal};
use crate::config::{Connect, Plaintext};
use crate::names::ClientName;
use crate::policy::Plan;
use crate::policy::route::Route;

/// As far as the head of the request tells.
pub(super) fn judge(plan: &Plan, client: &ClientName, ask: &Ask, body: &Inbound, record: &mut Record) {
    let Some(shadow) = plan.routes.shadow(client, ask.tenant.as_ref(), &ask.host, ask.path()) else { return };
    let too_large = || Refusal::new(Code::BodyTooLarge, "the body is larger than the route allows");
    let refused = try_it(plan, ask, shadow)
        .and_then(|()| if body.size_hint().lower() > shadow.body_max { Err(too_large()) } else { Ok(()) });
    record.would_take(shadow, refused.err().map(|refusal| refusal.code));
}

fn try_it(plan: &Plan, ask: &Ask, shadow: &Route) -> Result<(), Refusal> {
    let target = ask.target(shadow)?;
    Ok(plan.guard.judge_name(&target, &shadow.ports, shadow.plaintext == Plaintext::Allow)?)
}

/// Of a tunnel nobody knows the path, so only routes of all paths have a say.
pub(super) fn judge_tunnel(plan: &Plan, client: &ClientName, ask: &Ask, record: &mut Record) {
    let Some(shadow) = plan.routes.shadow(client, ask.tenant.as_ref(), &ask.host, "") else { return };
    record.would_take(shadow, (shadow.connect == Connect::Refuse).then_some(Code::TunnelForbidden));
}
