//! Issues certificates for intercepted targets on demand, signed by the inspection authority.
//! Which certificate does a client of an inspected tunnel get?

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType};
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use crate::lru::LruCache;
use crate::names::Host;
use crate::panics::Mutex;
use crate::policy::inspect::InspectionCa;

/// The tolerance for clients whose clocks are slow.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_hours(1);
/// The lifetime of a certificate. It is short, because such a certificate cannot be revoked. A new one is issued after
/// half of it.
const LEAF_LIFETIME: SignedDuration = SignedDuration::from_hours(7 * 24);
const LEAVES_MAX: usize = 10_000;

/// Issues and caches the certificates of one authority.
pub struct LeafIssuer {
    /// The key of all leaf certificates. It is never stored, and lost when the process ends.
    key: KeyPair,
    provider: Arc<CryptoProvider>,
    /// The cached certificates. Clients choose the hosts within the routes; a new host evicts the least recently used
    /// one.
    leaves: Mutex<LruCache<Host, IssuedLeaf>>,
}

struct IssuedLeaf {
    config: Arc<ServerConfig>,
    renew_at: Timestamp,
}

/// The authority is missing or cannot sign, or a certificate cannot contain the host.
#[derive(Debug)]
pub enum IssueError {
    NoAuthority,
    Failed(String),
}

impl std::fmt::Display for IssueError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoAuthority => f.write_str("there is no inspection authority"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for IssueError {}

impl From<rcgen::Error> for IssueError {
    fn from(error: rcgen::Error) -> Self {
        IssueError::Failed(error.to_string())
    }
}

impl LeafIssuer {
    pub fn new() -> Result<Self, IssueError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let leaves = Mutex::new(LruCache::new(LEAVES_MAX));
        Ok(Self { key, provider: Arc::new(aws_lc_rs::default_provider()), leaves })
    }

    /// Returns the rustls configuration for a client that connects to `host`.
    pub fn server_config(
        &self,
        authority: &InspectionCa,
        host: &Host,
        now: Timestamp,
    ) -> Result<Arc<ServerConfig>, IssueError> {
        if let Some(leaf) = self.leaves.lock().get(host).filter(|leaf| now < leaf.renew_at) {
            return Ok(Arc::clone(&leaf.config));
        }
        let leaf = self.issue(authority, host, now)?;
        let config = Arc::clone(&leaf.config);
        self.leaves.lock().insert(host.clone(), leaf);
        Ok(config)
    }

    fn issue(&self, authority: &InspectionCa, host: &Host, now: Timestamp) -> Result<IssuedLeaf, IssueError> {
        let not_after = authority.expires_at.min(now + LEAF_LIFETIME);
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![match host {
            Host::Name(name) => SanType::DnsName((**name).try_into()?),
            Host::Ip(ip) => SanType::IpAddress(*ip),
        }];
        // The common name is not an identity (RFC 9525 §2). But the extension would have to be critical if the subject
        // was empty.
        params.distinguished_name.push(DnType::CommonName, "inspected by outgate");
        params.not_before = date(now - CLOCK_SKEW)?;
        params.not_after = date(not_after)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&self.key, &authority.issuer)?;

        let chain = [leaf.der().clone()].into_iter().chain(authority.chain.iter().cloned()).collect();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|error| IssueError::Failed(error.to_string()))?;
        // A session store for each host would need more memory than the rest.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![super::ALPN_H2.to_vec(), super::ALPN_HTTP_1_1.to_vec()];
        Ok(IssuedLeaf { config: Arc::new(config), renew_at: now + not_after.duration_since(now) / 2 })
    }
}

