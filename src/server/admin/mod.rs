//! The admin listener: health, readiness, metrics, public keys, the status page, and the API of operators.
//! How is a call accepted, identified, and answered?

mod access;
mod captures;
mod control;
mod deliveries;
mod egress;
mod gauges;
mod limits;
mod page;
mod problem;
mod readiness;
mod resource;
mod status;
mod tcp_limits;
mod text_format;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::accept_queue::AcceptQueue;
use super::listener_shutdown::ListenerShutdown;
use super::throttled_log::{ThrottledLog, WarningKind};
use crate::audit::{ADMIN_CALLED, AUTHENTICATION_FAILED, Actor, EventType, Source};
use crate::config::Listen;
use crate::names::TenantName;
use crate::net::listen::{ClientStream, Listener};
use crate::net::peer;
use crate::net::tls::accept;
use crate::policy::sign;
use crate::state::Runtime;
use crate::state::audit::CountedEvent;
use access::{AdminCaller, AdminConnection, Remote};
use problem::AdminProblem;
use resource::{OPENAPI, Operation, Query, Resource};
use tcp_limits::TcpConnections;
use text_format::MetricsFormat;

pub use gauges::render_metrics;
pub use readiness::Readiness;

/// Limits the open connections of one unix socket; further ones wait. For TCP see [`tcp_limits`].
const CONNECTIONS_MAX: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Limits the lifetime of a connection: a probe needs it no longer.
const CONNECTION_LIFETIME_MAX: Duration = Duration::from_secs(60);

/// The lifetime in caches. Receivers know a key that is announced an hour before it signs.
const KEYS_CACHE_CONTROL: &str = "public, max-age=3600";

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

type AdminResponse = Response<Full<Bytes>>;

/// Accepts connections until the listener closes, and returns when all of them are closed.
pub async fn accept(runtime: Arc<Runtime>, listener: Listener, listen: Listen, shutdown: ListenerShutdown) {
    let connection_slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut serving = JoinSet::new();
    let throttled_log = Arc::new(ThrottledLog::new());
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
                let (listen, throttled_log) = (listen.clone(), Arc::clone(&throttled_log));
                let task = serving.spawn(async move {
                    let remote = match peer {
                        None => Remote::Unix(peer::from_stream(&stream)),
                        Some(address) => Remote::Tcp { address, certificate: None },
                    };
                    let connection = AdminConnection { listen, remote };
                    establish(&runtime, stream, connection, &shutdown, &throttled_log).await;
                    drop(permit);
                });
                if let Some(peer) = peer {
                    connections.insert(peer.ip(), task);
                }
            }
            Err(_) => tokio::time::sleep(super::ACCEPT_RETRY_DELAY).await,
        }
    }
    drop(queue);
    while serving.join_next().await.is_some() {}
}

/// Accepts TLS where the listener has it, and serves the connection.
async fn establish(
    runtime: &Arc<Runtime>,
    stream: ClientStream,
    mut connection: AdminConnection,
    shutdown: &ListenerShutdown,
    throttled_log: &ThrottledLog,
) {
    let active = runtime.active_config();
    let tls = active.listener_tls(&connection.listen);
    let tls = tls.filter(|_| active.plan.listener.is_admin_tls(&connection.listen));
    let (Remote::Tcp { address, certificate }, Some((config, fingerprint))) = (&mut connection.remote, tls) else {
        return serve(runtime, stream, &connection, shutdown).await;
    };
    let deadline = tokio::time::Instant::now() + active.plan.timeouts.tls;
    match accept::accept(stream, config, fingerprint, deadline).await {
        Ok((stream, verified)) => {
            *certificate = Some(verified);
            drop(active);
            serve(runtime, stream, &connection, shutdown).await;
        }
        Err(error) => throttled_log.warn(WarningKind::TlsHandshake, || {
            format!("a connection from {} to the admin listener was closed: {error}", address.ip())
        }),
    }
}

async fn serve(
    runtime: &Arc<Runtime>,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    connection: &AdminConnection,
    shutdown: &ListenerShutdown,
) {
    let service = service_fn(|request| async move {
        let answered = handle(runtime, request, connection).await;
        Ok::<_, Infallible>(answered.unwrap_or_else(Response::from))
    });
    let mut http1 = hyper::server::conn::http1::Builder::new();
    if connection.address().is_some() {
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

/// Answers a request. A stranger learns only which resources need no credential.
async fn handle(
    runtime: &Arc<Runtime>,
    request: Request<Incoming>,
    connection: &AdminConnection,
) -> Result<AdminResponse, AdminProblem> {
    let active = runtime.active_config();
    if connection.address().is_some() {
        tcp_limits::check_host(&request, &active.plan.admin_hosts)?;
    }
    let path = request.uri().path().to_owned();
    let resource = Resource::find(&path);
    if let Ok(resource) = &resource
        && resource.is_public()
    {
        let operation = resource.operation(request.method())?;
        return public(runtime, operation, &request).await;
    }
    let resource_path = resource.as_ref().map_or("unknown", |resource| resource.path);
    let caller = connection.identify(&active.plan, request.headers(), Timestamp::now());
    let caller = caller.inspect_err(|_| count(runtime, AUTHENTICATION_FAILED, resource_path, None, connection))?;
    drop(active);
    let resource = resource?;
    let operation = resource.operation(request.method())?;
    if let Some(role) = operation.role.filter(|role| caller.role() < *role) {
        count(runtime, AUTHENTICATION_FAILED, resource_path, Some(&caller), connection);
        return Err(AdminProblem::missing_role(role));
    }
    let query = operation.query(request.uri().query())?;
    let call = Call { id: &operation.id, segment: resource.segment, query, caller };
    let (response, effect) = call.answer(runtime, request).await?;
    // A change has a record of its own.
    if effect == Effect::None {
        count(runtime, ADMIN_CALLED, resource_path, Some(&call.caller), connection);
    }
    Ok(response)
}

/// Whether a call has changed the proxy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    None,
    Recorded,
}

/// A call of an identified caller who may make it.
struct Call<'p> {
    /// The id of the operation.
    id: &'static str,
    segment: &'p str,
    query: Query,
    caller: AdminCaller,
}

