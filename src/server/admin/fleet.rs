//! The fleet of this instance as JSON, for `outgate fleet`.
//! Which instances are live?

use http::StatusCode;
use serde_json::{Value, json};

use super::problem::AdminProblem;
use crate::state::Runtime;
use crate::state::fleet::Fleet;

/// Returns the fleet, if the configuration has one.
fn of(runtime: &Runtime) -> Result<&Fleet, AdminProblem> {
    let missing = || AdminProblem::new(StatusCode::CONFLICT, "the active configuration has no [fleet]");
    runtime.fleet.get().map(|fleet| &**fleet).ok_or_else(missing)
}

pub(super) fn report(runtime: &Runtime) -> Result<Value, AdminProblem> {
    let fleet = of(runtime)?;
    if let Some(reason) = fleet.degraded_reason() {
        return Err(AdminProblem::new(StatusCode::SERVICE_UNAVAILABLE, reason));
    }
    Ok(json!({ "instance": fleet.instance(), "live": fleet.live() }))
}
