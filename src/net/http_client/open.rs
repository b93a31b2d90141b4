//! Performs the HTTP handshake over a new stream, and spawns the connection's driver.
//! Which limits does a connection to a target have?

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http2;
use hyper_util::rt::TokioTimer;

use super::dispatch::{self, Sender};
use super::driver::{self, DriverHandle};
use super::streams::{STREAMS_MAX, Streams, StreamsOwner};
use super::tap::TappedStream;
use crate::config::ResponseHeadMax;
use crate::net::connection::Liveness;

/// The stream limit before the target's SETTINGS. No target announces this value: h2 represents no limit as
/// `usize::MAX`, and any other limit has 32 bits (RFC 9113 §6.5.2).
const STREAMS_UNKNOWN: usize = usize::MAX - 1;
/// The bytes of a response that a target may send before the client reads them.
const STREAM_WINDOW: u32 = 128 * 1024;
/// The bytes of all responses that a target may send on a connection. It covers the windows of all streams, so that
/// slow clients do not stall other streams.
const CONNECTION_WINDOW: u32 = STREAMS_MAX * STREAM_WINDOW;
/// The interval of PING frames, which detect a dead connection while deliveries wait.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// The factor by which h2's limit of a response head exceeds the configured one. The filter rejects a larger head
/// before h2 reads it.
const HEADER_LIST_FACTOR: usize = 4;

/// Returns h2's limit of a response's field section, in bytes as RFC 9113 §6.5.2 counts them.
pub(super) fn header_list_max(head_max: ResponseHeadMax) -> usize {
    head_max.bytes * HEADER_LIST_FACTOR
}

pub(super) async fn open_http2(
    io: TappedStream,
    liveness: &Liveness,
    streams: &Arc<Streams>,
    head_max: ResponseHeadMax,
) -> Result<(Sender, Arc<DriverHandle>), hyper::Error> {
    let (handle, driver) = driver::pair(liveness);
    let (sender, connection) = http2::Builder::new(driver.clone())
        .timer(TokioTimer::new())
        .initial_max_send_streams(STREAMS_UNKNOWN)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(header_list_max(head_max)).unwrap_or(u32::MAX))
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .handshake(io)
        .await?;
    let (sender, dispatcher) = dispatch::pair(sender, connection);
    let driver_streams = StreamsOwner(Arc::clone(streams));
    driver.spawn(async move {
        let (mut dispatcher, mut max_streams) = (pin!(dispatcher), STREAMS_UNKNOWN);
        let mut drive = poll_fn(|cx| {
            let polled = dispatcher.as_mut().poll(cx);
            let before = std::mem::replace(&mut max_streams, dispatcher.max_send_streams());
            if max_streams != before {
                driver_streams.0.set_max_streams(max_streams);
            }
            polled
        });
        // hyper does not wake this task for SETTINGS, because another task reads them.
        loop {
            tokio::select! {
                biased;
                _ = &mut drive => break,
                () = driver_streams.0.settings_poll_requested() => {}
            }
        }
    });
    Ok((sender, handle))
}
