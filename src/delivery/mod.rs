//! The life of one webhook, step by step.
//! What happens between a request that came in and the answer that goes back?

mod authn;
mod circuit_breaker;
mod connector;
mod credential;
mod decided;
mod errors;
mod explain;
mod fields;
mod judge;
mod probe;
mod record;
pub mod refusal;
mod request_body;
mod request_target;
mod response;
mod shadow;
mod steps;
mod throttle;
pub mod tunnel;
mod tunnel_mode;
mod webhook;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Response, StatusCode, Version};
use hyper::body::Incoming;
use jiff::Timestamp;
use tokio::time::Instant;

use connector::UpstreamConnector;
pub use explain::{ExplainRequest, Explanation, explain, explain_now};
use judge::{JudgmentOutcome, Routed, judge_arrival};
pub use probe::{ProbeReport, ProbeRequest, ProbeResult, probe};
pub use record::milliseconds;
use record::{Record, Step};
use refusal::{Code, Refusal};
pub use request_body::{RequestBody, RequestBodyError};
use request_target::RequestTarget;
pub use response::{ResponseAborted, ResponseBody};
use webhook::Webhook;

use crate::config::ClientConnections;
use crate::names::{ClientName, Target, TenantName};
use crate::policy::authn::Caller;
use crate::policy::route::Route;
use crate::state::Runtime;
use crate::state::config::ActiveConfig;
use crate::state::limits::LimitPermit;
use crate::state::limits::admission::InFlightGuard;
use crate::state::upstreams::breaker::{BreakerKey, UpstreamSuccess};
use crate::state::upstreams::pool::PooledConnection;

/// Timers go by milliseconds: a step that the total timeout ends has its say before the delivery as a whole is ended.
const TIMER_SLACK: Duration = Duration::from_millis(2);

/// A request as a server read it.
pub struct ProxyRequest {
    pub method: Method,
    /// As the client sent it.
    pub version: Version,
    /// The request target, byte for byte.
    pub target: String,
    pub fields: HeaderMap,
    pub body: RequestBody,
    pub caller: Arc<Caller>,
    /// Where interim answers go, if the client understands them.
    pub interim: Option<InterimCallback>,
}

/// Takes an interim answer (1xx) to the client, at once.
pub type InterimCallback = Box<dyn Fn(StatusCode, &HeaderMap) + Send + Sync>;

/// One webhook, from arrival to answer. Everything it needs to know was decided when it started: a reload does not
/// touch it.
pub async fn deliver(runtime: &Arc<Runtime>, arrival: ProxyRequest) -> Response<ResponseBody> {
    let started = Instant::now();
    let active = runtime.active_config();
    let mut record = Box::new(Record::open(runtime, Some(&arrival.method), &arrival.caller));
    webhook::own_id(&arrival.fields).into_iter().for_each(|id| record.webhook_id(id));
    let pseudonym = &active.plan.name;
    let routed = match judge_arrival(runtime, &active.plan, &arrival, &mut record) {
        Ok(JudgmentOutcome::Routed(routed)) => routed,
        Ok(JudgmentOutcome::LocalOptions) => return response::options(record, pseudonym),
        Err(refusal) => return response::refuse(refusal, record, pseudonym),
    };
    let deadline = started + routed.route.timeouts.total;
    let method = arrival.method.clone();
    // Pinned where it is made: the state of a whole delivery is not copied into the timeout.
    let relayed = {
        let relaying = pin!(relay(runtime, &active, arrival, routed, &mut record));
        tokio::time::timeout_at(deadline + TIMER_SLACK, relaying).await
    };
    match relayed {
        Ok(Ok(answered)) => response::relay(&method, answered, record, deadline, pseudonym),
        Ok(Err(refusal)) => response::refuse(refusal, record, pseudonym),
        Err(_) => {
            let refusal = Refusal::new(Code::ResponseTimeout, "the delivery took longer than the total timeout");
            response::refuse(refusal, record, pseudonym)
        }
    }
}

struct UpstreamResponse {
    lease: PooledConnection,
    held: Guards,
    answer: Response<Incoming>,
    /// Of its body, in bytes.
    limit: u64,
}

/// What a delivery holds to its last byte.
struct Guards {
    permit: LimitPermit,
    _pass: InFlightGuard,
}

