//! The life of one tunnel: a CONNECT, judged like a webhook as far as it shows itself, and then bytes both ways.
//! What may pass through us unseen, and what must have been proven before?

mod connect;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{Method, Response};
use jiff::Timestamp;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use connect::TunnelConnection;

use super::connector::UpstreamConnector;
use super::judge::{JudgmentOutcome, Routed, judge_arrival};
use super::record::Record;
use super::refusal::{Code, Refusal};
use super::throttle::Throttled;
use super::tunnel_mode::TunnelMode;
use super::{ProxyRequest, ResponseBody, TIMER_SLACK, circuit_breaker, errors, response, steps};
use crate::names::{Host, Target, TenantName};
use crate::net::client_hello::{self, ClientHelloError, SniRequirement};
use crate::net::connection::OutboundSocket;
use crate::net::tls::TlsError;
use crate::net::tls::leaf_issuer::IssueError;
use crate::net::tunnel::{self, CopyError};
use crate::policy::authn::TunnelContext;
use crate::policy::egress::Hop;
use crate::policy::route::Route;
use crate::state::Runtime;
use crate::state::config::ActiveConfig;
use crate::state::limits::LimitPermit;
use crate::state::observability::metrics::GaugeGuard;
use crate::state::upstreams::breaker;

/// What became of a CONNECT.
pub enum ConnectOutcome {
    Refused(Response<ResponseBody>),
    Tunnel(Box<Tunnel>),
    /// No connection to the target yet: what is inside is asked for like any webhook.
    Inspected(Box<InspectedTunnel>),
}

/// A tunnel that is open at the target's end. Dropping it closes both ends and writes its record.
pub struct Tunnel {
    runtime: Arc<Runtime>,
    socket: OutboundSocket,
    hop: Hop,
    /// Whom the client must mean, where the tunnel is for TLS.
    host: Option<Host>,
    /// When the client's ClientHello must be there.
    hello_deadline: Instant,
    route: Arc<Route>,
    until: Instant,
    record: Box<Record>,
    permit: LimitPermit,
    slot: TunnelSlot,
    _counted: GaugeGuard,
}

/// A place among the tunnels that the process has file descriptors for.
type TunnelSlot = OwnedSemaphorePermit;

/// A tunnel that ends here. Dropping it writes its record.
pub struct InspectedTunnel {
    pub inside: TunnelContext,
    /// Counted by whoever reads and writes.
    pub passed: Arc<TunnelBytes>,
    /// No request is taken afterwards.
    pub until: Instant,
    route: Arc<Route>,
    record: Box<Record>,
    active: Arc<ActiveConfig>,
    _counted: GaugeGuard,
}

/// The bytes of a tunnel, up to the target and down to the client.
#[derive(Default)]
pub struct TunnelBytes {
    pub up: AtomicU64,
    pub down: AtomicU64,
}

/// The story of a tunnel, up to the moment that it is open.
pub async fn connect(runtime: &Arc<Runtime>, arrival: ProxyRequest) -> ConnectOutcome {
    let started = Instant::now();
    let active = runtime.active_config();
    let mut record = Box::new(Record::open(runtime, Some(&Method::CONNECT), &arrival.caller));
    let routed = match judge_arrival(runtime, &active.plan, &arrival, &mut record) {
        Ok(JudgmentOutcome::Routed(routed)) => routed,
        Ok(JudgmentOutcome::LocalOptions) => {
            return ConnectOutcome::Refused(response::options(record, &active.plan.name));
        }
        Err(refusal) => return ConnectOutcome::Refused(response::refuse(refusal, record, &active.plan.name)),
    };
    drop(arrival);
    let deadline = started + routed.route.timeouts.total;
    let route = Arc::clone(routed.route);
    let opened = timeout_at(deadline + TIMER_SLACK, open(runtime, &active, routed, &mut record)).await;
    let late = || Refusal::new(Code::ConnectTimeout, "the tunnel did not open within the total timeout");
    let opened = match opened.unwrap_or_else(|_| Err(late())) {
        Ok(opened) => opened,
        Err(refusal) => return ConnectOutcome::Refused(response::refuse(refusal, record, &active.plan.name)),
    };
    record.answered(200);
    let until = Instant::now() + route.timeouts.tunnel;
    let _counted = runtime.metrics.tunnel();
    match opened {
        TunnelSetup::Tunnel(TunnelConnection { socket, hop, host }, permit, place) => {
            let (runtime, hello_deadline) = (Arc::clone(runtime), Instant::now() + route.timeouts.tls);
            let tunnel = Tunnel {
                runtime,
                socket,
                hop,
                host,
                hello_deadline,
                route,
                until,
                record,
                permit,
                slot: place,
                _counted,
            };
            ConnectOutcome::Tunnel(Box::new(tunnel))
        }
        TunnelSetup::Inspect(inside) => {
            let passed = Arc::default();
            ConnectOutcome::Inspected(Box::new(InspectedTunnel {
                inside,
                passed,
                until,
                route,
                record,
                active,
                _counted,
            }))
        }
    }
}

