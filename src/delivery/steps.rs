//! The steps before the connection, in the order in which webhooks and tunnels take them.
//! May this delivery contact its target now, and over which hops?

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::net::IpAddr;
use std::sync::Arc;

use fnv::FnvHasher;
use jiff::Timestamp;

use super::context::Delivery;
use super::judge::Routed;
use super::record::{Record, Step};
use super::refusal::{Code, Refusal};
use crate::config::SelectionPolicy;
use crate::names::{Host, LimitName, TenantName};
use crate::policy::egress::{self, Families, HopError, Hops, Pool};
use crate::policy::guard::ClearedAddresses;
use crate::policy::route::Route;
use crate::state::Runtime;
use crate::state::limits::LimitPermit;
use crate::state::limits::admission::InFlightGuard;
use crate::state::upstreams::breaker::{BreakerKey, UpstreamAttempt};

/// Uses up the client's signature in the whole fleet. A process that belongs to no fleet has done so when it authenticated
/// the client.
pub(super) async fn claim_signature(delivery: &Delivery<'_>, routed: &Routed<'_>) -> Result<(), Refusal> {
    let (Some(token), Some(fleet)) = (&routed.replay_token, delivery.runtime.fleet.get()) else { return Ok(()) };
    Ok(fleet.claim_signature(delivery.client, token, Timestamp::now()).await?)
}

/// Refuses a delivery to a target whose circuit is open. The refused delivery has cost no token of a limit, no memory for
/// its body, and no wait.
pub(super) fn check_breaker(delivery: &Delivery<'_>, key: &BreakerKey) -> Result<(), Refusal> {
    if delivery.active.plan.breaker.is_none() {
        return Ok(());
    }
    Ok(delivery.runtime.circuit_breakers.check(key, std::time::Instant::now())?)
}

/// Takes a place under each limit of the route, and waits for it as long as the limit allows.
pub(super) async fn acquire_limits(delivery: &Delivery<'_>, record: &mut Record) -> Result<LimitPermit, Refusal> {
    let (limits, descriptor) = (&delivery.route.limits, delivery.limit_descriptor());
    let redactor = &delivery.active.plan.redactor;
    // The parts of the key by which the limit of this name counts.
    let key = |name: &LimitName| {
        let limit = limits.iter().find(|limit| limit.name == *name);
        limit.map(|limit| limit.key(&descriptor).dimensions(redactor)).unwrap_or_default()
    };
    record.begin(Step::Admit);
    let permit = delivery.runtime.limits.acquire(limits, &descriptor).await.map_err(|exceeded| {
        record.limited(exceeded.limit.as_str(), key(&exceeded.limit));
        Refusal::from(exceeded)
    })?;
    for (kind, limit) in permit.would_refuse() {
        record.would_refuse("limit", limit.as_str(), Code::from(*kind), key(limit));
    }
    record.step(Step::Admit);
    Ok(permit)
}

/// Takes a place under `server.max_deliveries`.
///
/// This step precedes the body and the sockets to the target. It follows authentication, because requests of unknown
/// clients would otherwise push others out of the queue.
pub(super) async fn acquire_slot(delivery: &Delivery<'_>, record: &mut Record) -> Result<InFlightGuard, Refusal> {
    let slot = delivery.runtime.admission.acquire(delivery.active.plan.max_deliveries).await;
    slot.map_err(|overloaded| {
        delivery.runtime.metrics.deliveries_shed.inc();
        record.limited("server.max_deliveries", BTreeMap::new());
        overloaded.into()
    })
}

/// Begins the attempt to contact the target. `None`: the configuration has no circuit breaker.
///
/// A half-open circuit admits one attempt. A delivery begins it only now, so that its waits keep no other from probing.
pub(super) fn begin_attempt(delivery: &Delivery<'_>, key: BreakerKey) -> Result<Option<UpstreamAttempt>, Refusal> {
    let Some(config) = delivery.active.plan.breaker else { return Ok(None) };
    Ok(Some(delivery.runtime.circuit_breakers.begin(key, config, std::time::Instant::now())?))
}

