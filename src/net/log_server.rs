//! Connections to log servers and collectors. They are no targets: the kernel chooses the source address.
//! How do records and spans leave this host?

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::connection::{MaybeTlsStream, OutboundSocket};
use super::tls::{self, AlpnOffer, ClientTls, TlsError};
use crate::names::Host;

/// The stream to a log server.
pub type LogServerStream = TokioIo<MaybeTlsStream>;

/// Connects to the first of the addresses that accepts. Each has an equal part of `limit`, and a part is left for the
/// handshake.
#[expect(clippy::disallowed_methods, reason = "a log server is no target, and the guard does not judge it")]
pub async fn connect(addresses: &[IpAddr], port: u16, limit: Duration) -> io::Result<OutboundSocket> {
    let share = limit / u32::try_from(addresses.len()).unwrap_or(u32::MAX).saturating_add(1);
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match timeout(share, TcpStream::connect(SocketAddr::new(*address, port))).await {
            Ok(Ok(stream)) => {
                stream.set_nodelay(true)?;
                return Ok(OutboundSocket::new(stream));
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, format!("{address} does not answer")),
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
    client_tls: &ClientTls,
    host: &Host,
    deadline: Instant,
) -> io::Result<LogServerStream> {
    tls_stream(socket, client_tls, host, AlpnOffer::None, deadline).await.map(TokioIo::new)
}

pub(super) async fn tls_stream(
    socket: OutboundSocket,
    client_tls: &ClientTls,
    host: &Host,
    offer: AlpnOffer,
    deadline: Instant,
) -> io::Result<MaybeTlsStream> {
    let handshake = tls::handshake(socket, client_tls, None, host, offer, deadline).await;
    handshake.map(|(stream, _)| stream).map_err(|error| io::Error::other(describe(&error.error)))
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// The listening socket ignores every packet, as a firewall does.
    #[tokio::test]
    async fn log_server_whose_first_address_does_not_answer_is_reached_at_the_next() {
        let silent = std::net::TcpListener::bind("127.0.0.2:0").unwrap();
        crate::net::sockopt::set_min_ttl(silent.as_fd(), false, u8::MAX).unwrap();
        let port = silent.local_addr().unwrap().port();
        let good = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
        let addresses = ["127.0.0.2", "127.0.0.1"].map(|address| address.parse().unwrap());
        let limit = Duration::from_secs(3);
        timeout(limit, connect(&addresses, port, limit)).await.expect("within the limit").unwrap();
        drop(good);
    }
}
