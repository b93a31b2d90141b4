//! CONNECT over HTTP/1: the client's connection becomes a tunnel, or is refused and closed.
//! Which code serves the connection after the response to a CONNECT?

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Version};

use super::conn::Conn;
use super::head::RequestHead;
use super::response::ResponseWriter;
use super::{AfterResponse, Upgrade};
use crate::delivery::tunnel::{self, ConnectOutcome};
use crate::delivery::{ProxyRequest, ResponseBody};
use crate::http_message::Response;
use crate::policy::authn::Caller;
use crate::server::hangup::run_until_hangup;
use crate::state::Runtime;

pub(super) async fn serve(
    runtime: &Arc<Runtime>,
    conn: &Conn,
    head: RequestHead,
    caller: &Arc<Caller>,
    idle: Duration,
) -> AfterResponse {
    let RequestHead { method, target, version, fields, .. } = head;
    let body = Box::pin(conn.body());
    let arrival = ProxyRequest { method, version, target, fields, body, caller: Arc::clone(caller), interim: None };
    let connected = {
        let connecting = pin!(tunnel::connect(runtime, arrival));
        let Some(connected) = run_until_hangup(conn.hangup(), connecting).await else { return AfterResponse::Abort };
        connected
    };
    match connected {
        // The following bytes were meant for the tunnel (RFC 9110 §9.3.6): none of them is served as a request.
        ConnectOutcome::Refused(response) => match write_response(conn, response, version, idle, false).await {
            true => AfterResponse::Close,
            false => AfterResponse::Abort,
        },
        ConnectOutcome::Tunnel(tunnel) => match write_response(conn, tunnel.answer(), version, idle, true).await {
            true => AfterResponse::Upgrade(Upgrade::Tunnel(tunnel)),
            false => AfterResponse::Abort,
        },
        ConnectOutcome::Inspected(inspection) => {
            match write_response(conn, inspection.answer(), version, idle, true).await {
                true => AfterResponse::Upgrade(Upgrade::Inspect(inspection)),
                false => AfterResponse::Abort,
            }
        }
    }
}

/// Writes the response to a CONNECT. A tunnel ignores `Connection: close`, which many clients send.
async fn write_response(
    conn: &Conn,
    response: Response<ResponseBody>,
    version: Version,
    idle: Duration,
    keep_alive: bool,
) -> bool {
    ResponseWriter::new(response, &Method::CONNECT, version, keep_alive).write(conn, idle).await.is_ok()
}
