//! The receivers of the demo: one that verifies webhooks, and two with invalid certificates.
//! What does a receiver get, and how does it verify the sender?

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

pub(super) struct Receivers {
    pub(super) valid: SocketAddr,
    pub(super) self_signed: SocketAddr,
    pub(super) expired: SocketAddr,
    /// The certificate of the temporary CA.
    pub(super) ca: String,
    received: Arc<Mutex<Vec<ReceivedWebhook>>>,
}

#[derive(Clone)]
pub(super) struct ReceivedWebhook {
    /// The method and the request target.
    pub(super) request: String,
    pub(super) from: IpAddr,
    pub(super) verified: bool,
}

/// Called with each webhook before the receiver answers it.
pub(super) type Observer = Arc<dyn Fn(&ReceivedWebhook) + Send + Sync>;

pub(super) type DemoError = Box<dyn std::error::Error + Send + Sync>;

/// The loopback address with any free port.
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The largest body; requests of the demo are far smaller.
const BODY_MAX: usize = 64 * 1024;
const READ_TIMEOUT: Duration = Duration::from_secs(10);

impl Receivers {
    pub(super) fn start(secret: &str) -> Result<Self, DemoError> {
        let ca = new_ca()?;
        let received: Arc<Mutex<Vec<ReceivedWebhook>>> = Arc::default();
        let list = Arc::clone(&received);
        let observer: Observer = Arc::new(move |webhook| list.lock().push(webhook.clone()));
        let start = |identity| start_receiver(LOOPBACK, identity, secret, Arc::clone(&observer));
        Ok(Self {
            valid: start(issue_leaf("good.example", &ca, false)?)?,
            self_signed: start(self_signed("self-signed.example")?)?,
            expired: start(issue_leaf("expired.example", &ca, true)?)?,
            ca: ca.pem(),
            received,
        })
    }

    /// Returns the last webhook, if any has arrived.
    pub(super) fn last(&self) -> Option<ReceivedWebhook> {
        self.received.lock().last().cloned()
    }
    pub(super) fn count(&self) -> usize {
        self.received.lock().len()
    }
}

type ServerIdentity = (rustls_pki_types::CertificateDer<'static>, KeyPair);

pub(super) fn new_ca() -> Result<CertifiedIssuer<'static, KeyPair>, DemoError> {
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, "outgate demo, thrown away");
    Ok(CertifiedIssuer::self_signed(ca, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)?)
}

pub(super) fn issue_leaf(
    name: &str,
    ca: &CertifiedIssuer<'_, KeyPair>,
    expired: bool,
) -> Result<ServerIdentity, DemoError> {
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    if expired {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 12, 31);
    }
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, ca)?.der().clone(), key))
}

fn self_signed(name: &str) -> Result<ServerIdentity, DemoError> {
    let key = KeyPair::generate()?;
    Ok((CertificateParams::new(vec![name.to_owned()])?.self_signed(&key)?.der().clone(), key))
}

fn signing_key(secret: &str) -> Result<hmac::Key, DemoError> {
    let text = secret.strip_prefix("whsec_").ok_or("not a Standard Webhooks secret")?;
    Ok(hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(text)?))
}

/// Starts a receiver. It runs until the process ends.
pub(super) fn start_receiver(
    listen: SocketAddr,
    (certificate, key): ServerIdentity,
    secret: &str,
    observer: Observer,
) -> Result<SocketAddr, DemoError> {
    let secret = signing_key(secret)?;
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], private)?;
    let config = Arc::new(config);
    let listener = TcpListener::bind(listen)?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (config, secret, observer) = (Arc::clone(&config), secret.clone(), Arc::clone(&observer));
            // A failed connection, such as one with an invalid certificate, must not affect the others.
            std::thread::spawn(move || drop(serve(stream, config, &secret, &observer)));
        }
    });
    Ok(address)
}

fn serve(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    secret: &hmac::Key,
    observer: &Observer,
) -> Result<(), DemoError> {
    stream.set_read_timeout(Some(READ_TIMEOUT))?;
    let from = stream.peer_addr()?.ip();
    let mut stream = BufReader::new(StreamOwned::new(ServerConnection::new(config)?, stream));
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line == "\r\n" {
                break;
            }
            head.push(line.trim_end().to_owned());
        }
        let field = |name: &str| {
            let mut fields = head.iter().filter_map(|line| line.split_once(": "));
            fields.find(|(other, _)| other.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
        };
        let length = field("content-length").parse::<usize>().unwrap_or(0).min(BODY_MAX);
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let verified =
            verify(secret, field("webhook-id"), field("webhook-timestamp"), field("webhook-signature"), &body);
        let request = head.first().and_then(|line| line.strip_suffix(" HTTP/1.1")).unwrap_or_default().to_owned();
        observer(&ReceivedWebhook { request, from, verified });
        let verdict = if verified { "signature verified" } else { "signature NOT verified" };
        let response_body = format!("from {from}: {verdict}\n");
        write!(stream.get_mut(), "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{response_body}", response_body.len())?;
    }
}

/// Verifies a Standard Webhooks 1.0.0 signature: one of the `v1` signatures must match.
fn verify(secret: &hmac::Key, id: &str, timestamp: &str, signatures: &str, body: &[u8]) -> bool {
    let signed = [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat();
    signatures
        .split(' ')
        .filter_map(|one| one.strip_prefix("v1,"))
        .any(|tag| STANDARD.decode(tag).is_ok_and(|tag| hmac::verify(secret, &signed, &tag).is_ok()))
}
