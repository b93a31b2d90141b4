//! Connections to log servers. A log server is no target: the kernel chooses the source address.
//! How do records leave this host?

use std::io;
use std::net::{IpAddr, SocketAddr};

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::connection::{MaybeTlsStream, OutboundSocket};
use super::tls::{self, AlpnOffer, ClientTls, TlsError};
use crate::names::Host;

/// The stream to a log server.
pub type LogServerStream = TokioIo<MaybeTlsStream>;

/// Connects to the first of the addresses that accepts.
#[expect(clippy::disallowed_methods, reason = "a log server is no target, and the guard does not judge it")]
pub async fn connect(addresses: &[IpAddr], port: u16) -> io::Result<OutboundSocket> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect(SocketAddr::new(*address, port)).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(OutboundSocket::new(stream));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

pub fn plaintext(socket: OutboundSocket) -> LogServerStream {
    TokioIo::new(socket.into_plaintext())
}

/// Performs a TLS handshake, and verifies that the server is `host`.
pub async fn handshake(
    socket: OutboundSocket,
    terms: &ClientTls,
    host: &Host,
    deadline: Instant,
) -> io::Result<LogServerStream> {
    let (stream, _) = tls::handshake(socket, terms, None, host, AlpnOffer::None, deadline)
        .await
        .map_err(|error| io::Error::other(describe(&error.error)))?;
    Ok(TokioIo::new(stream))
}

/// Describes a failed handshake for the operator.
fn describe(error: &TlsError) -> String {
    match error {
        TlsError::Certificate { error, .. } => format!("its certificate is refused: {}", error.as_str()),
        TlsError::Alert { name, .. } => format!("it ended the TLS handshake with the alert {name}"),
        TlsError::Incompatible(_) => "it has no TLS version or cipher suite in common with outgate".to_owned(),
        TlsError::Plaintext => "it does not speak TLS on this port".to_owned(),
        TlsError::Protocol(error) => format!("the TLS handshake failed: {error}"),
        TlsError::Timeout => "it did not finish the TLS handshake in time".to_owned(),
        TlsError::Lost(error) => format!("the connection ended in the TLS handshake: {error}"),
    }
}
