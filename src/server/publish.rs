//! The publish listener: the publication over HTTP, for customers, with conditional requests and nothing else.
//! Which file does a request name, and does the client have it already?

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use jiff::Timestamp;

use super::auxiliary::{self, Protocol, Service, ServiceResponse};
use super::listener_shutdown::ListenerShutdown;
use crate::config::Listen;
use crate::net::listen::Listener;
use crate::policy::publication::{CONTENT_SECURITY_POLICY, PAGE, Publication, PublishedFile};
use crate::state::Runtime;
use crate::state::publication::Rendered;

/// Caches and networks share addresses, so one address may have several connections.
const SERVICE: Service = Service {
    name: "publish",
    connections_max: 256,
    connections_per_ip_max: 32,
    protocol: Protocol::Http(|runtime, request, _| Box::pin(async move { respond(runtime, &request).await })),
};
/// The longest time for which a cache may use a response without asking again.
const MAX_AGE: Duration = Duration::from_secs(300);
/// The time after which files that depend on the time alone, such as keys, are made again.
const RENDERED_FOR: Duration = Duration::from_secs(60);
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");

/// Accepts connections until the listener closes, and returns when all of them are closed.
pub async fn accept(runtime: Arc<Runtime>, listener: Listener, listen: Listen, shutdown: ListenerShutdown) {
    auxiliary::accept(runtime, listener, listen, shutdown, SERVICE).await;
}

async fn respond(runtime: &Arc<Runtime>, request: &Request<Incoming>) -> ServiceResponse {
    let mut response = match *request.method() {
        Method::GET | Method::HEAD => match publication(runtime).await {
            Some(rendered) => serve(&rendered, request),
            None => with_status(StatusCode::INTERNAL_SERVER_ERROR, "outgate could not render this file: see its log\n"),
        },
        Method::OPTIONS => preflight(),
        _ => {
            let mut response = with_status(StatusCode::METHOD_NOT_ALLOWED, "this resource has GET and HEAD\n");
            response.headers_mut().insert(header::ALLOW, METHODS);
            response
        }
    };
    let fields = [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, "ETag, Last-Modified"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    response.headers_mut().extend(fields.map(|(name, value)| (name, HeaderValue::from_static(value))));
    response
}

/// Returns the publication of the active configuration. It is made at the first request after a reload or a change of a
/// state, and then kept.
async fn publication(runtime: &Arc<Runtime>) -> Option<Arc<Rendered>> {
    let current = |runtime: &Runtime, now| {
        let (active, adopted) = (runtime.active_config(), runtime.config_status.adopted());
        let rendered = runtime.publication.load();
        rendered.filter(|rendered| {
            now < rendered.valid_until
                && rendered.since == adopted.list.since
                && Weak::ptr_eq(&rendered.config, &Arc::downgrade(&active))
        })
    };
    if let Some(rendered) = current(runtime, Timestamp::now()) {
        return Some(rendered);
    }
    let worker_runtime = Arc::clone(runtime);
    let rendering = runtime.admin_worker.run(move || {
        let now = Timestamp::now();
        // Another request may have waited for the same.
        current(&worker_runtime, now).unwrap_or_else(|| {
            let (active, adopted) = (worker_runtime.active_config(), worker_runtime.config_status.adopted());
            let publication = Publication::render(&active.plan, &adopted.list, now);
            let latest = now + RENDERED_FOR;
            let valid_until = publication.valid_until.map_or(latest, |next| next.min(latest));
            let rendered =
                Rendered { config: Arc::downgrade(&active), since: adopted.list.since, valid_until, publication };
            worker_runtime.publication.store(rendered)
        })
    });
    rendering.await.ok()
}

fn serve(rendered: &Rendered, request: &Request<Incoming>) -> ServiceResponse {
    let path = request.uri().path().strip_prefix('/').unwrap_or_default();
    let path = if path.is_empty() { PAGE } else { path };
    let Some(file) = rendered.publication.files.get(path) else {
        return with_status(StatusCode::NOT_FOUND, "there is no such file: / lists them\n");
    };
    let status = evaluate(request.headers(), file);
    let body = if status == StatusCode::OK { file.body.clone() } else { Bytes::new() };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let mut insert = |name: HeaderName, value: String| {
        headers.extend(HeaderValue::try_from(value).ok().map(|value| (name, value)));
    };
    let next_change = rendered.publication.valid_until;
    let max_age = next_change
        .map_or(MAX_AGE, |next| MAX_AGE.min(next.duration_since(Timestamp::now()).try_into().unwrap_or_default()));
    insert(header::CACHE_CONTROL, format!("public, max-age={}", max_age.as_secs()));
    insert(header::ETAG, file.etag.clone());
    if let Some(modified) = file.modified {
        insert(header::LAST_MODIFIED, httpdate::fmt_http_date(modified.into()));
    }
    if status == StatusCode::OK {
        insert(header::CONTENT_TYPE, file.media_type.to_owned());
    }
    if path == PAGE {
        insert(header::CONTENT_SECURITY_POLICY, format!("{}; frame-ancestors 'none'", *CONTENT_SECURITY_POLICY));
    }
    response
}

/// Evaluates the preconditions in their order (RFC 9110 §13.2.2).
fn evaluate(headers: &HeaderMap, file: &PublishedFile) -> StatusCode {
    let tags = |name: HeaderName| {
        let lists = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        let tags: Vec<&str> = lists.flat_map(|list| list.split(',')).map(str::trim).collect();
        (!tags.is_empty()).then_some(tags)
    };
    let time = |name: HeaderName| {
        let time = httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()?;
        Timestamp::try_from(time).ok().zip(file.modified)
    };
    let is_failed = match tags(header::IF_MATCH) {
        Some(tags) => !tags.iter().any(|tag| *tag == "*" || *tag == file.etag),
        None => time(header::IF_UNMODIFIED_SINCE).is_some_and(|(time, modified)| modified > time),
    };
    let is_known = || match tags(header::IF_NONE_MATCH) {
        // The comparison is weak: a cache that changes the coding marks the tag so (§8.8.3.2).
        Some(tags) => tags.iter().any(|tag| *tag == "*" || tag.trim_start_matches("W/") == file.etag),
        None => time(header::IF_MODIFIED_SINCE).is_some_and(|(time, modified)| modified <= time),
    };
    match is_failed {
        true => StatusCode::PRECONDITION_FAILED,
        false if is_known() => StatusCode::NOT_MODIFIED,
        false => StatusCode::OK,
    }
}

/// Permits conditional requests of scripts (Fetch Standard, CORS preflight).
fn preflight() -> ServiceResponse {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let fields = [
        (header::ALLOW, METHODS),
        (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static("If-Match, If-Modified-Since, If-None-Match, If-Unmodified-Since"),
        ),
        (header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400")),
    ];
    response.headers_mut().extend(fields);
    response
}

fn with_status(status: StatusCode, text: &'static str) -> ServiceResponse {
    let mut response = Response::new(Full::from(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
