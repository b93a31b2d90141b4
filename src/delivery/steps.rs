//! The steps that a webhook and a tunnel have in common.
//! Who asks, may they now, and which ways lead there?

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use jiff::Timestamp;

use super::errors;
use super::record::{Record, Step};
use super::refusal::{Code, Refusal};
use crate::names::{ClientName, Host, LimitName, Target, TenantName};
use crate::policy::Plan;
use crate::policy::egress::{self, Hop, HopError, Pool};
use crate::policy::limits::LimitDescriptor;
use crate::policy::route::Route;
use crate::state::Runtime;
use crate::state::config::ActiveConfig;
use crate::state::limits::LimitPermit;
use crate::state::limits::admission::InFlightGuard;

/// One of those in flight, wherever they go. Comes before all that costs something and after all that refuses strangers,
/// whose requests would else push others out of the line.
pub(super) async fn acquire_slot(
    runtime: &Runtime,
    plan: &Plan,
    record: &mut Record,
) -> Result<InFlightGuard, Refusal> {
    let entered = runtime.admission.acquire(plan.max_deliveries).await;
    entered.map_err(|busy| {
        runtime.metrics.deliveries_shed.inc();
        record.limited("server.max_deliveries", BTreeMap::new());
        busy.into()
    })
}

pub(super) async fn acquire_limits(
    runtime: &Runtime,
    route: &Route,
    client: &ClientName,
    tenant: Option<&TenantName>,
    target: &Target,
    record: &mut Record,
) -> Result<LimitPermit, Refusal> {
    let who = LimitDescriptor { client, tenant, route: &route.name, host: &target.host, egress: route.pool.name() };
    // The parts of the key that the limit of this name counts by.
    let key = |name: &LimitName| {
        let limit = route.limits.iter().find(|limit| limit.name == *name);
        limit.map(|limit| limit.key(&who).parts()).unwrap_or_default()
    };
    record.begin(Step::Admit);
    let permit = runtime.limits.acquire(&route.limits, &who).await.map_err(|limited| {
        record.limited(limited.limit.as_str(), key(&limited.limit));
        Refusal::from(limited)
    })?;
    for (kind, limit) in permit.would_refuse() {
        record.limit_would_refuse(limit.as_str(), errors::limited(*kind), key(limit));
    }
    record.step(Step::Admit);
    Ok(permit)
}

/// The ways to a target, all judged: from an address of the pool that is usable, to one that the guard clears.
pub(super) async fn plan_hops(
    runtime: &Runtime,
    active: &ActiveConfig,
    route: &Route,
    tenant: Option<&TenantName>,
    target: &Target,
    record: &mut Record,
) -> Result<Vec<Hop>, Refusal> {
    record.begin(Step::Resolve);
    // What left the pool since the delivery began opens no connection any more: the pool is the one in force now.
    let families = pool_now(runtime, route)?.families(Timestamp::now());
    if !families.v4 && !families.v6 {
        return Err(HopError::NoUsableSource.into());
    }
    let answers = active.resolver.resolve(&target.host, families, route.timeouts.dns).await?;
    let cleared = active.plan.guard.clear(target, &answers.addresses, &runtime.sources.own())?;
    if let Some(denied) = cleared.would_deny() {
        record.would_refuse("guard", &denied.to_string(), Code::TargetForbidden);
    }
    let pool = &pool_now(runtime, route)?;
    let turn = active.next_rotation(pool, &cleared);
    let (view, stick, now) = (runtime.sources.view(), affinity_hash(tenant, &target.host), Timestamp::now());
    let choose = |usable: &dyn Fn(_) -> bool| egress::choose(pool, &cleared, stick, turn, now, usable);
    // An address that nobody answers is used where there is no other: it is of the pool, too.
    let hops = choose(&|source| view.has(source) && !runtime.source_health.is_resting(source))
        .or_else(|_| choose(&|source| view.has(source)))?;
    record.step(Step::Resolve);
    Ok(hops)
}

/// The pool as it is in force now.
fn pool_now(runtime: &Runtime, route: &Route) -> Result<Arc<Pool>, HopError> {
    runtime.active_config().plan.pools.get(route.pool.name()).cloned().ok_or(HopError::NoUsableSource)
}

/// What sticky selection sticks to. The same in every process, release and build: a customer's source address must not
/// move because a library's hash did.
pub(super) fn affinity_hash(tenant: Option<&TenantName>, host: &Host) -> u64 {
    let mut context = Context::new(&SHA256);
    let tenant = tenant.map_or("", TenantName::as_str);
    context.update(&(tenant.len() as u64).to_be_bytes());
    context.update(tenant.as_bytes());
    context.update(host.to_string().as_bytes());
    let digest = context.finish();
    digest.as_ref().iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
