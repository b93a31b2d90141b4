//! The first bytes of a TLS client, read along without taking part.
//! Whom does this client mean to talk to?

use std::io;
use std::time::Duration;

use rustls::server::Acceptor;
use rustls::{AlertDescription, ContentType};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::host;
use crate::names::Host;
use crate::net::tls::accept::TlsAcceptError;

/// What a ClientHello may take, in bytes. Post-quantum key shares make it a few thousand.
const HELLO_MAX: usize = 32 * 1024;
/// Read at once; the usual one comes in one or two pieces.
const PIECE: usize = 4 * 1024;
/// For a client to read an alert and close. Until then the rest of what it sends is read: data that is left unread
/// would reset the connection, and the reset can overtake the alert.
const ALERT_WITHIN: Duration = Duration::from_secs(2);
/// Bytes that are read meanwhile.
const ALERT_REST_MAX: u64 = 256 * 1024;

/// The rule whether a ClientHello must name the host (Server Name Indication, RFC 6066 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SniRequirement {
    /// The target chooses its certificate by the name.
    Required,
    /// The certificate is chosen without it. A name that is there must be the host's.
    Optional,
}

/// Why the first bytes are not those of a client that means the host.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientHelloError {
    /// The first byte begins no handshake record.
    NotTls,
    /// A handshake record that holds no valid ClientHello.
    Malformed,
    TooLarge,
    /// Server Name Indication (RFC 6066 §3) names another host, or none.
    ServerNameMismatch(Option<String>),
    /// Nothing came in time.
    Timeout,
    /// A ClientHello began, and did not end in time.
    Stalled,
    Closed,
}

/// Of a connection on which no first byte came.
impl From<TlsAcceptError> for ClientHelloError {
    fn from(fault: TlsAcceptError) -> Self {
        match fault {
            TlsAcceptError::Timeout => ClientHelloError::Timeout,
            TlsAcceptError::Failed(_) => ClientHelloError::Closed,
        }
    }
}

impl ClientHelloError {
    /// The alert that tells the client why its ClientHello is refused (RFC 8446 §6.2); `None` where it sent none.
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
pub fn begins_handshake(first: u8) -> bool {
    first == u8::from(ContentType::Handshake)
}

/// Reads a ClientHello that means `host`: gives the bytes, all that came, unchanged. An address is meant by naming
/// none (RFC 6066 §3).
pub async fn read(
    client: &mut (impl AsyncRead + Unpin),
    host: &Host,
    sni: SniRequirement,
    within: Duration,
) -> Result<Vec<u8>, ClientHelloError> {
    let mut all = Vec::with_capacity(PIECE);
    match timeout(within, gather(client, host, sni, &mut all)).await {
        Ok(gathered) => gathered.map(|()| all),
        Err(_) if all.is_empty() => Err(ClientHelloError::Timeout),
        Err(_) => Err(ClientHelloError::Stalled),
    }
}

/// Ends the connection of a client whose ClientHello is refused: with a fatal alert, where it speaks TLS.
pub async fn refuse(client: &mut (impl AsyncRead + AsyncWrite + Unpin), fault: &ClientHelloError) {
    if let Some(alert) = fault.alert() {
        send_alert(client, alert).await;
    }
}

/// The same where the ClientHello was taken, and outgate cannot go on.
pub async fn deny(client: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    send_alert(client, AlertDescription::AccessDenied).await;
}

/// Sends a fatal alert as a plaintext record (RFC 8446 §5.1, §6), and waits for the client to close.
async fn send_alert(client: &mut (impl AsyncRead + AsyncWrite + Unpin), alert: AlertDescription) {
    const FATAL: u8 = 2;
    let record = [ContentType::Alert.into(), 3, 3, 0, 2, FATAL, alert.into()];
    let sending = async {
        client.write_all(&record).await?;
        client.shutdown().await?;
        tokio::io::copy(&mut client.take(ALERT_REST_MAX), &mut tokio::io::sink()).await
    };
    let _ = timeout(ALERT_WITHIN, sending).await;
}

async fn gather(
    client: &mut (impl AsyncRead + Unpin),
    host: &Host,
    sni: SniRequirement,
    all: &mut Vec<u8>,
) -> Result<(), ClientHelloError> {
    let mut acceptor = Acceptor::default();
    loop {
        let start = all.len();
        if start > HELLO_MAX {
            return Err(ClientHelloError::TooLarge);
        }
        all.reserve(PIECE);
        match client.read_buf(all).await {
            Ok(length) if length > 0 => {}
            _ => return Err(ClientHelloError::Closed),
        }
        if !begins_handshake(all[0]) {
            return Err(ClientHelloError::NotTls);
        }
        if let Some(named) = parse_server_name(&mut acceptor, &all[start..])? {
            return if means(named.as_deref(), host, sni) {
                Ok(())
            } else {
                Err(ClientHelloError::ServerNameMismatch(named))
            };
        }
    }
}

/// The name in the ClientHello, once it is there.
fn parse_server_name(acceptor: &mut Acceptor, mut piece: &[u8]) -> Result<Option<Option<String>>, ClientHelloError> {
    while !piece.is_empty() {
        let read: io::Result<usize> = acceptor.read_tls(&mut piece);
        read.map_err(|_| ClientHelloError::Malformed)?;
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => return Ok(Some(accepted.client_hello().server_name().map(str::to_owned))),
            Err(_) => return Err(ClientHelloError::Malformed),
        }
    }
    Ok(None)
}

