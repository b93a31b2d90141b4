//! Follows the addresses of this host, as the kernel announces their changes.
//! Which source addresses has this host gained or lost?

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::{info, warn};

use super::ticks;
use crate::audit::{ADDRESS_FOUND, ADDRESS_LOST, Event, EventType};
use crate::names::{PoolName, pluralize};
use crate::net::local::AddressEvents;
use crate::state::Runtime;
use crate::state::config::ActiveConfig;

/// The time between two readings. A script adds many addresses one by one.
const READ_INTERVAL: Duration = Duration::from_millis(20);
/// The time in which further changes join the log line of the first one.
const LOG_DELAY: Duration = Duration::from_millis(500);

/// Reads the addresses again after each change and, because the kernel announces some changes not at all, at each tick.
pub async fn follow(runtime: Arc<Runtime>) {
    let mut events = AddressEvents::subscribe().map_err(|error| log_polling(&error)).ok();
    let (mut ticks, mut usable, mut is_unlogged) = (ticks(), None, false);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                runtime.sources.refresh();
                log_pool_changes(&runtime, &runtime.active_config(), &mut usable);
                is_unlogged = false;
            }
            outcome = next_change(&mut events) => match outcome {
                Ok(()) => {
                    runtime.sources.refresh();
                    // A request on an idle connection from a lost address would get no response.
                    runtime.sweep_connections();
                    runtime.announce_change();
                    if !std::mem::replace(&mut is_unlogged, true) {
                        ticks.reset_after(LOG_DELAY);
                    }
                    tokio::time::sleep(READ_INTERVAL).await;
                }
                Err(error) => {
                    log_polling(&error);
                    events = None;
                }
            }
        }
    }
}

async fn next_change(events: &mut Option<AddressEvents>) -> std::io::Result<()> {
    match events {
        Some(events) => events.changed().await,
        None => std::future::pending().await,
    }
}

fn log_polling(error: &std::io::Error) {
    warn!(
        "cannot follow the addresses of this host by netlink: {error}; outgate reads them every {} s, and may refuse \
         webhooks for so long after an address moves here: allow AF_NETLINK in the sandbox of the service, then restart \
         outgate",
        super::INTERVAL.as_secs()
    );
}

/// Logs the pools whose number of usable addresses has changed.
fn log_pool_changes(runtime: &Runtime, active: &ActiveConfig, before: &mut Option<Vec<(PoolName, u128)>>) {
    let (now, snapshot) = (Timestamp::now(), runtime.sources.snapshot());
    let counts = active.plan.pools.iter().map(|(name, pool)| (name.clone(), snapshot.count(pool, now).usable));
    let counts: Vec<_> = counts.collect();
    for (name, count) in &counts {
        match before.iter().flatten().find(|(other, _)| other == name) {
            Some((_, former)) if former > count => {
                let what = format!("egress pool {name}: {}, {former} before", pluralize(*count, "usable address"));
                warn!("{what}; `outgate egress verify` lists the others");
                record_address(runtime, ADDRESS_LOST, name.as_str(), what);
            }
            Some((_, former)) if former < count => {
                let what = format!("egress pool {name}: {}, {former} before", pluralize(*count, "usable address"));
                info!("{what}");
                record_address(runtime, ADDRESS_FOUND, name.as_str(), what);
            }
            _ => {}
        }
    }
    *before = Some(counts);
}

/// Records an event of a source address or of a pool.
pub(super) fn record_address(runtime: &Runtime, event_type: EventType, resource: &str, description: String) {
    runtime.audit.record(Event::new(event_type, resource, Timestamp::now(), description));
}