enum TunnelSetup {
    Tunnel(TunnelConnection, LimitPermit, TunnelSlot),
    Inspect(TunnelContext),
}

/// The story from there on.
async fn open(
    runtime: &Arc<Runtime>,
    active: &ActiveConfig,
    routed: Routed<'_>,
    record: &mut Record,
) -> Result<TunnelSetup, Refusal> {
    let Routed { request_target: ask, client, proof, opens, route, target, .. } = routed;
    let tenant = ask.tenant.as_ref();
    let circuit = breaker::BreakerKey::of(route, &target, client, tenant);
    circuit_breaker::check(runtime, active, &circuit)?;
    let permit = steps::acquire_limits(runtime, route, client, tenant, &target, record).await?;
    if opens != Some(TunnelMode::Passthrough) {
        // Its place goes to the deliveries inside, one by one.
        let client = client.clone();
        let target = if opens == Some(TunnelMode::Plaintext) { ask.plaintext_target() } else { target };
        return Ok(TunnelSetup::Inspect(TunnelContext { client, proof, tenant: tenant.cloned(), target }));
    }
    // In flight until it is open: to resolve, dial and verify costs what it costs a webhook.
    let _pass = steps::acquire_slot(runtime, &active.plan, record).await?;
    // It outlasts the pass: one HTTP/2 connection of a client may carry many tunnels, each with a socket of its own.
    let place = Arc::clone(&runtime.tunnel_permits).try_acquire_owned().map_err(|_| {
        record.limited("tunnels", BTreeMap::new());
        errors::too_many_tunnels()
    })?;
    let attempt = circuit_breaker::begin(runtime, active, circuit)?;
    let reached = reach(runtime, active, route, tenant, &target, record).await;
    circuit_breaker::observe(runtime, attempt, breaker::UpstreamSuccess::Connection, &reached);
    Ok(TunnelSetup::Tunnel(reached?, permit, place))
}

/// The part of it that the target has a hand in.
async fn reach(
    runtime: &Arc<Runtime>,
    active: &ActiveConfig,
    route: &Route,
    tenant: Option<&TenantName>,
    target: &Target,
    record: &mut Record,
) -> Result<TunnelConnection, Refusal> {
    let hops = steps::plan_hops(runtime, active, route, tenant, target, record).await?;
    let passage =
        UpstreamConnector { runtime, active, route, target, tenant, client: None, hops, started: record.started() };
    passage.open_tunnel(record).await
}

/// 200, and neither Content-Length nor Transfer-Encoding: what follows is the tunnel (RFC 9110 §9.3.6).
fn established(record: &Record, pseudonym: &str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Full(None));
    response::mark_own(response.headers_mut(), record, pseudonym);
    response
}

/// The answer to a request in plain HTTP inside of a tunnel for TLS. It has the request id of the CONNECT, whose record
/// says the same.
fn refuse_plaintext(record: &mut Record, pseudonym: &str) -> Response<ResponseBody> {
    let detail = "this tunnel is for TLS, and the request inside came in plaintext: use an https:// URL";
    let refusal = Refusal::malformed(detail).with_details("plaintext");
    record.cut(&refusal);
    response::refusal(refusal, record, pseudonym)
}

impl Tunnel {
    pub fn answer(&self, runtime: &Runtime) -> Response<ResponseBody> {
        established(&self.record, &runtime.active_config().plan.name)
    }

    /// Returns when the client must have begun with TLS; `None` where the tunnel takes any bytes.
    pub fn hello_deadline(&self) -> Option<Instant> {
        self.host.as_ref().map(|_| self.hello_deadline)
    }

    /// The answer to a request in plain HTTP inside, where the tunnel is for TLS.
    pub fn refuse_plaintext(&mut self, runtime: &Runtime) -> Response<ResponseBody> {
        refuse_plaintext(&mut self.record, &runtime.active_config().plan.name)
    }

    /// Nothing of it was carried.
    pub fn cut(mut self: Box<Self>, why: ClientHelloError) {
        self.record.cut(&why.into());
    }

