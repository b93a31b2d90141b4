//! The active configuration: the compiled plan, with the resolver and the TLS state that belong to it.
//! Which state of the former configuration does a reload keep?

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use rustls::ServerConfig;

use crate::config::{self, SelectionPolicy};
use crate::names::{Host, PoolName};
use crate::net::fd_limit;
use crate::net::resolve::{Resolver, ResolverConfig};
use crate::net::tls;
use crate::net::tls::leaf_issuer::{IssueError, LeafIssuer};
use crate::policy::Plan;
use crate::policy::egress::{Families, Pool};
use crate::policy::guard::ClearedAddresses;
use crate::policy::listener;
use crate::policy::trust::{PUBLIC_TRUST, Trust};

/// A plan with its resolver and its TLS state. A delivery holds one from its start to its end.
pub struct ActiveConfig {
    pub plan: Plan,
    pub resolver: Arc<Resolver>,
    /// The TLS state towards targets, by the fingerprint of the trust.
    client_tls: HashMap<[u8; 32], Arc<tls::ClientTls>>,
    /// The TLS state towards clients, by listener.
    listener_tls: HashMap<config::Listen, Arc<ServerConfig>>,
    leaf_issuer: Option<Arc<LeafIssuer>>,
    /// The number of deliveries of each pool, by the IP versions of their targets. With one count for all versions, two
    /// alternating kinds of target would each use only half of the addresses.
    rotations: HashMap<PoolName, Arc<[AtomicU64; 3]>>,
    random: RandomState,
}

impl ActiveConfig {
    /// Prepares `plan` for the network. It reuses the TLS state of `before` for the same trust, with its resumable sessions,
    /// and the resolver with its cache if the name servers are the same.
    pub fn new(mut plan: Plan, resolver: &config::Resolver, before: Option<&ActiveConfig>) -> io::Result<Self> {
        fd_limit::cap_plan(&mut plan);
        let resolver_config = ResolverConfig::read(resolver)?;
        let resolver = match before.map(|before| &before.resolver) {
            Some(reused) if *reused.config() == resolver_config => Arc::clone(reused),
            _ => Arc::new(Resolver::new(resolver_config)),
        };
        let client_tls_of = |trust: &Arc<Trust>| {
            let reused = before.and_then(|before| before.client_tls.get(&trust.fingerprint)).cloned();
            (trust.fingerprint, reused.unwrap_or_else(|| Arc::new(tls::ClientTls::new(trust))))
        };
        let client_tls = plan.trusts.values().map(client_tls_of).collect();
        let rotation_of = |name: &PoolName| {
            let reused = before.and_then(|before| before.rotations.get(name)).cloned();
            (name.clone(), reused.unwrap_or_default())
        };
        let rotations = plan.pools.keys().map(rotation_of).collect();
        let listener_tls = listener_tls(&plan, before);
        let leaf_issuer = leaf_issuer(&plan, before)?;
        Ok(Self { plan, resolver, client_tls, listener_tls, leaf_issuer, rotations, random: RandomState::new() })
    }

    /// Returns the next position of the rotation for a pool that spreads, and a random number for a pool that selects at
    /// random.
    pub fn next_rotation(&self, pool: &Pool, cleared: &ClearedAddresses) -> u64 {
        let has = |v6| cleared.addresses().iter().any(|address| address.is_ipv6() == v6);
        let family = if has(false) { usize::from(has(true)) } else { 2 };
        let next =
            || self.rotations.get(pool.name()).map_or(0, |rotations| rotations[family].fetch_add(1, Ordering::Relaxed));
        match pool.select() {
            SelectionPolicy::Sticky => 0,
            SelectionPolicy::Spread => next(),
            SelectionPolicy::Random => self.random.hash_one(next()),
        }
    }

    /// Returns the TLS configuration that impersonates `host` towards a client whose tunnel is inspected.
    pub fn issue_leaf(&self, host: &Host, now: Timestamp) -> Result<Arc<ServerConfig>, IssueError> {
        match (&self.leaf_issuer, &self.plan.inspection_ca) {
            (Some(issuer), Some(authority)) => issuer.server_config(authority, host, now),
            _ => Err(IssueError::NoAuthority),
        }
    }

    /// Returns the TLS configuration of a listener, with the fingerprint of its certificates and client trust. `None`: the
    /// listener is plaintext.
    pub fn listener_tls(&self, listen: &config::Listen) -> Option<(&Arc<ServerConfig>, [u8; 32])> {
        self.listener_tls.get(listen).zip(self.plan.listener.tls(listen).map(|tls| tls.fingerprint))
    }

    /// Returns the addresses of a log server or a collector, and the TLS state under `trust`; `None`: under `public`.
    pub async fn find_service(
        &self,
        host: &Host,
        trust: Option<&str>,
        limit: Duration,
    ) -> io::Result<(Arc<[IpAddr]>, Arc<tls::ClientTls>)> {
        let families = Families { v4: true, v6: true };
        let resolved = self.resolver.resolve(host, families, limit).await.map_err(io::Error::other)?;
        let trust = self.plan.trusts.get(trust.unwrap_or(PUBLIC_TRUST));
        let trust = trust.ok_or_else(|| io::Error::other("its trust is no longer configured"))?;
        Ok((resolved.addresses, self.client_tls(trust)))
    }

    /// Returns the TLS state towards targets under this trust.
    pub fn client_tls(&self, trust: &Arc<Trust>) -> Arc<tls::ClientTls> {
        // `new` has made it for every trust of the plan.
        self.client_tls.get(&trust.fingerprint).cloned().unwrap_or_else(|| Arc::new(tls::ClientTls::new(trust)))
    }
}

/// Reuses the leaf certificates of the same authority.
fn leaf_issuer(plan: &Plan, before: Option<&ActiveConfig>) -> io::Result<Option<Arc<LeafIssuer>>> {
    let Some(authority) = &plan.inspection_ca else { return Ok(None) };
    let same = |before: &&ActiveConfig| {
        before.plan.inspection_ca.as_ref().is_some_and(|b| b.fingerprint == authority.fingerprint)
    };
    match before.filter(same).and_then(|before| before.leaf_issuer.clone()) {
        Some(reused) => Ok(Some(reused)),
        None => LeafIssuer::new().map(|issuer| Some(Arc::new(issuer))).map_err(io::Error::other),
    }
}

/// Reuses the TLS configuration of a listener, so that sessions can be resumed, while its certificates and its client trust
/// stay the same.
fn listener_tls(plan: &Plan, before: Option<&ActiveConfig>) -> HashMap<config::Listen, Arc<ServerConfig>> {
    let config_of = |(listen, tls): (&config::Listen, &listener::ServerTls)| {
        let reused = before.and_then(|before| {
            let same = before.plan.listener.tls(listen).is_some_and(|before| before.fingerprint == tls.fingerprint);
            before.listener_tls.get(listen).filter(|_| same).cloned()
        });
        (listen.clone(), reused.unwrap_or_else(|| tls::accept::server_config(tls)))
    };
    plan.listener.all_tls().map(config_of).collect()
}
