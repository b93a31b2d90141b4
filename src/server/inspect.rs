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

use super::stream::{Metered, Replayed, Stream, speaks_http};
use crate::delivery::tunnel::{InsideFault, Inspection};
use crate::live::Live;
use crate::names::Scheme;
use crate::net::client_hello::{self, HelloFault, Sni};
use crate::policy::identify::Caller;

/// Serves what is inside of an inspected tunnel. Whoever meets a CONNECT is given it, since what is inside is served by
/// those that may meet one.
pub(super) type Inside =
    fn(Arc<Live>, Box<dyn Stream>, Box<Inspection>, Arc<Caller>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// What a client does inside of a tunnel that is inspected.
pub(super) enum Accepted {
    /// It speaks HTTP, through TLS where the tunnel is for TLS.
    Inside(Box<dyn Stream>),
    /// It sends plain HTTP where the tunnel is for TLS.
    LacksTls(Box<dyn Stream>),
    /// It means another host, or does not believe what it is shown: the tunnel is cut.
    Cut,
}

pub(super) async fn accept(outside: Box<dyn Stream>, inspection: &mut Inspection) -> Accepted {
    let stream = Metered { stream: outside, passed: Arc::clone(&inspection.passed) };
    if inspection.inside.target.scheme == Scheme::Http {
        return Accepted::Inside(Box::new(stream)); // port 80 of a route that allows plaintext, or upgrades it
    }
    let deadline = Instant::now() + inspection.tls_timeout();
    let stream = match speaks_http(stream, deadline).await {
        Ok((false, stream)) => stream,
        Ok((true, stream)) => return Accepted::LacksTls(Box::new(stream)),
        Err(fault) => {
            inspection.cut(InsideFault::Hello(fault.into()));
            return Accepted::Cut;
        }
    };
    match handshake(stream, deadline, inspection).await {
        Ok(stream) => Accepted::Inside(Box::new(stream)),
        Err(fault) => {
            if let InsideFault::Mint(fault) = &fault {
                warn!("no certificate for {} could be minted: {fault}", inspection.inside.target.host);
            }
            inspection.cut(fault);
            Accepted::Cut
        }
    }
}

/// Accepts TLS in the target's place.
async fn handshake<S: Stream>(
    mut stream: S,
    deadline: Instant,
    inspection: &Inspection,
) -> Result<TlsStream<Replayed<S>>, InsideFault> {
    let host = &inspection.inside.target.host;
    let within = deadline.saturating_duration_since(Instant::now());
    let hello = match client_hello::read(&mut stream, host, Sni::Optional, within).await {
        Ok(hello) => hello,
        Err(fault) => {
            client_hello::refuse(&mut stream, &fault).await;
            return Err(InsideFault::Hello(fault));
        }
    };
    let config = match inspection.minted(Timestamp::now()) {
        Ok(config) => config,
        Err(fault) => {
            client_hello::deny(&mut stream).await;
            return Err(InsideFault::Mint(fault));
        }
    };
    let stream = Replayed::new(BytesMut::from(&hello[..]), stream);
    let accepted = timeout_at(deadline, TlsAcceptor::from(config).accept(stream)).await;
    accepted.map_err(|_| InsideFault::Hello(HelloFault::Timeout))?.map_err(InsideFault::Handshake)
}
