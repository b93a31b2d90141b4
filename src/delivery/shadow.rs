//! Routes that only report: which of them would have been taken, and what they would have refused.
//! What would change for this webhook if they were in force?

use super::ask::Ask;
use super::refusal::{Code, Refusal};
use crate::config::Plaintext;
use crate::names::{ClientName, Target};
use crate::policy::Plan;
use crate::policy::route::Route;

/// Returns the route that would be taken, and by what it would refuse all that is known before the body. `body_min`: bytes
/// that the body has at least.
///
/// The path of what a tunnel carries is unknown, so only routes of all paths count there.
pub(super) fn taken<'p>(
    plan: &'p Plan,
    client: &ClientName,
    ask: &Ask,
    is_tunnel: bool,
    body_min: u64,
) -> Option<(&'p Route, Option<Code>)> {
    let path = if is_tunnel { "" } else { ask.path() };
    let (shadow, agreed) = plan.routes.shadow(client, ask.tenant.as_ref(), &ask.host, path)?;
    let judged = match is_tunnel {
        true => is_open(plan, shadow, &ask.tunnel_target(shadow)).and_then(|()| ask.opens(shadow).map(drop)),
        false => agreed
            .map_err(Refusal::from)
            .and_then(|()| ask.target(shadow))
            .and_then(|target| is_open(plan, shadow, &target)),
    };
    let refused = judged.err().map(|refusal| refusal.code);
    Some((shadow, refused.or((body_min > shadow.body_max).then_some(Code::BodyTooLarge))))
}

fn is_open(plan: &Plan, shadow: &Route, target: &Target) -> Result<(), Refusal> {
    Ok(plan.guard.judge_name(target, &shadow.ports, shadow.plaintext == Plaintext::Allow)?)
}
