//! Names to addresses: static names, then DNS, remembered for as long as the answer says.
//! Which addresses does this name have, of the families that the caller can use?
//!
//! A question for one name and family is a task of its own. All callers that want the answer wait for it, each for its
//! own time; the question goes on while one of them waits, and its response is kept if it comes later.

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
use crate::policy::egress::Families;
use answer::FamilyAnswer;
use cache::{CacheLookup, DnsCache, QueryKey, QueryWaiter};
use servers::NameServers;
pub use system::ResolverConfig;

/// How long the addresses of one family wait for those of the other (RFC 8305 §3, Resolution Delay). What comes later is
/// kept, and judged by the guard, for the deliveries after this one.
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);
/// How long a question goes on that no caller waits for any more: its response is kept for the next caller.
const LINGER: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedAddresses {
    /// Without repetitions, IPv6 first, else as the servers ordered them.
    pub addresses: Arc<[IpAddr]>,
    /// Known without asking anybody.
    pub cached: bool,
}

/// Why a name has no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolveError {
    /// No such name, or a name without addresses.
    NotFound,
    /// The name exists, but has no address of the one family that was asked for.
    NoFamily,
    Timeout,
    /// The time was over, and no name server responds to anything.
    Outage,
    /// Every server failed: the response code of one, as the IANA registry spells it (`SERVFAIL`).
    Failed(&'static str),
    /// As many questions are under way as there may be.
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
            Self::Busy => f.write_str("too many names are being resolved"),
        }
    }
}

impl std::error::Error for ResolveError {}

pub struct Resolver {
    basis: ResolverConfig,
    /// Names that DNS is not asked for.
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
    pub fn new(basis: ResolverConfig) -> Self {
        let servers = Arc::new(NameServers::new(basis.servers()));
        Self { hosts: basis.hosts(), basis, cache: Arc::new(DnsCache::new()), servers }
    }

    pub fn basis(&self) -> &ResolverConfig {
        &self.basis
    }

    /// The name servers, for people to read.
    pub fn server_list(&self) -> String {
        let servers = self.servers.addresses().iter().map(ToString::to_string);
        servers.collect::<Vec<_>>().join(", ")
    }

    /// How long no name server has responded to anything. `None`: one does, as far as is known.
    pub fn outage(&self) -> Option<Duration> {
        self.servers.health.outage()
    }

    /// The addresses of `host` of these families, within `timeout`; all of a static name or an address.
    ///
    /// Where a family's servers keep silent, the other's addresses are enough after [`RESOLUTION_DELAY`].
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
        let give_up = Instant::now() + timeout;
        let mut v6 = if families.v6 { self.slot(name, true)? } else { FamilyState::NotRequested };
        let mut v4 = if families.v4 { self.slot(name, false)? } else { FamilyState::NotRequested };
        let cached = !v6.is_waiting() && !v4.is_waiting();
        while let Some(until) = wait_until(&v6, &v4, give_up) {
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
        whole(&v6, &v4).map(|addresses| ResolvedAddresses { addresses, cached })
    }

