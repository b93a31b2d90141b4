//! The fleet of this instance as JSON, for `outgate fleet`.
//! Which instances are live or lost, which ranges do they have, what is wrong, and to which instance is a range assigned?

use http::StatusCode;
use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::problem::AdminProblem;
use crate::audit::{ADDRESS_ASSIGNED, ADDRESS_RELEASED, Actor, Event, INSTANCE_FORGOTTEN};
use crate::policy::fleet::assignments::Assignments;
use crate::policy::fleet::lost::{FleetInstances, InstanceRow};
use crate::policy::fleet::status::RangeAnnouncement;
use crate::state::Runtime;
use crate::state::fleet::Fleet;

/// Returns the fleet, if the configuration has one.
pub(super) fn of(runtime: &Runtime) -> Result<&Fleet, AdminProblem> {
    let fleet = runtime.fleet.get().map(|fleet| &**fleet);
    fleet.ok_or_else(|| AdminProblem::conflict("the active configuration has no [fleet]"))
}

/// Reads the live and the lost instances from the store.
pub(super) async fn instances(runtime: &Runtime) -> Result<FleetInstances, AdminProblem> {
    let fleet = of(runtime)?;
    match fleet.degraded_reason() {
        Some(reason) => Err(AdminProblem::new(StatusCode::SERVICE_UNAVAILABLE, reason)),
        None => Ok(fleet.instances().await?),
    }
}

pub(super) async fn report(runtime: &Runtime) -> Result<Value, AdminProblem> {
    let instances = instances(runtime).await?;
    let instance = |InstanceRow { shown: found, state, unseen_seconds }: InstanceRow| {
        json!({
            "instance": found.instance, "state": state, "unseen_seconds": unseen_seconds, "version": found.version, "digest": found.digest, "started": found.started,
            "weight": found.weight, "limited_by": found.limited_by, "ready": found.blocked.is_empty(),
            "blocked": found.blocked, "stopping": found.stopping, "clock_offset_ms": found.clock_offset_ms,
        })
    };
    let host = |(instance, found): &(&str, &RangeAnnouncement)| {
        json!({
            "instance": instance, "pool": found.pool, "source": found.source, "state": found.state, "until": found.until,
            "addresses": found.addresses, "present": found.present, "usable": found.usable,
        })
    };
    let range =
        |(range, hosts): (_, Vec<_>)| json!({ "range": range, "hosts": hosts.iter().map(host).collect::<Value>() });
    Ok(json!({
        "instance": of(runtime)?.instance,
        "instances": instances.rows().into_iter().map(instance).collect::<Value>(),
        "ranges": instances.ranges().into_iter().map(range).collect::<Value>(),
        "assignments": assignments(&of(runtime)?.assignments()),
        "problems": of(runtime)?.problems(&instances),
    }))
}

fn assignments(assignments: &Assignments) -> Value {
    assignments.ranges().iter().map(|(range, instance)| json!({ "range": range, "instance": instance })).collect()
}

/// Assigns a published range to a live instance. `None`: each instance that has its addresses uses it.
pub(super) async fn assign(
    runtime: &Runtime,
    range: IpNet,
    to: Option<&str>,
    actor: Actor,
) -> Result<Value, AdminProblem> {
    let fleet = of(runtime)?;
    let announcements = instances(runtime).await?.live;
    // A range of which a part is assigned is announced in parts.
    let is_announced = |of: Option<&str>| {
        let by = announcements.iter().filter(|found| of.is_none_or(|instance| found.instance == instance));
        let announced = by.flat_map(|found| &found.ranges).map(|announced| announced.range);
        IpNet::aggregate(&announced.collect()).iter().any(|announced| announced.contains(&range))
    };
    match to {
        Some(to) if !announcements.iter().any(|found| found.instance == to) => {
            return Err(AdminProblem::field("to", "no live instance has this name: `outgate fleet status` lists them"));
        }
        Some(_) if !is_announced(None) => {
            let detail = "no instance publishes this range: `outgate fleet status` lists them";
            return Err(AdminProblem::field("range", detail));
        }
        Some(to) if !is_announced(Some(to)) => {
            let detail = format!("the file of {to} does not list the range: no instance would send from it");
            return Err(AdminProblem::field("to", detail));
        }
        None if !fleet.assignments().ranges().contains_key(&range) => {
            let detail = "this range is not assigned: `outgate fleet status` lists those that are";
            return Err(AdminProblem::field("range", detail));
        }
        _ => {}
    }
    let assigned = fleet.assign(range, to, runtime).await?;
    let (event_type, what) = match to {
        Some(to) => (ADDRESS_ASSIGNED, format!("the range was assigned to the instance {to}")),
        None => (ADDRESS_RELEASED, "the range is no longer assigned".to_owned()),
    };
    runtime.audit.record(Event::new(event_type, range.to_string(), Timestamp::now(), what).by(actor).with("to", to));
    Ok(json!({ "assignments": assignments(&assigned) }))
}

/// Forgets an instance that does not return. Its ranges are no longer published ones, unless another instance lists them.
pub(super) async fn forget(runtime: &Runtime, instance: &str, actor: Actor) -> Result<Value, AdminProblem> {
    let fleet = of(runtime)?;
    let known = instances(runtime).await?;
    if known.live.iter().any(|found| found.instance == instance) {
        let detail = "this instance is live: stop it first, and wait five seconds";
        return Err(AdminProblem::field("instance", detail));
    }
    // A call whose answer was lost may have done it.
    let was_lost = known.lost.iter().any(|found| found.instance() == instance);
    let forgotten = fleet.forget(instance).await;
    if !was_lost && matches!(forgotten, Ok(false)) {
        let detail = "the fleet has no lost instance with this name: `outgate fleet status` lists them";
        return Err(AdminProblem::field("instance", detail));
    }
    let what = "the fleet no longer expects the instance, and its ranges are no longer published";
    runtime.audit.record(Event::new(INSTANCE_FORGOTTEN, instance, Timestamp::now(), what).by(actor));
    forgotten?;
    let assigned = fleet.assignments();
    Ok(json!({ "instance": instance, "assigned": assigned.ranges_of(instance, true) }))
}
