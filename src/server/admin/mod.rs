//! The admin listener: health, readiness, metrics, the public halves of signing keys, and what operators ask for.
//! Is the proxy alive, is it fit for traffic, what does it count, and what verifies its signatures?

mod control;
mod tcp_limits;
mod text_format;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::accept_queue::AcceptQueue;
use super::listener_shutdown::ListenerShutdown;
use crate::names::TenantName;
use crate::net::listen::{ClientSocket, ClientStream, Listener};
use crate::net::peer::{self, Peer};
use crate::policy::sign;
use crate::state::Runtime;
use control::STATUS;
use tcp_limits::{HostRejection, TcpConnections};

/// Connections at a time on one unix socket; more wait. For TCP see [`tcp_limits`].
const CONNECTIONS_MAX: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A probe that has its answer has no reason to stay.
const LONGEST: Duration = Duration::from_secs(60);

const METRICS: &str = "/metrics";
const KEYS: &str = "/keys";
const DIRECTORY: &str = "/.well-known/http-message-signatures-directory";
/// A key that is announced an hour before it signs is known to all by then.
const KEYS_KEPT: &str = "public, max-age=3600";

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Accepts until the door closes, and ends when all have left who came in.
pub async fn accept(runtime: Arc<Runtime>, listener: Listener, door: ListenerShutdown) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut serving = JoinSet::new();
    let mut queue = AcceptQueue::new(listener, door.clone());
    let (is_tcp, mut bounds) = (queue.is_tcp(), TcpConnections::default());
    loop {
        let next = async {
            let place = match is_tcp {
                true => None,
                false => Arc::clone(&room).acquire_owned().await.ok(),
            };
            (queue.next().await, place)
        };
        let (accepted, place) = tokio::select! {
            biased;
            Some(_) = serving.join_next() => continue,
            accepted = next => accepted,
            // While all places are taken.
            () = door.waits_no_longer() => break,
        };
        let Some(accepted) = accepted else { break };
        match accepted {
            Ok((stream, peer)) => {
                let (runtime, door) = (Arc::clone(&runtime), door.clone());
                let task = serving.spawn(async move {
                    serve(&runtime, stream, &door).await;
                    drop(place);
                });
                if let Some(peer) = peer {
                    bounds.add(peer.ip(), task);
                }
            }
            Err(_) => tokio::time::sleep(super::ACCEPT_PAUSE).await,
        }
    }
    drop(queue);
    while serving.join_next().await.is_some() {}
}

async fn serve(runtime: &Arc<Runtime>, stream: ClientStream, door: &ListenerShutdown) {
    let peer = peer::of(&stream);
    let (peer, is_tcp) = (peer.as_ref(), matches!(stream.socket(), ClientSocket::Tcp(_)));
    let service = service_fn(|request| async move {
        let judged =
            if is_tcp { tcp_limits::judge_host(&request, &runtime.active_config().plan.admin_hosts) } else { Ok(()) };
        Ok::<_, Infallible>(match judged {
            Ok(()) => answer(runtime, request, peer).await,
            Err(HostRejection(status, why)) => text(status, TEXT, why),
        })
    });
    let mut http1 = hyper::server::conn::http1::Builder::new();
    if is_tcp {
        http1.max_buf_size(tcp_limits::HEAD_MAX);
    }
    let serving = http1
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving);
    let served = async {
        tokio::select! {
            _ = serving.as_mut() => return,
            () = door.closing() => serving.as_mut().graceful_shutdown(),
        }
        let _ = serving.await;
    };
    let _ = tokio::time::timeout(LONGEST, served).await;
}

async fn answer(runtime: &Arc<Runtime>, request: Request<Incoming>, peer: Option<&Peer>) -> Response<Full<Bytes>> {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return read(runtime, &request).await;
    }
    control::answer(runtime, request, peer).await.unwrap_or_else(|| {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET or HEAD\n".into());
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        response
    })
}

/// What can take more than a moment is worked out beside the threads that carry traffic: a plan may have 100,000 routes.
async fn read(runtime: &Arc<Runtime>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let worker = match &*path {
        // It says that these threads turn.
        "/healthz" => return text(StatusCode::OK, TEXT, "ok\n".into()),
        METRICS => &runtime.metrics_worker,
        _ => &runtime.admin_worker,
    };
    let (tenant, theirs) = (tenant(request), Arc::clone(runtime));
    let prefers_text = prefers_text(request.headers());
    let told = worker.run(move || render(&theirs, &path, tenant.as_ref(), prefers_text)).await;
    told.unwrap_or_else(|_| text(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "not answered: see the log\n".into()))
}

fn render(runtime: &Runtime, path: &str, tenant: Option<&TenantName>, prefers_text: bool) -> Response<Full<Bytes>> {
    match path {
        "/readyz" => readiness(runtime),
        METRICS => {
            runtime.observe();
            let (body, media_type) = runtime.metrics.render();
            match prefers_text {
                true => text(StatusCode::OK, text_format::MEDIA_TYPE, text_format::of_openmetrics(&body)),
                false => text(StatusCode::OK, media_type, body),
            }
        }
        KEYS => {
            let set = sign::jwks(&runtime.active_config().plan.signers, tenant, Timestamp::now());
            keys(set, "application/jwk-set+json")
        }
        DIRECTORY => {
            let set = sign::directory(&runtime.active_config().plan.signers, tenant, Timestamp::now());
            keys(set, "application/http-message-signatures-directory+json")
        }
        STATUS => text(StatusCode::OK, JSON, control::status(runtime).to_string()),
        _ => text(StatusCode::NOT_FOUND, TEXT, format!("/healthz /readyz /metrics {STATUS} {KEYS} {DIRECTORY}\n")),
    }
}

/// Whether `Accept` prefers the older text format of Prometheus to OpenMetrics (RFC 9110 §12.5.1).
fn prefers_text(headers: &http::HeaderMap) -> bool {
    let quality = |media_type: &str| {
        let lists = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let ranges = lists.flat_map(|list| list.split(',')).filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let is_meant = parts.next()?.eq_ignore_ascii_case(media_type);
            let quality = parts.find_map(|part| part.strip_prefix("q=")).map_or(Ok(1.0), str::parse::<f32>);
            Some(quality.unwrap_or(0.0)).filter(|_| is_meant)
        });
        ranges.fold(0.0, f32::max)
    };
    quality("text/plain") > quality("application/openmetrics-text")
}

fn readiness(runtime: &Runtime) -> Response<Full<Bytes>> {
    let state = runtime.readiness();
    let status = if state.blocked.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = String::from(if state.blocked.is_empty() { "ready\n" } else { "not ready\n" });
    for reason in state.blocked.iter().chain(&state.degraded) {
        body.push_str(reason);
        body.push('\n');
    }
    text(status, TEXT, body)
}

/// `?tenant=NAME` asks for what verifies that tenant's webhooks; without it nothing of any tenant's own is told.
fn tenant(request: &Request<Incoming>) -> Option<TenantName> {
    let query = request.uri().query()?;
    form_urlencoded::parse(query.as_bytes())
        .find(|(name, _)| name == "tenant")
        .map(|(_, tenant)| TenantName::new(&*tenant))
}

/// For everybody, through whatever serves it to them: it may be kept, and be read by the scripts of any site.
fn keys(set: Value, media_type: &'static str) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::OK, media_type, set.to_string());
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(KEYS_KEPT));
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}

fn text(status: StatusCode, media_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
