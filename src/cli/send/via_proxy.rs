//! Sends the request through a running proxy, as any HTTP client would.
//! What does the proxy respond?

use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::super::local_runtime::{new_tokio_runtime, usage_error};
use super::RequestSpec;
use super::result::SendResult;
use crate::names::encode_path;
use crate::sysexits;

/// The time limit of the response, above the default total timeout of a delivery.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(180);

/// The address of a proxy, and the credential of the client.
#[derive(Clone)]
pub(super) struct ProxyUrl {
    host: String,
    port: u16,
    credential: Option<HeaderValue>,
}

impl FromStr for ProxyUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|_| "this is not a URL")?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http"));
        let authority = authority.ok_or("write http://HOST:PORT")?;
        let port = authority.port_u16().ok_or("add the port of the proxy: http://HOST:PORT")?;
        let secret = authority.as_str().rsplit_once('@').map(|(secret, _)| secret);
        let basic = |secret| HeaderValue::try_from(format!("Basic {}", STANDARD.encode(secret)));
        let credential = secret
            .map(basic)
            .transpose()
            .map_err(|_| "the credential has characters that a header field cannot have")?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port, credential })
    }
}

pub(super) fn send(proxy: &ProxyUrl, spec: &RequestSpec) -> Result<SendResult, ExitCode> {
    let request = build_request(proxy, spec).map_err(usage_error)?;
    let result = new_tokio_runtime()?.block_on(async { timeout(RESPONSE_TIMEOUT, exchange(proxy, request)).await });
    result.unwrap_or_else(|_| Err(format!("the proxy did not respond within {RESPONSE_TIMEOUT:?}"))).map_err(|reason| {
        eprintln!("outgate: {}:{}: {reason}", proxy.host, proxy.port);
        ExitCode::from(sysexits::UNAVAILABLE)
    })
}

/// Builds the request with its target in absolute-form (RFC 9112 §3.2.2).
fn build_request(proxy: &ProxyUrl, spec: &RequestSpec) -> Result<Request<Full<Bytes>>, &'static str> {
    let uri: Uri = encode_path(&spec.url).parse().map_err(|_| "the target is not a URL")?;
    let authority = uri
        .authority()
        .filter(|_| uri.scheme().is_some())
        .ok_or("the target is not an absolute URL: write https://HOST/PATH")?;
    let host = HeaderValue::try_from(authority.as_str())
        .map_err(|_| "the target's host has characters that a header field cannot have")?;
    let mut request = Request::new(Full::from(spec.body.clone()));
    *request.method_mut() = spec.method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = spec.fields.clone();
    request.headers_mut().insert(header::HOST, host);
    if let Some(credential) = &proxy.credential {
        request.headers_mut().insert(header::PROXY_AUTHORIZATION, credential.clone());
    }
    Ok(request)
}

async fn exchange(proxy: &ProxyUrl, request: Request<Full<Bytes>>) -> Result<SendResult, String> {
    let stream = TcpStream::connect((proxy.host.as_str(), proxy.port)).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let started = Instant::now();
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    Ok(SendResult::read(response.into(), started, Arc::default()).await)
}
