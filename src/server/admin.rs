//! The admin listener: health, readiness, metrics, and the public halves of signing keys.
//! Is the proxy alive, is it fit for traffic, what does it count, and what verifies its signatures?

use std::convert::Infallible;
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

use crate::live::Live;
use crate::names::TenantName;
use crate::net::listen::Listener;
use crate::policy::sign;

/// Probes and scrapers are few; more than this wait.
const CONNECTIONS_MAX: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A probe that has its answer has no reason to stay.
const LONGEST: Duration = Duration::from_secs(60);

const KEYS: &str = "/keys";
const DIRECTORY: &str = "/.well-known/http-message-signatures-directory";
/// A key that is announced an hour before it signs is known to all by then.
const KEYS_KEPT: &str = "public, max-age=3600";

pub async fn accept(live: Arc<Live>, listener: Listener) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(super::ACCEPT_PAUSE).await;
            continue;
        };
        let live = Arc::clone(&live);
        tokio::spawn(async move {
            let service = service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&live, &request))));
            let serving = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(LONGEST, serving).await;
            drop(place);
        });
    }
}

fn answer(live: &Live, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET or HEAD\n".into());
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, TEXT, "ok\n".into()),
        "/readyz" => readiness(live, TEXT),
        "/metrics" => {
            live.observe();
            let (body, media_type) = live.meters.render();
            text(StatusCode::OK, media_type, body)
        }
        KEYS => {
            let set = sign::jwks(&live.in_force().plan.signers, tenant(request).as_ref(), Timestamp::now());
            keys(set, "application/jwk-set+json")
        }
        DIRECTORY => {
            let set = sign::directory(&live.in_force().plan.signers, tenant(request).as_ref(), Timestamp::now());
            keys(set, "application/http-message-signatures-directory+json")
        }
        _ => text(StatusCode::NOT_FOUND, TEXT, format!("/healthz /readyz /metrics {KEYS} {DIRECTORY}\n")),
    }
}

fn readiness(live: &Live, media_type: &'static str) -> Response<Full<Bytes>> {
    let state = live.readiness();
    let status = if state.blocked.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = String::from(if state.blocked.is_empty() { "ready\n" } else { "not ready\n" });
    for reason in state.blocked.iter().chain(&state.degraded) {
        body.push_str(reason);
        body.push('\n');
    }
    text(status, media_type, body)
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
