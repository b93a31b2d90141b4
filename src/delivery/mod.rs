//! The story of one webhook, step by step.
//! What happens to a request between its arrival and its response?

mod capture;
mod circuit_breaker;
mod connector;
mod context;
mod credential;
mod diagnosis;
mod errors;
mod inspect;
mod judge;
mod own;
mod record;
pub mod refusal;
mod request;
mod response;
mod steps;
mod throttle;
pub mod tunnel;
mod webhook;

use std::pin::pin;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use capture::CaptureTap;
use connector::UpstreamConnector;
use context::{Delivery, TIMER_SLACK};
use judge::{JudgmentOutcome, Routed, judge_request};
use record::{Record, Step};
use refusal::{Code, Refusal};
use request::webhook_id::{self, WebhookId};
use response::{HeldPermits, UpstreamResponse};
use webhook::Webhook;

pub use diagnosis::{Event, diagnose};
pub use inspect::{
    ExplainRequest, Explanation, ProbeReport, ProbeRequest, ProbeResult, explain, explain_now, probe, probe_route,
};
pub use own::deliver_own;
pub use record::milliseconds;
pub use request::{InterimSender, ProxyRequest, RequestBody, RequestBodyError, SendInterim};
pub use response::{ResponseAborted, ResponseBody, refuse_plaintext, refuse_tls, refuse_unread};

use crate::http_message::Response;
use crate::net::deadline;
use crate::net::http_client::TargetBody;
use crate::panics::contain;
use crate::state::Runtime;
use crate::state::config::ActiveConfig;
use crate::state::upstreams::breaker::UpstreamSuccess;
use crate::state::upstreams::pool::PooledConnection;

/// Delivers one webhook, and returns the response for the client.
///
/// The delivery keeps the configuration that is active when it starts. Only the pool is looked up again, whenever a
/// connection is opened: it never leaves from a removed address.
pub async fn deliver(runtime: &Arc<Runtime>, request: ProxyRequest) -> Response<ResponseBody> {
    let active = runtime.active_config();
    let pseudonym = &active.plan.pseudonym;
    // Allocated before the record is made, so that an optimised build makes it in its place.
    let mut record =
        Box::write(Box::new_uninit(), Record::open(runtime, &active.plan, Some(&request.method), &request.caller));
    webhook_id::well_formed(&request.fields)
        .into_iter()
        .for_each(|id| record.webhook_id(WebhookId::Given(id.to_owned())));
    let routed = match judge_request(runtime, &active.plan, &request, &mut record) {
        Ok(JudgmentOutcome::Routed(routed)) => routed,
        Ok(JudgmentOutcome::LocalOptions) => return response::options(record, pseudonym),
        Err(refusal) => return response::refuse(refusal, record, pseudonym),
    };
    deliver_routed(runtime, &active, &routed, request, record).await
}

/// Delivers a webhook that no rule refuses.
pub(in crate::delivery) async fn deliver_routed(
    runtime: &Arc<Runtime>,
    active: &Arc<ActiveConfig>,
    routed: &Routed<'_>,
    request: ProxyRequest,
    mut record: Box<Record>,
) -> Response<ResponseBody> {
    let pseudonym = &active.plan.pseudonym;
    let deadline = Instant::from_std(record.started()) + routed.route.timeouts.total;
    let method = request.method.clone();
    let capture = CaptureTap::begin(runtime, &active.plan, routed, &request, &record);
    let delivery = Delivery { capture: capture.as_ref(), ..Delivery::new(runtime, active, routed, record.started()) };
    // `pin!` avoids a copy of the whole delivery's state into the timeout.
    let forwarded = {
        let forwarding = pin!(async { contain(forward(&delivery, routed, request, &mut record)).await? });
        deadline::timeout_at(deadline + TIMER_SLACK, forwarding).await
    };
    let timed_out = || Refusal::new(Code::ResponseTimeout, "the delivery took longer than the total timeout");
    match forwarded.unwrap_or_else(|_| Err(timed_out())) {
        Ok(upstream) => response::relay(&method, upstream, record, deadline, pseudonym),
        Err(refusal) => {
            capture.iter().for_each(|capture| capture.failed(refusal.code.name()));
            response::refuse(refusal, record, pseudonym)
        }
    }
}

/// Takes the steps after the judgment, and returns the target's response.
async fn forward(
    delivery: &Delivery<'_>,
    routed: &Routed<'_>,
    request: ProxyRequest,
    record: &mut Record,
) -> Result<UpstreamResponse, Refusal> {
    let &Delivery { runtime, route, .. } = delivery;
    let breaker_key = delivery.breaker_key();
    steps::claim_signature(delivery, routed).await?;
    steps::check_breaker(delivery, &breaker_key)?;
    // A delivery that waits for a limit of its own must not take a place among those in flight.
    let limits = steps::acquire_limits(delivery, record).await?;
    let permits = HeldPermits { limits, _in_flight: steps::acquire_slot(delivery, record).await? };
    let credential = credential::obtain(delivery, record).await?;
    record.begin(Step::ReadBody);
    let mut webhook = Webhook::prepare(delivery, routed, request, permits.limits.bandwidth_limiter()).await?;
    record.step(Step::ReadBody);

    credential.iter().for_each(|credential| webhook.set_credential(credential.header()));
    record.trace().into_iter().for_each(|trace| webhook.set_trace(trace));
    let attempt = steps::begin_attempt(delivery, breaker_key)?;
    let result = exchange(delivery, webhook, record).await;
    circuit_breaker::observe(delivery, attempt, UpstreamSuccess::Response, &result);
    let (connection, response) = result?;
    credential.iter().for_each(|credential| credential.observe_response(&response, runtime));
    response::check(&response, route.response_max, route.response_head_max)?;
    let capture = delivery.capture.cloned();
    Ok(UpstreamResponse { connection, permits, response, body_max: route.response_max, capture })
}

/// Takes the steps that contact the target. Their outcome is evidence for its circuit breaker.
async fn exchange(
    delivery: &Delivery<'_>,
    webhook: Webhook<'_>,
    record: &mut Record,
) -> Result<(PooledConnection, Response<TargetBody>), Refusal> {
    let hops = steps::plan_hops(delivery, record).await?;
    let connector = UpstreamConnector::new(delivery, hops);
    let connection = connector.open(record).await?;
    let signed = webhook.sign(Timestamp::now(), record)?;
    record.step(Step::Sign);
    let (connection, response) = connector.forward(connection, signed, record).await?;
    record.step(Step::Response);
    Ok((connection, response))
}
