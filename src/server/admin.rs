//! The admin listener: health, readiness, metrics.
//! Is the proxy alive, is it fit for traffic, and what does it count?

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;

use crate::live::Live;
use crate::net::listen::Listener;

/// Probes and scrapers are few; more than this wait.
const CONNECTIONS_MAX: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A probe that has its answer has no reason to stay.
const LONGEST: Duration = Duration::from_secs(60);

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
        _ => text(StatusCode::NOT_FOUND, TEXT, "/healthz /readyz /metrics\n".into()),
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

fn text(status: StatusCode, media_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
