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

use connect::Opening;

use super::judge::{Outcome, Routed, judge_arrival};
use super::opens::Opens;
use super::pacing::Paced;
use super::passage::Passage;
use super::record::Record;
use super::refusal::{Code, Refusal};
use super::{Arrival, LAST_WORD, Outbound, circuit, response, steps, verdict};
use crate::live::circuits;
use crate::live::limits::Permit;
use crate::live::meters::Counted;
use crate::live::{InForce, Live};
use crate::names::{Host, Target, TenantName};
use crate::net::client_hello::{self, HelloFault, Sni};
use crate::net::connection::Socket;
use crate::net::pipe::{self, PipeFault};
use crate::net::tls::TlsFault;
use crate::net::tls::mint::MintFault;
use crate::policy::egress::Hop;
use crate::policy::identify::Inside;
use crate::policy::route::Route;

/// What became of a CONNECT.
pub enum Connected {
    Refused(Response<Outbound>),
    Tunnel(Box<Tunnel>),
    /// No connection to the target yet: what is inside is asked for like any webhook.
    Inspect(Box<Inspection>),
}

/// A tunnel that is open at the target's end. Dropping it closes both ends and writes its record.
pub struct Tunnel {
    live: Arc<Live>,
    socket: Socket,
    hop: Hop,
    /// Whom the client must mean, where the tunnel is for TLS.
    host: Option<Host>,
    /// When the client's ClientHello must be there.
    hello_deadline: Instant,
    route: Arc<Route>,
    until: Instant,
    record: Box<Record>,
    permit: Permit,
    place: Place,
    _counted: Counted,
}

/// A place among the tunnels that the process has file descriptors for.
type Place = OwnedSemaphorePermit;

/// A tunnel that ends here. Dropping it writes its record.
pub struct Inspection {
    pub inside: Inside,
    /// Counted by whoever reads and writes.
    pub passed: Arc<Passed>,
    /// No request is taken afterwards.
    pub until: Instant,
    route: Arc<Route>,
    record: Box<Record>,
    in_force: Arc<InForce>,
    _counted: Counted,
}

/// The bytes of a tunnel, up to the target and down to the client.
#[derive(Default)]
pub struct Passed {
    pub up: AtomicU64,
    pub down: AtomicU64,
}

/// The story of a tunnel, up to the moment that it is open.
pub async fn connect(live: &Arc<Live>, arrival: Arrival) -> Connected {
    let started = Instant::now();
    let in_force = live.in_force();
    let mut record = Box::new(Record::open(live, Some(&Method::CONNECT), &arrival.caller));
    let routed = match judge_arrival(live, &in_force.plan, &arrival, &mut record) {
        Ok(Outcome::Routed(routed)) => routed,
        Ok(Outcome::Options) => return Connected::Refused(response::options(record, &in_force.plan.name)),
        Err(refusal) => return Connected::Refused(response::refuse(refusal, record, &in_force.plan.name)),
    };
    drop(arrival);
    let deadline = started + routed.route.timeouts.total;
    let route = Arc::clone(routed.route);
    let opened = timeout_at(deadline + LAST_WORD, open(live, &in_force, routed, &mut record)).await;
    let late = || Refusal::new(Code::ConnectTimeout, "the tunnel did not open within the total timeout");
    let opened = match opened.unwrap_or_else(|_| Err(late())) {
        Ok(opened) => opened,
        Err(refusal) => return Connected::Refused(response::refuse(refusal, record, &in_force.plan.name)),
    };
    record.answered(200);
    let until = Instant::now() + route.timeouts.tunnel;
    let _counted = live.meters.tunnel();
    match opened {
        Opened::Tunnel(Opening { socket, hop, host }, permit, place) => {
            let (live, hello_deadline) = (Arc::clone(live), Instant::now() + route.timeouts.tls);
            let tunnel =
                Tunnel { live, socket, hop, host, hello_deadline, route, until, record, permit, place, _counted };
            Connected::Tunnel(Box::new(tunnel))
        }
        Opened::Inspect(inside) => {
            let passed = Arc::default();
            Connected::Inspect(Box::new(Inspection { inside, passed, until, route, record, in_force, _counted }))
        }
    }
}

enum Opened {
    Tunnel(Opening, Permit, Place),
    Inspect(Inside),
}

