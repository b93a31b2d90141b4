//! HTTP spoken over a new stream, and driven until either side closes it.
//! Which limits does a connection to a target have?

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioTimer;

use super::RequestSender;
use super::driver::{self, DriverHandle};
use super::streams::{STREAMS_MAX, Streams};
use super::tap::TappedStream;
use crate::config::ResponseHeadMax;
use crate::net::connection::Liveness;

/// Until the target says how many streams it allows: no target says this, for h2 takes none for `usize::MAX`, and any other
/// has 32 bits (RFC 9113 §6.5.2).
const STREAMS_UNKNOWN: usize = usize::MAX - 1;
/// Bytes of a response that a target may send before its client reads them.
const STREAM_WINDOW: u32 = 128 * 1024;
/// Bytes of all responses on a connection. It covers the windows of all streams: clients that do not read must not stall
/// the other streams.
const CONNECTION_WINDOW: u32 = STREAMS_MAX * STREAM_WINDOW;
/// A connection that many deliveries share is asked whether it still lives while they wait.
const PING_AFTER: Duration = Duration::from_secs(10);
const PONG_WITHIN: Duration = Duration::from_secs(5);
/// Bytes that hyper may read ahead over HTTP/1.1, whatever the limit of a response head.
const READ_AHEAD: usize = 64 * 1024;
/// A response head of up to so many times the limit is read over HTTP/2. The filter refuses a larger one unread.
const HEAD_MARGIN: usize = 4;

/// Returns the bytes of a field section that are read over HTTP/2, as RFC 9113 §6.5.2 counts them.
pub(super) fn list_max(head_max: ResponseHeadMax) -> usize {
    head_max.bytes * HEAD_MARGIN
}

pub(super) async fn open_http1(
    wire: TappedStream,
    liveness: &Liveness,
    head_max: ResponseHeadMax,
) -> Result<(RequestSender, Arc<DriverHandle>), hyper::Error> {
    let (sender, driver) = http1::Builder::new()
        .allow_spaces_after_header_name_in_responses(true) // and they are removed: RFC 9112 §5.1
        .max_buf_size(READ_AHEAD.max(head_max.bytes))
        .max_header_size(head_max.bytes)
        .max_headers(head_max.count)
        .handshake(wire)
        .await?;
    let (held, hold) = driver::new(liveness);
    // Whoever waits for a response hears of an error there; on an idle connection it is no news.
    hold.drive(driver);
    Ok((RequestSender::Http1(sender), held))
}

pub(super) async fn open_http2(
    wire: TappedStream,
    liveness: &Liveness,
    streams: Arc<Streams>,
    head_max: ResponseHeadMax,
) -> Result<(RequestSender, Arc<DriverHandle>), hyper::Error> {
    let (held, hold) = driver::new(liveness);
    let (sender, driver) = http2::Builder::new(hold.clone())
        .timer(TokioTimer::new())
        .initial_max_send_streams(STREAMS_UNKNOWN)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(list_max(head_max)).unwrap_or(u32::MAX))
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PONG_WITHIN)
        .handshake(wire)
        .await?;
    let told = Arc::clone(&streams);
    hold.drive(async move {
        let (mut driver, mut most) = (pin!(driver), STREAMS_UNKNOWN);
        let mut drives = poll_fn(|cx| {
            let polled = driver.as_mut().poll(cx);
            let before = std::mem::replace(&mut most, driver.current_max_send_streams());
            if most != before {
                told.allow(most);
            }
            polled
        });
        // Of SETTINGS nobody wakes it: another task of hyper's reads them.
        loop {
            tokio::select! {
                biased;
                _ = &mut drives => break,
                () = told.settings_poll_requested() => {}
            }
        }
    });
    Ok((RequestSender::Http2 { sender, streams, slot: None }, held))
}
