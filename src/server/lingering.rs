//! The limits for reading the rest of a request that has its response already.
//! How much of such a request is read, and for how long?

use std::time::Duration;

use crate::state::Runtime;

/// The time from the response to the close (nginx: `lingering_time`).
pub(super) const LINGERING_TIME: Duration = Duration::from_secs(30);
/// The time between two reads (nginx: `lingering_timeout`).
pub(super) const LINGERING_TIMEOUT: Duration = Duration::from_secs(5);
/// The minimum of [`bytes_max`], in bytes. A body that is refused for its size is larger than the route allows.
const BYTES_MIN: u64 = 16 << 20;

/// Returns how many bytes of one request are discarded: the largest `body_max`, because many refusals precede routing.
pub(super) fn bytes_max(runtime: &Runtime) -> u64 {
    runtime.active_config().plan.routes.body_max().max(BYTES_MIN)
}