/// The story from there on.
async fn open(
    live: &Arc<Live>,
    in_force: &InForce,
    routed: Routed<'_>,
    record: &mut Record,
) -> Result<Opened, Refusal> {
    let Routed { ask, client, proof, opens, route, target, .. } = routed;
    let tenant = ask.tenant.as_ref();
    let circuit = circuits::Key::of(route, &target, client, tenant);
    circuit::check(live, in_force, &circuit)?;
    let permit = steps::admit(live, route, client, tenant, &target, record).await?;
    if opens != Some(Opens::Tunnel) {
        // Its place goes to the deliveries inside, one by one.
        let client = client.clone();
        let target = if opens == Some(Opens::Plaintext) { ask.plaintext_target() } else { target };
        return Ok(Opened::Inspect(Inside { client, proof, tenant: tenant.cloned(), target }));
    }
    // In flight until it is open: to resolve, dial and verify costs what it costs a webhook.
    let _pass = steps::enter(live, &in_force.plan, record).await?;
    // It outlasts the pass: one HTTP/2 connection of a client may carry many tunnels, each with a socket of its own.
    let place = Arc::clone(&live.tunnels).try_acquire_owned().map_err(|_| {
        record.limited("tunnels", BTreeMap::new());
        verdict::too_many_tunnels()
    })?;
    let attempt = circuit::begin(live, in_force, circuit)?;
    let reached = reach(live, in_force, route, tenant, &target, record).await;
    circuit::learn(live, attempt, circuits::Success::Connection, &reached);
    Ok(Opened::Tunnel(reached?, permit, place))
}

/// The part of it that the target has a hand in.
async fn reach(
    live: &Arc<Live>,
    in_force: &InForce,
    route: &Route,
    tenant: Option<&TenantName>,
    target: &Target,
    record: &mut Record,
) -> Result<Opening, Refusal> {
    let hops = steps::hops(live, in_force, route, tenant, target, record).await?;
    let passage = Passage { live, in_force, route, target, tenant, client: None, hops, started: record.started() };
    passage.open_tunnel(record).await
}

/// 200, and neither Content-Length nor Transfer-Encoding: what follows is the tunnel (RFC 9110 §9.3.6).
fn established(record: &Record, pseudonym: &str) -> Response<Outbound> {
    let mut response = Response::new(Outbound::Whole(None));
    response::mark_own(response.headers_mut(), record, pseudonym);
    response
}

/// The answer to a request in plain HTTP inside of a tunnel for TLS. It has the request id of the CONNECT, whose record
/// says the same.
fn refuse_plaintext(record: &mut Record, pseudonym: &str) -> Response<Outbound> {
    let detail = "this tunnel is for TLS, and the request inside came in plaintext: use an https:// URL";
    let refusal = Refusal::malformed(detail).details("plaintext");
    record.cut(&refusal);
    response::refusal(refusal, record, pseudonym)
}

impl Tunnel {
    pub fn answer(&self, live: &Live) -> Response<Outbound> {
        established(&self.record, &live.in_force().plan.name)
    }

    /// Returns when the client must have begun with TLS; `None` where the tunnel takes any bytes.
    pub fn hello_deadline(&self) -> Option<Instant> {
        self.host.as_ref().map(|_| self.hello_deadline)
    }

    /// The answer to a request in plain HTTP inside, where the tunnel is for TLS.
    pub fn refuse_plaintext(&mut self, live: &Live) -> Response<Outbound> {
        refuse_plaintext(&mut self.record, &live.in_force().plan.name)
    }

    /// Nothing of it was carried.
    pub fn cut(mut self: Box<Self>, why: HelloFault) {
        self.record.cut(&why.into());
    }

