//! The steps that a webhook and a tunnel have in common.
//! Who asks, may they now, and which ways lead there?

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use jiff::Timestamp;

use super::record::{Record, Step};
use super::refusal::{Code, Refusal};
use super::verdict;
use crate::live::gate::Pass;
use crate::live::limits::Permit;
use crate::live::{InForce, Live};
use crate::names::{ClientName, Host, LimitName, Target, TenantName};
use crate::policy::Plan;
use crate::policy::admit::Who;
use crate::policy::egress::{self, Hop, NoHop, Pool};
use crate::policy::route::Route;

/// One of those in flight, wherever they go. Comes before all that costs something and after all that refuses strangers,
/// whose requests would else push others out of the line.
pub(super) async fn enter(live: &Live, plan: &Plan, record: &mut Record) -> Result<Pass, Refusal> {
    let entered = live.gate.enter(plan.max_deliveries).await;
    entered.map_err(|busy| {
        live.meters.deliveries_shed.inc();
        record.limited("server.max_deliveries", BTreeMap::new());
        busy.into()
    })
}

pub(super) async fn admit(
    live: &Live,
    route: &Route,
    client: &ClientName,
    tenant: Option<&TenantName>,
    target: &Target,
    record: &mut Record,
) -> Result<Permit, Refusal> {
    let who = Who { client, tenant, route: &route.name, host: &target.host, egress: route.pool.name() };
    // The parts of the key that the limit of this name counts by.
    let key = |name: &LimitName| {
        let limit = route.limits.iter().find(|limit| limit.name == *name);
        limit.map(|limit| limit.key(&who).parts()).unwrap_or_default()
    };
    record.begin(Step::Admit);
    let permit = live.limits.admit(&route.limits, &who).await.map_err(|limited| {
        record.limited(limited.limit.as_str(), key(&limited.limit));
        Refusal::from(limited)
    })?;
    for (kind, limit) in permit.would_refuse() {
        record.limit_would_refuse(limit.as_str(), verdict::limited(*kind), key(limit));
    }
    record.step(Step::Admit);
    Ok(permit)
}

/// The ways to a target, all judged: from an address of the pool that is usable, to one that the guard clears.
pub(super) async fn hops(
    live: &Live,
    in_force: &InForce,
    route: &Route,
    tenant: Option<&TenantName>,
    target: &Target,
    record: &mut Record,
) -> Result<Vec<Hop>, Refusal> {
    record.begin(Step::Resolve);
    // What left the pool since the delivery began opens no connection any more: the pool is the one in force now.
    let families = pool_now(live, route)?.families(Timestamp::now());
    if !families.v4 && !families.v6 {
        return Err(NoHop::Empty.into());
    }
    let answers = in_force.resolver.resolve(&target.host, families, route.timeouts.dns).await?;
    let cleared = in_force.plan.guard.clear(target, &answers.addresses, &live.sources.own())?;
    if let Some(denied) = cleared.would_deny() {
        record.would_refuse("guard", &denied.to_string(), Code::TargetForbidden);
    }
    let pool = &pool_now(live, route)?;
    let turn = in_force.turn(pool, &cleared);
    let (view, stick, now) = (live.sources.view(), stick(tenant, &target.host), Timestamp::now());
    let choose = |usable: &dyn Fn(_) -> bool| egress::choose(pool, &cleared, stick, turn, now, usable);
    // An address that nobody answers is used where there is no other: it is of the pool, too.
    let hops = choose(&|source| view.has(source) && !live.reach.is_resting(source))
        .or_else(|_| choose(&|source| view.has(source)))?;
    record.step(Step::Resolve);
    Ok(hops)
}

/// The pool as it is in force now.
fn pool_now(live: &Live, route: &Route) -> Result<Arc<Pool>, NoHop> {
    live.in_force().plan.pools.get(route.pool.name()).cloned().ok_or(NoHop::Empty)
}

/// What sticky selection sticks to. The same in every process, release and build: a customer's source address must not
/// move because a library's hash did.
pub(super) fn stick(tenant: Option<&TenantName>, host: &Host) -> u64 {
    let mut context = Context::new(&SHA256);
    let tenant = tenant.map_or("", TenantName::as_str);
    context.update(&(tenant.len() as u64).to_be_bytes());
    context.update(tenant.as_bytes());
    context.update(host.to_string().as_bytes());
    let digest = context.finish();
    digest.as_ref().iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}