    /// Passes on the ClientHello, if it means the host that the target has proven to be.
    async fn greet(&mut self, client: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<(), Refusal> {
        let Some(host) = &self.host else { return Ok(()) };
        let within = self.hello_deadline.saturating_duration_since(Instant::now());
        let hello = match client_hello::read(client, host, SniRequirement::Required, within).await {
            Ok(hello) => hello,
            Err(fault) => {
                client_hello::refuse(client, &fault).await;
                return Err(fault.into());
            }
        };
        self.record.passed(hello.len() as u64, 0);
        self.send_hello(&hello).await.map_err(|fault| CopyError::Second(fault).into())
    }

    /// Carries what the client and the target have to say to each other, until both have ended.
    pub async fn carry(mut self: Box<Self>, client: impl AsyncRead + AsyncWrite + Unpin) {
        let mut client = Throttled::new(client, self.permit.bandwidth_limiter());
        let greeted = self.greet(&mut client).await;
        let Self { socket, route, until, mut record, permit, slot: _place, _counted, .. } = *self;
        let passed = async {
            greeted?;
            let (idle, count) = (route.timeouts.idle, |up, down| record.passed(up, down));
            let mut socket = Throttled::new(socket, permit.bandwidth_limiter());
            let piped = tunnel::copy_bidirectional(&mut client, &mut socket, Vec::new(), idle, until, count);
            match piped.await {
                Ok(()) | Err(CopyError::Idle | CopyError::MaxDuration) => Ok(()),
                Err(fault) => Err(Refusal::from(fault)),
            }
        };
        let passed = passed.await;
        match passed {
            Ok(()) => record.complete(),
            // Many programs close with RST once they have what they came for.
            Err(_) if record.has_bytes_both_ways() => record.complete(),
            Err(cut) => record.cut(&cut),
        }
    }
}

impl InspectedTunnel {
    pub fn answer(&self) -> Response<ResponseBody> {
        established(&self.record, &self.active.plan.name)
    }

    pub fn tls_timeout(&self) -> Duration {
        self.route.timeouts.tls
    }

    /// What the client is shown.
    pub fn issue_leaf(&self, now: Timestamp) -> Result<Arc<ServerConfig>, IssueError> {
        self.active.issue_leaf(&self.inside.target.host, now)
    }

    /// The answer to a request in plain HTTP inside, where the tunnel is for TLS.
    pub fn refuse_plaintext(&mut self) -> Response<ResponseBody> {
        refuse_plaintext(&mut self.record, &self.active.plan.name)
    }

    /// Nothing of it was served.
    pub fn cut(&mut self, why: InspectError) {
        self.record.cut(&why.into());
    }

    /// The tunnel was served to its end.
    pub fn end(mut self) {
        self.record.complete();
    }
}

/// Why a tunnel that was to be inspected was not served.
#[derive(Debug)]
pub enum InspectError {
    Hello(ClientHelloError),
    /// The client did not go on with us.
    Handshake(io::Error),
    Mint(IssueError),
}

impl Drop for InspectedTunnel {
    fn drop(&mut self) {
        self.record.passed(self.passed.up.load(Ordering::Relaxed), self.passed.down.load(Ordering::Relaxed));
    }
}

/// Why a tunnel that was open has been closed, for its record: the client hears no more of us.
fn cut(cause: impl ToString) -> Refusal {
    Refusal::new(Code::TunnelForbidden, "the client sent something other than TLS with the host of its CONNECT")
        .with_cause(cause)
}

/// Tells a client that rejects the certificate from one that means another host.
fn ended_handshake(fault: io::Error) -> Refusal {
    let cause = fault.to_string();
    let detail = match TlsError::from(fault) {
        TlsError::Alert { name: "unknown_ca", .. } => "the client ended the TLS handshake: it does not trust server.ca",
        // Some clients send these alerts for an authority that they do not trust.
        TlsError::Alert { name: "bad_certificate" | "certificate_unknown", .. } => {
            "the client ended the TLS handshake: it rejected the certificate, and may not trust server.ca"
        }
        _ => "the TLS handshake with the client failed",
    };
    Refusal::new(Code::TunnelForbidden, detail).with_cause(cause)
}

impl From<InspectError> for Refusal {
    fn from(fault: InspectError) -> Self {
        match fault {
            InspectError::Hello(fault) => fault.into(),
            InspectError::Handshake(fault) => ended_handshake(fault),
            InspectError::Mint(fault) => {
                Refusal::new(Code::Internal, "no certificate could be minted").with_cause(fault)
            }
        }
    }
}

impl From<ClientHelloError> for Refusal {
    fn from(fault: ClientHelloError) -> Self {
        match fault {
            ClientHelloError::NotTls | ClientHelloError::Malformed => cut("the first bytes are no ClientHello"),
            ClientHelloError::TooLarge => cut("the ClientHello does not end"),
            ClientHelloError::ServerNameMismatch(None) => cut("the ClientHello names no host"),
            ClientHelloError::ServerNameMismatch(Some(name)) => cut(format!("the ClientHello names {name}")),
            ClientHelloError::Timeout => Refusal::new(Code::BodyTimeout, "no ClientHello within the tls timeout"),
            ClientHelloError::Stalled => {
                Refusal::new(Code::BodyTimeout, "the ClientHello did not end within the tls timeout")
            }
            ClientHelloError::Closed => {
                Refusal::malformed("the client hung up before it sent a ClientHello").client_gone()
            }
        }
    }
}

impl From<CopyError> for Refusal {
    fn from(fault: CopyError) -> Self {
        match fault {
            // Ways for a tunnel to end: `carry` does not take them for faults.
            CopyError::Idle | CopyError::MaxDuration | CopyError::First(_) => {
                Refusal::malformed("the tunnel ended").client_gone()
            }
            CopyError::Second(fault) => Refusal::new(Code::ConnectionLost, "the target broke off").with_cause(fault),
        }
    }
}
