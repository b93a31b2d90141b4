//! The spans of one sampled delivery: the delivery, its steps, and the request that the target gets.
//! What does a collector learn of a delivery?
//!
//! Names and attributes follow OpenTelemetry's semantic conventions 1.37 for HTTP. They come from the line of the record,
//! so each text that a request or a target may choose has passed the redactor.

use std::time::Duration;

use super::Record;
use super::line::RecordLine;
use super::timing::{Step, StepTimes};
use crate::http_message::Fields;
use crate::policy::Plan;
use crate::policy::trace::TraceContext;
use crate::state::observability::metrics::STEPS;
use crate::state::observability::traces::{Message, SpanKind};

impl Record {
    /// Continues the trace that the request names, or begins one.
    pub(in crate::delivery) fn begin_trace(&mut self, plan: &Plan, fields: &Fields) {
        let Some(settings) = &plan.traces else { return };
        self.evidence.trace = Some(self.runtime.traces.context(settings, fields, self.runtime.random_numbers()));
    }

    pub(in crate::delivery) fn trace(&self) -> Option<&TraceContext> {
        self.evidence.trace.as_ref()
    }
}

/// Returns the spans of a delivery. The first one is the delivery, and the parent of the others.
pub(super) fn spans(line: &RecordLine<'_>, times: &StepTimes, trace: &TraceContext) -> Vec<Message> {
    let start = u64::try_from(line.time.as_nanosecond()).unwrap_or_default();
    let at = |offset: Duration| start + u64::try_from(offset.as_nanos()).unwrap_or_default();
    let method = match line.method.as_ref().map_or("", |method| method.as_str()) {
        method @ ("GET" | "HEAD" | "POST" | "PUT" | "DELETE" | "CONNECT" | "OPTIONS" | "PATCH") => method,
        _ => "_OTHER",
    };
    let http = |number, kind, times| {
        let span = Message::span(trace, number, method, kind, times).text("http.request.method", Some(method));
        span.text("server.address", line.host.as_ref()).integer("server.port", line.port)
    };
    let steps = times.steps.iter().enumerate().filter_map(|(step, time)| Some((step, time.as_ref()?)));
    let has_ended_early = line.code != "delivered" && line.status_class.is_none();
    let last = steps.clone().map(|(step, _)| step).next_back().filter(|_| has_ended_early);
    let steps = steps.map(|(step, time)| {
        let times = (at(time.began()), at(time.began() + time.took()));
        let step_span = || Message::span(trace, step as u8 + 2, STEPS[step], SpanKind::Internal, times);
        let span = match line.tls {
            _ if step == Step::Response as usize => requested(line, http(1, SpanKind::Client, times)),
            Some(tls) if step == Step::Tls as usize => {
                let version = tls.version.trim_start_matches("TLSv");
                step_span().text("tls.protocol.version", Some(version)).text("tls.cipher", Some(tls.suite))
            }
            _ => step_span(),
        };
        if last == Some(step) { span.failed(line.code, "") } else { span }
    });
    let whole = delivered(line, http(0, SpanKind::Server, (start, at(times.total))));
    std::iter::once(whole).chain(steps).collect()
}

fn delivered(line: &RecordLine<'_>, span: Message) -> Message {
    let span = span
        .text("url.scheme", line.scheme)
        .text("url.path", line.path.as_ref())
        .text("client.address", line.peer)
        .integer("http.response.status_code", line.status)
        .text("outgate.request_id", Some(line.request_id))
        .text("outgate.client", line.client)
        .text("outgate.tenant", line.tenant.as_ref())
        .text("outgate.route", line.route)
        .text("outgate.code", Some(line.code))
        .text("outgate.details", line.details)
        .text("outgate.blame", Some(line.blame));
    match line.status {
        _ if line.code != "delivered" => span.failed(line.code, line.detail.map_or("", |detail| detail.as_str())),
        Some(status @ 500..) => span.failed(&status.to_string(), ""),
        _ => span,
    }
}

/// Describes the request that the target got: its `traceparent` names this span.
fn requested(line: &RecordLine<'_>, span: Message) -> Message {
    let url = line.scheme.zip(line.host.as_ref()).zip(line.port).map(|((scheme, host), port)| {
        format!("{scheme}://{host}:{port}{}", line.path.as_ref().map_or("", |path| path.as_str()))
    });
    // The status that the client got is the target's, unless outgate refused the response.
    let class = |status: u16| format!("{}xx", status / 100);
    let status = line.status.filter(|status| line.status_class == Some(&*class(*status)));
    let span = span
        .text("url.full", url)
        .text("network.peer.address", line.address)
        .text("network.local.address", line.local.or(line.source))
        .text("network.protocol.version", line.http)
        .integer("http.response.status_code", status);
    match status {
        Some(status @ 400..) => span.failed(&status.to_string(), ""),
        _ => span,
    }
}
