//! The life of one tunnel: a CONNECT, judged like a webhook as far as it shows itself, and then bytes both ways.
//! What may pass through us unseen, and what must have been proven before?

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant as Clock};

use http::{HeaderValue, Method, Response, header};
use jiff::Timestamp;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::ask::Ask;
use super::passage::{CheckFault, Passage};
use super::record::Record;
use super::refusal::{Code, Refusal};
use super::{Arrival, Outbound, fields, response, steps, verdict};
use crate::config::{Connect, Plaintext};
use crate::live::limits::Permit;
use crate::live::meters::Counted;
use crate::live::proven::Key;
use crate::live::{InForce, Live};
use crate::names::{Host, Scheme, Target};
use crate::net::client_hello::{self, HelloFault};
use crate::net::connection::Socket;
use crate::net::pipe::{self, PipeFault};
use crate::net::tls::TlsFault;
use crate::net::tls::mint::MintFault;
use crate::policy::egress::Hop;
use crate::policy::identify::{Identified, Inside};
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
    socket: Socket,
    /// Whom the client must mean, where the tunnel is for TLS.
    host: Option<Host>,
    route: Arc<Route>,
    until: Instant,
    record: Box<Record>,
    _permit: Permit,
    _counted: Counted,
}

/// A tunnel that ends here. Dropping it writes its record.
pub struct Inspection {
    pub inside: Inside,
    /// Counted by whoever reads and writes.
    pub passed: Arc<Passed>,
    record: Box<Record>,
    in_force: Arc<InForce>,
}

/// The bytes of a tunnel, up to the target and down to the client.
#[derive(Default)]
pub struct Passed {
    pub up: AtomicU64,
    pub down: AtomicU64,
}

/// The story of a tunnel, up to the moment that it is open.
pub async fn connect(live: &Arc<Live>, arrival: Arrival) -> Connected {
    let in_force = live.in_force();
    let mut record = Box::new(Record::open(live, Some(&Method::CONNECT), &arrival.caller));
    let deadline = Instant::now() + in_force.plan.timeouts.total;
    let opening = open(live, &in_force, arrival, &mut record);
    let opened = tokio::time::timeout_at(deadline, opening).await;
    let late = || Refusal::new(Code::ConnectTimeout, "the tunnel did not open within the total timeout");
    match opened.unwrap_or_else(|_| Err(late())) {
        Ok(Opened::Tunnel { socket, host, route, permit }) => {
            record.answered(200);
            let until = Instant::now() + route.timeouts.tunnel;
            let counted = live.meters.tunnel();
            Connected::Tunnel(Box::new(Tunnel {
                socket,
                host,
                route,
                until,
                record,
                _permit: permit,
                _counted: counted,
            }))
        }
        Ok(Opened::Inspect(inside)) => {
            record.answered(200);
            Connected::Inspect(Box::new(Inspection { inside, passed: Arc::default(), record, in_force }))
        }
        Err(refusal) => Connected::Refused(response::refuse(refusal, record, &in_force.plan.name)),
    }
}

enum Opened {
    Tunnel { socket: Socket, host: Option<Host>, route: Arc<Route>, permit: Permit },
    Inspect(Inside),
}

/// Each line is a step, as in `relay`.
async fn open(live: &Arc<Live>, in_force: &InForce, arrival: Arrival, record: &mut Record) -> Result<Opened, Refusal> {
    let plan = &in_force.plan;
    live.refuse_when_draining()?;
    let ask = Ask::connect(&arrival)?;
    let tenant = ask.tenant.as_ref();
    let Identified { client, proof, .. } = steps::identify(live, plan, &arrival, tenant, record)?;
    let route = plan.routes.choose_for_tunnel(client.name(), tenant, &ask.host);
    let route = route.ok_or_else(|| verdict::no_route(&ask.host))?;
    record.route(&route.name);
    let target = ask.tunnel_target(route);
    record.target(&target, None);
    verdict::no_loop(&arrival.fields, &plan.name)?;
    let allows_plaintext = route.plaintext == Plaintext::Allow;
    plan.guard.judge_name(&target, &route.ports, allows_plaintext)?;
    match route.connect {
        Connect::Refuse => return Err(verdict::no_tunnel()),
        // Its deliveries are counted one by one.
        Connect::Inspect => {
            return Ok(Opened::Inspect(Inside { client: client.name().clone(), proof, tenant: ask.tenant, target }));
        }
        Connect::Tunnel => {}
    }

    drop(arrival);
    let permit = steps::admit(live, route, client, tenant, &target, record).await?;
    let hops = steps::hops(live, in_force, route, tenant, &target, record).await?;
    let passage = Passage { live, in_force, route, target: &target, tenant, hops };
    let (dialled, took) = passage.connect().await?;
    record.dialled(took, None);
    record.leaves_by(dialled.hop);
    let host = match target.scheme {
        Scheme::Http => None,
        Scheme::Https => match passage.prove(dialled.hop, record).await {
            Ok(()) => Some(target.host.clone()),
            // A port of which nobody knows whether it speaks TLS, on a route that takes both.
            Err(CheckFault::Tls(TlsFault::Plaintext)) if allows_plaintext && target.port != 443 => None,
            Err(fault) => return Err(fault.into()),
        },
    };
    Ok(Opened::Tunnel { socket: dialled.socket, host, route: Arc::clone(route), permit })
}

