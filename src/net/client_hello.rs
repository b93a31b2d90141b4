//! Reads the ClientHello of a tunnelled connection without taking part in the handshake.
//! Which host does the client intend to reach?

use std::io;
use std::time::Duration;

use rustls::server::Acceptor;
use rustls::{AlertDescription, ContentType};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::host;
use crate::names::Host;
use crate::net::tls::accept::TlsAcceptError;

/// The largest ClientHello, in bytes. With post-quantum key shares one takes a few thousand.
const HELLO_MAX: usize = 32 * 1024;
/// Bytes that are read at once. A typical ClientHello arrives in one or two reads.
const READ_LEN: usize = 4 * 1024;
/// Time for a client to read an alert and close. Meanwhile outgate discards what the client sends: closing a socket
/// with unread data resets the connection, and the reset can overtake the alert.
const ALERT_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes that are discarded meanwhile.
const ALERT_DISCARD_MAX: u64 = 256 * 1024;

/// Whether a ClientHello must name the host (Server Name Indication, RFC 6066 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SniRequirement {
    /// The ClientHello must name the host: the target chooses its certificate by the name.
    Required,
    /// The ClientHello may omit the name. A name that is present must be the host's.
    Optional,
}

/// The reason that the first bytes are not a ClientHello for the host.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientHelloError {
    /// The first byte does not begin a handshake record.
    NotTls,
    /// A handshake record contains no valid ClientHello.
    Malformed,
    TooLarge,
    /// Server Name Indication (RFC 6066 §3) names another host, or no host.
    ServerNameMismatch(Option<String>),
    /// The client sent nothing within the timeout.
    Timeout,
    /// The client sent a part of a ClientHello within the timeout.
    Stalled,
    Closed,
}

/// Converts the error of a connection on which no byte arrived.
impl From<TlsAcceptError> for ClientHelloError {
    fn from(error: TlsAcceptError) -> Self {
        match error {
            TlsAcceptError::Timeout => ClientHelloError::Timeout,
            TlsAcceptError::Failed(_) => ClientHelloError::Closed,
        }
    }
}

impl ClientHelloError {
    /// Returns the alert for the client (RFC 8446 §6.2); `None`: the client sent no ClientHello.
    fn alert(&self) -> Option<AlertDescription> {
        match self {
            ClientHelloError::ServerNameMismatch(Some(_)) => Some(AlertDescription::UnrecognisedName),
            ClientHelloError::ServerNameMismatch(None)
            | ClientHelloError::Malformed
            | ClientHelloError::TooLarge
            | ClientHelloError::Stalled => Some(AlertDescription::AccessDenied),
            ClientHelloError::NotTls | ClientHelloError::Timeout | ClientHelloError::Closed => None,
        }
    }
}

/// Returns whether the first byte of a client begins a TLS handshake (RFC 8446 §5.1).
pub fn is_handshake_record(first: u8) -> bool {
    first == u8::from(ContentType::Handshake)
}

/// Reads a ClientHello for `host`, and returns all bytes that were read, unchanged. A ClientHello for an address names
/// no host (RFC 6066 §3).
pub async fn read(
    client: &mut (impl AsyncRead + Unpin),
    host: &Host,
    sni: SniRequirement,
    max_wait: Duration,
) -> Result<Vec<u8>, ClientHelloError> {
    let mut received = Vec::with_capacity(READ_LEN);
    match timeout(max_wait, read_hello(client, host, sni, &mut received)).await {
        Ok(result) => result.map(|()| received),
        Err(_) if received.is_empty() => Err(ClientHelloError::Timeout),
        Err(_) => Err(ClientHelloError::Stalled),
    }
}

/// Ends the connection of a client whose ClientHello is refused. A client that speaks TLS gets a fatal alert.
pub async fn refuse(client: &mut (impl AsyncRead + AsyncWrite + Unpin), error: &ClientHelloError) {
    if let Some(alert) = error.alert() {
        send_alert(client, alert).await;
    }
}

/// Ends the connection of a client whose ClientHello was accepted, because outgate cannot continue.
pub async fn send_access_denied(client: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    send_alert(client, AlertDescription::AccessDenied).await;
}

/// Sends a fatal alert as a plaintext record (RFC 8446 §5.1, §6), and waits for the client to close.
async fn send_alert(client: &mut (impl AsyncRead + AsyncWrite + Unpin), alert: AlertDescription) {
    const FATAL: u8 = 2;
    let record = [ContentType::Alert.into(), 3, 3, 0, 2, FATAL, alert.into()];
    let sending = async {
        client.write_all(&record).await?;
        client.shutdown().await?;
        tokio::io::copy(&mut client.take(ALERT_DISCARD_MAX), &mut tokio::io::sink()).await
    };
    let _ = timeout(ALERT_TIMEOUT, sending).await;
}

async fn read_hello(
    client: &mut (impl AsyncRead + Unpin),
    host: &Host,
    sni: SniRequirement,
    received: &mut Vec<u8>,
) -> Result<(), ClientHelloError> {
    let mut acceptor = Acceptor::default();
    loop {
        let start = received.len();
        if start > HELLO_MAX {
            return Err(ClientHelloError::TooLarge);
        }
        received.reserve(READ_LEN);
        match client.read_buf(received).await {
            Ok(length) if length > 0 => {}
            _ => return Err(ClientHelloError::Closed),
        }
        if !is_handshake_record(received[0]) {
            return Err(ClientHelloError::NotTls);
        }
        if let Some(server_name) = parse_server_name(&mut acceptor, &received[start..])? {
            return if matches_host(server_name.as_deref(), host, sni) {
                Ok(())
            } else {
                Err(ClientHelloError::ServerNameMismatch(server_name))
            };
        }
    }
}

