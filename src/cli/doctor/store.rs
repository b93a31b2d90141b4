//! The check of the store that a fleet shares.
//! Does the store answer this host, with the rights that an instance needs, and within `fleet.wait`?

use std::fmt::Display;
use std::time::{Duration, Instant};

use super::super::local_runtime::new_tokio_runtime;
use super::Examination;
use super::finding::Finding;
use crate::config::{self, Fleet};
use crate::net::store::{Store, StoreError, script};

/// The calls whose median is the usual round trip.
const CALLS: usize = 9;

/// Checks that the store answers, and how fast.
pub(super) fn store(subject: &Examination<'_>) -> Vec<Finding> {
    let fleet = subject.config().and_then(|config| config.fleet.as_ref()).filter(|_| subject.host.is_real());
    let (Some(fleet), Ok(runtime)) = (fleet, new_tokio_runtime()) else { return Vec::new() };
    let finding = match runtime.block_on(round_trip(fleet)) {
        Err(error) => Finding::problem(
            format!("the store of the fleet does not do what an instance needs: {error}"),
            "see \"The store\" in docs/fleet.md: its address, TLS, the ACL user on each server, and maxmemory",
        ),
        Ok(time) if time > fleet.wait => Finding::warning(
            format!(
                "the store of the fleet answers after {time:.1?}, and a delivery waits for {:?}: limits would use the share \
                 of this instance",
                fleet.wait
            ),
            format!(
                "write wait = \"{}ms\" in [fleet], or bring the store nearer",
                (2 * time.as_millis() + 1).min(config::FLEET_WAIT_MAX.as_millis())
            ),
        ),
        Ok(time) => Finding::ok(format!("the store of the fleet answers after {time:.1?}")),
    };
    vec![finding]
}

/// Makes the calls of limits, signatures and rollouts, and returns the median of the shortest ones. The keys that they write end
/// within seconds.
async fn round_trip(fleet: &Fleet) -> Result<Duration, StoreError> {
    let store = Store::new(fleet, 1)?;
    store.connect().await?;
    let key = |name: &str| format!("{}:{{{name}}}", fleet.prefix);
    let _: Vec<Vec<u8>> = store.run(&script::LIVE_INSTANCES, &[&key("instances")], &[]).await?;
    let _: Vec<Vec<u8>> = store.run(&script::REPORT_ROLLOUT, &[&key("rollout")], &[&"", &""]).await?;
    store.claim(&key("doctor"), "doctor", Duration::from_secs(1)).await?;
    let process = format!("doctor:{}", std::process::id());
    let lease: &[&(dyn Display + Sync)] = &[&process, &1, &0, &1, &1000, &1000, &250, &1];
    let _: [i64; 2] = store.run(&script::LEASE_PERMITS, &[&format!("{}:permits", key("doctor"))], lease).await?;
    let tokens: &[&(dyn Display + Sync)] = &[&1, &1_000_000, &1, &0, &1, &1, &0, &0, &0, &1, &1000];
    let keys = ["tokens", "tokens:reports"].map(|name| format!("{}:{name}", key("doctor")));
    let _: [i64; 6] = store.run(&script::TAKE_TOKENS, &keys.each_ref().map(String::as_str), tokens).await?;
    let mut times = [Duration::ZERO; CALLS];
    for time in &mut times {
        let begun_at = Instant::now();
        store.get(&key("doctor"), 1).await?;
        *time = begun_at.elapsed();
    }
    times.sort_unstable();
    Ok(times[CALLS / 2])
}