/// Whether a ClientHello that names this is meant for the host.
fn means(named: Option<&str>, host: &Host, sni: SniRequirement) -> bool {
    match (named, host) {
        (None, Host::Ip(_)) => true,
        (None, Host::Name(_)) => sni == SniRequirement::Optional,
        (Some(named), Host::Name(_)) => host::canonical(named).as_ref() == Ok(host),
        _ => false,
    }
}

/// Any bytes at all: however they come, the same host is named.
#[cfg(any(test, fuzzing))]
pub fn hellos(data: &[u8]) {
    if let Ok(Some(named)) = parse_server_name(&mut Acceptor::default(), data) {
        let mut acceptor = Acceptor::default();
        let again = data.chunks(1).find_map(|byte| parse_server_name(&mut acceptor, byte).transpose());
        assert_eq!(again, Some(Ok(named)), "{data:?}");
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

    async fn judge(pieces: &[&[u8]], host: &str) -> Result<Vec<u8>, ClientHelloError> {
        judge_with(pieces, host, SniRequirement::Required).await
    }

    async fn judge_with(pieces: &[&[u8]], host: &str, sni: SniRequirement) -> Result<Vec<u8>, ClientHelloError> {
        let (mut client, mut near) = tokio::io::duplex(64 * 1024);
        let host = host::canonical(host).unwrap();
        let sending = async {
            for piece in pieces {
                client.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(client);
        };
        tokio::join!(read(&mut near, &host, sni, Duration::from_secs(5)), sending).0
    }

    #[tokio::test]
    async fn the_host_must_be_named_and_an_address_must_not() {
        let (name, address) = (hello("hook.example"), hello("192.0.2.1"));
        assert_eq!(judge(&[&name], "Hook.Example.").await.as_ref(), Ok(&name));
        assert_eq!(judge(&[&address], "192.0.2.1").await.as_ref(), Ok(&address));
        let other = |named: Option<&str>| Err(ClientHelloError::ServerNameMismatch(named.map(str::to_owned)));
        assert_eq!(judge(&[&name], "else.example").await, other(Some("hook.example")));
        assert_eq!(judge(&[&name], "192.0.2.1").await, other(Some("hook.example")));
        assert_eq!(judge(&[&address], "hook.example").await, other(None));
        assert_eq!(judge_with(&[&address], "hook.example", SniRequirement::Optional).await.as_ref(), Ok(&address));
        assert_eq!(judge_with(&[&name], "else.example", SniRequirement::Optional).await, other(Some("hook.example")));
    }

    #[tokio::test]
    async fn a_hello_may_come_in_pieces_and_with_more_behind_it() {
        let whole = hello("hook.example");
        for end in (1..whole.len()).step_by(13) {
            assert_eq!(judge(&[&whole[..end], &whole[end..]], "hook.example").await.as_ref(), Ok(&whole), "{end}");
        }
        // The same handshake message, over two records (RFC 8446 §5.1).
        let (record, message) = whole.split_at(5);
        let (one, two) = message.split_at(100);
        let fragment = |part: &[u8]| [&record[..3], &(part.len() as u16).to_be_bytes(), part].concat();
        let fragmented = [fragment(one), fragment(two), b"early".to_vec()].concat();
        assert_eq!(judge(&[&fragmented], "hook.example").await.as_ref(), Ok(&fragmented));
    }

    #[tokio::test]
    async fn what_is_no_hello_is_told_apart() {
        let whole = hello("hook.example");
        let mut alert = whole.clone();
        alert[0] = 21;
        for bad in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &alert, b"SSH-2.0-x\r\n"] {
            assert_eq!(judge(&[bad], "hook.example").await, Err(ClientHelloError::NotTls), "{bad:?}");
        }
        let broken: &[u8] = b"\x16\x03\x01\x00\x05hello";
        assert_eq!(judge(&[broken], "hook.example").await, Err(ClientHelloError::Malformed));
        for end in [0, 1, 4, 5, 6, whole.len() - 1] {
            assert_eq!(judge(&[&whole[..end]], "hook.example").await, Err(ClientHelloError::Closed), "{end}");
        }
    }
}
