//! What changes without being told: the host's addresses, the age of connections, what is remembered of others.
//! Is what the proxy remembers still so, and has anything to be said?

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::{info, warn};

use crate::names::{PoolName, counted};
use crate::state::Runtime;
use crate::state::config::ActiveConfig;
use crate::state::upstreams::breaker::CircuitTransition;
use crate::state::upstreams::health::HealthEvent;

const EVERY: Duration = Duration::from_secs(5);

pub async fn run(live: Arc<Runtime>) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut usable, mut is_outage, mut was_ready) = (None, false, None);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            // A range ends when it was said to, not some seconds later.
            () = tokio::time::sleep(next_end(&live.in_force())) => {
                live.sweep_connections();
                continue;
            }
            () = live.configuration.changed() => continue,
        }
        live.sources.refresh();
        let in_force = live.in_force();
        sweep(&live, &in_force).await;
        for warning in live.reminders.due(&in_force.plan.expiries, Timestamp::now()) {
            warn!("{warning}");
        }
        tell_of_keys(&live, &in_force).await;
        tell_of_targets(&live);
        tell_of_pools(&live, &in_force, &mut usable);
        log_dns_outage(&in_force, &mut is_outage);
        log_readiness(&live, &mut was_ready);
        live.records.retry_reopen();
        if let Some(loss) = live.records.loss_due(Instant::now()) {
            warn!("{loss}");
        }
    }
}

/// How long until the next of our ranges ends, if that is soon.
fn next_end(in_force: &ActiveConfig) -> Duration {
    let now = Timestamp::now();
    let ranges = in_force.plan.pools.values().flat_map(|pool| pool.announced(now));
    let ends = ranges.filter_map(|range| range.until).filter(|until| *until > now);
    ends.min().map_or(2 * EVERY, |until| until.duration_since(now).unsigned_abs())
}

/// Forgets what nobody needs any more.
async fn sweep(live: &Runtime, in_force: &ActiveConfig) {
    let (now, credentials) = (Timestamp::now(), &in_force.plan.credentials);
    live.sweep_retired();
    live.limits.sweep().await;
    live.replay.sweep(now);
    live.circuits.sweep(in_force.plan.fuse.as_ref());
    live.tokens.sweep(|print| credentials.values().any(|credential| credential.fetches_as(print)));
    live.sweep_connections();
}

/// Which signers have no key, or soon will have none.
async fn tell_of_keys(live: &Runtime, in_force: &Arc<ActiveConfig>) {
    let (now, theirs) = (Timestamp::now(), Arc::clone(in_force));
    // Not on the threads that carry traffic: tens of thousands of tenants may have keys.
    let faults = live.inquiries.run(move || {
        let faults = theirs.plan.signers.values().flat_map(|signer| signer.problems(now));
        faults.map(|fault| fault.message).collect()
    });
    let Ok(faults) = faults.await else { return };
    for fault in live.signing.due(in_force.plan.digest, faults, now) {
        warn!("{fault}");
    }
}

/// What deliveries have found out about those that they go to.
fn tell_of_targets(live: &Runtime) {
    for change in live.circuits.changes() {
        match change.now {
            CircuitTransition::Open { .. } => warn!("{change}"),
            CircuitTransition::Closed { .. } => info!("{change}"),
        }
    }
    for news in live.reach.review() {
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
fn log_dns_outage(in_force: &ActiveConfig, was_outage: &mut bool) {
    let (outage, servers) = (in_force.resolver.outage(), in_force.resolver.server_list());
    match (outage, *was_outage) {
        (Some(_), false) => {
            warn!("no name server responds ({servers}): names that are not cached fail with name_timeout")
        }
        (None, true) => info!("a name server responds again ({servers})"),
        _ => {}
    }
    *was_outage = outage.is_some();
}

/// How many addresses of each pool are usable, where that has changed.
fn tell_of_pools(live: &Runtime, in_force: &ActiveConfig, before: &mut Option<Vec<(PoolName, u128)>>) {
    let (now, view) = (Timestamp::now(), live.sources.view());
    let counts = in_force.plan.pools.iter().map(|(name, pool)| (name.clone(), view.count(&pool.in_force(now))));
    let counts: Vec<_> = counts.collect();
    for (name, count) in &counts {
        match before.iter().flatten().find(|(other, _)| other == name) {
            Some((_, then)) if then > count => {
                warn!("egress pool {name}: {} left of {then}", counted(*count, "usable address"))
            }
            Some((_, then)) if then < count => {
                info!("egress pool {name}: {}, {then} before", counted(*count, "usable address"))
            }
            _ => {}
        }
    }
    *before = Some(counts);
}

/// Logs when outgate becomes ready, and when it no longer is. How it started is in the log already.
fn log_readiness(live: &Runtime, was_ready: &mut Option<bool>) {
    let blocked = live.readiness().blocked;
    match (was_ready.replace(blocked.is_empty()), blocked.is_empty()) {
        (Some(false), true) => info!("ready"),
        (Some(true), false) if !live.is_draining() => warn!("not ready: {}", blocked.join(", ")),
        _ => {}
    }
}