/// The story from there on.
async fn relay(
    runtime: &Arc<Runtime>,
    active: &Arc<ActiveConfig>,
    arrival: ProxyRequest,
    routed: Routed<'_>,
    record: &mut Record,
) -> Result<UpstreamResponse, Refusal> {
    let Routed { request_target: ask, client, body_check: pledge, route, target, .. } = routed;
    let tenant = ask.tenant.clone();
    let circuit = BreakerKey::of(route, &target, client, tenant.as_ref());
    circuit_breaker::check(runtime, active, &circuit)?;
    // Limits first: a delivery that waits for its own limit takes no place among those in flight from others.
    let permit = steps::acquire_limits(runtime, route, client, tenant.as_ref(), &target, record).await?;
    let _pass = steps::acquire_slot(runtime, &active.plan, record).await?;
    // Timed before it is paced: the time that a limit takes is not the client's.
    let body = request_body::timed(arrival.body, route.timeouts.body);
    let arrival = ProxyRequest { body: throttle::inbound(body, permit.bandwidth_limiter()), ..arrival };
    let shown = credential::obtain(runtime, active, route, tenant.as_ref(), record).await?;
    record.begin(Step::ReadBody);
    let mut webhook = Webhook::prepare(arrival, ask, target.clone(), route, pledge, &active.plan.name).await?;
    record.step(Step::ReadBody);

    shown.iter().for_each(|shown| webhook.set_credential(shown.header()));
    let attempt = circuit_breaker::begin(runtime, active, circuit)?;
    let client = (route.client_connections == ClientConnections::Separate).then_some(client);
    let reached = reach(runtime, active, route, (tenant.as_ref(), client), &target, webhook, record).await;
    circuit_breaker::observe(runtime, attempt, UpstreamSuccess::Response, &reached);
    let (lease, answer) = reached?;
    shown.iter().for_each(|shown| shown.observe_response(&answer, runtime));
    errors::final_answer(&answer, route.response_max, route.response_head_max)?;
    Ok(UpstreamResponse { lease, held: Guards { permit, _pass }, answer, limit: route.response_max })
}

/// The part of it that the target has a hand in.
async fn reach(
    runtime: &Arc<Runtime>,
    active: &Arc<ActiveConfig>,
    route: &Arc<Route>,
    (tenant, client): (Option<&TenantName>, Option<&ClientName>),
    target: &Target,
    webhook: Webhook,
    record: &mut Record,
) -> Result<(PooledConnection, Response<Incoming>), Refusal> {
    let hops = steps::plan_hops(runtime, active, route, tenant, target, record).await?;
    let passage = UpstreamConnector { runtime, active, route, target, tenant, client, hops, started: record.started() };
    let lease = passage.open(record).await?;
    let sealed = webhook.sign(route, Timestamp::now(), record)?;
    record.step(Step::Sign);
    let (lease, answer) = passage.forward(lease, sealed, record).await?;
    record.step(Step::Response);
    Ok((lease, answer))
}

/// Refuses what a server could not read as a request. `asked`: the method and target, where these at least were read.
pub fn refuse_unread(
    runtime: &Arc<Runtime>,
    caller: &Caller,
    asked: Option<&(Method, String)>,
    (status, detail): (StatusCode, &str),
) -> Response<ResponseBody> {
    let mut record = Box::new(Record::open(runtime, asked.map(|(method, _)| method), caller));
    if let Some((method, target)) = asked {
        RequestTarget::record(method, target, &mut record);
    }
    response::refuse(Refusal::malformed(detail).status(status), record, &runtime.active_config().plan.name)
}

/// Refuses TLS on a listener that speaks plain HTTP.
pub fn refuse_tls(runtime: &Arc<Runtime>, caller: &Caller) -> Response<ResponseBody> {
    let record = Box::new(Record::open(runtime, None, caller));
    let detail = "this listener speaks plaintext, and the client began with TLS: write http:// for the proxy's URL";
    response::refuse(Refusal::malformed(detail).with_details("tls"), record, &runtime.active_config().plan.name)
}

/// Refuses a request in plain HTTP on a listener that speaks TLS.
pub fn refuse_plaintext(runtime: &Arc<Runtime>, caller: &Caller) -> Response<ResponseBody> {
    let record = Box::new(Record::open(runtime, None, caller));
    let detail = "this port speaks TLS, and the request came in plaintext: connect to the proxy by https://";
    response::refuse(Refusal::malformed(detail).with_details("plaintext"), record, &runtime.active_config().plan.name)
}
