//! What operators ask of a running proxy: to read its configuration again, to compare it, to say how it is.
//! Who may change something, and what came of it?
//!
//! Nothing that changes something is taken over the network: there the kernel does not say who asks.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{JSON, TEXT, text};
use crate::live::configuration::{By, Outcome, Verdict};
use crate::live::desk::With;
use crate::live::{Live, sources};
use crate::net::peer::Peer;

pub(super) const STATUS: &str = "/status";
const RELOAD: &str = "/reload";
const DIFF: &str = "/diff";

/// A configuration with a hundred thousand routes has some ten of them.
const BODY_MAX: usize = 64 << 20;

/// What is asked by POST; `peer` is who asks, if the kernel knows.
pub(super) async fn answer(
    live: &Arc<Live>,
    request: Request<Incoming>,
    peer: Option<&Peer>,
) -> Option<Response<Full<Bytes>>> {
    let path = request.uri().path();
    if request.method() != Method::POST || ![RELOAD, DIFF].contains(&path) {
        return None;
    }
    let Some(peer) = peer else {
        let why =
            format!("{path} is for the unix socket of admin.listen alone: over the network nobody says who asks\n");
        return Some(text(StatusCode::FORBIDDEN, TEXT, why));
    };
    if !live.desk.is_attended() {
        let why = "no configuration file: the built-in one is in force, and nothing can change it\n";
        return Some(text(StatusCode::CONFLICT, TEXT, why.into()));
    }
    let outcome = if path == RELOAD {
        let by = By::User { name: peer.name.clone(), uid: peer.uid, pid: peer.pid };
        live.desk.ask_and_wait(by)
    } else {
        match with(request).await {
            Ok(with) => live.desk.compare(with),
            Err(refused) => return Some(*refused),
        }
    };
    Some(match outcome.await {
        Ok(outcome) => told(&outcome),
        // Whoever would have told is gone.
        Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, TEXT, "outgate is about to stop\n".into()),
    })
}

/// What to compare with: `?entry=N`, a configuration in the body, or what is on disk.
async fn with(request: Request<Incoming>) -> Result<With, Box<Response<Full<Bytes>>>> {
    let refused = |status, why: String| Box::new(text(status, TEXT, why));
    if let Some(entry) = request.uri().query().and_then(|query| query.strip_prefix("entry=")) {
        let number = entry.parse().map_err(|_| refused(StatusCode::BAD_REQUEST, "entry is a number\n".into()))?;
        return Ok(With::Entry(number));
    }
    let body = Limited::new(request.into_body(), BODY_MAX).collect().await;
    let body = body.map_err(|fault| refused(StatusCode::PAYLOAD_TOO_LARGE, format!("{fault}\n")))?.to_bytes();
    if body.is_empty() {
        return Ok(With::Disk);
    }
    let written = serde_json::from_slice(&body);
    written.map(With::Written).map_err(|fault| refused(StatusCode::BAD_REQUEST, format!("{fault}\n")))
}

fn told(outcome: &Outcome) -> Response<Full<Bytes>> {
    let status = match outcome.outcome {
        Verdict::Rejected => StatusCode::UNPROCESSABLE_ENTITY,
        Verdict::Adopted | Verdict::Unchanged | Verdict::Different => StatusCode::OK,
    };
    text(status, JSON, json!(outcome).to_string())
}

pub(super) fn status(live: &Live) -> Value {
    let (adopted, rejected, state) = (live.configuration.adopted(), live.configuration.rejected(), live.readiness());
    let (now, view, in_force) = (Timestamp::now(), live.sources.view(), live.in_force());
    let pool = |(name, pool): (&crate::names::PoolName, &Arc<crate::policy::egress::Pool>)| {
        let ranges = pool.in_force(now);
        // As text: IPv6 pools have more addresses than a JSON number can say.
        let (configured, usable) = (sources::total(&ranges).to_string(), view.count(&ranges).to_string());
        json!({ "pool": name.as_str(), "configured": configured, "usable": usable })
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "started": live.started,
        "ready": state.blocked.is_empty(),
        "blocked": state.blocked,
        "degraded": state.degraded,
        "configuration": {
            "file": adopted.written.path(),
            "number": adopted.number,
            "digest": adopted.written.digest,
            "at": adopted.at,
            "by": adopted.by,
            "how": adopted.how,
            "changes": adopted.difference.changes,
            "more": adopted.difference.more,
            "warnings": adopted.warnings,
            "restart": adopted.restart,
        },
        "rejected": rejected.map(|rejected| json!({
            "at": rejected.at, "by": rejected.by, "problems": rejected.problems,
        })),
        "drift": live.configuration.drift().as_deref(),
        "history": live.configuration.history().as_deref(),
        "listeners": *live.configuration.listening(),
        "pools": in_force.plan.pools.iter().map(pool).collect::<Vec<_>>(),
        "client_connections": live.meters.client_connections.get(),
        "deliveries_in_flight": live.gate.count().0,
        "deliveries_waiting": live.gate.count().1,
        "tunnels": live.meters.tunnels.get(),
        "idle_target_connections": live.reuse.kept(),
    })
}
