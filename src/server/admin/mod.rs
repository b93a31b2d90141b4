//! The admin listener: health, readiness, metrics, public keys, the status page, and the API of operators.
//! How is a call accepted, identified, and answered?

mod access;
mod captures;
mod control;
mod deliveries;
mod egress;
mod fleet;
mod gauges;
mod host_check;
mod limits;
mod load;
mod page;
mod problem;
mod readiness;
mod resource;
mod rollout;
mod status;
mod text_format;

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use jiff::Timestamp;
use serde_json::Value;

use super::auxiliary::{self, Protocol, Service, ServiceConnection, ServiceResponse};
use super::listener_shutdown::ListenerShutdown;
use crate::audit::{ADMIN_CALLED, AUTHENTICATION_FAILED, Actor, EventType, Source};
use crate::config::Listen;
use crate::names::TenantName;
use crate::net::listen::Listener;
use crate::policy::sign;
use crate::state::Runtime;
use crate::state::audit::CountedEvent;
use access::AdminCaller;
use problem::AdminProblem;
use resource::{OPENAPI, Operation, Query, Resource};
use text_format::MetricsFormat;

pub use gauges::render_metrics;
pub use readiness::Readiness;

/// The lifetime in caches. Receivers know a key that is announced an hour before it signs.
const KEYS_CACHE_CONTROL: &str = "public, max-age=3600";

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Marks a host to which Envoy sends only what the other hosts cannot take (Envoy, "Degraded endpoints").
const ENVOY_DEGRADED: HeaderName = HeaderName::from_static("x-envoy-degraded");

type AdminResponse = ServiceResponse;

const SERVICE: Service = Service {
    name: "admin",
    connections_max: 32,
    connections_per_ip_max: 16,
    protocol: Protocol::Http(|runtime, request, connection| {
        Box::pin(async move { handle(runtime, request, connection).await.unwrap_or_else(Response::from) })
    }),
};

/// Accepts connections until the listener closes, and returns when all of them are closed.
pub async fn accept(runtime: Arc<Runtime>, listener: Listener, listen: Listen, shutdown: ListenerShutdown) {
    auxiliary::accept(runtime, listener, listen, shutdown, SERVICE).await;
}

/// Answers a request. A stranger learns only which resources need no credential.
async fn handle(
    runtime: &Arc<Runtime>,
    request: Request<Incoming>,
    connection: &ServiceConnection,
) -> Result<AdminResponse, AdminProblem> {
    let active = runtime.active_config();
    if connection.address().is_some() {
        host_check::check_host(&request, &active.plan.admin_hosts)?;
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
                let fleet = fleet::instances(runtime).await.ok();
                let respond =
                    move |runtime: &Runtime| page::response(runtime, request_id.as_deref(), &history, fleet.as_ref());
                render(runtime, respond).await
            }
            "openapi" => Ok(build_response(StatusCode::OK, JSON, OPENAPI.to_owned())),
            "status" => json(runtime, status::status).await,
            "plan" => json(runtime, status::plan).await,
            "egress" => json(runtime, egress::report).await,
            "limits" => json(runtime, limits::report).await,
            "circuits" => json(runtime, egress::circuits).await,
            "rollout" => rollout::report(runtime).await.map(json_response),
            "fleet" => fleet::report(runtime).await.map(json_response),
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
    let query = operation.query(request.uri().query())?;
    // Without a tenant, the key sets contain no tenant's own keys.
    let tenant = query.text("tenant").map(TenantName::new);
    match &*operation.id {
        // Rendered here: the response shows that the threads that carry traffic make progress.
        "health" => Ok(build_response(StatusCode::OK, TEXT, "ok\n".into())),
        // Rendered here, too: it takes microseconds, and load balancers ask several times a second.
        "load" => load_response(runtime, &query),
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
    connection: &ServiceConnection,
) {
    let unknown = Actor { source: Source::Admin, name: None, address: None };
    let actor = Actor { address: None, ..caller.map_or(unknown, AdminCaller::actor) };
    let counted = CountedEvent { event_type, resource: path.to_owned(), actor, claimed_client: None, tenant: None };
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

/// Answers a load balancer. The status is 503 while the weight is 0, or below `min` of the query.
fn load_response(runtime: &Runtime, query: &Query) -> Result<AdminResponse, AdminProblem> {
    let expected = "write a weight from 1 to 100, below which the status is 503";
    let parse = |text: &str| text.parse().ok().filter(|min| (1..=100).contains(min)).ok_or(());
    let min = query.parse("min", expected, parse)?.unwrap_or(1);
    let load = runtime.load(Timestamp::now());
    let weight = load.weight();
    let status = if weight.percent >= min { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = build_response(status, JSON, load::report(&load).to_string());
    if weight.is_degraded() {
        response.headers_mut().insert(ENVOY_DEGRADED, HeaderValue::from_static("true"));
    }
    Ok(response)
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
