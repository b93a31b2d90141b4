//! An inspected tunnel: TLS is accepted in the target's place.
//! Does the client mean the host that it asked for, and does it believe us?

use std::pin::Pin;
use std::sync::Arc;

use bytes::BytesMut;
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::warn;

use super::client_io::{ClientIo, CountingStream, Rewind, speaks_http};
use crate::delivery::tunnel::{InspectError, InspectedTunnel};
use crate::names::Scheme;
use crate::net::client_hello::{self, ClientHelloError, SniRequirement};
use crate::policy::authn::Caller;
use crate::state::Runtime;

/// Serves what is inside of an inspected tunnel. Whoever meets a CONNECT is given it, since what is inside is served by
/// those that may meet one.
pub(super) type ServeInspected =
    fn(Arc<Runtime>, Box<dyn ClientIo>, Box<InspectedTunnel>, Arc<Caller>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a client does inside of a tunnel that is inspected.
pub(super) enum InspectedStream {
    /// It speaks HTTP, through TLS where the tunnel is for TLS.
    Http(Box<dyn ClientIo>),
    /// It sends plain HTTP where the tunnel is for TLS.
    UnexpectedPlaintext(Box<dyn ClientIo>),
    /// It means another host, or does not believe what it is shown: the tunnel is cut.
    Aborted,
}

pub(super) async fn accept(outside: Box<dyn ClientIo>, inspection: &mut InspectedTunnel) -> InspectedStream {
    let stream = CountingStream { stream: outside, passed: Arc::clone(&inspection.passed) };
    if inspection.inside.target.scheme == Scheme::Http {
        return InspectedStream::Http(Box::new(stream)); // port 80 of a route that allows plaintext, or upgrades it
    }
    let deadline = Instant::now() + inspection.tls_timeout();
    let stream = match speaks_http(stream, deadline).await {
        Ok((false, stream)) => stream,
        Ok((true, stream)) => return InspectedStream::UnexpectedPlaintext(Box::new(stream)),
        Err(fault) => {
            inspection.cut(InspectError::Hello(fault.into()));
            return InspectedStream::Aborted;
        }
    };
    match handshake(stream, deadline, inspection).await {
        Ok(stream) => InspectedStream::Http(Box::new(stream)),
        Err(fault) => {
            if let InspectError::Mint(fault) = &fault {
                warn!("no certificate for {} could be minted: {fault}", inspection.inside.target.host);
            }
            inspection.cut(fault);
            InspectedStream::Aborted
        }
    }
}

/// Accepts TLS in the target's place.
async fn handshake<S: ClientIo>(
    mut stream: S,
    deadline: Instant,
    inspection: &InspectedTunnel,
) -> Result<TlsStream<Rewind<S>>, InspectError> {
    let host = &inspection.inside.target.host;
    let within = deadline.saturating_duration_since(Instant::now());
    let hello = match client_hello::read(&mut stream, host, SniRequirement::Optional, within).await {
        Ok(hello) => hello,
        Err(fault) => {
            client_hello::refuse(&mut stream, &fault).await;
            return Err(InspectError::Hello(fault));
        }
    };
    let config = match inspection.issue_leaf(Timestamp::now()) {
        Ok(config) => config,
        Err(fault) => {
            client_hello::deny(&mut stream).await;
            return Err(InspectError::Mint(fault));
        }
    };
    let stream = Rewind::new(BytesMut::from(&hello[..]), stream);
    let accepted = timeout_at(deadline, TlsAcceptor::from(config).accept(stream)).await;
    accepted.map_err(|_| InspectError::Hello(ClientHelloError::Timeout))?.map_err(InspectError::Handshake)
}
