//! CONNECT: the client's connection becomes a tunnel, or is answered and closed.
//! Who gets the connection after the answer?

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Response, Version};

use super::AfterResponse;
use super::conn::Conn;
use super::head::RequestHead;
use super::response::ResponseWriter;
use crate::delivery::tunnel::{self, ConnectOutcome};
use crate::delivery::{ProxyRequest, ResponseBody};
use crate::policy::authn::Caller;
use crate::server::hangup::unless;
use crate::state::Runtime;

pub(super) async fn serve(
    runtime: &Arc<Runtime>,
    line: &Conn,
    head: RequestHead,
    caller: &Arc<Caller>,
    idle: Duration,
) -> AfterResponse {
    let RequestHead { method, target, version, fields, .. } = head;
    let body = Box::pin(line.body());
    let arrival = ProxyRequest { method, version, target, fields, body, caller: Arc::clone(caller), interim: None };
    let connected = {
        let connecting = pin!(tunnel::connect(runtime, arrival));
        let Some(connected) = unless(line.hangs_up(), connecting).await else { return AfterResponse::Abort };
        connected
    };
    match connected {
        // What follows was meant for the tunnel (RFC 9110 §9.3.6): none of it is served as a request.
        ConnectOutcome::Refused(response) => match write(line, response, version, idle, false).await {
            true => AfterResponse::Close,
            false => AfterResponse::Abort,
        },
        ConnectOutcome::Tunnel(tunnel) => match write(line, tunnel.answer(runtime), version, idle, true).await {
            true => AfterResponse::Tunnel(tunnel),
            false => AfterResponse::Abort,
        },
        ConnectOutcome::Inspected(inspection) => match write(line, inspection.answer(), version, idle, true).await {
            true => AfterResponse::Inspect(inspection),
            false => AfterResponse::Abort,
        },
    }
}

/// A tunnel opens whatever the client said of keeping its connection: many say `close`.
async fn write(line: &Conn, response: Response<ResponseBody>, version: Version, idle: Duration, opens: bool) -> bool {
    ResponseWriter::new(response, &Method::CONNECT, version, opens).write(line, idle).await.is_ok()
}
