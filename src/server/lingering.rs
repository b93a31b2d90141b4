//! The bounds for what is read away of a request that has its answer already.
//! How much, and for how long, may a client go on with it?

use std::time::Duration;

use crate::state::Runtime;

/// From the answer to the close (nginx: `lingering_time`).
pub(super) const TOTAL: Duration = Duration::from_secs(30);
/// Between two pieces of a body (nginx: `lingering_timeout`).
pub(super) const STALL: Duration = Duration::from_secs(5);
/// Bytes. A body that is refused for its size is larger than the route allows.
const LEAST: u64 = 16 << 20;

/// The bytes that are read away of one request: the largest `body_max`, since many refusals come before the route is known.
pub(super) fn limit(runtime: &Runtime) -> u64 {
    runtime.active_config().plan.routes.body_max().max(LEAST)
}
