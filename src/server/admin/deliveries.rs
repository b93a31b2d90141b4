//! The recent deliveries of the running proxy, redacted as their records are.
//! Which of the last deliveries match, and what happened to one of them?

use std::sync::Arc;

use http::StatusCode;
use serde_json::{Value, json};

use super::problem::AdminProblem;
use super::resource::Query;
use super::{AdminResponse, JSON, build_response, json_response};
use crate::delivery::{self, Event};
use crate::state::Runtime;
use crate::state::observability::delivery_line::{DeliveryFilter, DeliveryLine, LogLine, webhook_id_forms};

/// Answers with `{"count":…,"deliveries":[…]}`, the newest last. `after=COUNT` of an earlier answer leaves out what that
/// answer had.
pub(super) async fn list(runtime: &Arc<Runtime>, query: &Query) -> Result<AdminResponse, AdminProblem> {
    let filter = DeliveryFilter {
        tenant: query.text("tenant"),
        host: query.text("host"),
        code: query.text("code"),
        request_id: query.text("request_id"),
        source: query.parse("source", "write an IP address", str::parse)?,
        since: query.parse("since", "write a time as in RFC 3339: 2026-11-26T14:00:00Z", str::parse)?,
        webhook_ids: webhook_id_forms(query.text("webhook_id").as_deref(), &runtime.active_config().plan.redactor),
    };
    let after = query.parse("after", "write the `count` of an earlier answer", str::parse)?.unwrap_or(0);
    let worker_runtime = Arc::clone(runtime);
    let rendered = runtime.admin_worker.run(move || render(&worker_runtime, &filter, after)).await;
    rendered.map(|body| build_response(StatusCode::OK, JSON, body)).map_err(|_| AdminProblem::not_rendered())
}

fn render(runtime: &Runtime, filter: &DeliveryFilter, after: u64) -> String {
    let recent = runtime.records.recent.after(after);
    let is_match = |line: &&Vec<u8>| {
        filter.may_match(line)
            && matches!(LogLine::parse(line), Some(LogLine::Delivery(delivery)) if filter.matches(&delivery))
    };
    let lines = recent.lines.iter().filter(is_match).map(|line| String::from_utf8_lossy(line));
    format!("{{\"count\":{},\"deliveries\":[{}]}}", recent.count, lines.collect::<Vec<_>>().join(","))
}

/// Answers with the record of one delivery, and with the story of its steps.
pub(super) async fn one(runtime: &Arc<Runtime>, request_id: &str) -> Result<AdminResponse, AdminProblem> {
    let (worker_runtime, request_id) = (Arc::clone(runtime), request_id.to_owned());
    let found = runtime.admin_worker.run(move || find(&worker_runtime, &request_id)).await;
    let detail = "the recent deliveries do not have this request id: `outgate deliveries --request-id` reads the log";
    match found.map_err(|_| AdminProblem::not_rendered())? {
        Some(found) => Ok(json_response(found)),
        None => Err(AdminProblem::new(StatusCode::NOT_FOUND, detail)),
    }
}

fn find(runtime: &Runtime, request_id: &str) -> Option<Value> {
    let filter = DeliveryFilter { request_id: Some(request_id.to_owned()), ..DeliveryFilter::default() };
    runtime.records.recent.after(0).lines.iter().rev().filter(|line| filter.may_match(line)).find_map(|line| {
        let LogLine::Delivery(delivery) = LogLine::parse(line)? else { return None };
        let record: Value = serde_json::from_slice(line).ok()?;
        let step = |Event(step, ms, text): Event| json!({ "step": step, "ms": ms, "what": text });
        let steps: Vec<Value> = delivery::diagnose(&delivery).into_iter().map(step).collect();
        (delivery.request_id == request_id).then(|| json!({ "delivery": record, "steps": steps }))
    })
}

/// Returns the recent deliveries, the newest first.
pub(super) fn recent(runtime: &Runtime) -> Vec<DeliveryLine> {
    let lines = runtime.records.recent.after(0).lines;
    let deliveries = lines.iter().rev().filter_map(|line| match LogLine::parse(line)? {
        LogLine::Delivery(delivery) => Some(*delivery),
        LogLine::Gap(_) => None,
    });
    deliveries.collect()
}
