//! What every handshake under one trust has in common, and the sessions that may be resumed.
//! Which handshakes may know of each other?
//!
//! A session belongs to one trust, which is to say to one set of roots, rules and lists and one identity of ours, and to
//! one tenant. A trust that verifies nothing resumes nothing.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, SupportedProtocolVersion, version};

use super::verify::TrustVerifier;
use crate::config::{TlsVersion, VerifyMode};
use crate::lru::LruCache;
use crate::names::TenantName;
use crate::policy::trust::Trust;

/// TLS sessions of deliveries for no tenant; rustls keeps up to eight for each of the most recent hosts.
const SESSIONS: usize = 4096;
/// Of each tenant.
const SESSIONS_OF_TENANT: usize = 128;
/// Tenants whose sessions are kept.
const TENANTS_MAX: usize = 1024;

pub struct ClientTls {
    trust: Arc<Trust>,
    config: Arc<ClientConfig>,
    /// A new tenant evicts the least recently used one, whose sessions are then not resumed.
    tenants: Mutex<LruCache<TenantName, Arc<ClientConfig>>>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Terms").field(&self.trust).finish()
    }
}

impl ClientTls {
    pub fn new(trust: &Arc<Trust>) -> Self {
        let tenants = Mutex::new(LruCache::new(TENANTS_MAX));
        Self { trust: Arc::clone(trust), config: Arc::new(client_config(trust)), tenants }
    }

    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    /// With the sessions of this tenant.
    pub(super) fn config(&self, tenant: Option<&TenantName>) -> Arc<ClientConfig> {
        let Some(tenant) = tenant else { return Arc::clone(&self.config) };
        let mut tenants = self.tenants.lock();
        let config = tenants.get_or_insert_with(tenant, || {
            let mut config = ClientConfig::clone(&self.config);
            config.resumption = resumption(&self.trust, SESSIONS_OF_TENANT);
            Arc::new(config)
        });
        Arc::clone(config)
    }

    #[cfg(test)]
    pub(super) fn at(&mut self, time: Arc<dyn rustls::time_provider::TimeProvider>) {
        Arc::make_mut(&mut self.config).time_provider = time;
    }
}

fn client_config(trust: &Arc<Trust>) -> ClientConfig {
    // Named here, so that no process-wide default decides.
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
        .with_custom_certificate_verifier(Arc::new(TrustVerifier { trust: Arc::clone(trust), algorithms }));
    let mut config = match &trust.identity {
        None => config.with_no_client_auth(),
        Some(identity) => config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from((**identity).clone()))),
    };
    config.alpn_protocols = vec![super::HTTP_2.to_vec(), super::HTTP_1_1.to_vec()];
    config.resumption = resumption(trust, SESSIONS);
    config
}

fn resumption(trust: &Trust, sessions: usize) -> Resumption {
    match trust.verify {
        VerifyMode::Full => Resumption::in_memory_sessions(sessions),
        // A resumed session is judged by the certificates that it was made with; here nothing is judged.
        VerifyMode::None => Resumption::disabled(),
    }
}

#[cfg(test)]
mod tests {
    use rustls::RootCertStore;

    use super::*;

    #[test]
    fn tls_session_cache_evicts_one_tenant_for_a_new_tenant() {
        let (roots, provider) = (RootCertStore::empty(), aws_lc_rs::default_provider());
        let terms =
            ClientTls::new(&Arc::new(Trust::plain(roots, TlsVersion::V1_2, VerifyMode::Full, false, &provider)));
        let config = |number: usize| terms.config(Some(&TenantName::new(number.to_string())));
        let first = (0..TENANTS_MAX).map(config).collect::<Vec<_>>();
        config(0);
        config(TENANTS_MAX);
        assert!(Arc::ptr_eq(&config(0), &first[0]), "used after all others");
        assert!(Arc::ptr_eq(&config(2), &first[2]));
        assert!(!Arc::ptr_eq(&config(1), &first[1]), "the least recently used");
    }
}
