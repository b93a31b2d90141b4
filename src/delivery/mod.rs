//! The life of one webhook, step by step.
//! What happens between a request that came in and the answer that goes back?

mod ask;
mod caller;
mod circuit;
mod credential;
mod decided;
mod explain;
mod fields;
mod inbound;
mod judge;
mod opens;
mod pacing;
mod passage;
mod probe;
mod record;
pub mod refusal;
mod response;
mod shadow;
mod steps;
pub mod tunnel;
mod verdict;
mod webhook;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Response, StatusCode, Version};
use hyper::body::Incoming;
use jiff::Timestamp;
use tokio::time::Instant;

use ask::Ask;
pub use explain::{Explained, Question, explain, explain_now};
pub use inbound::{Inbound, InboundFault};
use judge::{Outcome, Routed, judge_arrival};
use passage::Passage;
pub use probe::{Asked, Met, Probed, probe};
pub use record::milliseconds;
use record::{Record, Step};
use refusal::{Code, Refusal};
pub use response::{BrokeOff, Outbound};
use webhook::Webhook;

use crate::config::ClientConnections;
use crate::live::circuits::{Key, Success};
use crate::live::gate::Pass;
use crate::live::limits::Permit;
use crate::live::reuse::Lease;
use crate::live::{InForce, Live};
use crate::names::{ClientName, Target, TenantName};
use crate::policy::identify::Caller;
use crate::policy::route::Route;

/// Timers go by milliseconds: a step that the total timeout ends has its say before the delivery as a whole is ended.
const LAST_WORD: Duration = Duration::from_millis(2);

/// A request as a server read it.
pub struct Arrival {
    pub method: Method,
    /// As the client sent it.
    pub version: Version,
    /// The request target, byte for byte.
    pub target: String,
    pub fields: HeaderMap,
    pub body: Inbound,
    pub caller: Arc<Caller>,
    /// Where interim answers go, if the client understands them.
    pub interim: Option<Interim>,
}

/// Takes an interim answer (1xx) to the client, at once.
pub type Interim = Box<dyn Fn(StatusCode, &HeaderMap) + Send + Sync>;

/// One webhook, from arrival to answer. Everything it needs to know was decided when it started: a reload does not
/// touch it.
pub async fn deliver(live: &Arc<Live>, arrival: Arrival) -> Response<Outbound> {
    let started = Instant::now();
    let in_force = live.in_force();
    let mut record = Box::new(Record::open(live, Some(&arrival.method), &arrival.caller));
    webhook::own_id(&arrival.fields).into_iter().for_each(|id| record.webhook_id(id));
    let pseudonym = &in_force.plan.name;
    let routed = match judge_arrival(live, &in_force.plan, &arrival, &mut record) {
        Ok(Outcome::Routed(routed)) => routed,
        Ok(Outcome::Options) => return response::options(record, pseudonym),
        Err(refusal) => return response::refuse(refusal, record, pseudonym),
    };
    let deadline = started + routed.route.timeouts.total;
    let method = arrival.method.clone();
    // Pinned where it is made: the state of a whole delivery is not copied into the timeout.
    let relayed = {
        let relaying = pin!(relay(live, &in_force, arrival, routed, &mut record));
        tokio::time::timeout_at(deadline + LAST_WORD, relaying).await
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

struct Answered {
    lease: Lease,
    held: Held,
    answer: Response<Incoming>,
    /// Of its body, in bytes.
    limit: u64,
}

/// What a delivery holds to its last byte.
struct Held {
    permit: Permit,
    _pass: Pass,
}

/// The story from there on.
async fn relay(
    live: &Arc<Live>,
    in_force: &Arc<InForce>,
    arrival: Arrival,
    routed: Routed<'_>,
    record: &mut Record,
) -> Result<Answered, Refusal> {
    let Routed { ask, client, pledge, route, target, .. } = routed;
    let tenant = ask.tenant.clone();
    let circuit = Key::of(route, &target, client, tenant.as_ref());
    circuit::check(live, in_force, &circuit)?;
    // Limits first: a delivery that waits for its own limit takes no place among those in flight from others.
    let permit = steps::admit(live, route, client, tenant.as_ref(), &target, record).await?;
    let _pass = steps::enter(live, &in_force.plan, record).await?;
    // Timed before it is paced: the time that a limit takes is not the client's.
    let body = inbound::timed(arrival.body, route.timeouts.body);
    let arrival = Arrival { body: pacing::inbound(body, permit.tolls()), ..arrival };
    let shown = credential::obtain(live, in_force, route, tenant.as_ref(), record).await?;
    record.begin(Step::TakeIn);
    let mut webhook = Webhook::take_in(arrival, ask, target.clone(), route, pledge, &in_force.plan.name).await?;
    record.step(Step::TakeIn);

    shown.iter().for_each(|shown| webhook.show(shown.header()));
    let attempt = circuit::begin(live, in_force, circuit)?;
    let client = (route.client_connections == ClientConnections::Separate).then_some(client);
    let reached = reach(live, in_force, route, (tenant.as_ref(), client), &target, webhook, record).await;
    circuit::learn(live, attempt, Success::Response, &reached);
    let (lease, answer) = reached?;
    shown.iter().for_each(|shown| shown.heed(&answer, live));
    verdict::final_answer(&answer, route.response_max, route.response_head_max)?;
    Ok(Answered { lease, held: Held { permit, _pass }, answer, limit: route.response_max })
}

/// The part of it that the target has a hand in.
async fn reach(
    live: &Arc<Live>,
    in_force: &Arc<InForce>,
    route: &Arc<Route>,
    (tenant, client): (Option<&TenantName>, Option<&ClientName>),
    target: &Target,
    webhook: Webhook,
    record: &mut Record,
) -> Result<(Lease, Response<Incoming>), Refusal> {
    let hops = steps::hops(live, in_force, route, tenant, target, record).await?;
    let passage = Passage { live, in_force, route, target, tenant, client, hops, started: record.started() };
    let lease = passage.open(record).await?;
    let sealed = webhook.seal(route, Timestamp::now(), record)?;
    record.step(Step::Sign);
    let (lease, answer) = passage.forward(lease, sealed, record).await?;
    record.step(Step::Response);
    Ok((lease, answer))
}

/// Refuses what a server could not read as a request. `asked`: the method and target, where these at least were read.
pub fn refuse_unread(
    live: &Arc<Live>,
    caller: &Caller,
    asked: Option<&(Method, String)>,
    (status, detail): (StatusCode, &str),
) -> Response<Outbound> {
    let mut record = Box::new(Record::open(live, asked.map(|(method, _)| method), caller));
    if let Some((method, target)) = asked {
        Ask::record(method, target, &mut record);
    }
    response::refuse(Refusal::malformed(detail).status(status), record, &live.in_force().plan.name)
}

/// Refuses TLS on a listener that speaks plain HTTP.
pub fn refuse_tls(live: &Arc<Live>, caller: &Caller) -> Response<Outbound> {
    let record = Box::new(Record::open(live, None, caller));
    let detail = "this listener speaks plaintext, and the client began with TLS: write http:// for the proxy's URL";
    response::refuse(Refusal::malformed(detail).details("tls"), record, &live.in_force().plan.name)
}

/// Refuses a request in plain HTTP on a listener that speaks TLS.
pub fn refuse_plaintext(live: &Arc<Live>, caller: &Caller) -> Response<Outbound> {
    let record = Box::new(Record::open(live, None, caller));
    let detail = "this port speaks TLS, and the request came in plaintext: connect to the proxy by https://";
    response::refuse(Refusal::malformed(detail).details("plaintext"), record, &live.in_force().plan.name)
}
