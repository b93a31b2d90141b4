//! The status of a running proxy as JSON: what runs, what the plan has, and what was adopted before.
//! Which configuration is active, since when, and what is wrong?

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::load;
use super::problem::AdminProblem;
use super::readiness::Readiness;
use crate::history::{History, HistoryEntry};
use crate::names::PoolName;
use crate::policy::egress::Pool;
use crate::state::Runtime;
use crate::state::observability::traffic::BLAMES;

/// The longest wait for the disk with the history.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest wait of the status page, and the number of entries that it shows.
const PAGE_HISTORY_TIMEOUT: Duration = Duration::from_millis(500);
const PAGE_HISTORY_MAX: usize = 10;

pub(super) fn status(runtime: &Runtime, now: Timestamp) -> Value {
    let config_status = &runtime.config_status;
    let (adopted, rejected, readiness) =
        (config_status.adopted(), config_status.rejected(), Readiness::of(runtime, now));
    let (snapshot, active) = (runtime.sources.snapshot(), runtime.active_config());
    let pool = |(name, pool): (&PoolName, &Arc<Pool>)| {
        let count = snapshot.count(pool, now);
        // Strings, since an IPv6 pool has more addresses than a JSON number can represent.
        json!({
            "pool": name.as_str(), "configured": count.configured.to_string(), "usable": count.usable.to_string(),
        })
    };
    let audit = runtime.audit.status();
    let mut status = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "started": runtime.started_at,
        "at": now,
        "ready": readiness.blocked.is_empty(),
        "blocked": readiness.blocked,
        "degraded": readiness.degraded,
        "alerts": runtime.alerts.active(),
        "configuration": {
            "file": adopted.snapshot.main_path(),
            "number": adopted.number,
            "digest": adopted.snapshot.digest,
            "at": adopted.adopted_at,
            "by": adopted.adopted_by,
            "how": adopted.cause,
            "changes": adopted.difference.changes,
            "more": adopted.difference.more,
            "warnings": adopted.warnings,
            "restart": adopted.restart_required,
        },
        "rejected": rejected.map(|rejected| json!({
            "at": rejected.rejected_at, "by": rejected.requested_by, "problems": rejected.problems,
        })),
        "drift": config_status.drift().as_deref(),
        "history": config_status.history_dir().as_deref(),
        "listeners": *config_status.bound_addresses(),
        "pools": active.plan.pools.iter().map(pool).collect::<Vec<_>>(),
        "ended_deliveries": BLAMES.into_iter().zip(runtime.traffic.totals()).collect::<BTreeMap<_, _>>(),
        "client_connections": runtime.metrics.client_connections.get(),
        "idle_target_connections": runtime.connection_pool.connection_count(),
        "open_circuits": runtime.circuit_breakers.open_count(),
        "suspected_gaps": runtime.source_health.gap_count(),
        "records_lost": runtime.records.lost_count(),
        "load": load::report(&runtime.load(now)),
        "audit": {
            "on": audit.is_on(), "error": audit.error(), "written": audit.written_count(), "lost": audit.lost_count(),
        },
    });
    if let (Value::Object(status), Value::Object(drain)) = (&mut status, drain(runtime)) {
        status.extend(drain);
    }
    status
}

/// Describes the drain and what it waits for.
pub(super) fn drain(runtime: &Runtime) -> Value {
    let (in_flight, waiting) = runtime.admission.count();
    json!({
        "drain": runtime.drain_status(),
        "deliveries_in_flight": in_flight,
        "deliveries_waiting": waiting,
        "tunnels": runtime.metrics.tunnels.get(),
    })
}

/// Describes the active plan: what it has by name, and how many routes and clients.
pub(super) fn plan(runtime: &Runtime, _: Timestamp) -> Value {
    let active = runtime.active_config();
    let plan = &active.plan;
    json!({
        "routes": plan.routes.enforced().count(),
        "clients": plan.clients.count(),
        "pools": plan.pools.keys().map(|name| name.as_str()).collect::<Vec<_>>(),
        "trusts": plan.trusts.keys().map(|name| name.as_str()).collect::<Vec<_>>(),
        "signers": plan.signers.keys().map(|name| name.as_str()).collect::<Vec<_>>(),
        "credentials": plan.credentials.keys().map(|name| name.as_str()).collect::<Vec<_>>(),
        "limits": plan.limits.keys().map(|name| name.as_str()).collect::<Vec<_>>(),
        "inspection": plan.inspection_ca.is_some(),
        "audit": plan.audit.is_some(),
        "circuit_breaker": plan.breaker.is_some(),
        "max_connections": plan.max_connections,
        "max_deliveries": plan.max_deliveries,
        "drain_grace_seconds": plan.drain_grace.as_secs_f64(),
        "drain_timeout_seconds": plan.drain_timeout.as_secs_f64(),
    })
}

/// Returns the adopted configurations, the oldest first.
pub(super) async fn entries(runtime: &Runtime) -> Result<Vec<HistoryEntry>, AdminProblem> {
    let Some(dir) = runtime.config_status.history_dir() else { return Ok(Vec::new()) };
    let reading = runtime.history_reader.run(move || History::for_reading(dir.to_path_buf()).entries());
    let unreadable = |reason: String| AdminProblem::new(StatusCode::SERVICE_UNAVAILABLE, reason);
    let slow = format!("the disk with the history does not respond within {HISTORY_TIMEOUT:?}");
    let read = timeout(HISTORY_TIMEOUT, reading).await.map_err(|_| unreadable(slow))?;
    let read = read.map_err(|_| AdminProblem::not_rendered())?;
    read.map_err(|error| unreadable(format!("cannot read the history: {error}")))
}

/// Describes the adopted configurations, the newest first.
pub(super) async fn history(runtime: &Runtime) -> Result<Value, AdminProblem> {
    let entries = entries(runtime).await?;
    let active = runtime.config_status.adopted().number;
    let entry = |entry: &HistoryEntry| {
        json!({
            "number": entry.number, "at": entry.at, "by": entry.by, "how": entry.how, "changes": entry.difference.changes,
            "more": entry.difference.more, "version": entry.version, "active": entry.number == active,
        })
    };
    Ok(json!({ "entries": entries.iter().rev().map(entry).collect::<Vec<_>>() }))
}

/// Returns the last entries of the history, the newest first. A disk that does not respond yields none.
pub(super) async fn recent_history(runtime: &Runtime) -> Vec<HistoryEntry> {
    let Some(dir) = runtime.config_status.history_dir() else { return Vec::new() };
    let reading = runtime.history_reader.run(move || History::for_reading(dir.to_path_buf()).newest(PAGE_HISTORY_MAX));
    timeout(PAGE_HISTORY_TIMEOUT, reading).await.ok().and_then(Result::ok).unwrap_or_default()
}
