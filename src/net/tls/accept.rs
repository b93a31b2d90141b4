//! TLS towards clients, who may prove who they are.
//! Is this a handshake, and which names does the client's certificate hold?

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
use crate::policy::authn::PeerCertificate;
use crate::policy::listener::ServerTls;

/// TLS sessions that may be resumed.
const SESSIONS: usize = 4096;

/// Why there is no TLS connection.
#[derive(Debug)]
pub enum TlsAcceptError {
    Timeout,
    /// The client hung up, or speaks no TLS, or we have no common ground, or its certificate is not believed.
    Failed(io::Error),
}

impl fmt::Display for TlsAcceptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("no handshake within the tls timeout"),
            Self::Failed(_) => f.write_str("the handshake failed"),
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

/// The configuration of every handshake under one certificate and one set of authorities.
pub fn server_config(tls: &ServerTls) -> Arc<ServerConfig> {
    // Named here, so that no process-wide default decides.
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for both versions");
    let shown = Arc::new(SingleCertAndKey::from(tls.certified_key.clone()));
    let mut config = match &tls.clients {
        None => {
            let mut config = config.with_no_client_auth().with_cert_resolver(shown);
            config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
            config
        }
        Some(clients) => {
            let mut config = config.with_client_cert_verifier(Arc::clone(clients)).with_cert_resolver(shown);
            // A session that is resumed brings its certificate along unjudged, expired or revoked as it may be by now.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            config
        }
    };
    let protocol = |alpn: &Alpn| match alpn {
        Alpn::Http2 => super::HTTP_2.to_vec(),
        Alpn::Http1 => super::HTTP_1_1.to_vec(),
    };
    config.alpn_protocols = tls.alpn.iter().map(protocol).collect();
    Arc::new(config)
}

/// Gives the connection, and the certificate that the client has proved to hold.
pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    config: &Arc<ServerConfig>,
    under: [u8; 32],
    deadline: Instant,
) -> Result<(TlsStream<S>, PeerCertificate), TlsAcceptError> {
    let accept = TlsAcceptor::from(Arc::clone(config)).accept(stream).into_fallible();
    match timeout_at(deadline, accept).await {
        Err(_) => Err(TlsAcceptError::Timeout),
        Ok(Err((error, mut stream))) => {
            // An alert is out: let it arrive.
            let _ = timeout_at(deadline, stream.shutdown()).await;
            Err(TlsAcceptError::Failed(error))
        }
        Ok(Ok(stream)) => {
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let chain: Vec<_> = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
            let names = chain.first().map(names).unwrap_or_default();
            let until = chain.iter().map(end).min().unwrap_or(i64::MAX);
            Ok((stream, PeerCertificate { names, chain, under, until }))
        }
    }
}

/// The subject's alternative names (RFC 5280 §4.2.1.6); what stands in the common name proves nothing (RFC 9525 §2).
fn names(leaf: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else { return Vec::new() };
    let Ok(Some(names)) = leaf.subject_alternative_name() else { return Vec::new() };
    names.value.general_names.iter().filter_map(name).collect()
}

/// RFC 5280 §4.1.2.5: the last second of its validity. What cannot be read is judged again at every request.
fn end(certificate: &CertificateDer<'_>) -> i64 {
    X509Certificate::from_der(certificate).map_or(i64::MIN, |(_, parsed)| parsed.validity().not_after.timestamp())
}

/// As text; a name of one kind that looks like one of another is left out, so that none is taken for what it is not.
fn name(name: &GeneralName<'_>) -> Option<String> {
    let is_address = |text: &str| text.parse::<IpAddr>().is_ok();
    match name {
        GeneralName::DNSName(name) => {
            (!name.contains([':', '@']) && !is_address(name)).then(|| name.to_ascii_lowercase())
        }
        GeneralName::URI(name) => (name.contains(':') && !is_address(name)).then(|| (*name).to_owned()),
        GeneralName::RFC822Name(name) => (name.contains('@') && !name.contains(':')).then(|| (*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let v6 = <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
            v4.or(v6).ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    #[test]
    fn names_of_every_kind_are_read_as_text() {
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
        assert_eq!(names(certificate.der()), expected);
        let nameless = CertificateParams::default().self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert!(names(nameless.der()).is_empty() && names(&CertificateDer::from_slice(b"?")).is_empty());
    }
}