impl Call<'_> {
    async fn answer(
        &self,
        runtime: &Arc<Runtime>,
        request: Request<Incoming>,
    ) -> Result<(AdminResponse, Effect), AdminProblem> {
        let answered = match self.id {
            "page" => {
                let (history, request_id) = (status::recent_history(runtime).await, self.query.text("request"));
                render(runtime, move |runtime| page::response(runtime, request_id.as_deref(), &history)).await
            }
            "openapi" => Ok(build_response(StatusCode::OK, JSON, OPENAPI.to_owned())),
            "status" => json(runtime, status::status).await,
            "plan" => json(runtime, status::plan).await,
            "egress" => json(runtime, egress::report).await,
            "limits" => json(runtime, limits::report).await,
            "circuits" => json(runtime, egress::circuits).await,
            "captures" => captures::list(runtime, &self.query).await.map(json_response),
            "history" => status::history(runtime).await.map(json_response),
            "deliveries" => deliveries::list(runtime, &self.query).await,
            "delivery" => deliveries::one(runtime, self.segment).await,
            _ => return self.command(runtime, request).await,
        };
        answered.map(|response| (response, Effect::None))
    }
}

/// Answers a request that needs no credential. A plan may have 100,000 routes, so slow responses are rendered on worker
/// threads, apart from those that carry traffic.
async fn public(
    runtime: &Arc<Runtime>,
    operation: &Operation,
    request: &Request<Incoming>,
) -> Result<AdminResponse, AdminProblem> {
    // Without a tenant, the key sets contain no tenant's own keys.
    let tenant = operation.query(request.uri().query())?.text("tenant").map(TenantName::new);
    match &*operation.id {
        // Rendered here: the response shows that the threads that carry traffic make progress.
        "health" => Ok(build_response(StatusCode::OK, TEXT, "ok\n".into())),
        "metrics" => {
            let (worker_runtime, format) = (Arc::clone(runtime), MetricsFormat::negotiate(request.headers()));
            let rendered = runtime.metrics_worker.run(move || {
                let metrics = render_metrics(&worker_runtime, Timestamp::now());
                build_response(StatusCode::OK, format.media_type(), format.convert(metrics))
            });
            rendered.await.map_err(|_| AdminProblem::not_rendered())
        }
        "readiness" => render(runtime, readiness_response).await,
        id => {
            let is_directory = id == "keyDirectory";
            render(runtime, move |runtime| keys_response(runtime, tenant.as_ref(), is_directory)).await
        }
    }
}

/// Renders a response on the worker thread of the admin listener.
async fn render(
    runtime: &Arc<Runtime>,
    respond: impl FnOnce(&Runtime) -> AdminResponse + Send + 'static,
) -> Result<AdminResponse, AdminProblem> {
    let worker_runtime = Arc::clone(runtime);
    runtime.admin_worker.run(move || respond(&worker_runtime)).await.map_err(|_| AdminProblem::not_rendered())
}

async fn json(
    runtime: &Arc<Runtime>,
    report: impl FnOnce(&Runtime, Timestamp) -> Value + Send + 'static,
) -> Result<AdminResponse, AdminProblem> {
    let respond =
        move |runtime: &Runtime| build_response(StatusCode::OK, JSON, report(runtime, Timestamp::now()).to_string());
    render(runtime, respond).await
}

fn json_response(value: Value) -> AdminResponse {
    build_response(StatusCode::OK, JSON, value.to_string())
}

/// Counts a call for the audit log: a record of each minute has the number, the caller and the addresses.
fn count(
    runtime: &Runtime,
    event_type: EventType,
    path: &str,
    caller: Option<&AdminCaller>,
    connection: &AdminConnection,
) {
    let unknown = Actor { source: Source::Admin, name: None, address: None };
    let actor = Actor { address: None, ..caller.map_or(unknown, AdminCaller::actor) };
    let counted = CountedEvent { event_type, resource: path.to_owned(), actor, tenant: None };
    runtime.audit.count(counted, connection.address().map(|address| address.ip()), Timestamp::now());
}

fn readiness_response(runtime: &Runtime) -> AdminResponse {
    let readiness = Readiness::of(runtime, Timestamp::now());
    let status = if readiness.blocked.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = String::from(if readiness.blocked.is_empty() { "ready\n" } else { "not ready\n" });
    for reason in readiness.blocked.iter().chain(&readiness.degraded) {
        body.push_str(reason);
        body.push('\n');
    }
    build_response(status, TEXT, body)
}

/// Returns a key set that caches may store and scripts of any site may read.
fn keys_response(runtime: &Runtime, tenant: Option<&TenantName>, is_directory: bool) -> AdminResponse {
    let (active, now) = (runtime.active_config(), Timestamp::now());
    let (set, media_type) = match is_directory {
        true => {
            (sign::directory(&active.plan.signers, tenant, now), "application/http-message-signatures-directory+json")
        }
        false => (sign::jwks(&active.plan.signers, tenant, now), "application/jwk-set+json"),
    };
    let mut response = build_response(StatusCode::OK, media_type, set.to_string());
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(KEYS_CACHE_CONTROL));
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}

fn build_response(status: StatusCode, media_type: &'static str, body: String) -> AdminResponse {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