/// Resolves the target, and chooses the hops: each leads from a usable source of the pool to an address that the guard
/// clears.
pub(super) async fn plan_hops(delivery: &Delivery<'_>, record: &mut Record) -> Result<Hops, Refusal> {
    let &Delivery { runtime, active, route, tenant, target, .. } = delivery;
    record.begin(Step::Resolve);
    let families = pool_now(runtime, route)?.families(Timestamp::now());
    if !families.v4 && !families.v6 {
        return Err(HopError::NoUsableSource.into());
    }
    let cleared = resolve(delivery, families).await?;
    if let Some(denied) = cleared.would_deny() {
        record.would_refuse("guard", &denied.to_string(), Code::TargetForbidden, BTreeMap::new());
    }
    // A reload may have changed the pool while the name was resolved.
    let pool = &pool_now(runtime, route)?;
    let rotation = active.next_rotation(pool, &cleared);
    // Only sticky selection reads the hash.
    let is_sticky = pool.select() == SelectionPolicy::Sticky;
    let affinity = if is_sticky { affinity_hash(tenant, &target.host) } else { 0 };
    let (view, now) = (runtime.sources.snapshot(), Timestamp::now());
    let choose = |usable: &dyn Fn(_) -> bool| egress::select_hops(pool, &cleared, affinity, rotation, now, usable);
    // Sticky selection keeps to its source: a hint must not change the address that a tenant's targets see.
    let fleet = runtime.fleet.get().filter(|_| !is_sticky);
    let hints = fleet.map(|fleet| fleet.gap_hints(target)).unwrap_or_default();
    let is_preferred = |source| view.has(source) && !runtime.source_health.is_ejected(source);
    // An ejected source serves where the pool has no other.
    let hops = choose(&|source| is_preferred(source) && !hints.iter().any(|hint| hint.source == Some(source)))
        .or_else(|_| choose(&is_preferred))
        .or_else(|_| choose(&|source| view.has(source)))?;
    record.step(Step::Resolve);
    Ok(hops)
}

/// Resolves the target's name to addresses of these families, and checks every address with the guard.
pub(super) async fn resolve(delivery: &Delivery<'_>, families: Families) -> Result<ClearedAddresses, Refusal> {
    let &Delivery { runtime, active, route, target, .. } = delivery;
    let answer = active.resolver.resolve(&target.host, families, route.timeouts.dns).await?;
    Ok(active.plan.guard.clear(target, &answer.addresses, &runtime.sources.local_addresses())?)
}

/// Returns the pool of the configuration that is active now: a removed address opens no connection.
pub(super) fn pool_now(runtime: &Runtime, route: &Route) -> Result<Arc<Pool>, HopError> {
    runtime.active_config().plan.pools.get(route.pool.name()).cloned().ok_or(HopError::NoUsableSource)
}

/// Returns the hash by which sticky selection chooses a source: FNV-1a of 64 bits.
///
/// It is the same in every process, release and build: the source address of a tenant must not change with a library.
pub(super) fn affinity_hash(tenant: Option<&TenantName>, host: &Host) -> u64 {
    let mut hash = FnvHasher::default();
    hash.write(tenant.map_or("", TenantName::as_str).as_bytes());
    hash.write(&[0xFF]); // no byte of UTF-8
    match host {
        Host::Name(name) => hash.write(name.as_bytes()),
        Host::Ip(IpAddr::V4(ip)) => hash.write(&ip.octets()),
        Host::Ip(IpAddr::V6(ip)) => hash.write(&ip.octets()),
    }
    hash.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another value would move the webhooks of tenants to other source addresses. An independent implementation computed
    /// these values.
    #[test]
    fn affinity_hash_is_the_same_in_every_release() {
        let name = |name: &str| Host::Name(name.into());
        let hooks = name("hooks.acme.example");
        for (tenant, host, expected) in [
            (None, &hooks, 0x29b1_11b9_3d0f_7a36),
            (Some("acme"), &hooks, 0xff21_6012_086f_4014),
            (Some("acme"), &name("hooks.example"), 0x627e_12cb_c05f_0b70),
            (Some("acmehooks"), &name(".example"), 0xee68_c063_52ee_e582),
            (None, &Host::Ip([192, 0, 2, 1].into()), 0xdb07_23f9_4bbb_80ef),
        ] {
            assert_eq!(affinity_hash(tenant.map(TenantName::new).as_ref(), host), expected, "{tenant:?} {host}");
        }
    }
}