    /// Passes on the ClientHello, if it means the host that the target has proven to be.
    async fn greet(&mut self, client: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<(), Refusal> {
        let Some(host) = &self.host else { return Ok(()) };
        let within = self.hello_deadline.saturating_duration_since(Instant::now());
        let hello = match client_hello::read(client, host, Sni::Required, within).await {
            Ok(hello) => hello,
            Err(fault) => {
                client_hello::refuse(client, &fault).await;
                return Err(fault.into());
            }
        };
        self.record.passed(hello.len() as u64, 0);
        self.send_hello(&hello).await.map_err(|fault| PipeFault::Second(fault).into())
    }

    /// Carries what the client and the target have to say to each other, until both have ended.
    pub async fn carry(mut self: Box<Self>, client: impl AsyncRead + AsyncWrite + Unpin) {
        let mut client = Paced::new(client, self.permit.tolls());
        let greeted = self.greet(&mut client).await;
        let Self { socket, route, until, mut record, permit, place: _place, _counted, .. } = *self;
        let passed = async {
            greeted?;
            let (idle, count) = (route.timeouts.idle, |up, down| record.passed(up, down));
            let mut socket = Paced::new(socket, permit.tolls());
            let piped = pipe::both(&mut client, &mut socket, Vec::new(), idle, until, count);
            match piped.await {
                Ok(()) | Err(PipeFault::Idle | PipeFault::TooLong) => Ok(()),
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

impl Inspection {
    pub fn answer(&self) -> Response<Outbound> {
        established(&self.record, &self.in_force.plan.name)
    }

    pub fn tls_timeout(&self) -> Duration {
        self.route.timeouts.tls
    }

    /// What the client is shown.
    pub fn minted(&self, now: Timestamp) -> Result<Arc<ServerConfig>, MintFault> {
        self.in_force.minted(&self.inside.target.host, now)
    }

    /// The answer to a request in plain HTTP inside, where the tunnel is for TLS.
    pub fn refuse_plaintext(&mut self) -> Response<Outbound> {
        refuse_plaintext(&mut self.record, &self.in_force.plan.name)
    }

    /// Nothing of it was served.
    pub fn cut(&mut self, why: InsideFault) {
        self.record.cut(&why.into());
    }

    /// The tunnel was served to its end.
    pub fn end(mut self) {
        self.record.complete();
    }
}

/// Why a tunnel that was to be inspected was not served.
#[derive(Debug)]
pub enum InsideFault {
    Hello(HelloFault),
    /// The client did not go on with us.
    Handshake(io::Error),
    Mint(MintFault),
}

impl Drop for Inspection {
    fn drop(&mut self) {
        self.record.passed(self.passed.up.load(Ordering::Relaxed), self.passed.down.load(Ordering::Relaxed));
    }
}

/// Why a tunnel that was open has been closed, for its record: the client hears no more of us.
fn cut(cause: impl ToString) -> Refusal {
    Refusal::new(Code::TunnelForbidden, "the tunnel is for TLS with the host of its CONNECT").cause(cause)
}

/// Tells a client that rejects the certificate from one that means another host.
fn ended_handshake(fault: io::Error) -> Refusal {
    let cause = fault.to_string();
    let detail = match TlsFault::from(fault) {
        TlsFault::Alert { name: "unknown_ca", .. } => "the client ended the TLS handshake: it does not trust server.ca",
        // Some clients send these alerts for an authority that they do not trust.
        TlsFault::Alert { name: "bad_certificate" | "certificate_unknown", .. } => {
            "the client ended the TLS handshake: it rejected the certificate, and may not trust server.ca"
        }
        _ => "the TLS handshake with the client failed",
    };
    Refusal::new(Code::TunnelForbidden, detail).cause(cause)
}

impl From<InsideFault> for Refusal {
    fn from(fault: InsideFault) -> Self {
        match fault {
            InsideFault::Hello(fault) => fault.into(),
            InsideFault::Handshake(fault) => ended_handshake(fault),
            InsideFault::Mint(fault) => Refusal::new(Code::Internal, "no certificate could be minted").cause(fault),
        }
    }
}

impl From<HelloFault> for Refusal {
    fn from(fault: HelloFault) -> Self {
        match fault {
            HelloFault::NotTls | HelloFault::Malformed => cut("the first bytes are no ClientHello"),
            HelloFault::TooLarge => cut("the ClientHello does not end"),
            HelloFault::OtherHost(None) => cut("the ClientHello names no host"),
            HelloFault::OtherHost(Some(name)) => cut(format!("the ClientHello names {name}")),
            HelloFault::Timeout => Refusal::new(Code::BodyTimeout, "no ClientHello within the tls timeout"),
            HelloFault::Stalled => {
                Refusal::new(Code::BodyTimeout, "the ClientHello did not end within the tls timeout")
            }
            HelloFault::Gone => Refusal::malformed("the client hung up before it sent a ClientHello").unheard(),
        }
    }
}

impl From<PipeFault> for Refusal {
    fn from(fault: PipeFault) -> Self {
        match fault {
            // Ways for a tunnel to end: `carry` does not take them for faults.
            PipeFault::Idle | PipeFault::TooLong | PipeFault::First(_) => {
                Refusal::malformed("the tunnel ended").unheard()
            }
            PipeFault::Second(fault) => Refusal::new(Code::ConnectionLost, "the target broke off").cause(fault),
        }
    }
}
