//! The periodic maintenance: it sweeps expired state, and logs changes.
//! Which state has expired, and which changes does the log report?

pub mod addresses;
pub mod alerts;
pub mod hints;
pub mod notices;
mod own_webhooks;
pub mod rollout;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tracing::{info, warn};

use crate::audit::{ADDRESS_RETRIED, ADDRESS_UNANSWERED};
use crate::policy::Plan;
use crate::state::Runtime;
use crate::state::config::ActiveConfig;
use crate::state::drain::DrainStage;
use crate::state::upstreams::breaker::CircuitTransition;
use crate::state::upstreams::health::{EJECTION_TIME, HealthEvent};
use addresses::record_address;

const INTERVAL: Duration = Duration::from_secs(5);

fn ticks() -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}

pub async fn run(runtime: Arc<Runtime>) {
    let mut ticks = ticks();
    let (mut is_outage, mut was_ready) = (false, None);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            // The connections of a range close when it ends, not at the next tick.
            () = tokio::time::sleep(time_to_next_end(&runtime.active_config())) => {
                runtime.sweep_connections();
                continue;
            }
            () = runtime.config_status.changed() => continue,
        }
        let active = runtime.active_config();
        sweep(&runtime, &active).await;
        for warning in runtime.expiry_warnings.due(&active.plan.expiries, Timestamp::now()) {
            warn!("{warning}");
        }
        log_signer_problems(&runtime, &active).await;
        log_target_changes(&runtime, &active.plan);
        log_dns_outage(&active, &mut is_outage);
        log_readiness(&runtime, &mut was_ready);
        runtime.audit.record_counts(Timestamp::now());
        runtime.captures.sweep(&runtime, &active.plan.captures);
        if let Some(loss) = runtime.records.loss_due(Instant::now()) {
            warn!("{loss}");
        }
    }
}

/// Returns the time until the next source range ends, or a longer time than the interval.
fn time_to_next_end(active: &ActiveConfig) -> Duration {
    let now = Timestamp::now();
    let ranges = active.plan.pools.values().flat_map(|pool| pool.announced_ranges(now));
    let ends = ranges.filter_map(|range| range.until).filter(|until| *until > now);
    ends.min().map_or(2 * INTERVAL, |until| until.duration_since(now).unsigned_abs())
}

/// Removes expired state.
async fn sweep(runtime: &Runtime, active: &ActiveConfig) {
    let (now, credentials) = (Timestamp::now(), &active.plan.credentials);
    runtime.sweep_deferred_drops();
    runtime.limits.sweep().await;
    runtime.replay_cache.sweep(now);
    runtime.circuit_breakers.sweep(active.plan.breaker.as_ref(), Instant::now());
    runtime.tokens.sweep(Instant::now(), |fingerprint| {
        credentials.values().any(|credential| credential.has_fingerprint(fingerprint))
    });
    runtime.sweep_connections();
}

/// Logs the problems of signing keys: signers without a key, now or soon.
async fn log_signer_problems(runtime: &Runtime, active: &Arc<ActiveConfig>) {
    let (now, active) = (Timestamp::now(), Arc::clone(active));
    let digest = active.plan.digest;
    // Runs on a background thread, since tens of thousands of tenants may have keys.
    let problems = runtime.admin_worker.run(move || {
        let problems = active.plan.signers.values().flat_map(|signer| signer.problems(now));
        problems.map(|problem| problem.message).collect()
    });
    let Ok(problems) = problems.await else { return };
    for problem in runtime.signer_warnings.due(digest, problems, now) {
        warn!("{problem}");
    }
}

/// Logs the circuits that opened or closed, and the changes of source health.
fn log_target_changes(runtime: &Runtime, plan: &Plan) {
    let (redactor, now) = (&plan.redactor, Timestamp::now());
    for event in runtime.circuit_breakers.take_events() {
        let text = event.to_string();
        match event.transition {
            CircuitTransition::Open { .. } => warn!("{}", redactor.text(&text)),
            CircuitTransition::Closed { .. } => info!("{}", redactor.text(&text)),
        }
    }
    for event in runtime.source_health.review(Instant::now(), |source| plan.seen_as(source, now)) {
        match event {
            HealthEvent::GapSuspected(text) => warn!("{}", redactor.text(&text)),
            HealthEvent::GapClosed(target) => {
                info!("the allow-list of {} is no longer suspected to lack a source address", redactor.text(&target))
            }
            HealthEvent::Ejected(source, networks) => {
                let what = format!("no target answers the source {source}, of targets in {networks} networks");
                record_address(runtime, ADDRESS_UNANSWERED, &source.to_string(), what);
                warn!(
                    "source {source} timed out to targets in {networks} networks that respond to other sources, and no \
                     target responds to it; outgate prefers other sources for {} s: check that packets to {source} are \
                     routed to this host",
                    EJECTION_TIME.as_secs()
                );
            }
            HealthEvent::HalfOpen(source) => {
                let what = format!("source {source} is used again: outgate no longer prefers other sources");
                info!("{what}");
                record_address(runtime, ADDRESS_RETRIED, &source.to_string(), what);
            }
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

/// Logs when outgate becomes ready, and when it is no longer ready. The readiness at the start is in the log already.
fn log_readiness(runtime: &Runtime, was_ready: &mut Option<bool>) {
    let blocked = runtime.blocked(Timestamp::now());
    match (was_ready.replace(blocked.is_empty()), blocked.is_empty()) {
        (Some(false), true) => info!("ready"),
        (Some(true), false) if runtime.drain_stage() == DrainStage::Serving => {
            warn!("not ready: {}; outgate refuses every webhook until that changes", blocked.join(", "))
        }
        _ => {}
    }
}
