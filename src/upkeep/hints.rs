//! The exchange of hints about targets with the other instances of the fleet.
//! Which targets does this instance have trouble with?

use std::sync::Arc;

use crate::state::Runtime;
use crate::state::fleet::Fleet;
use crate::state::fleet::hints::{HINT_INTERVAL, Hint, OWN_HINTS_MAX};

/// Exchanges hints for as long as the process runs. No delivery waits for it.
pub async fn run(runtime: Arc<Runtime>, fleet: Arc<Fleet>) {
    loop {
        fleet.exchange_hints(&own_hints(&runtime, &fleet)).await;
        tokio::time::sleep(HINT_INTERVAL).await;
    }
}

fn own_hints(runtime: &Runtime, fleet: &Fleet) -> Vec<Hint> {
    let circuits = runtime.circuit_breakers.unreachable_targets(OWN_HINTS_MAX);
    let gaps = runtime.source_health.gap_sources(OWN_HINTS_MAX);
    let circuits = circuits.iter().map(|(target, pool)| fleet.circuit_hint(target, pool));
    circuits.chain(gaps.iter().map(|(host, port, source)| fleet.gap_hint(host, *port, *source))).collect()
}
