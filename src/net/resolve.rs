//! The resolver: static names first, then DNS with a cache.
//! Which addresses does this name have, in the families that the caller can use?
//!
//! A query for one name and family runs in its own task. All callers that need the answer wait for it, each with its own
//! timeout. The query goes on while a caller waits, and a later response is still cached.

mod answer;
mod cache;
mod health;
mod query;
mod servers;
mod system;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::RecordType;
use tokio::time::{Instant, sleep_until};

use crate::config::WarningCode;
use crate::config::{self, Problem};
use crate::names::Host;
use crate::panics;
use crate::policy::egress::Families;
use answer::FamilyAnswer;
use cache::{CacheLookup, DnsCache, QueryKey, QueryWaiter};
use servers::NameServers;
pub use system::ResolverConfig;

/// The time for which the addresses of one family wait for the other family (RFC 8305 §3, Resolution Delay). A later answer is
/// cached for the next deliveries.
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);
/// The time for which a query without a waiting caller goes on. Its response is cached for the next caller.
const LINGER: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedAddresses {
    /// The distinct addresses: IPv6 first, otherwise in the order of the response.
    pub addresses: Arc<[IpAddr]>,
    /// No query was necessary.
    pub cached: bool,
}

/// The reasons why a name has no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolveError {
    /// The name does not exist, or has no addresses.
    NotFound,
    /// The name exists, but has no address of the one requested family.
    NoFamily,
    Timeout,
    /// The timeout ended, and no name server responds to any query.
    Outage,
    /// Every server failed. The value is the error of one: its response code (`SERVFAIL`), or a description.
    Failed(&'static str),
    /// The number of queries in flight is at its maximum.
    Busy,
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("the name has no address"),
            Self::NoFamily => f.write_str("the name has no address of this family"),
            Self::Timeout => f.write_str("no answer from the name servers in time"),
            Self::Outage => f.write_str("no name server responds"),
            Self::Failed(code) => write!(f, "every name server failed: {code}"),
            Self::Busy => f.write_str("outgate is resolving too many names at once"),
        }
    }
}

impl std::error::Error for ResolveError {}

pub struct Resolver {
    config: ResolverConfig,
    /// The static names, for which no query is sent.
    hosts: HashMap<Arc<str>, Arc<[IpAddr]>>,
    cache: Arc<DnsCache>,
    servers: Arc<NameServers>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl Resolver {
    pub fn new(config: ResolverConfig) -> Self {
        let servers = Arc::new(NameServers::new(config.servers()));
        Self { hosts: config.hosts(), config, cache: Arc::new(DnsCache::new()), servers }
    }

    pub fn config(&self) -> &ResolverConfig {
        &self.config
    }

    /// Returns the name servers, as text for operators.
    pub fn server_list(&self) -> String {
        let servers = self.servers.addresses().iter().map(ToString::to_string);
        servers.collect::<Vec<_>>().join(", ")
    }

    /// Returns the time for which no name server has responded to any query. `None`: no outage is known.
    pub fn outage(&self) -> Option<Duration> {
        self.servers.health.outage()
    }

    /// Returns the addresses of `host` in these families within `timeout`. A static name or an address ignores the families.
    ///
    /// If the query of one family gets no response, the addresses of the other family are enough after
    /// [`RESOLUTION_DELAY`].
    pub async fn resolve(
        &self,
        host: &Host,
        families: Families,
        timeout: Duration,
    ) -> Result<ResolvedAddresses, ResolveError> {
        let name = match host {
            Host::Ip(ip) => return Ok(ResolvedAddresses { addresses: Arc::new([*ip]), cached: true }),
            Host::Name(name) => name,
        };
        if let Some(addresses) = self.hosts.get(name) {
            return Ok(ResolvedAddresses { addresses: Arc::clone(addresses), cached: true });
        }
        let now = Instant::now();
        let deadline = now + timeout;
        let mut v6 = if families.v6 { self.lookup(name, true, now)? } else { FamilyState::NotRequested };
        let mut v4 = if families.v4 { self.lookup(name, false, now)? } else { FamilyState::NotRequested };
        let cached = !v6.is_waiting() && !v4.is_waiting();
        while let Some(until) = wait_until(&v6, &v4, deadline) {
            tokio::select! {
                biased;
                () = v6.settle() => {}
                () = v4.settle() => {}
                () = sleep_until(until) => {
                    v6.give_up(&self.servers);
                    v4.give_up(&self.servers);
                }
            }
        }
        combine(&v6, &v4).map(|addresses| ResolvedAddresses { addresses, cached })
    }

    /// Looks the name up in the cache. If no query is in flight, it starts one.
    fn lookup(&self, name: &Arc<str>, v6: bool, now: Instant) -> Result<FamilyState, ResolveError> {
        let key = QueryKey { name: Arc::clone(name), v6 };
        match self.cache.lookup(key, now.into_std()) {
            CacheLookup::Hit(answer, since) => Ok(FamilyState::Answered(answer, since.into())),
            CacheLookup::InFlight(waiter) => Ok(FamilyState::Pending(waiter)),
            CacheLookup::Full => Err(ResolveError::Busy),
            CacheLookup::Miss(guard, waiter) => {
                let (servers, name) = (Arc::clone(&self.servers), Arc::clone(name));
                let kind = if v6 { RecordType::AAAA } else { RecordType::A };
                panics::spawn(async move {
                    let found = tokio::select! {
                        biased;
                        found = servers.find(&name, kind, guard.flight()) => found,
                        () = guard.unwanted_for(LINGER) => return,
                    };
                    guard.answer(found, std::time::Instant::now());
                });
                Ok(FamilyState::Pending(waiter))
            }
        }
    }
}

/// The state of one family for one caller.
enum FamilyState {
    /// The caller does not use the family.
    NotRequested,
    Pending(QueryWaiter),
    Answered(FamilyAnswer, Instant),
    Failed(ResolveError),
}

impl FamilyState {
    fn is_waiting(&self) -> bool {
        matches!(self, Self::Pending(_))
    }

