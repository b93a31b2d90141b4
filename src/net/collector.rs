//! HTTP requests to a collector of telemetry. A collector is no target: the kernel chooses the source address.
//! How do spans leave this host?

use std::io;
use std::net::IpAddr;

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioExecutor;
use tokio::time::Instant;

use super::log_server;
use super::tls::{AlpnOffer, ClientTls};
use crate::names::Target;

/// The bytes of a response that are read.
const RESPONSE_MAX: usize = 64 * 1024;

/// The head, the body and the trailers of a response.
pub type CollectorResponse = (Parts, Bytes, HeaderMap);

/// Sends a request over a new connection to the first of the addresses that accepts, and returns the whole response.
/// `tls`: verifies that the server is the target's host.
pub async fn send(
    target: &Target,
    addresses: &[IpAddr],
    tls: Option<&ClientTls>,
    is_http2: bool,
    request: Request<Full<Bytes>>,
    deadline: Instant,
) -> io::Result<CollectorResponse> {
    let socket = log_server::connect(addresses, target.port, deadline - Instant::now()).await?;
    let offer = if is_http2 { AlpnOffer::Http2 } else { AlpnOffer::Http1 };
    let stream = match tls {
        None => socket.into_plaintext(),
        Some(tls) => log_server::tls_stream(socket, tls, &target.host, offer, deadline).await?,
    };
    // The connection ends with its sender.
    let response = if is_http2 {
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), stream).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        sender.send_request(request).await
    } else {
        let (mut sender, connection) = http1::handshake(stream).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        sender.send_request(request).await
    };
    let (head, body) = response.map_err(io::Error::other)?.into_parts();
    let body = Limited::new(body, RESPONSE_MAX).collect().await.map_err(io::Error::other)?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    Ok((head, body.to_bytes(), trailers))
}
