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

use super::stream::{Metered, Replayed, Stream};
use crate::delivery::tunnel::{InsideFault, Inspection};
use crate::live::Live;
use crate::names::Scheme;
use crate::net::client_hello::{self, HelloFault, Sni};
use crate::policy::identify::Caller;

/// Serves what is inside of an inspected tunnel. Whoever meets a CONNECT is given it, since what is inside is served by
/// those that may meet one.
pub(super) type Inside =
    fn(Arc<Live>, Box<dyn Stream>, Box<Inspection>, Arc<Caller>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// Gives what is inside; `None` where the client means another host, or does not believe what it is shown.
pub(super) async fn accept(outside: Box<dyn Stream>, inspection: &mut Inspection) -> Option<Box<dyn Stream>> {
    let stream = Metered { stream: outside, passed: Arc::clone(&inspection.passed) };
    if inspection.inside.target.scheme == Scheme::Http {
        return Some(Box::new(stream)); // port 80 of a route that allows plaintext, or upgrades it
    }
    match handshake(stream, inspection).await {
        Ok(stream) => Some(Box::new(stream)),
        Err(fault) => {
            if let InsideFault::Mint(fault) = &fault {
                warn!("no certificate for {} could be minted: {fault}", inspection.inside.target.host);
            }
            inspection.cut(fault);
            None
        }
    }
}

/// Accepts TLS in the target's place, within the tls timeout.
async fn handshake<S: Stream>(mut stream: S, inspection: &Inspection) -> Result<TlsStream<Replayed<S>>, InsideFault> {
    let (host, within) = (&inspection.inside.target.host, inspection.tls_timeout());
    let deadline = Instant::now() + within;
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
