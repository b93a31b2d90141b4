//! TLS towards a target that must prove its name.
//! Who is at the other end, and if it is not who it should be, in what way?

pub mod accept;
mod fault;
pub mod mint;
mod verify;

use std::sync::Arc;

use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, SupportedProtocolVersion, version};
use rustls_pki_types::{DnsName, ServerName, UnixTime};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::connection::{Socket, Wire};
use crate::config::{TlsVersion, Verify};
use crate::names::Host;
use crate::policy::trust::Trust;
pub use fault::{CertificateFault, TlsFault};

/// TLS sessions kept for resumption under one trust; rustls keeps up to eight for each of the most recent hosts.
const SESSIONS: usize = 4096;

/// RFC 9113 §3.2.
const HTTP_2: &[u8] = b"h2";

/// What a finished handshake has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// `TLSv1.3`.
    pub version: &'static str,
    /// The name in the IANA registry.
    pub suite: &'static str,
    /// The end of the target's own certificate.
    pub expires: Timestamp,
    /// The target chose HTTP/2 (RFC 7301).
    pub speaks_http2: bool,
}

/// The configuration of every handshake under one trust. Its sessions are its own: what one trust has verified is
/// never resumed under another.
pub fn client_config(trust: &Trust) -> Arc<ClientConfig> {
    // Named here, so that no process-wide default decides.
    let provider = Arc::new(aws_lc_rs::default_provider());
    let versions: &[&SupportedProtocolVersion] = match trust.min_version {
        TlsVersion::V1_2 => &[&version::TLS13, &version::TLS12],
        TlsVersion::V1_3 => &[&version::TLS13],
    };
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .expect("the provider has suites for both versions")
        .dangerous()
        .with_custom_certificate_verifier(verify::verifier(trust, provider))
        .with_no_client_auth();
    config.alpn_protocols = vec![HTTP_2.to_vec(), b"http/1.1".to_vec()];
    config.resumption = match trust.verify {
        Verify::Full => Resumption::in_memory_sessions(SESSIONS),
        // `handshake` judges a resumed session by the certificate that it was made with; here nothing is judged.
        Verify::None => Resumption::disabled(),
    };
    Arc::new(config)
}

/// Proves that the peer of `socket` is `host`.
pub async fn handshake(
    socket: Socket,
    config: &Arc<ClientConfig>,
    host: &Host,
    deadline: Instant,
) -> Result<(Wire, Proof), TlsFault> {
    let connect =
        TlsConnector::from(Arc::clone(config)).connect(server_name(host)?, TokioIo::new(TokioIo::new(socket)));
    let stream = timeout_at(deadline, connect).await.map_err(|_| TlsFault::Timeout)?.map_err(TlsFault::from)?;
    let connection = stream.get_ref().1;
    let proof = proof(connection)?;
    // A resumed session brings its certificate along, which was good when the session began.
    let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
    if resumed && config.time_provider.current_time().is_none_or(|now| has_expired(&proof, now)) {
        return Err(CertificateFault::Expired.into());
    }
    Ok((Wire::from(stream), proof))
}

fn server_name(host: &Host) -> Result<ServerName<'static>, CertificateFault> {
    match host {
        Host::Ip(ip) => Ok(ServerName::from(*ip)),
        // What is no DNS name can stand in no certificate.
        Host::Name(name) => {
            let name = DnsName::try_from(String::from(&**name)).map_err(|_| CertificateFault::NameMismatch)?;
            Ok(ServerName::DnsName(name))
        }
    }
}

fn has_expired(proof: &Proof, now: UnixTime) -> bool {
    i64::try_from(now.as_secs()).is_ok_and(|now| proof.expires.as_second() < now)
}

fn proof(connection: &ClientConnection) -> Result<Proof, CertificateFault> {
    let leaf = connection.peer_certificates().and_then(<[_]>::first).ok_or(CertificateFault::Malformed)?;
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| CertificateFault::Malformed)?;
    Ok(Proof {
        version: match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "TLSv1.2",
        },
        suite: connection.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).map_or("", registered),
        // RFC 5280 §4.1.2.5: 99991231235959Z says "does not expire", and is beyond what a `Timestamp` holds.
        expires: Timestamp::from_second(leaf.validity().not_after.timestamp()).unwrap_or(Timestamp::MAX),
        speaks_http2: connection.alpn_protocol() == Some(HTTP_2),
    })
}

/// rustls marks the suites of TLS 1.3 in its own way.
fn registered(suite: &'static str) -> &'static str {
    match suite {
        "TLS13_AES_128_GCM_SHA256" => "TLS_AES_128_GCM_SHA256",
        "TLS13_AES_256_GCM_SHA384" => "TLS_AES_256_GCM_SHA384",
        "TLS13_CHACHA20_POLY1305_SHA256" => "TLS_CHACHA20_POLY1305_SHA256",
        suite => suite,
    }
}

#[cfg(test)]
mod tests;