    /// Looks the name up, and asks for it if nobody does.
    fn slot(&self, name: &Arc<str>, v6: bool) -> Result<FamilyState, ResolveError> {
        let key = QueryKey { name: Arc::clone(name), v6 };
        match self.cache.lookup(key, std::time::Instant::now()) {
            CacheLookup::Hit(answer, since) => Ok(FamilyState::Answered(answer, since.into())),
            CacheLookup::InFlight(waiter) => Ok(FamilyState::Pending(waiter)),
            CacheLookup::Full => Err(ResolveError::Busy),
            CacheLookup::Miss(guard, waiter) => {
                let (servers, name) = (Arc::clone(&self.servers), Arc::clone(name));
                let kind = if v6 { RecordType::AAAA } else { RecordType::A };
                tokio::spawn(async move {
                    let found = tokio::select! {
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

/// What a caller knows of one family.
enum FamilyState {
    /// It has no use for the family.
    NotRequested,
    Pending(QueryWaiter),
    Answered(FamilyAnswer, Instant),
    Failed(ResolveError),
}

impl FamilyState {
    fn is_waiting(&self) -> bool {
        matches!(self, Self::Pending(_))
    }

    /// Waits for the answer; for ever if there is none to wait for.
    async fn settle(&mut self) {
        match self {
            Self::Pending(waiter) => *self = Self::Answered(waiter.answered().await, Instant::now()),
            _ => std::future::pending().await,
        }
    }

    fn give_up(&mut self, servers: &NameServers) {
        if let Self::Pending(waiter) = self {
            let fault = match waiter.progress().error() {
                Some(code) => ResolveError::Failed(code),
                None if servers.health.explains(waiter.progress().started) => ResolveError::Outage,
                None => ResolveError::Timeout,
            };
            *self = Self::Failed(fault);
        }
    }
}

/// Until when a caller waits for what it does not know yet; `None`: it need not.
fn wait_until(v6: &FamilyState, v4: &FamilyState, give_up: Instant) -> Option<Instant> {
    match (v6, v4) {
        // RFC 8020 §2: a name that does not exist does not exist for the other type either.
        (FamilyState::Answered(FamilyAnswer::NoData { no_such_name: true }, _), _)
        | (_, FamilyState::Answered(FamilyAnswer::NoData { no_such_name: true }, _)) => None,
        (FamilyState::Pending(other), FamilyState::Answered(FamilyAnswer::Addresses(_), since))
        | (FamilyState::Answered(FamilyAnswer::Addresses(_), since), FamilyState::Pending(other)) => {
            // A question that was asked long ago has had its time already.
            Some(give_up.min((*since).max(other.progress().started.into()) + RESOLUTION_DELAY))
        }
        (FamilyState::Pending(_), _) | (_, FamilyState::Pending(_)) => Some(give_up),
        _ => None,
    }
}

/// What both families together come to.
fn whole(v6: &FamilyState, v4: &FamilyState) -> Result<Arc<[IpAddr]>, ResolveError> {
    let addresses = |slot: &FamilyState| match slot {
        FamilyState::Answered(FamilyAnswer::Addresses(addresses), _) => Some(Arc::clone(addresses)),
        _ => None,
    };
    match (addresses(v6), addresses(v4)) {
        (Some(v6), Some(v4)) => return Ok(v6.iter().chain(&*v4).copied().collect()),
        (Some(one), None) | (None, Some(one)) => return Ok(one),
        (None, None) => {}
    }
    let is_unknown =
        |slot: &FamilyState| matches!(slot, FamilyState::Answered(FamilyAnswer::NoData { no_such_name: true }, _));
    if is_unknown(v6) || is_unknown(v4) {
        return Err(ResolveError::NotFound);
    }
    let fault = |slot: &FamilyState| match slot {
        FamilyState::Answered(FamilyAnswer::Failed(code), _) => Some(ResolveError::Failed(code)),
        FamilyState::Failed(fault) => Some(*fault),
        _ => None,
    };
    match (fault(v6), fault(v4)) {
        // A server that said no says more than one that said nothing.
        (Some(failed @ ResolveError::Failed(_)), _) | (_, Some(failed @ ResolveError::Failed(_))) => Err(failed),
        (Some(fault), _) | (_, Some(fault)) => Err(fault),
        (None, None) => match (v6, v4) {
            (FamilyState::NotRequested, _) | (_, FamilyState::NotRequested) => Err(ResolveError::NoFamily),
            _ => Err(ResolveError::NotFound),
        },
    }
}

/// What is likely wrong with the name servers that the configuration leads to, for `check` and the log.
pub fn warnings(config: &config::Resolver) -> Vec<Problem> {
    let warnings = ResolverConfig::read(config).map(|basis| basis.warnings()).unwrap_or_default();
    let help = "name the servers in resolver.servers, or add nameserver lines to /etc/resolv.conf";
    warnings.into_iter().map(|warning| Problem::warning(WarningCode::NameServers, None, warning).help(help)).collect()
}

#[cfg(test)]
mod tests;
