//! An inspected tunnel: TLS is accepted in the target's place.
//! Does the client mean the host that it asked for, and does it believe us?

use std::io::ErrorKind;
use std::pin::Pin;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::warn;

use super::stream::{Metered, Stream};
use crate::delivery::tunnel::{InsideFault, Inspection};
use crate::live::Live;
use crate::names::Scheme;
use crate::net::client_hello::{self, HelloFault};
use crate::policy::identify::Caller;

/// Serves what is inside of an inspected tunnel. Whoever meets a CONNECT is given it, since what is inside is served by
/// those that may meet one.
pub(super) type Inside =
    fn(Arc<Live>, Box<dyn Stream>, Box<Inspection>, Arc<Caller>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// Gives what is inside; `None` where the client means another host, or does not believe what it is shown.
pub(super) async fn accept(outside: Box<dyn Stream>, inspection: &mut Inspection) -> Option<Box<dyn Stream>> {
    let stream = Metered { stream: outside, passed: Arc::clone(&inspection.passed) };
    if inspection.inside.target.scheme == Scheme::Http {
        return Some(Box::new(stream)); // port 80 of a route that allows plaintext
    }
    let accepted = timeout(inspection.tls_timeout(), handshake(stream, inspection)).await;
    match accepted.unwrap_or(Err(InsideFault::Hello(HelloFault::Timeout))) {
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

async fn handshake<S: Stream>(stream: S, inspection: &Inspection) -> Result<TlsStream<S>, InsideFault> {
    let host = &inspection.inside.target.host;
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await.map_err(|fault| {
        let gone = matches!(fault.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset);
        InsideFault::Hello(if gone { HelloFault::Gone } else { HelloFault::NotTls })
    })?;
    let named = start.client_hello().server_name().map(str::to_owned);
    if !client_hello::means(named.as_deref(), host) {
        return Err(InsideFault::Hello(HelloFault::OtherHost(named)));
    }
    let config = inspection.minted(Timestamp::now()).map_err(InsideFault::Mint)?;
    start.into_stream(config).await.map_err(InsideFault::Handshake)
}