    /// Waits for the answer. If none is pending, it never resolves.
    async fn settle(&mut self) {
        match self {
            Self::Pending(waiter) => *self = Self::Answered(waiter.answered().await, Instant::now()),
            _ => std::future::pending().await,
        }
    }

    fn give_up(&mut self, servers: &NameServers) {
        if let Self::Pending(waiter) = self {
            let error = match waiter.progress().error() {
                Some(code) => ResolveError::Failed(code),
                None if servers.health.is_outage_since(waiter.progress().started) => ResolveError::Outage,
                None => ResolveError::Timeout,
            };
            *self = Self::Failed(error);
        }
    }
}

/// Returns the time until which a caller waits for a pending family. `None`: it does not wait.
fn wait_until(v6: &FamilyState, v4: &FamilyState, deadline: Instant) -> Option<Instant> {
    match (v6, v4) {
        // RFC 8020 §2: a name that does not exist does not exist for the other type either.
        (FamilyState::Answered(FamilyAnswer::NoData { no_such_name: true }, _), _)
        | (_, FamilyState::Answered(FamilyAnswer::NoData { no_such_name: true }, _)) => None,
        (FamilyState::Pending(other), FamilyState::Answered(FamilyAnswer::Addresses(_), since))
        | (FamilyState::Answered(FamilyAnswer::Addresses(_), since), FamilyState::Pending(other)) => {
            // The delay counts from the start of the query, which may have been long ago.
            Some(deadline.min((*since).max(other.progress().started.into()) + RESOLUTION_DELAY))
        }
        (FamilyState::Pending(_), _) | (_, FamilyState::Pending(_)) => Some(deadline),
        _ => None,
    }
}

/// Combines the states of both families into one result.
fn combine(v6: &FamilyState, v4: &FamilyState) -> Result<Arc<[IpAddr]>, ResolveError> {
    let addresses = |state: &FamilyState| match state {
        FamilyState::Answered(FamilyAnswer::Addresses(addresses), _) => Some(Arc::clone(addresses)),
        _ => None,
    };
    match (addresses(v6), addresses(v4)) {
        (Some(v6), Some(v4)) => return Ok(v6.iter().chain(&*v4).copied().collect()),
        (Some(one), None) | (None, Some(one)) => return Ok(one),
        (None, None) => {}
    }
    let is_unknown =
        |state: &FamilyState| matches!(state, FamilyState::Answered(FamilyAnswer::NoData { no_such_name: true }, _));
    if is_unknown(v6) || is_unknown(v4) {
        return Err(ResolveError::NotFound);
    }
    let error = |state: &FamilyState| match state {
        FamilyState::Answered(FamilyAnswer::Failed(code), _) => Some(ResolveError::Failed(code)),
        FamilyState::Failed(error) => Some(*error),
        _ => None,
    };
    match (error(v6), error(v4)) {
        // A response code explains more than a missing response.
        (Some(failed @ ResolveError::Failed(_)), _) | (_, Some(failed @ ResolveError::Failed(_))) => Err(failed),
        (Some(error), _) | (_, Some(error)) => Err(error),
        (None, None) => match (v6, v4) {
            (FamilyState::NotRequested, _) | (_, FamilyState::NotRequested) => Err(ResolveError::NoFamily),
            _ => Err(ResolveError::NotFound),
        },
    }
}

/// Returns the likely problems of the configured name servers, for `check` and the log.
pub fn warnings(config: &config::Resolver) -> Vec<Problem> {
    let warnings = ResolverConfig::read(config).map(|config| config.warnings()).unwrap_or_default();
    let help = "name the servers in resolver.servers, or add nameserver lines to /etc/resolv.conf";
    warnings.into_iter().map(|warning| Problem::warning(WarningCode::NameServers, None, warning).help(help)).collect()
}

#[cfg(test)]
mod tests;
