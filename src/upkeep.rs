//! Periodic maintenance: refreshes the host's addresses, removes expired state, and logs what has changed.
//! Is the remembered state still valid, and must the operator know of a change?

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::{info, warn};

use crate::names::{PoolName, pluralize};
use crate::state::Runtime;
use crate::state::config::ActiveConfig;
use crate::state::upstreams::breaker::CircuitTransition;
use crate::state::upstreams::health::HealthEvent;

/// The time between two rounds.
const EVERY: Duration = Duration::from_secs(5);

/// Runs the maintenance until the process ends.
pub async fn run(runtime: Arc<Runtime>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut usable, mut is_outage, mut was_ready) = (None, false, None);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            // A range ends at the configured time, not some seconds later.
            () = tokio::time::sleep(next_end(&runtime.active_config())) => {
                runtime.sweep_connections();
                continue;
            }
            () = runtime.config_status.changed() => continue,
        }
        runtime.sources.refresh();
        let active = runtime.active_config();
        sweep(&runtime, &active).await;
        for warning in runtime.expiry_warnings.due(&active.plan.expiries, Timestamp::now()) {
            warn!("{warning}");
        }
        log_keys(&runtime, &active).await;
        log_targets(&runtime);
        log_pools(&runtime, &active, &mut usable);
        log_dns_outage(&active, &mut is_outage);
        log_readiness(&runtime, &mut was_ready);
        runtime.records.retry_reopen();
        if let Some(loss) = runtime.records.loss_due(Instant::now()) {
            warn!("{loss}");
        }
    }
}

/// Returns the time until the next range of a pool ends; two rounds if no range ends.
fn next_end(active: &ActiveConfig) -> Duration {
    let now = Timestamp::now();
    let ranges = active.plan.pools.values().flat_map(|pool| pool.announced_ranges(now));
    let ends = ranges.filter_map(|range| range.until).filter(|until| *until > now);
    ends.min().map_or(2 * EVERY, |until| until.duration_since(now).unsigned_abs())
}

/// Removes expired state.
async fn sweep(runtime: &Runtime, active: &ActiveConfig) {
    let (now, credentials) = (Timestamp::now(), &active.plan.credentials);
    runtime.sweep_retired();
    runtime.limits.sweep().await;
    runtime.replay_cache.sweep(now);
    runtime.circuit_breakers.sweep(active.plan.breaker.as_ref());
    runtime
        .tokens
        .sweep(Instant::now(), |print| credentials.values().any(|credential| credential.has_fingerprint(print)));
    runtime.sweep_connections();
}

/// Logs the signers that have no key, or soon will have none.
async fn log_keys(runtime: &Runtime, active: &Arc<ActiveConfig>) {
    let (now, shared) = (Timestamp::now(), Arc::clone(active));
    // Not on the threads that carry traffic: tens of thousands of tenants may have keys.
    let problems = runtime.admin_worker.run(move || {
        let problems = shared.plan.signers.values().flat_map(|signer| signer.problems(now));
        problems.map(|problem| problem.message).collect()
    });
    let Ok(problems) = problems.await else { return };
    for problem in runtime.signer_warnings.due(active.plan.digest, problems, now) {
        warn!("{problem}");
    }
}

/// Logs the changes that deliveries observed at targets.
fn log_targets(runtime: &Runtime) {
    for change in runtime.circuit_breakers.changes() {
        match change.now {
            CircuitTransition::Open { .. } => warn!("{change}"),
            CircuitTransition::Closed { .. } => info!("{change}"),
        }
    }
    for news in runtime.source_health.review() {
        match news {
            HealthEvent::GapSuspected(words) => warn!("{words}"),
            HealthEvent::GapClosed(target) => {
                info!("{target}: no address of ours is suspected any more to be on no allow-list")
            }
            HealthEvent::Ejected(source, networks) => {
                warn!(
                    "source {source} timed out to targets in {networks} networks that answer other sources, and no \
                     target answers it: other sources are preferred for a minute"
                );
            }
            HealthEvent::HalfOpen(source) => info!("{source} is tried again"),
        }
    }
}

/// Logs the beginning and the end of a DNS outage.
fn log_dns_outage(active: &ActiveConfig, was_outage: &mut bool) {
    let (outage, servers) = (active.resolver.outage(), active.resolver.server_list());
    match (outage, *was_outage) {
        (Some(_), false) => {
            warn!("no name server responds ({servers}): names that are not cached fail with name_timeout")
        }
        (None, true) => info!("a name server responds again ({servers})"),
        _ => {}
    }
    *was_outage = outage.is_some();
}

/// Logs the number of usable addresses of each pool whose number has changed.
fn log_pools(runtime: &Runtime, active: &ActiveConfig, before: &mut Option<Vec<(PoolName, u128)>>) {
    let (now, view) = (Timestamp::now(), runtime.sources.view());
    let counts = active.plan.pools.iter().map(|(name, pool)| (name.clone(), view.count(&pool.active_ranges(now))));
    let counts: Vec<_> = counts.collect();
    for (name, count) in &counts {
        match before.iter().flatten().find(|(other, _)| other == name) {
            Some((_, then)) if then > count => {
                warn!("egress pool {name}: {} left of {then}", pluralize(*count, "usable address"))
            }
            Some((_, then)) if then < count => {
                info!("egress pool {name}: {}, {then} before", pluralize(*count, "usable address"))
            }
            _ => {}
        }
    }
    *before = Some(counts);
}

/// Logs when outgate becomes ready, and when it no longer is. The log already has the state at the start.
fn log_readiness(runtime: &Runtime, was_ready: &mut Option<bool>) {
    let blocked = runtime.readiness().blocked;
    match (was_ready.replace(blocked.is_empty()), blocked.is_empty()) {
        (Some(false), true) => info!("ready"),
        (Some(true), false) if !runtime.is_draining() => warn!("not ready: {}", blocked.join(", ")),
        _ => {}
    }
}
