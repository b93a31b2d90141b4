//! The fleet of this instance as JSON, for `outgate fleet`.
//! Which instances are live, which ranges do they have, and what is wrong?

use http::StatusCode;
use serde_json::{Value, json};

use super::problem::AdminProblem;
use crate::policy::fleet::status::{InstanceAnnouncement, RangeAnnouncement, problems, ranges};
use crate::state::Runtime;
use crate::state::fleet::Fleet;

/// Returns the fleet, if the configuration has one.
fn of(runtime: &Runtime) -> Result<&Fleet, AdminProblem> {
    let missing = || AdminProblem::new(StatusCode::CONFLICT, "the active configuration has no [fleet]");
    runtime.fleet.get().map(|fleet| &**fleet).ok_or_else(missing)
}

/// Reads the announcements of all live processes from the store.
pub(super) async fn announcements(runtime: &Runtime) -> Result<Vec<InstanceAnnouncement>, AdminProblem> {
    let fleet = of(runtime)?;
    let away = |reason: String| AdminProblem::new(StatusCode::SERVICE_UNAVAILABLE, reason);
    if let Some(reason) = fleet.degraded_reason() {
        return Err(away(reason));
    }
    fleet.announcements().await.map_err(|error| away(format!("the store of the fleet is away: {error}")))
}

pub(super) async fn report(runtime: &Runtime) -> Result<Value, AdminProblem> {
    let announcements = announcements(runtime).await?;
    let instance = |found: &InstanceAnnouncement| {
        json!({
            "instance": found.instance, "version": found.version, "digest": found.digest, "started": found.started,
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
        "instance": of(runtime)?.instance(),
        "instances": announcements.iter().map(instance).collect::<Value>(),
        "ranges": ranges(&announcements).into_iter().map(range).collect::<Value>(),
        "problems": problems(&announcements),
    }))
}
