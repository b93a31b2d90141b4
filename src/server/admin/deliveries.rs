//! The recent deliveries of the running proxy, for `outgate deliveries`.
//! Which of the last deliveries match, and who may ask?
//!
//! A record names clients, tenants and targets, so only a user whom the kernel identifies gets it.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;

use super::{DELIVERIES, JSON, TEXT, build_response, not_rendered, unix_socket_only};
use crate::net::peer::Peer;
use crate::state::Runtime;
use crate::state::observability::delivery_line::{DeliveryFilter, LogLine};

/// Answers with `{"count":…,"deliveries":[…]}`, the newest last. `after=COUNT` of an earlier answer leaves out what that
/// answer had.
pub(super) async fn respond(runtime: &Arc<Runtime>, query: &str, peer: Option<&Peer>) -> Response<Full<Bytes>> {
    if peer.is_none() {
        return unix_socket_only(DELIVERIES);
    }
    let (filter, after) = match parse(query) {
        Ok(parsed) => parsed,
        Err(message) => return build_response(StatusCode::BAD_REQUEST, TEXT, message),
    };
    let worker_runtime = Arc::clone(runtime);
    let rendered = runtime.admin_worker.run(move || render(&worker_runtime, &filter, after)).await;
    rendered.map_or_else(|_| not_rendered(), |body| build_response(StatusCode::OK, JSON, body))
}

fn parse(query: &str) -> Result<(DeliveryFilter, u64), String> {
    let (mut filter, mut after) = (DeliveryFilter::default(), 0);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let wrong = |expected: &str| format!("{name} is not {expected}\n");
        match &*name {
            "tenant" => filter.tenant = Some(value.into_owned()),
            "host" => filter.host = Some(value.into_owned()),
            "code" => filter.code = Some(value.into_owned()),
            "request_id" => filter.request_id = Some(value.into_owned()),
            "source" => filter.source = Some(value.parse().map_err(|_| wrong("an IP address"))?),
            "since" => filter.since = Some(value.parse().map_err(|_| wrong("a time as in RFC 3339"))?),
            "after" => after = value.parse().map_err(|_| wrong("a number"))?,
            _ => return Err("the parameters are tenant, host, code, request_id, source, since and after\n".into()),
        }
    }
    Ok((filter, after))
}

fn render(runtime: &Runtime, filter: &DeliveryFilter, after: u64) -> String {
    let recent = runtime.records.recent.after(after);
    let is_match = |line: &&Arc<[u8]>| {
        filter.may_match(line)
            && matches!(LogLine::parse(line), Some(LogLine::Delivery(delivery)) if filter.matches(&delivery))
    };
    let lines = recent.lines.iter().filter(is_match).map(|line| String::from_utf8_lossy(line));
    format!("{{\"count\":{},\"deliveries\":[{}]}}", recent.count, lines.collect::<Vec<_>>().join(","))
}
