//! The recent deliveries of the running proxy, for `outgate deliveries`.
//! Which of the last deliveries match, and who may ask?
//!
//! A record names clients, tenants and targets, so only a user whom the kernel identifies gets it.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::{Map, Value};

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
    let pairs = form_urlencoded::parse(query.as_bytes()).map(|(name, value)| (name.into_owned(), value.into()));
    let mut parameters: Map<String, Value> = pairs.collect();
    let after = parameters.remove("after").map_or(Ok(0), |after| after.as_str().unwrap_or_default().parse());
    after.ok().zip(serde_json::from_value(Value::Object(parameters)).ok()).map(|(after, filter)| (filter, after)).ok_or(
        "the parameters are tenant, host, code, request_id, source (an IP address), since (a time as in RFC 3339) and \
         after (a number)\n"
            .to_owned(),
    )
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
