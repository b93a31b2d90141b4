//! Routes that only report: which of them would have been taken, and what they would have refused.
//! What would change for this webhook if they were in force?

use super::decided::{Decided, Head, decide_by_route};
use super::refusal::{Code, Refusal};
use super::request_target::RequestTarget;
use crate::names::ClientName;
use crate::policy::Plan;
use crate::policy::route::Route;

/// Returns the route that would be taken, and by what it would refuse all that is known before the body.
///
/// The path of what a tunnel carries is unknown, so only routes of all paths count there.
pub(super) fn taken<'p>(
    plan: &'p Plan,
    client: &ClientName,
    request_target: &RequestTarget,
    head: Head<'_>,
) -> Option<(&'p Route, Option<Code>)> {
    let path = if head.is_tunnel() { "" } else { request_target.path() };
    let (shadow, agreed) = plan.routes.shadow(client, request_target.tenant.as_ref(), &request_target.host, path)?;
    let agreed = if head.is_tunnel() { Ok(()) } else { agreed.map_err(Refusal::from) };
    // The decisions of the route that takes the request are others.
    let judged = agreed.and_then(|()| decide_by_route(plan, shadow, request_target, head, &mut Decided::default()));
    let refused = judged.err().map(|refusal| refusal.code);
    Some((shadow, refused.or((head.body_min > shadow.body_max).then_some(Code::BodyTooLarge))))
}
