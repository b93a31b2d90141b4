//! The story of one tunnel: a CONNECT that is judged like a webhook, and then bytes in both directions.
//! Which steps come before the client gets its 200?

mod connect;
mod inspected;
mod passthrough;
mod replies;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use http::Method;
use tokio::time::Instant;

use super::connector::UpstreamConnector;
use super::context::{Delivery, TIMER_SLACK};
use super::judge::{JudgmentOutcome, Routed, judge_request};
use super::record::Record;
use super::refusal::{Code, Refusal};
use super::request::ProxyRequest;
use super::request::tunnel_mode::TunnelMode;
use super::response::{self, ResponseBody};
use super::{circuit_breaker, errors, steps};
use crate::http_message::Response;
use crate::net::deadline;
use crate::panics::contain;
use crate::policy::authn::TunnelContext;
use crate::state::Runtime;
use crate::state::upstreams::breaker::UpstreamSuccess;

use connect::TunnelConnection;
use passthrough::TunnelPermits;

pub use super::errors::InspectError;
pub use inspected::{InspectedTunnel, TunnelBytes};
pub use passthrough::Tunnel;

/// The outcome of a CONNECT.
pub enum ConnectOutcome {
    Refused(Response<ResponseBody>),
    Tunnel(Box<Tunnel>),
    /// outgate serves the requests inside the tunnel, and connects to the target for each of them.
    Inspected(Box<InspectedTunnel>),
}

/// Judges a CONNECT, and opens its tunnel.
pub async fn connect(runtime: &Arc<Runtime>, request: ProxyRequest) -> ConnectOutcome {
    let active = runtime.active_config();
    let pseudonym = &active.plan.pseudonym;
    let mut record = Box::new(Record::open(runtime, &active.plan, Some(&Method::CONNECT), &request.caller));
    let routed = match judge_request(runtime, &active.plan, &request, &mut record) {
        Ok(JudgmentOutcome::Routed(routed)) => routed,
        Ok(JudgmentOutcome::LocalOptions) => return ConnectOutcome::Refused(response::options(record, pseudonym)),
        Err(refusal) => return ConnectOutcome::Refused(response::refuse(refusal, record, pseudonym)),
    };
    drop(request);
    let deadline = Instant::from_std(record.started()) + routed.route.timeouts.total;
    let delivery = Delivery::new(runtime, &active, &routed, record.started());
    // `pin!` avoids a copy of the future's state into the timeout.
    let opened = {
        let opening = pin!(async { contain(open(&delivery, &routed, &mut record)).await? });
        deadline::timeout_at(deadline + TIMER_SLACK, opening).await
    };
    let timed_out = || Refusal::new(Code::ConnectTimeout, "the tunnel did not open within the total timeout");
    match opened.unwrap_or_else(|_| Err(timed_out())) {
        Ok(TunnelSetup::Passthrough(connection, permits)) => {
            ConnectOutcome::Tunnel(Box::new(Tunnel::new(&delivery, connection, permits, record)))
        }
        Ok(TunnelSetup::Inspect(context)) => {
            ConnectOutcome::Inspected(Box::new(InspectedTunnel::new(&delivery, context, record)))
        }
        Err(refusal) => ConnectOutcome::Refused(response::refuse(refusal, record, pseudonym)),
    }
}

enum TunnelSetup {
    Passthrough(TunnelConnection, TunnelPermits),
    Inspect(TunnelContext),
}

/// Takes the steps after the judgment. A tunnel that outgate serves takes those up to the limits only.
async fn open(delivery: &Delivery<'_>, routed: &Routed<'_>, record: &mut Record) -> Result<TunnelSetup, Refusal> {
    let breaker_key = delivery.breaker_key();
    steps::claim_signature(delivery, routed).await?;
    steps::check_breaker(delivery, &breaker_key)?;
    let limits = steps::acquire_limits(delivery, record).await?;
    if routed.tunnel_mode != Some(TunnelMode::Passthrough) {
        // Each request inside acquires the limits for itself.
        return Ok(TunnelSetup::Inspect(context_of(routed)));
    }
    // A tunnel is in flight until it is open: it costs as much to resolve, dial and verify as a webhook does.
    let _in_flight = steps::acquire_slot(delivery, record).await?;
    // The tunnel itself holds a socket. One HTTP/2 connection of a client may carry many tunnels.
    let slot = Arc::clone(&delivery.runtime.tunnel_permits).try_acquire_owned().map_err(|_| {
        record.limited("tunnels", BTreeMap::new());
        errors::too_many_tunnels()
    })?;
    let attempt = steps::begin_attempt(delivery, breaker_key)?;
    let result = connect_to_target(delivery, record).await;
    circuit_breaker::observe(delivery, attempt, UpstreamSuccess::Connection, &result);
    Ok(TunnelSetup::Passthrough(result?, TunnelPermits { limits, _slot: slot }))
}

/// Returns the context for the requests inside a tunnel that outgate serves.
fn context_of(routed: &Routed<'_>) -> TunnelContext {
    let Routed { request_target, client, proof, target, tunnel_mode, .. } = routed;
    let target = match tunnel_mode {
        Some(TunnelMode::Plaintext) => request_target.plaintext_target(),
        _ => target.clone(),
    };
    TunnelContext::after_connect((*client).clone(), *proof, request_target.tenant.clone(), target)
}

/// Takes the steps that contact the target. Their outcome is evidence for its circuit breaker.
async fn connect_to_target(delivery: &Delivery<'_>, record: &mut Record) -> Result<TunnelConnection, Refusal> {
    let hops = steps::plan_hops(delivery, record).await?;
    UpstreamConnector::new(delivery, hops).open_tunnel(record).await
}
