//! What a connection goes through before HTTP: the PROXY protocol, then TLS, each where it is in force.
//! Who is at the other end, as far as the connection shows?

use std::error::Error;
use std::fmt;
use std::io;
use std::net::IpAddr;

use bytes::BytesMut;
use tokio::time::{Instant, timeout};

use super::connections::{Evictable, Open, TooMany};
use super::proxy_protocol::{self, Fault, Origin};
use super::rarely::Kind;
use super::stream::{Replayed, Stream, speaks_http};
use crate::live::{InForce, Live};
use crate::net::listen;
use crate::net::tls::accept::{self, AcceptFault};
use crate::policy::identify::Caller;

/// Why a connection is closed before it has asked for anything.
pub(super) struct Turned {
    peer: Option<IpAddr>,
    why: Why,
}

enum Why {
    /// It comes from a network that may not send the PROXY protocol, which all must.
    NoProxy,
    Header(Fault),
    Handshake(AcceptFault),
    /// As many connections for this address are open already as may be.
    Crowd,
    /// It made room for another connection.
    Evicted,
}

impl Turned {
    /// `None`: a peer that connected and left, as health checks do.
    pub(super) fn kind(&self) -> Option<Kind> {
        match &self.why {
            Why::NoProxy => Some(Kind::NoProxy),
            Why::Header(Fault::Cut) | Why::Evicted => None,
            Why::Header(_) => Some(Kind::Header),
            Why::Handshake(AcceptFault::Failed(error)) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Why::Handshake(_) => Some(Kind::Handshake),
            Why::Crowd => Some(Kind::Crowd),
        }
    }
}

impl fmt::Display for Turned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer {
            Some(peer) => write!(f, "a connection from {peer} was closed: ")?,
            None => f.write_str("a connection on a unix socket was closed: ")?,
        }
        match &self.why {
            Why::NoProxy => f.write_str("server.proxy_protocol does not name its network"),
            Why::Header(fault) => fault.fmt(f),
            Why::Evicted => f.write_str("it made room for another"),
            Why::Crowd => f.write_str("its address has as many as server.max_connections_per_ip allows"),
            Why::Handshake(fault) => match fault.source() {
                Some(cause) => write!(f, "{fault}: {cause}"),
                None => fault.fmt(f),
            },
        }
    }
}

/// A connection that is ready for HTTP.
pub(super) struct Entered {
    pub(super) stream: Box<dyn Stream>,
    /// What is known of who sends it.
    pub(super) caller: Caller,
    pub(super) evictable: Evictable,
    pub(super) transport: Transport,
}

/// What HTTP comes through.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tls,
    Plaintext,
    /// The client speaks plain HTTP where TLS is spoken.
    LacksTls,
}

/// Under the configuration in force now. Unidentified peers are evicted where others need their room.
pub(super) async fn enter(
    live: &Live,
    stream: listen::Stream,
    peer: Option<IpAddr>,
    open: &mut Open,
    (caller, mut evictable): (Caller, Evictable),
) -> Result<Entered, Turned> {
    let in_force = live.in_force();
    let turned = |why| Turned { peer, why };
    // Who comes in over a unix socket is on this host: there is nobody to hide from.
    let wants_tls = matches!(stream.socket(), listen::Socket::Tcp(_));
    let introducing = introduced(&in_force, stream, peer);
    let (stream, address) = unless_evicted(&evictable, introducing).await.map_err(turned)?;
    count(live, &in_force, open, address)?;
    if in_force.plan.listener.proxies.is_some() {
        // What waits for room makes none.
        drop(evictable);
        open.makes_room(in_force.plan.max_connections).await;
        evictable = open.unidentified();
    }
    let caller = Caller { address, ..caller };
    let tls = caller.listen.as_deref().and_then(|listen| in_force.listener_tls(listen)).filter(|_| wants_tls);
    let Some((config, fingerprint)) = tls else {
        return Ok(Entered { stream, caller, evictable, transport: Transport::Plaintext });
    };
    let deadline = Instant::now() + in_force.plan.timeouts.tls;
    let accepting = async {
        let (is_http, stream) = speaks_http(stream, deadline).await.map_err(Why::Handshake)?;
        if is_http {
            return Ok((Box::new(stream) as Box<dyn Stream>, None));
        }
        let accepted = accept::accept(stream, config, fingerprint, deadline).await.map_err(Why::Handshake);
        accepted.map(|(stream, certificate)| (Box::new(stream) as Box<dyn Stream>, Some(certificate)))
    };
    let (stream, certificate) = unless_evicted(&evictable, Box::pin(accepting)).await.map_err(turned)?;
    let transport = if certificate.is_some() { Transport::Tls } else { Transport::LacksTls };
    let caller = Caller { certificate: certificate.unwrap_or_default(), ..caller };
    Ok(Entered { stream, caller, evictable, transport })
}

/// Takes a step that the peer can draw out.
async fn unless_evicted<T>(evictable: &Evictable, step: impl Future<Output = Result<T, Why>>) -> Result<T, Why> {
    tokio::select! {
        biased;
        done = step => done,
        () = evictable.evicted() => Err(Why::Evicted),
    }
}

/// Counts a connection for the address that it is for.
pub(super) fn count(live: &Live, in_force: &InForce, open: &mut Open, address: Option<IpAddr>) -> Result<(), Turned> {
    open.comes_from(address, in_force.plan.connections_per_ip()).map_err(|TooMany| {
        live.meters.connection_closed("max_connections_per_ip");
        Turned { peer: address, why: Why::Crowd }
    })
}

/// The address that the connection is for: its peer's, or where the PROXY protocol is spoken, what the peer says.
async fn introduced(
    in_force: &InForce,
    mut stream: listen::Stream,
    peer: Option<IpAddr>,
) -> Result<(Box<dyn Stream>, Option<IpAddr>), Why> {
    let Some(proxies) = &in_force.plan.listener.proxies else { return Ok((Box::new(stream), peer)) };
    if !proxies.has(peer) {
        return Err(Why::NoProxy);
    }
    let mut rest = BytesMut::new();
    let receiving = proxy_protocol::receive(&mut stream, &mut rest);
    let origin = timeout(proxy_protocol::TIMEOUT, receiving).await.unwrap_or(Err(Fault::Cut)).map_err(Why::Header)?;
    let address = match origin {
        Origin::Sender => peer,
        Origin::Address(address) => Some(address),
        Origin::Unix => None,
    };
    match rest.is_empty() {
        true => Ok((Box::new(stream), address)),
        false => Ok((Box::new(Replayed::new(rest, stream)), address)),
    }
}
