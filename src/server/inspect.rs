//! Accepts TLS in the target's place inside an inspected tunnel.
//! Does the client want the host of its CONNECT, and does it trust outgate's certificate?

use std::pin::Pin;
use std::sync::Arc;

use bytes::BytesMut;
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::warn;

use super::client_io::{ClientIo, CountingStream, Rewind, detect_http};
use crate::delivery::tunnel::{InspectError, InspectedTunnel};
use crate::names::Scheme;
use crate::net::client_hello::{self, ClientHelloError, SniRequirement};
use crate::policy::authn::Caller;
use crate::state::Runtime;

/// Serves HTTP inside an inspected tunnel. It is passed down as a function, because the module that serves HTTP inside
/// a tunnel depends on the modules that accept CONNECT.
pub(super) type ServeInspected =
    fn(Arc<Runtime>, Box<dyn ClientIo>, Box<InspectedTunnel>, Arc<Caller>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// The client's stream inside an inspected tunnel.
pub(super) enum InspectedStream {
    /// The client speaks HTTP, over TLS where the tunnel is for TLS.
    Http(Box<dyn ClientIo>),
    /// The client sends plain HTTP where the tunnel is for TLS.
    UnexpectedPlaintext(Box<dyn ClientIo>),
    /// The client named another host or rejected the certificate: the tunnel is cut.
    Aborted,
}

pub(super) async fn accept(outer: Box<dyn ClientIo>, inspection: &mut InspectedTunnel) -> InspectedStream {
    let stream = CountingStream { stream: outer, counters: Arc::clone(&inspection.passed) };
    if inspection.inside.target().scheme == Scheme::Http {
        return InspectedStream::Http(Box::new(stream)); // port 80 of a route that allows plaintext, or upgrades it
    }
    let deadline = Instant::now() + inspection.tls_timeout();
    let stream = match detect_http(stream, deadline).await {
        Ok((false, stream)) => stream,
        Ok((true, stream)) => return InspectedStream::UnexpectedPlaintext(Box::new(stream)),
        Err(error) => {
            inspection.cut(InspectError::Hello(error.into()));
            return InspectedStream::Aborted;
        }
    };
    match accept_tls(stream, deadline, inspection).await {
        Ok(stream) => InspectedStream::Http(Box::new(stream)),
        Err(error) => {
            if let InspectError::Mint(error) = &error {
                warn!("cannot issue a certificate for {}; the inspected tunnel is closed: {error}", inspection.host());
            }
            inspection.cut(error);
            InspectedStream::Aborted
        }
    }
}

/// Accepts TLS in the target's place.
async fn accept_tls<S: ClientIo>(
    mut stream: S,
    deadline: Instant,
    inspection: &InspectedTunnel,
) -> Result<TlsStream<Rewind<S>>, InspectError> {
    let host = &inspection.inside.target().host;
    let max_wait = deadline.saturating_duration_since(Instant::now());
    let hello = match client_hello::read(&mut stream, host, SniRequirement::Optional, max_wait).await {
        Ok(hello) => hello,
        Err(error) => {
            client_hello::refuse(&mut stream, &error).await;
            return Err(InspectError::Hello(error));
        }
    };
    let config = match inspection.issue_leaf(Timestamp::now()) {
        Ok(config) => config,
        Err(error) => {
            client_hello::send_access_denied(&mut stream).await;
            return Err(InspectError::Mint(error));
        }
    };
    let stream = Rewind::new(BytesMut::from(&hello[..]), stream);
    let accepted = timeout_at(deadline, TlsAcceptor::from(config).accept(stream)).await;
    accepted.map_err(|_| InspectError::Hello(ClientHelloError::Timeout))?.map_err(InspectError::Handshake)
}
