//! The rule that chose the route of a webhook or a tunnel.
//! Why did the request get this route and not another?

use std::sync::Arc;

use super::ExplainRequest;
use crate::delivery::request::target::RequestTarget;
use crate::delivery::request::tunnel_mode::TunnelMode;
use crate::policy::Plan;
use crate::policy::route::{Match, Route};

/// Returns the chosen route as it is configured, before its split, and the reason for the choice.
pub(super) fn explain_match<'p>(
    plan: &'p Plan,
    request: &ExplainRequest<'_>,
    request_target: &RequestTarget,
    chosen: &'p Arc<Route>,
) -> (&'p Arc<Route>, String) {
    let &ExplainRequest { client, tenant, .. } = request;
    // The path of a request inside a tunnel is unknown, so for a tunnel these are the candidates for every path.
    let candidates = plan.routes.candidates(client, tenant, &request_target.host, request_target.path());
    let first = candidates.first().map(|(_, found)| found.route);
    let written = match request.is_tunnel() {
        true => plan.routes.select_for_tunnel(client, tenant, request_target.authority()).map(|(written, _)| written),
        false => first,
    };
    let written = written.unwrap_or(chosen);
    let reason = match first {
        Some(first) if Arc::ptr_eq(first, written) => match_reason(&candidates),
        first => tunnel_reason(request_target, written, first),
    };
    (written, reason)
}

/// Returns why a tunnel has this route: a request inside could take it, and its policy is stricter than that of `better`.
fn tunnel_reason(request_target: &RequestTarget, route: &Route, better: Option<&Arc<Route>>) -> String {
    let policy = match request_target.tunnel_mode(route) {
        Ok(TunnelMode::Plaintext) => "sends plaintext requests over TLS",
        Ok(TunnelMode::Inspect | TunnelMode::Passthrough) => "inspects tunnels",
        Err(_) => "refuses tunnels",
    };
    let better = better.map(|other| format!(", so {} alone does not decide", other.name)).unwrap_or_default();
    format!("a request inside the tunnel could match this route, which {policy}{better}")
}

/// Returns why the first candidate precedes the second, with the names of all others.
fn match_reason(candidates: &[(usize, Match<'_>)]) -> String {
    let [(host, best), (other_host, next), others @ ..] = candidates else {
        return "the only route that matches".to_owned();
    };
    let by = if host != other_host {
        "by its host: an exact name precedes a wildcard, a longer wildcard precedes a shorter one, \"*\" is last"
    } else if best.path != next.path {
        "by its longer path"
    } else if best.tenant != next.tenant {
        "because it names the tenant"
    } else {
        "because it names the client"
    };
    let also: String = others.iter().map(|(_, found)| format!(", before {}", found.route.name)).collect();
    format!("more specific than {}{also}, {by}", next.route.name)
}
