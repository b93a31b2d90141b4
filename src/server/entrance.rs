//! What a connection goes through before HTTP: the PROXY protocol, then TLS, each where it is in force.
//! Who is at the other end, as far as the connection shows?

use std::error::Error;
use std::fmt;
use std::io;
use std::net::IpAddr;

use bytes::BytesMut;
use tokio::time::{Instant, timeout};

use super::client_io::{ClientIo, Rewind, speaks_http};
use super::connections::{Evictable, OpenConnection, PerIpLimitExceeded};
use super::proxy_protocol::{self, ProxiedSource, ProxyHeaderError};
use super::throttled_log::WarningKind;
use crate::net::listen;
use crate::net::tls::accept::{self, TlsAcceptError};
use crate::policy::authn::Caller;
use crate::state::Runtime;
use crate::state::config::ActiveConfig;

/// Why a connection is closed before it has asked for anything.
pub(super) struct RejectedConnection {
    peer: Option<IpAddr>,
    reason: RejectReason,
}

enum RejectReason {
    /// It comes from a network that may not send the PROXY protocol, which all must.
    UntrustedProxy,
    ProxyHeader(ProxyHeaderError),
    TlsHandshake(TlsAcceptError),
    /// As many connections for this address are open already as may be.
    PerIpLimit,
    /// It made room for another connection.
    Evicted,
}

impl RejectedConnection {
    /// `None`: a peer that connected and left, as health checks do.
    pub(super) fn kind(&self) -> Option<WarningKind> {
        match &self.reason {
            RejectReason::UntrustedProxy => Some(WarningKind::UntrustedProxy),
            RejectReason::ProxyHeader(ProxyHeaderError::Cut) | RejectReason::Evicted => None,
            RejectReason::ProxyHeader(_) => Some(WarningKind::ProxyHeader),
            RejectReason::TlsHandshake(TlsAcceptError::Failed(error))
                if error.kind() == io::ErrorKind::UnexpectedEof =>
            {
                None
            }
            RejectReason::TlsHandshake(_) => Some(WarningKind::TlsHandshake),
            RejectReason::PerIpLimit => Some(WarningKind::PerIpLimit),
        }
    }
}

impl fmt::Display for RejectedConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer {
            Some(peer) => write!(f, "a connection from {peer} was closed: ")?,
            None => f.write_str("a connection on a unix socket was closed: ")?,
        }
        match &self.reason {
            RejectReason::UntrustedProxy => f.write_str("server.proxy_protocol does not name its network"),
            RejectReason::ProxyHeader(fault) => fault.fmt(f),
            RejectReason::Evicted => f.write_str("it made room for another"),
            RejectReason::PerIpLimit => f.write_str("its address has as many as server.max_connections_per_ip allows"),
            RejectReason::TlsHandshake(fault) => match fault.source() {
                Some(cause) => write!(f, "{fault}: {cause}"),
                None => fault.fmt(f),
            },
        }
    }
}

/// A connection that is ready for HTTP.
pub(super) struct Established {
    pub(super) stream: Box<dyn ClientIo>,
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
    UnexpectedPlaintext,
}

/// Under the configuration in force now. Unidentified peers are evicted where others need their room.
pub(super) async fn establish(
    runtime: &Runtime,
    stream: listen::ClientStream,
    peer: Option<IpAddr>,
    open: &mut OpenConnection,
    (caller, mut evictable): (Caller, Evictable),
) -> Result<Established, RejectedConnection> {
    let active = runtime.active_config();
    let turned = |why| RejectedConnection { peer, reason: why };
    // Who comes in over a unix socket is on this host: there is nobody to hide from.
    let wants_tls = matches!(stream.socket(), listen::ClientSocket::Tcp(_));
    let introducing = read_proxy_protocol(&active, stream, peer);
    let (stream, address) = unless_evicted(&evictable, introducing).await.map_err(turned)?;
    count(runtime, &active, open, address)?;
    if active.plan.listener.proxies.is_some() {
        // What waits for room makes none.
        drop(evictable);
        open.makes_room(active.plan.max_connections).await;
        evictable = open.unidentified();
    }
    let caller = Caller { address, ..caller };
    let tls = caller.listen.as_deref().and_then(|listen| active.listener_tls(listen)).filter(|_| wants_tls);
    let Some((config, fingerprint)) = tls else {
        return Ok(Established { stream, caller, evictable, transport: Transport::Plaintext });
    };
    let deadline = Instant::now() + active.plan.timeouts.tls;
    let accepting = async {
        let (is_http, stream) = speaks_http(stream, deadline).await.map_err(RejectReason::TlsHandshake)?;
        if is_http {
            return Ok((Box::new(stream) as Box<dyn ClientIo>, None));
        }
        let accepted = accept::accept(stream, config, fingerprint, deadline).await.map_err(RejectReason::TlsHandshake);
        accepted.map(|(stream, certificate)| (Box::new(stream) as Box<dyn ClientIo>, Some(certificate)))
    };
    let (stream, certificate) = unless_evicted(&evictable, Box::pin(accepting)).await.map_err(turned)?;
    let transport = if certificate.is_some() { Transport::Tls } else { Transport::UnexpectedPlaintext };
    let caller = Caller { certificate: certificate.unwrap_or_default(), ..caller };
    Ok(Established { stream, caller, evictable, transport })
}

/// Takes a step that the peer can draw out.
async fn unless_evicted<T>(
    evictable: &Evictable,
    step: impl Future<Output = Result<T, RejectReason>>,
) -> Result<T, RejectReason> {
    tokio::select! {
        biased;
        done = step => done,
        () = evictable.evicted() => Err(RejectReason::Evicted),
    }
}

/// Counts a connection for the address that it is for.
pub(super) fn count(
    runtime: &Runtime,
    active: &ActiveConfig,
    open: &mut OpenConnection,
    address: Option<IpAddr>,
) -> Result<(), RejectedConnection> {
    open.comes_from(address, active.plan.connections_per_ip()).map_err(|PerIpLimitExceeded| {
        runtime.metrics.connection_closed("max_connections_per_ip");
        RejectedConnection { peer: address, reason: RejectReason::PerIpLimit }
    })
}

/// The address that the connection is for: its peer's, or where the PROXY protocol is spoken, what the peer says.
async fn read_proxy_protocol(
    active: &ActiveConfig,
    mut stream: listen::ClientStream,
    peer: Option<IpAddr>,
) -> Result<(Box<dyn ClientIo>, Option<IpAddr>), RejectReason> {
    let Some(proxies) = &active.plan.listener.proxies else { return Ok((Box::new(stream), peer)) };
    if !proxies.has(peer) {
        return Err(RejectReason::UntrustedProxy);
    }
    let mut rest = BytesMut::new();
    let receiving = proxy_protocol::receive(&mut stream, &mut rest);
    let origin = timeout(proxy_protocol::TIMEOUT, receiving)
        .await
        .unwrap_or(Err(ProxyHeaderError::Cut))
        .map_err(RejectReason::ProxyHeader)?;
    let address = match origin {
        ProxiedSource::Sender => peer,
        ProxiedSource::Address(address) => Some(address),
        ProxiedSource::Unix => None,
    };
    match rest.is_empty() {
        true => Ok((Box::new(stream), address)),
        false => Ok((Box::new(Rewind::new(rest, stream)), address)),
    }
}
