//! The configuration in use: the compiled plan, with the resolver and the TLS state that belong to it.
//! What of the configuration before does a reload keep?

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use rustls::ServerConfig;

use crate::config::{self, SelectionPolicy};
use crate::names::{Host, PoolName};
use crate::net::fd_limit;
use crate::net::resolve::{Resolver, ResolverConfig};
use crate::net::tls;
use crate::net::tls::leaf_issuer::{IssueError, LeafIssuer};
use crate::policy::Plan;
use crate::policy::egress::Pool;
use crate::policy::guard::ClearedAddresses;
use crate::policy::listener;
use crate::policy::trust::Trust;

/// A plan with what the network rooms made of it. A delivery holds one from its start to its end.
pub struct ActiveConfig {
    pub plan: Plan,
    pub resolver: Arc<Resolver>,
    tls: HashMap<[u8; 32], Arc<tls::ClientTls>>,
    /// Towards clients, on each socket where the plan has it.
    listener_tls: HashMap<config::Listen, Arc<ServerConfig>>,
    mint: Option<Arc<LeafIssuer>>,
    /// How many deliveries each pool has seen, by the IP versions of their targets. One count for all would, where two
    /// kinds alternate, let each see only every other number, and use only half of the addresses.
    turns: HashMap<PoolName, Arc<[AtomicU64; 3]>>,
    random: RandomState,
}

impl ActiveConfig {
    /// Prepares `plan` for the network. What `before` has for the same trust is kept, and with it the sessions that
    /// can be resumed; likewise the resolver and its cache.
    pub fn new(mut plan: Plan, resolver: &config::Resolver, before: Option<&ActiveConfig>) -> io::Result<Self> {
        fd_limit::cap_plan(&mut plan);
        let basis = ResolverConfig::read(resolver)?;
        let resolver = match before.map(|before| &before.resolver) {
            Some(kept) if *kept.basis() == basis => Arc::clone(kept),
            _ => Arc::new(Resolver::new(basis)),
        };
        let terms_of = |trust: &Arc<Trust>| {
            let kept = before.and_then(|before| before.tls.get(&trust.fingerprint)).cloned();
            (trust.fingerprint, kept.unwrap_or_else(|| Arc::new(tls::ClientTls::new(trust))))
        };
        let tls = plan.trusts.values().map(terms_of).collect();
        let turn_of = |name: &PoolName| {
            let kept = before.and_then(|before| before.turns.get(name)).cloned();
            (name.clone(), kept.unwrap_or_default())
        };
        let turns = plan.pools.keys().map(turn_of).collect();
        let listener_tls = listener_tls(&plan, before);
        let mint = mint(&plan, before)?;
        Ok(Self { plan, resolver, tls, listener_tls, mint, turns, random: RandomState::new() })
    }

    /// The position in the round for a pool that spreads, a random number for one that throws dice.
    pub fn next_rotation(&self, pool: &Pool, cleared: &ClearedAddresses) -> u64 {
        let has = |v6| cleared.addresses().iter().any(|address| address.is_ipv6() == v6);
        let kind = if has(false) { usize::from(has(true)) } else { 2 };
        let next = || self.turns.get(pool.name()).map_or(0, |turns| turns[kind].fetch_add(1, Ordering::Relaxed));
        match pool.select() {
            SelectionPolicy::Sticky => 0,
            SelectionPolicy::Spread => next(),
            SelectionPolicy::Random => self.random.hash_one(next()),
        }
    }

    /// What a client is shown in the place of `host`, where tunnels are inspected.
    pub fn issue_leaf(&self, host: &Host, now: Timestamp) -> Result<Arc<ServerConfig>, IssueError> {
        match (&self.mint, &self.plan.inspection_ca) {
            (Some(mint), Some(authority)) => mint.server_config(authority, host, now),
            _ => Err(IssueError::NoAuthority),
        }
    }

    /// TLS on a socket, and the fingerprint of what it shows and believes; `None`: plaintext.
    pub fn listener_tls(&self, listen: &config::Listen) -> Option<(&Arc<ServerConfig>, [u8; 32])> {
        self.listener_tls.get(listen).zip(self.plan.listener.tls(listen).map(|tls| tls.fingerprint))
    }

    pub fn tls_terms(&self, trust: &Arc<Trust>) -> Arc<tls::ClientTls> {
        // Every trust of the plan has them: `new` made them.
        self.tls.get(&trust.fingerprint).cloned().unwrap_or_else(|| Arc::new(tls::ClientTls::new(trust)))
    }
}

/// What was minted in the name of the same authority is kept.
fn mint(plan: &Plan, before: Option<&ActiveConfig>) -> io::Result<Option<Arc<LeafIssuer>>> {
    let Some(authority) = &plan.inspection_ca else { return Ok(None) };
    let same = |before: &&ActiveConfig| {
        before.plan.inspection_ca.as_ref().is_some_and(|b| b.fingerprint == authority.fingerprint)
    };
    match before.filter(same).and_then(|before| before.mint.clone()) {
        Some(kept) => Ok(Some(kept)),
        None => LeafIssuer::new().map(|mint| Some(Arc::new(mint))).map_err(io::Error::other),
    }
}

/// A session can be resumed for as long as what is shown and whom we believe stay the same.
fn listener_tls(plan: &Plan, before: Option<&ActiveConfig>) -> HashMap<config::Listen, Arc<ServerConfig>> {
    let config_of = |(listen, tls): (&config::Listen, &listener::ServerTls)| {
        let kept = before.and_then(|before| {
            let same = before.plan.listener.tls(listen).is_some_and(|before| before.fingerprint == tls.fingerprint);
            before.listener_tls.get(listen).filter(|_| same).cloned()
        });
        (listen.clone(), kept.unwrap_or_else(|| tls::accept::server_config(tls)))
    };
    plan.listener.all_tls().map(config_of).collect()
}