impl Ask {
    /// Port 80 is plain where that is allowed; whatever else comes is taken for TLS.
    fn tunnel_target(&self, route: &Route) -> Target {
        let port = self.port();
        let is_plain = port == Some(Scheme::Http.default_port()) && route.plaintext == Plaintext::Allow;
        let scheme = if is_plain { Scheme::Http } else { Scheme::Https };
        Target { scheme, host: self.host.clone(), port: port.unwrap_or(scheme.default_port()) }
    }
}

/// 200, and neither Content-Length nor Transfer-Encoding: what follows is the tunnel (RFC 9110 §9.3.6).
fn established(record: &Record, version: http::Version, pseudonym: &str) -> Response<Outbound> {
    let mut response = Response::new(Outbound::Whole(None));
    fields::add_via(response.headers_mut(), version, pseudonym);
    response::mark(response.headers_mut(), record);
    if let Ok(status) = HeaderValue::try_from(pseudonym) {
        response.headers_mut().insert("proxy-status", status);
    }
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response
}

impl Tunnel {
    pub fn answer(&self, live: &Live) -> Response<Outbound> {
        established(&self.record, http::Version::HTTP_11, &live.in_force().plan.name)
    }

    /// Carries what the client and the target have to say to each other, until both have ended.
    pub async fn carry(self: Box<Self>, mut client: impl AsyncRead + AsyncWrite + Unpin) {
        let Self { mut socket, host, route, until, mut record, _permit, _counted } = *self;
        let timeouts = &route.timeouts;
        let passed = async {
            if let Some(host) = &host {
                let hello = client_hello::read(&mut client, host, timeouts.tls).await?;
                socket.write_all(&hello).await.map_err(PipeFault::Second)?;
                record.passed(hello.len() as u64, 0);
            }
            let piped = pipe::both(&mut client, &mut socket, timeouts.idle, until, |up, down| record.passed(up, down));
            match piped.await {
                Ok(()) | Err(PipeFault::Idle | PipeFault::TooLong) => Ok(()),
                Err(fault) => Err(Refusal::from(fault)),
            }
        };
        match passed.await {
            Ok(()) => record.complete(),
            Err(cut) => record.cut(&cut),
        }
    }
}

impl Inspection {
    pub fn answer(&self) -> Response<Outbound> {
        established(&self.record, http::Version::HTTP_11, &self.in_force.plan.name)
    }

    pub fn tls_timeout(&self) -> Duration {
        self.in_force.plan.timeouts.tls
    }

    /// What the client is shown.
    pub fn minted(&self, now: Timestamp) -> Result<Arc<ServerConfig>, MintFault> {
        self.in_force.minted(&self.inside.target.host, now)
    }

    /// Nothing of it was served.
    pub fn cut(&mut self, why: &str) {
        let refusal = Refusal::new(Code::TunnelForbidden, "the tunnel is for TLS with the host of its CONNECT");
        self.record.cut(&refusal.cause(why));
    }

    /// The tunnel was served to its end.
    pub fn end(mut self) {
        self.record.complete();
    }
}

impl Drop for Inspection {
    fn drop(&mut self) {
        self.record.passed(self.passed.up.load(Ordering::Relaxed), self.passed.down.load(Ordering::Relaxed));
    }
}

/// Why a tunnel that was open has been closed, for its record: the client hears no more of us.
impl From<HelloFault> for Refusal {
    fn from(fault: HelloFault) -> Self {
        let cut = |cause: String| {
            Refusal::new(Code::TunnelForbidden, "the tunnel is for TLS with the host of its CONNECT").cause(cause)
        };
        match fault {
            HelloFault::NotTls => cut("the first bytes are no ClientHello".to_owned()),
            HelloFault::TooLarge => cut("the ClientHello does not end".to_owned()),
            HelloFault::OtherHost(None) => cut("the ClientHello names no host".to_owned()),
            HelloFault::OtherHost(Some(name)) => cut(format!("the ClientHello names {name}")),
            HelloFault::Timeout => Refusal::new(Code::BodyTimeout, "no ClientHello within the tls timeout"),
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

/// What a tunnel's certificate check leaves behind, and how long it took.
impl Passage<'_> {
    /// Proves the target on a handshake of our own, over the very hop that the tunnel takes, unless that was done a
    /// moment ago.
    async fn prove(&self, hop: Hop, record: &mut Record) -> Result<(), CheckFault> {
        let key = Key::of(hop, &self.target.host, &self.route.trust);
        if let Some(proof) = self.live.proven.get(&key) {
            record.proven(&proof);
            return Ok(());
        }
        let start = Clock::now();
        let proof = self.check(hop).await?;
        record.dialled_tls(start.elapsed());
        record.proven(&proof);
        self.live.proven.put(key, proof);
        Ok(())
    }
}
