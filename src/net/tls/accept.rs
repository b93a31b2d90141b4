//! TLS handshakes with clients, which may present a certificate.
//! Did the handshake succeed, and which names does the client's certificate have?

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{NoServerSessionStorage, ServerSessionMemoryCache};
use rustls::sign::SingleCertAndKey;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::config::Alpn;
use crate::policy::addresses::ip_from_octets;
use crate::policy::authn::PeerCertificate;
use crate::policy::listener::ServerTls;

/// The largest number of TLS sessions that are stored for resumption.
const SESSIONS_MAX: usize = 4096;

/// The reason that a TLS handshake failed.
#[derive(Debug)]
pub enum TlsAcceptError {
    Timeout,
    /// The client hung up, does not speak TLS, has no common version or suite with outgate, or has a certificate that
    /// is not trusted.
    Failed(io::Error),
}

impl fmt::Display for TlsAcceptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("the client did not complete the TLS handshake within the tls timeout"),
            Self::Failed(_) => f.write_str("the TLS handshake failed"),
        }
    }
}

impl std::error::Error for TlsAcceptError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Timeout => None,
            Self::Failed(error) => Some(error),
        }
    }
}

/// Builds the rustls configuration of a TLS listener.
pub fn server_config(tls: &ServerTls) -> Arc<ServerConfig> {
    // The provider is explicit, so that no process-wide default applies.
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for both versions");
    let cert_resolver = Arc::new(SingleCertAndKey::from(tls.certified_key.clone()));
    let mut config = match &tls.client_verifier {
        None => {
            let mut config = config.with_no_client_auth().with_cert_resolver(cert_resolver);
            config.session_storage = ServerSessionMemoryCache::new(SESSIONS_MAX);
            config
        }
        Some(clients) => {
            let mut config = config.with_client_cert_verifier(Arc::clone(clients)).with_cert_resolver(cert_resolver);
            // A resumed session would restore the client's certificate without verification, although it may have
            // expired or been revoked.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            config
        }
    };
    let protocol = |alpn: &Alpn| match alpn {
        Alpn::Http2 => super::ALPN_H2.to_vec(),
        Alpn::Http1 => super::ALPN_HTTP_1_1.to_vec(),
    };
    config.alpn_protocols = tls.alpn.iter().map(protocol).collect();
    Arc::new(config)
}

/// Performs a handshake. Returns the connection, and the client's verified certificate.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    config: &Arc<ServerConfig>,
    listener_fingerprint: [u8; 32],
    deadline: Instant,
) -> Result<(TlsStream<S>, PeerCertificate), TlsAcceptError> {
    let accept = TlsAcceptor::from(Arc::clone(config)).accept(stream).into_fallible();
    match timeout_at(deadline, accept).await {
        Err(_) => Err(TlsAcceptError::Timeout),
        Ok(Err((error, mut stream))) => {
            // The shutdown lets the alert arrive.
            let _ = timeout_at(deadline, stream.shutdown()).await;
            Err(TlsAcceptError::Failed(error))
        }
        Ok(Ok(stream)) => {
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let chain: Vec<_> = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
            let names = chain.first().map(subject_alt_names).unwrap_or_default();
            let valid_until = chain.iter().map(not_after).min().unwrap_or(i64::MAX);
            Ok((stream, PeerCertificate::from_handshake(names, chain, listener_fingerprint, valid_until)))
        }
    }
}

/// Returns the subject alternative names (RFC 5280 §4.2.1.6). The common name is not an identity (RFC 9525 §2).
fn subject_alt_names(leaf: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else { return Vec::new() };
    let Ok(Some(names)) = leaf.subject_alternative_name() else { return Vec::new() };
    names.value.general_names.iter().filter_map(san_to_string).collect()
}

/// Returns the last second of the validity (RFC 5280 §4.1.2.5). An unreadable certificate yields the earliest time, so
/// that it is verified again at every request.
fn not_after(certificate: &CertificateDer<'_>) -> i64 {
    X509Certificate::from_der(certificate).map_or(i64::MIN, |(_, parsed)| parsed.validity().not_after.timestamp())
}

/// Returns the name as text. A name that looks like one of another kind is left out, so that it is not mistaken for it.
fn san_to_string(name: &GeneralName<'_>) -> Option<String> {
    let is_address = |text: &str| text.parse::<IpAddr>().is_ok();
    match name {
        GeneralName::DNSName(name) => {
            (!name.contains([':', '@']) && !is_address(name)).then(|| name.to_ascii_lowercase())
        }
        GeneralName::URI(name) => (name.contains(':') && !is_address(name)).then(|| (*name).to_owned()),
        GeneralName::RFC822Name(name) => (name.contains('@') && !name.contains(':')).then(|| (*name).to_owned()),
        GeneralName::IPAddress(octets) => ip_from_octets(octets).map(|ip| ip.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    #[test]
    fn subject_alt_names_of_every_kind_are_read_as_text() {
        let mut params = CertificateParams::new(vec!["Billing.Internal".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "admin");
        params.subject_alt_names.extend([
            SanType::URI("spiffe://acme/Billing".try_into().unwrap()),
            SanType::Rfc822Name("ops@acme.example".try_into().unwrap()),
            SanType::URI("billing.internal".try_into().unwrap()),
            SanType::URI("fe80::1".try_into().unwrap()),
            SanType::Rfc822Name("spiffe://acme/Billing".try_into().unwrap()),
            SanType::DnsName("ops@acme.example".try_into().unwrap()),
            SanType::DnsName("192.0.2.9".try_into().unwrap()),
            SanType::IpAddress("192.0.2.7".parse().unwrap()),
            SanType::IpAddress("2001:db8::7".parse().unwrap()),
        ]);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let expected = ["billing.internal", "spiffe://acme/Billing", "ops@acme.example", "192.0.2.7", "2001:db8::7"];
        assert_eq!(subject_alt_names(certificate.der()), expected);
        let nameless = CertificateParams::default().self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert!(
            subject_alt_names(nameless.der()).is_empty()
                && subject_alt_names(&CertificateDer::from_slice(b"?")).is_empty()
        );
    }
}
