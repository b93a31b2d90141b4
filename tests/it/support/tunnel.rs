//! A client that opens a tunnel and speaks TLS through it.
//! Which peer responds inside the tunnel?

use std::io;
use std::net::TcpStream;
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};

use super::{Client, Outgate, Response};

/// The TLS configuration of a client that trusts the authority in `ca` only.
pub fn tls_config_trusting(ca: &str) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Returns a ClientHello for `name`. For an address, it has no server name.
pub fn client_hello(name: &str) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut bytes = Vec::new();
    ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
    bytes
}

/// Returns a CONNECT as most clients send it. Each of the `fields` ends in CRLF.
pub fn connect(authority: &str, fields: &str) -> String {
    format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{fields}\r\n")
}

/// Bytes that clients of other protocols send in a tunnel for TLS.
pub const PLAIN_REQUESTS: [&str; 6] = [
    "POST /in HTTP/1.1\r\nHost: inspect.example\r\nContent-Length: 2\r\n\r\n{}",
    // A server skips empty lines before a request (RFC 9112 §2.2).
    "\r\nPOST /in HTTP/1.1\r\nHost: inspect.example\r\nContent-Length: 2\r\n\r\n{}",
    // A partial body, a partial head, the HTTP/2 preface, and a CONNECT to another proxy.
    "POST /in HTTP/1.1\r\nHost: inspect.example\r\nContent-Length: 100\r\n\r\nhalf",
    "P",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    "CONNECT other.example:443 HTTP/1.1\r\nHost: other.example:443\r\n\r\n",
];

pub fn assert_refused_for_plaintext(response: &Response) {
    assert_eq!((response.status, response.code()), (400, "request_malformed"), "{response:?}");
    assert_eq!(response.reason, "Bad Request (request_malformed: plaintext)");
    assert_eq!((response.field("connection"), response.field("content-type")), ("close", "application/problem+json"));
    let problem = response.json();
    assert_eq!((&problem["details"], &problem["blame"]), (&"plaintext".into(), &"client".into()), "{problem}");
    assert!(problem["detail"].as_str().unwrap().starts_with("this tunnel requires TLS"), "{problem}");
}

/// Checks the record of a plaintext request in a tunnel. `connected` is the response to the CONNECT.
pub fn assert_recorded_as_plaintext(record: &serde_json::Value, connected: &Response) {
    assert_eq!(connected.status, 200);
    assert_eq!(record["request_id"], connected.field("outgate-request-id"), "{record}");
    assert_eq!((&record["method"], &record["status"]), (&"CONNECT".into(), &200.into()), "{record}");
    assert_eq!((&record["code"], &record["details"]), (&"request_malformed".into(), &"plaintext".into()), "{record}");
    assert!(record["detail"].as_str().unwrap().starts_with("this tunnel requires TLS"), "{record}");
}

impl Outgate {
    /// Sends a CONNECT, and returns the connection and the response.
    pub fn tunnel(&self, authority: &str, fields: &str) -> (Client, Response) {
        let mut client = self.connect();
        client.send(connect(authority, fields));
        let response = client.response_to("CONNECT");
        (client, response)
    }

    /// Opens a tunnel. It panics if the proxy refuses.
    pub fn open_tunnel(&self, authority: &str) -> Client {
        let (client, response) = self.tunnel(authority, "");
        assert_eq!(response.status, 200, "{authority}: {response:?}");
        client
    }
}

/// The certificate chain and the ALPN protocol of the peer.
pub struct HandshakeInfo {
    pub chain: Vec<CertificateDer<'static>>,
    pub protocol: Option<Vec<u8>>,
}

impl Client {
    /// The socket below the stream.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Starts TLS with the peer, whose certificate must be valid for `name`.
    pub fn start_tls(mut self, name: &str, config: ClientConfig) -> io::Result<(Self, HandshakeInfo)> {
        assert!(self.buffer.is_empty(), "in TLS the client sends the first bytes");
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut session = ClientConnection::new(Arc::new(config), name).unwrap();
        session.complete_io(&mut self.stream)?;
        let handshake = HandshakeInfo {
            chain: session.peer_certificates().unwrap_or_default().iter().map(|one| one.clone().into_owned()).collect(),
            protocol: session.alpn_protocol().map(<[u8]>::to_vec),
        };
        self.stream = Box::new(StreamOwned::new(session, self.stream));
        Ok((self, handshake))
    }
}
