//! The verdict of report-only routes on a request.
//! Which of them would the request take, and what would change for it if they were enforced?

use super::decisions::{Decisions, RequestHead, decide_by_route};
use crate::delivery::errors;
use crate::delivery::refusal::Code;
use crate::delivery::request::target::RequestTarget;
use crate::names::ClientName;
use crate::policy::Plan;
use crate::policy::route::Route;

/// Returns the route that would be taken, and the code of its refusal, as far as the head shows one.
///
/// The path of a request inside a tunnel is unknown, so only routes of all paths count for a tunnel.
pub(super) fn judge_shadow<'p>(
    plan: &'p Plan,
    client: &ClientName,
    request_target: &RequestTarget,
    head: RequestHead<'_>,
) -> Option<(&'p Route, Option<Code>)> {
    let path = if head.is_tunnel() { "" } else { request_target.path() };
    let (shadow, agreed) = plan.routes.shadow(client, request_target.tenant.as_ref(), &request_target.host, path)?;
    let ambiguous = |error| errors::ambiguous_path(error, &request_target.host, &plan.redactor);
    let agreed = if head.is_tunnel() { Ok(()) } else { agreed.map_err(ambiguous) };
    // The request's own decisions are those of the route that it takes.
    let mut unused = Decisions::default();
    let judged = agreed.and_then(|()| decide_by_route(plan, shadow, request_target, head, &mut unused));
    let refused = judged.err().map(|refusal| refusal.code);
    Some((shadow, refused.or((head.body_min > shadow.body_max).then_some(Code::BodyTooLarge))))
}
