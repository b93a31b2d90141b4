//! An inspected tunnel: TLS is accepted in the target's place.
//! Does the client mean the host that it asked for, and does it believe us?

use std::pin::Pin;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::warn;

use super::stream::{Metered, Stream};
use crate::delivery::tunnel::Inspection;
use crate::live::Live;
use crate::net::client_hello;
use crate::policy::identify::Caller;

/// Serves what is inside of an inspected tunnel. Whoever meets a CONNECT is given it, since what is inside is served by
/// those that may meet one.
pub(super) type Inside =
    fn(Arc<Live>, Box<dyn Stream>, Box<Inspection>, Arc<Caller>) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// Gives what is inside; `None` where the client means another host, or does not believe what it is shown.
pub(super) async fn accept<S: Stream>(stream: S, inspection: &mut Inspection) -> Option<TlsStream<Metered<S>>> {
    let stream = Metered { stream, passed: Arc::clone(&inspection.passed) };
    let accepted = timeout(inspection.tls_timeout(), handshake(stream, inspection)).await;
    let why = match accepted {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(why)) => why,
        Err(_) => "no handshake within the tls timeout".to_owned(),
    };
    inspection.cut(&why);
    None
}

async fn handshake<S: Stream>(stream: S, inspection: &Inspection) -> Result<TlsStream<S>, String> {
    let host = &inspection.inside.target.host;
    let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream)
        .await
        .map_err(|fault| format!("the first bytes are no ClientHello: {fault}"))?;
    let named = start.client_hello().server_name().map(str::to_owned);
    if !client_hello::means(named.as_deref(), host) {
        return Err(format!("the ClientHello names {}", named.as_deref().unwrap_or("no host")));
    }
    let config = match inspection.minted(Timestamp::now()) {
        Ok(config) => config,
        Err(fault) => {
            warn!("no certificate for {host} could be minted: {fault}");
            return Err("no certificate could be minted".to_owned());
        }
    };
    start.into_stream(config).await.map_err(|fault| format!("the client ended the handshake: {fault}"))
}
