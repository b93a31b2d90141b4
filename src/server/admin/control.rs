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
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{JSON, TEXT, text};
use crate::delivery::{self, ExplainRequest};
use crate::names::{ClientName, TenantName};
use crate::net::peer::Peer;
use crate::state::Runtime;
use crate::state::config::reload_queue::ComparisonTarget;
use crate::state::config::status::{ReloadOutcome, ReloadSource, ReloadVerdict};
use crate::state::upstreams::sources;

pub(super) const STATUS: &str = "/status";
const RELOAD: &str = "/reload";
const DIFF: &str = "/diff";
const EXPLAIN: &str = "/explain";

/// A configuration with a hundred thousand routes has some ten of them.
const BODY_MAX: usize = 64 << 20;

/// What is asked by POST; `peer` is who asks, if the kernel knows.
pub(super) async fn answer(
    runtime: &Arc<Runtime>,
    request: Request<Incoming>,
    peer: Option<&Peer>,
) -> Option<Response<Full<Bytes>>> {
    let path = request.uri().path();
    if request.method() != Method::POST || ![RELOAD, DIFF, EXPLAIN].contains(&path) {
        return None;
    }
    let Some(peer) = peer else {
        let why =
            format!("{path} is for the unix socket of admin.listen alone: over the network nobody says who asks\n");
        return Some(text(StatusCode::FORBIDDEN, TEXT, why));
    };
    if path == EXPLAIN {
        return Some(explain(runtime, request).await.unwrap_or_else(|refused| *refused));
    }
    if !runtime.reload_queue.is_attended() {
        let why = "no configuration file: the built-in one is in force, and nothing can change it\n";
        return Some(text(StatusCode::CONFLICT, TEXT, why.into()));
    }
    let outcome = if path == RELOAD {
        let by = ReloadSource::User { name: peer.name.clone(), uid: peer.uid, pid: peer.pid };
        runtime.reload_queue.ask_and_wait(by)
    } else {
        match with(request).await {
            Ok(with) => runtime.reload_queue.compare(with),
            Err(refused) => return Some(*refused),
        }
    };
    Some(match outcome.await {
        Ok(outcome) => outcome_response(&outcome),
        // Whoever would have told is gone.
        Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, TEXT, "outgate is about to stop\n".into()),
    })
}

type ControlError = Box<Response<Full<Bytes>>>;

/// What to compare with: `?entry=N`, a configuration in the body, or what is on disk.
async fn with(request: Request<Incoming>) -> Result<ComparisonTarget, ControlError> {
    if let Some(entry) = request.uri().query().and_then(|query| query.strip_prefix("entry=")) {
        let number =
            entry.parse().map_err(|_| Box::new(text(StatusCode::BAD_REQUEST, TEXT, "entry is a number\n".into())));
        return number.map(ComparisonTarget::History);
    }
    let body = body(request).await?;
    if body.is_empty() { Ok(ComparisonTarget::Disk) } else { read(&body).map(ComparisonTarget::Snapshot) }
}

/// A webhook, as `outgate explain` names it.
#[derive(Deserialize)]
struct ExplainBody {
    method: String,
    url: String,
    client: String,
    tenant: Option<String>,
}

async fn explain(runtime: &Runtime, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, ControlError> {
    let webhook: ExplainBody = read(&body(request).await?)?;
    let method = Method::from_bytes(webhook.method.as_bytes())
        .map_err(|fault| Box::new(text(StatusCode::BAD_REQUEST, TEXT, format!("{fault}\n"))))?;
    let (client, tenant) = (ClientName::new(webhook.client), webhook.tenant.map(TenantName::new));
    let now = Timestamp::now();
    let question = ExplainRequest { method: &method, url: &webhook.url, client: &client, tenant: tenant.as_ref(), now };
    Ok(text(StatusCode::OK, JSON, delivery::explain_now(runtime, &question).as_json().to_string()))
}

async fn body(request: Request<Incoming>) -> Result<Bytes, ControlError> {
    let body = Limited::new(request.into_body(), BODY_MAX).collect().await;
    let body = body.map_err(|fault| Box::new(text(StatusCode::PAYLOAD_TOO_LARGE, TEXT, format!("{fault}\n"))))?;
    Ok(body.to_bytes())
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ControlError> {
    serde_json::from_slice(body).map_err(|fault| Box::new(text(StatusCode::BAD_REQUEST, TEXT, format!("{fault}\n"))))
}

fn outcome_response(outcome: &ReloadOutcome) -> Response<Full<Bytes>> {
    let status = match outcome.outcome {
        ReloadVerdict::Rejected => StatusCode::UNPROCESSABLE_ENTITY,
        ReloadVerdict::Adopted | ReloadVerdict::Unchanged | ReloadVerdict::Different => StatusCode::OK,
    };
    text(status, JSON, json!(outcome).to_string())
}

pub(super) fn status(runtime: &Runtime) -> Value {
    let (adopted, rejected, state) =
        (runtime.config_status.adopted(), runtime.config_status.rejected(), runtime.readiness());
    let (now, view, active) = (Timestamp::now(), runtime.sources.view(), runtime.active_config());
    let pool = |(name, pool): (&crate::names::PoolName, &Arc<crate::policy::egress::Pool>)| {
        let ranges = pool.in_force(now);
        // As text: IPv6 pools have more addresses than a JSON number can say.
        let (configured, usable) = (sources::total(&ranges).to_string(), view.count(&ranges).to_string());
        json!({ "pool": name.as_str(), "configured": configured, "usable": usable })
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "started": runtime.started_at,
        "ready": state.blocked.is_empty(),
        "blocked": state.blocked,
        "degraded": state.degraded,
        "configuration": {
            "file": adopted.written.path(),
            "number": adopted.number,
            "digest": adopted.written.digest,
            "at": adopted.at,
            "by": adopted.by,
            "how": adopted.cause,
            "changes": adopted.difference.changes,
            "more": adopted.difference.more,
            "warnings": adopted.warnings,
            "restart": adopted.restart,
        },
        "rejected": rejected.map(|rejected| json!({
            "at": rejected.at, "by": rejected.by, "problems": rejected.problems,
        })),
        "drift": runtime.config_status.drift().as_deref(),
        "history": runtime.config_status.history().as_deref(),
        "listeners": *runtime.config_status.listening(),
        "pools": active.plan.pools.iter().map(pool).collect::<Vec<_>>(),
        "client_connections": runtime.metrics.client_connections.get(),
        "deliveries_in_flight": runtime.admission.count().0,
        "deliveries_waiting": runtime.admission.count().1,
        "tunnels": runtime.metrics.tunnels.get(),
        "idle_target_connections": runtime.connection_pool.kept(),
    })
}
