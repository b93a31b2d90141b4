//! The commands to a running proxy, for `outgate reload`, `diff` and `explain`.
//! Which command may a peer of the admin listener run, and what is its outcome?
//!
//! Commands are accepted only over a unix socket, where the kernel identifies the user of the peer.

use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{JSON, TEXT, build_response, captures, json_response, unix_socket_only};
use crate::audit::{ADMIN_CALLED, AUTHENTICATION_FAILED, Actor, EventType, Source};
use crate::delivery::{self, ExplainRequest};
use crate::names::{ClientName, TenantName};
use crate::net::peer::Peer;
use crate::policy::redact::Redactor;
use crate::state::Runtime;
use crate::state::audit::CountedEvent;
use crate::state::config::reload_queue::ComparisonTarget;
use crate::state::config::status::{ReloadOutcome, ReloadSource, ReloadVerdict};

const RELOAD: &str = "/reload";
const DIFF: &str = "/diff";
const EXPLAIN: &str = "/explain";
const EXPORT: &str = "/captures/export";
const ERASE: &str = "/captures/erase";

/// Limits a request body, in bytes. A configuration with a hundred thousand routes has some ten megabytes.
const BODY_MAX: usize = 64 << 20;

/// Runs the command of a POST request. `peer` is the process of the client, where the kernel knows it, and `address` is
/// that of a client over TCP. Returns `None`
/// if the request is not one of the commands.
pub(super) async fn handle_post(
    runtime: &Arc<Runtime>,
    request: Request<Incoming>,
    peer: Option<&Peer>,
    address: Option<IpAddr>,
) -> Option<Response<Full<Bytes>>> {
    let path = request.uri().path();
    if request.method() != Method::POST || ![RELOAD, DIFF, EXPLAIN, EXPORT, ERASE].contains(&path) {
        return None;
    }
    let path = path.to_owned();
    let Some(peer) = peer else {
        count_call(runtime, AUTHENTICATION_FAILED, &path, None, address);
        return Some(unix_socket_only(&path));
    };
    if path == EXPLAIN {
        count_call(runtime, ADMIN_CALLED, &path, Some(peer), None);
        return Some(explain(runtime, request).await.unwrap_or_else(|response| *response));
    }
    let query = request.uri().query().unwrap_or_default();
    match &*path {
        EXPORT => return Some(json_response(captures::export(runtime, query, peer_actor(peer)).await)),
        ERASE => return Some(json_response(captures::erase(runtime, query, peer_actor(peer)).await)),
        _ => {}
    }
    if !runtime.reload_queue.is_ready() {
        let message =
            "outgate runs without a configuration file: the built-in configuration cannot be changed or compared\n";
        return Some(build_response(StatusCode::CONFLICT, TEXT, message.into()));
    }
    let outcome = if path == RELOAD {
        let source = ReloadSource::User { name: peer.name.clone(), uid: peer.uid, pid: peer.pid };
        runtime.reload_queue.request_and_wait(source)
    } else {
        match comparison_source(request).await {
            Ok(source) => runtime.reload_queue.compare(source),
            Err(response) => return Some(*response),
        }
    };
    Some(match outcome.await {
        Ok(outcome) => {
            // A reload with an effect has a record of its own.
            if path == DIFF || outcome.outcome == ReloadVerdict::Unchanged {
                count_call(runtime, ADMIN_CALLED, &path, Some(peer), None);
            }
            outcome_response(&outcome)
        }
        // The reload task, which sends the outcome, has ended.
        Err(_) => build_response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "outgate is stopping\n".into()),
    })
}

/// Returns the user of a command as the actor of its audit record.
fn peer_actor(peer: &Peer) -> Actor {
    let user = peer.name.clone().unwrap_or_else(|| format!("uid {}", peer.uid));
    Actor { source: Source::Admin, name: Some(user), address: None }
}

/// Counts a call of a command for the audit log.
fn count_call(runtime: &Runtime, event_type: EventType, path: &str, peer: Option<&Peer>, address: Option<IpAddr>) {
    let actor = peer.map_or(Actor { source: Source::Admin, name: None, address: None }, peer_actor);
    let counted = CountedEvent { event_type, resource: path.to_owned(), actor, tenant: None };
    runtime.audit.count(counted, address, Timestamp::now());
}

type ControlError = Box<Response<Full<Bytes>>>;

fn control_error(status: StatusCode, message: impl Display) -> ControlError {
    Box::new(build_response(status, TEXT, format!("{message}\n")))
}

/// Returns the configuration to compare with: history entry N for `?entry=N`, the one in the body, or the one on disk.
async fn comparison_source(request: Request<Incoming>) -> Result<ComparisonTarget, ControlError> {
    if let Some(entry) = request.uri().query().and_then(|query| query.strip_prefix("entry=")) {
        let number = entry.parse().map_err(|_| control_error(StatusCode::BAD_REQUEST, "entry must be a number"));
        return number.map(ComparisonTarget::History);
    }
    let body = read_body(request).await?;
    if body.is_empty() { Ok(ComparisonTarget::Disk) } else { parse_json(&body).map(ComparisonTarget::Snapshot) }
}

/// The webhook that `outgate explain` describes.
#[derive(Deserialize)]
struct ExplainBody {
    method: String,
    url: String,
    client: String,
    tenant: Option<String>,
}

async fn explain(runtime: &Runtime, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, ControlError> {
    let webhook: ExplainBody = parse_json(&read_body(request).await?)?;
    let method =
        Method::from_bytes(webhook.method.as_bytes()).map_err(|error| control_error(StatusCode::BAD_REQUEST, error))?;
    let (client, tenant) = (ClientName::new(webhook.client), webhook.tenant.map(TenantName::new));
    let now = Timestamp::now();
    let explain_request =
        ExplainRequest { method: &method, url: &webhook.url, client: &client, tenant: tenant.as_ref(), now };
    Ok(build_response(StatusCode::OK, JSON, delivery::explain_now(runtime, &explain_request).as_json().to_string()))
}

async fn read_body(request: Request<Incoming>) -> Result<Bytes, ControlError> {
    let body = Limited::new(request.into_body(), BODY_MAX).collect().await;
    let body = body.map_err(|error| control_error(StatusCode::PAYLOAD_TOO_LARGE, error))?;
    Ok(body.to_bytes())
}

fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ControlError> {
    let message = |error: serde_json::Error| Redactor::default().message(&error.to_string()).into_owned();
    serde_json::from_slice(body).map_err(|error| control_error(StatusCode::BAD_REQUEST, message(error)))
}

fn outcome_response(outcome: &ReloadOutcome) -> Response<Full<Bytes>> {
    let status = match outcome.outcome {
        ReloadVerdict::Rejected => StatusCode::UNPROCESSABLE_ENTITY,
        ReloadVerdict::Adopted | ReloadVerdict::Unchanged | ReloadVerdict::Different => StatusCode::OK,
    };
    build_response(status, JSON, json!(outcome).to_string())
}
