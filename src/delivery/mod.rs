//! The life of one webhook, step by step.
//! What happens between a request that came in and the answer that goes back?

mod ask;
mod caller;
mod explain;
mod fields;
mod inbound;
mod passage;
mod record;
pub mod refusal;
mod response;
mod verdict;
mod webhook;

use std::pin::pin;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use http::{HeaderMap, Method, Response, StatusCode, Version};
use hyper::body::Incoming;
use jiff::Timestamp;
use tokio::time::Instant;

use ask::Ask;
pub use explain::{Explained, Question, explain};
pub use inbound::{Inbound, InboundFault};
use passage::Passage;
use record::{Record, Step};
use refusal::{Code, Refusal};
pub use response::{BrokeOff, Outbound};
use webhook::Webhook;

use crate::live::limits::Permit;
use crate::live::reuse::Lease;
use crate::live::{InForce, Live};
use crate::names::{Host, TenantName};
use crate::policy::admit::Who;
use crate::policy::egress;
use crate::policy::identify::{Caller, Identified};

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
    let in_force = live.in_force();
    let mut record = Box::new(Record::open(live, Some(&arrival.method), &arrival.caller));
    let pseudonym = &in_force.plan.name;
    let deadline = Instant::now() + in_force.plan.timeouts.total;
    // Pinned where it is made: the state of a whole delivery is not copied into the timeout.
    let relayed = {
        let relaying = pin!(relay(live, &in_force, arrival, &mut record));
        tokio::time::timeout_at(deadline, relaying).await
    };
    match relayed {
        Ok(Ok(Answered::ByTarget(lease, permit, answer))) => {
            response::relay(answer, lease, permit, record, deadline, pseudonym)
        }
        Ok(Ok(Answered::ByUs)) => response::options(record),
        Ok(Err(refusal)) => response::refuse(refusal, record, pseudonym),
        Err(_) => {
            let refusal = Refusal::new(Code::ResponseTimeout, "the delivery took longer than the total timeout");
            response::refuse(refusal, record, pseudonym)
        }
    }
}

#[expect(clippy::large_enum_variant, reason = "one for each delivery, and nearly always the large one")]
enum Answered {
    ByTarget(Lease, Permit, Response<Incoming>),
    /// `OPTIONS` with `Max-Forwards: 0`.
    ByUs,
}

/// The story. Each line is a step, named like the room that does it.
async fn relay(
    live: &Arc<Live>,
    in_force: &InForce,
    mut arrival: Arrival,
    record: &mut Record,
) -> Result<Answered, Refusal> {
    let plan = &in_force.plan;
    live.refuse_when_draining()?;
    let ask = Ask::read(&arrival)?;
    let Identified { client, proof, signed } = caller::identify(live, plan, &arrival)?;
    record.client(client.name(), proof, ask.tenant.as_ref());
    verdict::speaks_for(client, ask.tenant.as_ref())?;
    if ask::asks_us(&arrival.method, &mut arrival.fields)? {
        return Ok(Answered::ByUs);
    }
    let route = plan.routes.choose(client.name(), ask.tenant.as_ref(), &ask.host, ask.path());
    let route = route.ok_or_else(|| verdict::no_route(&ask.host))?;
    record.route(&route.name);
    let target = ask.target(route)?;
    record.target(&target, ask.path());
    plan.guard.judge_name(&target, &route.ports, route.plaintext == crate::config::Plaintext::Allow)?;
    verdict::no_loop(&arrival.fields, &plan.name)?;

    let tenant = ask.tenant.clone();
    let pool = &route.pool;
    let who = Who {
        client: client.name(),
        tenant: tenant.as_ref(),
        route: &route.name,
        host: &target.host,
        egress: pool.name(),
    };
    let permit = live.limits.admit(&route.limits, &who).await?;
    record.step(Step::Admit);
    let pledge = signed.and_then(|signed| signed.pledge);
    let webhook = Webhook::take_in(arrival, ask, target.clone(), route, pledge, &plan.name).await?;
    record.step(Step::TakeIn);

    let answers = in_force.resolver.resolve(&target.host, route.timeouts.dns).await?;
    let cleared = plan.guard.clear(&target, &answers.addresses, &live.sources.own())?;
    let turn = in_force.turn(pool, &cleared);
    let usable = live.sources.view();
    let stick = stick(tenant.as_ref(), &target.host);
    let hops = egress::choose(pool, &cleared, stick, turn, Timestamp::now(), &|source| usable.has(source))?;
    record.step(Step::Resolve);

    let tenant = tenant.as_ref().filter(|_| route.tenant_specific);
    let passage = Passage { live, in_force, route, target: &target, tenant, hops };
    let lease = passage.open(record).await?;
    let sealed = webhook.seal(route, Timestamp::now(), record)?;
    record.step(Step::Sign);
    let (lease, answer) = passage.forward(lease, sealed, record).await?;
    record.step(Step::Response);
    verdict::final_answer(&answer)?;
    Ok(Answered::ByTarget(lease, permit, answer))
}

/// What sticky selection sticks to. The same in every process, release and build: a customer's source address must not
/// move because a library's hash did.
fn stick(tenant: Option<&TenantName>, host: &Host) -> u64 {
    let mut context = Context::new(&SHA256);
    let tenant = tenant.map_or("", TenantName::as_str);
    context.update(&(tenant.len() as u64).to_be_bytes());
    context.update(tenant.as_bytes());
    context.update(host.to_string().as_bytes());
    let digest = context.finish();
    digest.as_ref().iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// What a server could not read as a request at all.
pub fn refuse_unread(live: &Arc<Live>, caller: &Caller, status: StatusCode, detail: &str) -> Response<Outbound> {
    let record = Box::new(Record::open(live, None, caller));
    response::refuse(Refusal::malformed(detail).status(status), record, &live.in_force().plan.name)
}