fn date(at: Timestamp) -> Result<OffsetDateTime, IssueError> {
    OffsetDateTime::from_unix_timestamp(at.as_second()).map_err(|error| IssueError::Failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, GeneralSubtree, IsCa, Issuer, NameConstraints};
    use rustls::time_provider::TimeProvider;
    use rustls::{CertificateError, ClientConfig, ClientConnection, Error, RootCertStore, ServerConnection};
    use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;
    use crate::host;

    const NOW: i64 = 1_800_000_000;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn authority(permitted: &[&str], expires_at: Timestamp) -> (InspectionCa, CertificateDer<'static>) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "test");
        (params.not_before, params.not_after) = (date(at(NOW - 100_000)).unwrap(), date(expires_at).unwrap());
        if !permitted.is_empty() {
            let permitted_subtrees = permitted.iter().map(|name| GeneralSubtree::DnsName((*name).to_owned())).collect();
            params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: vec![] });
        }
        let key = KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        let chain = vec![der.clone()];
        (InspectionCa { fingerprint: [0; 32], issuer: Issuer::new(params, key), chain, expires_at }, der)
    }

    #[derive(Debug)]
    struct FixedTime;

    impl TimeProvider for FixedTime {
        fn current_time(&self) -> Option<UnixTime> {
            Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW as u64)))
        }
    }

    /// Performs a handshake of a client that trusts `root`. Returns the expiry of the certificate that the client
    /// received.
    fn handshake_expiry(
        issuer: &LeafIssuer,
        authority: &InspectionCa,
        root: &CertificateDer<'static>,
        name: &str,
    ) -> Result<i64, Error> {
        let host = host::canonical(name).unwrap();
        let leaf = issuer.issue(authority, &host, at(NOW)).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(root.clone()).unwrap();
        let config = ClientConfig::builder_with_details(Arc::new(aws_lc_rs::default_provider()), Arc::new(FixedTime))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name)?;
        let mut server = ServerConnection::new(leaf.config)?;
        let mut flight = Vec::new();
        while client.is_handshaking() {
            client.write_tls(&mut flight).unwrap();
            server.read_tls(&mut flight.as_slice()).unwrap();
            server.process_new_packets()?;
            flight.clear();
            server.write_tls(&mut flight).unwrap();
            client.read_tls(&mut flight.as_slice()).unwrap();
            client.process_new_packets()?;
            flight.clear();
        }
        let leaf = &client.peer_certificates().unwrap()[0];
        Ok(X509Certificate::from_der(leaf).unwrap().1.validity().not_after.timestamp())
    }

    #[test]
    fn leaf_issuer_certificates_are_trusted_until_the_authority_expires() {
        let issuer = LeafIssuer::new().unwrap();
        let (long, root) = authority(&[], at(NOW + 100 * 86_400));
        for name in ["hook.example", "192.0.2.1", "2001:db8::1"] {
            let host = if name.contains("::") { format!("[{name}]") } else { name.to_owned() };
            let leaf = issuer.issue(&long, &host::canonical(&host).unwrap(), at(NOW)).unwrap();
            assert_eq!(leaf.renew_at, at(NOW + 7 * 86_400 / 2), "{name}");
        }
        assert_eq!(handshake_expiry(&issuer, &long, &root, "hook.example"), Ok(NOW + 7 * 86_400));
        assert_eq!(handshake_expiry(&issuer, &long, &root, "192.0.2.1"), Ok(NOW + 7 * 86_400));
        let (short, root) = authority(&[], at(NOW + 86_400));
        assert_eq!(handshake_expiry(&issuer, &short, &root, "hook.example"), Ok(NOW + 86_400));
    }

    #[test]
    fn leaf_issuer_respects_the_name_constraints_of_the_authority() {
        let issuer = LeafIssuer::new().unwrap();
        let (authority, root) = authority(&["acme.example"], at(NOW + 100 * 86_400));
        assert!(handshake_expiry(&issuer, &authority, &root, "hooks.acme.example").is_ok());
        let other = handshake_expiry(&issuer, &authority, &root, "bank.example").unwrap_err();
        assert!(matches!(other, Error::InvalidCertificate(CertificateError::Other(_))), "{other:?}");
    }

    #[test]
    fn leaf_issuer_caches_a_leaf_for_half_of_its_lifetime() {
        let issuer = LeafIssuer::new().unwrap();
        let (authority, _) = authority(&[], at(NOW + 100 * 86_400));
        let host = host::canonical("hook.example").unwrap();
        let get = |second| issuer.server_config(&authority, &host, at(second)).unwrap();
        let first = get(NOW);
        assert!(Arc::ptr_eq(&first, &get(NOW + 3 * 86_400)));
        assert!(!Arc::ptr_eq(&first, &get(NOW + 4 * 86_400)));
    }
}
