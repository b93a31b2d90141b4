//! The status of a running proxy as JSON, for `outgate status` and `/status`.
//! Which configuration is active, since when, and what is wrong?

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::readiness::Readiness;
use crate::names::PoolName;
use crate::policy::egress::Pool;
use crate::state::Runtime;

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
    let (in_flight, waiting) = runtime.admission.count();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "started": runtime.started_at,
        "ready": readiness.blocked.is_empty(),
        "blocked": readiness.blocked,
        "degraded": readiness.degraded,
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
        "client_connections": runtime.metrics.client_connections.get(),
        "deliveries_in_flight": in_flight,
        "deliveries_waiting": waiting,
        "tunnels": runtime.metrics.tunnels.get(),
        "idle_target_connections": runtime.connection_pool.connection_count(),
    })
}
