//! The rule that chose the route of a webhook or a tunnel.
//! Why did this route win?

use std::sync::Arc;

use super::super::request_target::RequestTarget;
use super::super::tunnel_mode::TunnelMode;
use super::ExplainRequest;

use crate::policy::Plan;
use crate::policy::route::{Match, Route};

/// Returns the chosen route as it is written, before its split, and why it was chosen.
pub(super) fn reason<'p>(
    plan: &'p Plan,
    question: &ExplainRequest<'_>,
    request_target: &RequestTarget,
    chosen: &'p Arc<Route>,
) -> (&'p Arc<Route>, String) {
    let &ExplainRequest { client, tenant, .. } = question;
    // The path of what a tunnel carries is unknown: what the candidates are for every path is one reason of two.
    let candidates = plan.routes.candidates(client, tenant, &request_target.host, request_target.path());
    let first = candidates.first().map(|(_, found)| found.route);
    let written = match question.is_tunnel() {
        true => plan.routes.choose_for_tunnel(client, tenant, request_target.authority()).map(|(written, _)| written),
        false => first,
    };
    let written = written.unwrap_or(chosen);
    let why = match first {
        Some(first) if Arc::ptr_eq(first, written) => match_reason(&candidates),
        first => settles(request_target, written, first),
    };
    (written, why)
}

/// Of a tunnel, by some path of all that may be asked for inside.
fn settles(ask: &RequestTarget, route: &Route, instead: Option<&Arc<Route>>) -> String {
    let does = match ask.opens(route) {
        Ok(TunnelMode::Plaintext) => "sends plaintext requests over TLS",
        Ok(TunnelMode::Inspect | TunnelMode::Passthrough) => "inspects tunnels",
        Err(_) => "refuses tunnels",
    };
    let instead = instead.map(|other| format!(", so {} does not settle it", other.name)).unwrap_or_default();
    format!("what is inside of a tunnel could take it, and it {does}{instead}")
}

/// By what the first goes before the second, and that there are others.
fn match_reason(candidates: &[(usize, Match<'_>)]) -> String {
    let [(host, best), (other_host, next), others @ ..] = candidates else {
        return "the only route that matches".to_owned();
    };
    let by = if host != other_host {
        "by its host: the name itself goes before a wildcard, a longer wildcard before a shorter one, \"*\" comes last"
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
