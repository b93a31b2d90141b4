//! The admin listener: health, readiness, metrics, public keys, status, and commands of operators.
//! Which path of the admin listener returns which response?

mod captures;
mod control;
mod deliveries;
mod gauges;
mod page;
mod readiness;
mod status;
mod tcp_limits;
mod text_format;

use std::convert::Infallible;
use std::net::IpAddr;
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
use crate::net::listen::{ClientStream, Listener};
use crate::net::peer::{self, Peer};
use crate::policy::sign;
use crate::state::Runtime;
use tcp_limits::{HostRejection, TcpConnections};
use text_format::MetricsFormat;

pub use gauges::render_metrics;
pub use readiness::Readiness;

/// Limits the open connections of one unix socket; further ones wait. For TCP see [`tcp_limits`].
const CONNECTIONS_MAX: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Limits the lifetime of a connection: a probe needs it no longer.
const CONNECTION_LIFETIME_MAX: Duration = Duration::from_secs(60);

const PAGE: &str = "/";
const STATUS: &str = "/status";
const DELIVERIES: &str = "/deliveries";
const CAPTURES: &str = "/captures";
const METRICS: &str = "/metrics";
const KEYS: &str = "/keys";
const KEY_DIRECTORY: &str = "/.well-known/http-message-signatures-directory";
/// The lifetime in caches. Receivers know a key that is announced an hour before it signs.
const KEYS_CACHE_CONTROL: &str = "public, max-age=3600";

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Accepts connections until the listener closes, and returns when all of them are closed.
pub async fn accept(runtime: Arc<Runtime>, listener: Listener, shutdown: ListenerShutdown) {
    let connection_slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut serving = JoinSet::new();
    let mut queue = AcceptQueue::new(listener, shutdown.clone());
    let (is_tcp, mut connections) = (queue.is_tcp(), TcpConnections::default());
    loop {
        let next = async {
            let permit = match is_tcp {
                true => None,
                false => Arc::clone(&connection_slots).acquire_owned().await.ok(),
            };
            (queue.next().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            biased;
            Some(_) = serving.join_next() => continue,
            accepted = next => accepted,
            // This branch wins while all connection slots are taken.
            () = shutdown.admission_closed() => break,
        };
        let Some(accepted) = accepted else { break };
        match accepted {
            Ok((stream, peer)) => {
                let (runtime, shutdown) = (Arc::clone(&runtime), shutdown.clone());
                let address = peer.map(|peer| peer.ip());
                let task = serving.spawn(async move {
                    serve(&runtime, stream, address, &shutdown).await;
                    drop(permit);
                });
                if let Some(address) = address {
                    connections.insert(address, task);
                }
            }
            Err(_) => tokio::time::sleep(super::ACCEPT_RETRY_DELAY).await,
        }
    }
    drop(queue);
    while serving.join_next().await.is_some() {}
}

/// Serves a connection. `address`: of a peer over TCP.
async fn serve(runtime: &Arc<Runtime>, stream: ClientStream, address: Option<IpAddr>, shutdown: &ListenerShutdown) {
    let peer = peer::from_stream(&stream);
    let (peer, is_tcp) = (peer.as_ref(), address.is_some());
    let service = service_fn(|request| async move {
        let checked =
            if is_tcp { tcp_limits::check_host(&request, &runtime.active_config().plan.admin_hosts) } else { Ok(()) };
        Ok::<_, Infallible>(match checked {
            Ok(()) => handle(runtime, request, peer, address).await,
            Err(HostRejection(status, message)) => build_response(status, TEXT, message),
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
            () = shutdown.closing() => serving.as_mut().graceful_shutdown(),
        }
        let _ = serving.await;
    };
    let _ = tokio::time::timeout(CONNECTION_LIFETIME_MAX, served).await;
}

async fn handle(
    runtime: &Arc<Runtime>,
    request: Request<Incoming>,
    peer: Option<&Peer>,
    address: Option<IpAddr>,
) -> Response<Full<Bytes>> {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return handle_get(runtime, &request, peer).await;
    }
    control::handle_post(runtime, request, peer, address).await.unwrap_or_else(|| {
        let mut response = build_response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "use GET or HEAD\n".into());
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        response
    })
}

/// Answers GET and HEAD. A plan may have 100,000 routes, so slow responses are rendered on worker threads, apart from
/// those that carry traffic.
async fn handle_get(runtime: &Arc<Runtime>, request: &Request<Incoming>, peer: Option<&Peer>) -> Response<Full<Bytes>> {
    let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or_default().to_owned());
    let worker = match &*path {
        // Rendered here: the response shows that the threads that carry traffic make progress.
        "/healthz" => return build_response(StatusCode::OK, TEXT, "ok\n".into()),
        METRICS => &runtime.metrics_worker,
        DELIVERIES => return deliveries::respond(runtime, &query, peer).await,
        CAPTURES if peer.is_none() => return unix_socket_only(CAPTURES),
        CAPTURES => return json_response(captures::list(runtime, &query).await),
        _ => &runtime.admin_worker,
    };
    let (worker_runtime, format) = (Arc::clone(runtime), MetricsFormat::negotiate(request.headers()));
    let is_local = peer.is_some();
    let rendered = worker.run(move || render(&worker_runtime, &path, &query, format, is_local)).await;
    rendered.unwrap_or_else(|_| not_rendered())
}