/// Returns the name in the ClientHello; `None`: the ClientHello is not complete.
fn parse_server_name(acceptor: &mut Acceptor, mut fragment: &[u8]) -> Result<Option<Option<String>>, ClientHelloError> {
    while !fragment.is_empty() {
        let read: io::Result<usize> = acceptor.read_tls(&mut fragment);
        read.map_err(|_| ClientHelloError::Malformed)?;
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => return Ok(Some(accepted.client_hello().server_name().map(str::to_owned))),
            Err(_) => return Err(ClientHelloError::Malformed),
        }
    }
    Ok(None)
}

/// Returns whether a ClientHello with this name is for the host.
fn matches_host(server_name: Option<&str>, host: &Host, sni: SniRequirement) -> bool {
    match (server_name, host) {
        (None, Host::Ip(_)) => true,
        (None, Host::Name(_)) => sni == SniRequirement::Optional,
        (Some(server_name), Host::Name(_)) => host::canonical(server_name).as_ref() == Ok(host),
        _ => false,
    }
}

/// Parses any bytes, whole and one by one: the result is the same.
#[cfg(any(test, fuzzing))]
pub fn client_hellos(data: &[u8]) {
    if let Ok(Some(server_name)) = parse_server_name(&mut Acceptor::default(), data) {
        let mut acceptor = Acceptor::default();
        let again = data.chunks(1).find_map(|byte| parse_server_name(&mut acceptor, byte).transpose());
        assert_eq!(again, Some(Ok(server_name)), "{data:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use rustls_pki_types::ServerName;
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn hello(name: &str) -> Vec<u8> {
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    async fn read_fragments(pieces: &[&[u8]], host: &str) -> Result<Vec<u8>, ClientHelloError> {
        read_fragments_with(pieces, host, SniRequirement::Required).await
    }

    async fn read_fragments_with(
        pieces: &[&[u8]],
        host: &str,
        sni: SniRequirement,
    ) -> Result<Vec<u8>, ClientHelloError> {
        let (mut client, mut near) = tokio::io::duplex(64 * 1024);
        let host = host::canonical(host).unwrap();
        let sending = async {
            for fragment in pieces {
                client.write_all(fragment).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(client);
        };
        tokio::join!(read(&mut near, &host, sni, Duration::from_secs(5)), sending).0
    }

    #[tokio::test]
    async fn client_hello_requires_sni_of_the_host_and_none_for_an_address() {
        let (name, address) = (hello("hook.example"), hello("192.0.2.1"));
        assert_eq!(read_fragments(&[&name], "Hook.Example.").await.as_ref(), Ok(&name));
        assert_eq!(read_fragments(&[&address], "192.0.2.1").await.as_ref(), Ok(&address));
        let other = |named: Option<&str>| Err(ClientHelloError::ServerNameMismatch(named.map(str::to_owned)));
        assert_eq!(read_fragments(&[&name], "else.example").await, other(Some("hook.example")));
        assert_eq!(read_fragments(&[&name], "192.0.2.1").await, other(Some("hook.example")));
        assert_eq!(read_fragments(&[&address], "hook.example").await, other(None));
        assert_eq!(
            read_fragments_with(&[&address], "hook.example", SniRequirement::Optional).await.as_ref(),
            Ok(&address)
        );
        assert_eq!(
            read_fragments_with(&[&name], "else.example", SniRequirement::Optional).await,
            other(Some("hook.example"))
        );
    }

    #[tokio::test]
    async fn client_hello_is_read_at_every_split_and_over_two_records() {
        let whole = hello("hook.example");
        for end in (1..whole.len()).step_by(13) {
            assert_eq!(
                read_fragments(&[&whole[..end], &whole[end..]], "hook.example").await.as_ref(),
                Ok(&whole),
                "{end}"
            );
        }
        // The same handshake message in two records (RFC 8446 §5.1).
        let (record, message) = whole.split_at(5);
        let (one, two) = message.split_at(100);
        let fragment = |bytes: &[u8]| [&record[..3], &(bytes.len() as u16).to_be_bytes(), bytes].concat();
        let fragmented = [fragment(one), fragment(two), b"early".to_vec()].concat();
        assert_eq!(read_fragments(&[&fragmented], "hook.example").await.as_ref(), Ok(&fragmented));
    }

    #[tokio::test]
    async fn client_hello_errors_distinguish_no_tls_malformed_and_closed() {
        let whole = hello("hook.example");
        let mut alert = whole.clone();
        alert[0] = 21;
        for bad in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &alert, b"SSH-2.0-x\r\n"] {
            assert_eq!(read_fragments(&[bad], "hook.example").await, Err(ClientHelloError::NotTls), "{bad:?}");
        }
        let malformed: &[u8] = b"\x16\x03\x01\x00\x05hello";
        assert_eq!(read_fragments(&[malformed], "hook.example").await, Err(ClientHelloError::Malformed));
        for end in [0, 1, 4, 5, 6, whole.len() - 1] {
            assert_eq!(read_fragments(&[&whole[..end]], "hook.example").await, Err(ClientHelloError::Closed), "{end}");
        }
    }
}
