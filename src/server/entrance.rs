//! The steps of a connection before HTTP: the PROXY protocol, then TLS, each where the configuration requires it.
//! Which client address and certificate does the connection have?

use std::error::Error;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::time::{Instant, timeout};

use super::client_io::{ClientIo, Rewind, detect_http};
use super::connections::{Evictable, OpenConnection, PerIpLimitExceeded};
use super::proxy_protocol::{self, ProxiedSource, ProxyHeaderError};
use super::throttled_log::WarningKind;
use crate::net::listen;
use crate::net::tls::accept::{self, TlsAcceptError};
use crate::policy::authn::Caller;
use crate::state::Runtime;
use crate::state::config::ActiveConfig;

/// A connection that is closed before its first request, with the reason.
pub(super) struct RejectedConnection {
    peer: Option<IpAddr>,
    reason: RejectReason,
}

enum RejectReason {
    /// The peer's network may not send the PROXY protocol, which this listener requires.
    UntrustedProxy,
    ProxyHeader(ProxyHeaderError),
    TlsHandshake(TlsAcceptError),
    /// The client's address has reached its limit of open connections.
    PerIpLimit,
    /// The connection was evicted to make room for another.
    Evicted,
}

impl RejectedConnection {
    /// Returns the kind of warning to log. `None`: the peer connected and left, as health checks do.
    pub(super) fn warning_kind(&self) -> Option<WarningKind> {
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
            RejectReason::UntrustedProxy => f.write_str("its network is not in server.proxy_protocol"),
            RejectReason::ProxyHeader(error) => error.fmt(f),
            RejectReason::Evicted => f.write_str("it was evicted to make room for another connection"),
            RejectReason::PerIpLimit => {
                f.write_str("its address has reached the limit of server.max_connections_per_ip")
            }
            RejectReason::TlsHandshake(error) => match error.source() {
                Some(cause) => write!(f, "{error}: {cause}"),
                None => error.fmt(f),
            },
        }
    }
}

/// A connection that is ready for HTTP.
pub(super) struct Established {
    /// Counts the connection as open.
    pub(super) conn: OpenConnection,
    pub(super) stream: Box<dyn ClientIo>,
    /// The properties of the client that the connection shows.
    pub(super) caller: Arc<Caller>,
    pub(super) evictable: Evictable,
    pub(super) transport: Transport,
}

impl Established {
    /// Returns the fields, and frees the box.
    #[expect(clippy::boxed_local, reason = "an async function that takes the box apart would hold its memory")]
    pub(super) fn into_parts(
        self: Box<Self>,
    ) -> (OpenConnection, Box<dyn ClientIo>, Arc<Caller>, Evictable, Transport) {
        let Self { conn, stream, caller, evictable, transport } = *self;
        (conn, stream, caller, evictable, transport)
    }
}

/// The transport that carries HTTP.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tls,
    Plaintext,
    /// The client speaks plain HTTP to a listener with TLS.
    UnexpectedPlaintext,
}

/// Reads the PROXY header and accepts TLS, under the configuration that is active now. The connection may be evicted
/// meanwhile, like that of every unidentified peer.
pub(super) async fn establish(
    runtime: Arc<Runtime>,
    stream: listen::ClientStream,
    peer: Option<IpAddr>,
    mut conn: OpenConnection,
    (caller, mut evictable): (Caller, Evictable),
) -> Result<Box<Established>, RejectedConnection> {
    let active = runtime.active_config();
    let rejected = |reason| RejectedConnection { peer, reason };
    // A peer on a unix socket is on this host: the connection needs no encryption.
    let wants_tls = matches!(stream.socket(), listen::ClientSocket::Tcp(_));
    let reading_header = read_proxy_protocol(&active, stream, peer);
    let (stream, address) = unless_evicted(&evictable, reading_header).await.map_err(rejected)?;
    enforce_per_ip_limit(&runtime, &active, &mut conn, address)?;
    if active.plan.listener.proxy_protocol.is_some() {
        // A connection that waits for capacity is not evictable.
        drop(evictable);
        conn.wait_for_capacity(active.plan.max_connections).await;
        evictable = conn.mark_unidentified();
    }
    let caller = caller.with_address(address);
    let tls = caller.listen().and_then(|listen| active.listener_tls(listen)).filter(|_| wants_tls);
    let Some((config, fingerprint)) = tls else {
        let (caller, transport) = (Arc::new(caller), Transport::Plaintext);
        return Ok(Box::new(Established { conn, stream, caller, evictable, transport }));
    };
    let deadline = Instant::now() + active.plan.timeouts.tls;
    let accepting = async {
        let (is_http, stream) = detect_http(stream, deadline).await.map_err(RejectReason::TlsHandshake)?;
        if is_http {
            return Ok((Box::new(stream) as Box<dyn ClientIo>, None));
        }
        let accepted = accept::accept(stream, config, fingerprint, deadline).await.map_err(RejectReason::TlsHandshake);
        accepted.map(|(stream, certificate)| (Box::new(stream) as Box<dyn ClientIo>, Some(certificate)))
    };
    let (stream, certificate) = unless_evicted(&evictable, Box::pin(accepting)).await.map_err(rejected)?;
    let transport = if certificate.is_some() { Transport::Tls } else { Transport::UnexpectedPlaintext };
    let caller = Arc::new(caller.with_certificate(certificate.unwrap_or_default()));
    Ok(Box::new(Established { conn, stream, caller, evictable, transport }))
}

/// Runs a step whose duration the peer controls, until the connection is evicted.
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

/// Counts the connection under its client's address, or rejects it at the limit.
pub(super) fn enforce_per_ip_limit(
    runtime: &Runtime,
    active: &ActiveConfig,
    conn: &mut OpenConnection,
    address: Option<IpAddr>,
) -> Result<(), RejectedConnection> {
    conn.register_client(address, active.plan.connections_per_ip()).map_err(|PerIpLimitExceeded| {
        runtime.metrics.connection_closed("max_connections_per_ip");
        RejectedConnection { peer: address, reason: RejectReason::PerIpLimit }
    })
}

/// Returns the client's address: that of the peer, or the one in the PROXY header where the listener requires one.
async fn read_proxy_protocol(
    active: &ActiveConfig,
    mut stream: listen::ClientStream,
    peer: Option<IpAddr>,
) -> Result<(Box<dyn ClientIo>, Option<IpAddr>), RejectReason> {
    let Some(proxies) = &active.plan.listener.proxy_protocol else { return Ok((Box::new(stream), peer)) };
    if !proxies.contains(peer) {
        return Err(RejectReason::UntrustedProxy);
    }
    let mut rest = BytesMut::new();
    let receiving = proxy_protocol::read_header(&mut stream, &mut rest);
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