/// Refuses a request over TCP that needs the user of the peer.
fn unix_socket_only(path: &str) -> Response<Full<Bytes>> {
    let message =
        format!("{path} is served only on a unix socket in admin.listen: over TCP, outgate cannot identify the user\n");
    build_response(StatusCode::FORBIDDEN, TEXT, message)
}

fn not_rendered() -> Response<Full<Bytes>> {
    let message = "outgate could not render this response: see its log\n";
    build_response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, message.into())
}

fn render(runtime: &Runtime, path: &str, query: &str, format: MetricsFormat, is_local: bool) -> Response<Full<Bytes>> {
    // Without a tenant, the key sets contain no tenant's own keys.
    let tenant = || query_param(query, "tenant").map(TenantName::new);
    match path {
        PAGE if is_local => page::response(runtime, &page::Viewer::Local { request_id: query_param(query, "request") }),
        PAGE => page::response(runtime, &page::Viewer::Unidentified),
        "/readyz" => readiness_response(runtime),
        METRICS => {
            let metrics = render_metrics(runtime, Timestamp::now());
            build_response(StatusCode::OK, format.media_type(), format.convert(metrics))
        }
        KEYS => {
            let set = sign::jwks(&runtime.active_config().plan.signers, tenant().as_ref(), Timestamp::now());
            keys_response(set, "application/jwk-set+json")
        }
        KEY_DIRECTORY => {
            let set = sign::directory(&runtime.active_config().plan.signers, tenant().as_ref(), Timestamp::now());
            keys_response(set, "application/http-message-signatures-directory+json")
        }
        STATUS => build_response(StatusCode::OK, JSON, status::status(runtime, Timestamp::now()).to_string()),
        _ => build_response(
            StatusCode::NOT_FOUND,
            TEXT,
            format!("{PAGE} /healthz /readyz /metrics {STATUS} {DELIVERIES} {CAPTURES} {KEYS} {KEY_DIRECTORY}\n"),
        ),
    }
}

fn readiness_response(runtime: &Runtime) -> Response<Full<Bytes>> {
    let readiness = Readiness::of(runtime, Timestamp::now());
    let status = if readiness.blocked.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = String::from(if readiness.blocked.is_empty() { "ready\n" } else { "not ready\n" });
    for reason in readiness.blocked.iter().chain(&readiness.degraded) {
        body.push_str(reason);
        body.push('\n');
    }
    build_response(status, TEXT, body)
}

/// Returns the value of `?NAME=VALUE`.
fn query_param(query: &str, name: &str) -> Option<String> {
    form_urlencoded::parse(query.as_bytes()).find(|(found, _)| found == name).map(|(_, value)| value.into_owned())
}

/// Returns a key set that caches may store and scripts of any site may read.
fn keys_response(set: Value, media_type: &'static str) -> Response<Full<Bytes>> {
    let mut response = build_response(StatusCode::OK, media_type, set.to_string());
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(KEYS_CACHE_CONTROL));
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}

fn json_response(result: Result<Value, (StatusCode, String)>) -> Response<Full<Bytes>> {
    match result {
        Ok(value) => build_response(StatusCode::OK, JSON, value.to_string()),
        Err((status, message)) => build_response(status, TEXT, format!("{message}\n")),
    }
}

fn build_response(status: StatusCode, media_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
