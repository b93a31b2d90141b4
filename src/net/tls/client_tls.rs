//! The rustls configuration of the handshakes under one trust, and their TLS sessions.
//! Which handshakes may resume each other's sessions?
//!
//! A session belongs to one trust and one tenant. A trust is one set of roots, rules and revocation lists, and one client
//! certificate. A trust that verifies nothing resumes no session.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, SupportedProtocolVersion, version};

use super::sessions::{ConnectionSessions, SessionStore};
use super::verified_chains::VerifiedChains;
use super::verify::TrustVerifier;
use crate::config::{TlsVersion, VerifyMode};
use crate::lru::LruCache;
use crate::names::TenantName;
use crate::net::ticket_meter::TicketMeter;
use crate::panics::Mutex;
use crate::policy::trust::Trust;

/// The largest number of stored TLS sessions of deliveries without a tenant.
const SESSIONS_WITHOUT_TENANT_MAX: usize = 4096;
/// The largest number of stored TLS sessions of each tenant.
const SESSIONS_PER_TENANT_MAX: usize = 128;
/// The largest number of tenants whose sessions are stored.
const TENANTS_MAX: usize = 1024;

pub struct ClientTls {
    chains: Arc<VerifiedChains>,
    /// The configuration, without a store of sessions.
    config: ClientConfig,
    /// The sessions of deliveries without a tenant.
    sessions: Arc<SessionStore>,
    /// The sessions of each tenant. A new tenant evicts the least recently used one, with its sessions.
    tenants: Mutex<LruCache<TenantName, Arc<SessionStore>>>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientTls").field(&self.chains.trust).finish()
    }
}

impl ClientTls {
    pub fn new(trust: &Arc<Trust>) -> Self {
        let tenants = Mutex::new(LruCache::new(TENANTS_MAX));
        let chains = Arc::new(VerifiedChains::new(trust));
        let (config, sessions) = (client_config(trust, &chains), SessionStore::new(SESSIONS_WITHOUT_TENANT_MAX));
        Self { chains, config, sessions: Arc::new(sessions), tenants }
    }

    pub(super) fn trust(&self) -> &Trust {
        &self.chains.trust
    }

    pub(super) fn chains(&self) -> &VerifiedChains {
        &self.chains
    }

    /// Returns the configuration of one connection, which stores the sessions of this tenant and counts its tickets.
    pub(super) fn config(&self, tenant: Option<&TenantName>, tickets: Arc<TicketMeter>) -> ClientConfig {
        let store = match self.chains.trust.verify {
            VerifyMode::Full => Some(self.sessions(tenant)),
            // A resumed session is verified by the certificates of its first handshake; this trust verifies none.
            VerifyMode::None => None,
        };
        let mut config = self.config.clone();
        config.resumption = Resumption::store(Arc::new(ConnectionSessions { store, tickets }));
        config
    }

    fn sessions(&self, tenant: Option<&TenantName>) -> Arc<SessionStore> {
        let Some(tenant) = tenant else { return Arc::clone(&self.sessions) };
        let mut tenants = self.tenants.lock();
        let sessions = tenants.get_or_insert_with(tenant, || Arc::new(SessionStore::new(SESSIONS_PER_TENANT_MAX)));
        Arc::clone(sessions)
    }

    #[cfg(test)]
    pub(super) fn set_time_provider(&mut self, time: Arc<dyn rustls::time_provider::TimeProvider>) {
        self.config.time_provider = time;
    }
}

fn client_config(trust: &Trust, chains: &Arc<VerifiedChains>) -> ClientConfig {
    // The provider is explicit, so that no process-wide default applies.
    let provider = Arc::new(aws_lc_rs::default_provider());
    let versions: &[&SupportedProtocolVersion] = match trust.min_version {
        TlsVersion::V1_2 => &[&version::TLS13, &version::TLS12],
        TlsVersion::V1_3 => &[&version::TLS13],
    };
    let algorithms = provider.signature_verification_algorithms;
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("the provider has suites for both versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustVerifier { chains: Arc::clone(chains), algorithms }));
    let mut config = match &trust.identity {
        None => config.with_no_client_auth(),
        Some(identity) => config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from((**identity).clone()))),
    };
    config.alpn_protocols = vec![super::ALPN_H2.to_vec(), super::ALPN_HTTP_1_1.to_vec()];
    config.resumption = Resumption::disabled();
    config
}

#[cfg(test)]
mod tests {
    use rustls::RootCertStore;

    use super::*;

    #[test]
    fn tls_session_cache_evicts_one_tenant_for_a_new_tenant() {
        let (roots, provider) = (RootCertStore::empty(), aws_lc_rs::default_provider());
        let client_tls =
            ClientTls::new(&Arc::new(Trust::with_roots(roots, TlsVersion::V1_2, VerifyMode::Full, false, &provider)));
        let sessions = |number: usize| client_tls.sessions(Some(&TenantName::new(number.to_string())));
        let first = (0..TENANTS_MAX).map(sessions).collect::<Vec<_>>();
        sessions(0);
        sessions(TENANTS_MAX);
        assert!(Arc::ptr_eq(&sessions(0), &first[0]), "used after all others");
        assert!(Arc::ptr_eq(&sessions(2), &first[2]));
        assert!(!Arc::ptr_eq(&sessions(1), &first[1]), "the least recently used");
    }
}
