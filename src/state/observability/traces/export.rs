//! One export over OTLP: the request, and what the response says of its spans.
//! Did the collector take the spans, and may they be sent again?

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, header};
use http_body_util::Full;
use tokio::time::Instant;

use super::otlp::rejected_spans;
use crate::config::{OtlpProtocol, Traces};
use crate::names::{Scheme, USER_AGENT};
use crate::net::collector::{self, CollectorResponse};
use crate::state::config::ActiveConfig;

/// The statuses of HTTP after which the spans are sent again (OTLP 1.8, "Retryable Response Codes").
const RETRYABLE: [u16; 4] = [429, 502, 503, 504];
/// The statuses of gRPC after which they are: CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE and
/// DATA_LOSS.
const RETRYABLE_GRPC: [u16; 6] = [1, 4, 10, 11, 14, 15];
const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
/// A flag, and the length of the message in four bytes (gRPC over HTTP2, "Length-Prefixed-Message").
const GRPC_PREFIX: usize = 5;

/// The reason why the collector has not taken the spans.
pub(super) struct ExportError {
    pub(super) reason: String,
    pub(super) is_retryable: bool,
    /// The pause that the collector demands.
    pub(super) retry_after: Option<Duration>,
}

impl From<io::Error> for ExportError {
    fn from(error: io::Error) -> Self {
        Self { reason: error.to_string(), is_retryable: true, retry_after: None }
    }
}

/// Sends an `ExportTraceServiceRequest` under the resolver and the trust that are active now. Returns the number of spans
/// that the collector has rejected. The caller bounds the time.
pub(super) async fn send(active: &ActiveConfig, settings: &Traces, message: &[u8]) -> Result<u64, ExportError> {
    let (target, trust) = (&settings.endpoint.value, settings.trust.as_ref().map(|trust| trust.as_str()));
    let (addresses, tls) = active.find_service(&target.host, trust, settings.timeout).await?;
    let tls = Some(&*tls).filter(|_| target.scheme == Scheme::Https);
    let (is_grpc, deadline) = (settings.protocol == OtlpProtocol::Grpc, Instant::now() + settings.timeout);
    let request = request(settings, message)?;
    let response = collector::send(target, &addresses, tls, is_grpc, request, deadline).await?;
    outcome(is_grpc, response)
}

fn request(settings: &Traces, message: &[u8]) -> io::Result<Request<Full<Bytes>>> {
    let target = &settings.endpoint.value;
    let request = match settings.protocol {
        OtlpProtocol::Http => Request::post(settings.path.as_str())
            .header(header::HOST, target.authority().to_string())
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .body(Bytes::copy_from_slice(message)),
        OtlpProtocol::Grpc => Request::post(format!("{target}{GRPC_PATH}"))
            .header(header::TE, "trailers")
            .header(header::CONTENT_TYPE, "application/grpc")
            .body([&[0], &(message.len() as u32).to_be_bytes()[..], message].concat().into()),
    };
    let mut request = request.map_err(io::Error::other)?.map(Full::new);
    request.headers_mut().insert(header::USER_AGENT, header::HeaderValue::from_static(USER_AGENT));
    request.headers_mut().extend(settings.headers.iter().cloned());
    Ok(request)
}

fn outcome(is_grpc: bool, (head, body, trailers): CollectorResponse) -> Result<u64, ExportError> {
    let status = head.status.as_u16();
    let number = |fields: &HeaderMap, name: &str| fields.get(name)?.to_str().ok()?.parse::<u16>().ok();
    // Without a message, the status of gRPC is in the head.
    let grpc = number(&trailers, "grpc-status").or_else(|| number(&head.headers, "grpc-status")).filter(|_| is_grpc);
    let (reason, is_retryable) = match (is_grpc, grpc) {
        (false, _) if (200..300).contains(&status) => return Ok(rejected_spans(&body)),
        (_, Some(0)) => return Ok(rejected_spans(body.get(GRPC_PREFIX..).unwrap_or_default())),
        (_, Some(grpc)) => (format!("it responded with the gRPC status {grpc}"), RETRYABLE_GRPC.contains(&grpc)),
        (_, None) => (format!("it responded with status {status}"), RETRYABLE.contains(&status)),
    };
    let retry_after = number(&head.headers, "retry-after").map(|seconds| Duration::from_secs(seconds.into()));
    Err(ExportError { reason, is_retryable, retry_after })
}
