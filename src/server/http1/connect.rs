//! CONNECT: the client's connection becomes a tunnel, or is answered and closed.
//! Who gets the connection after the answer?

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Response, Version};

use super::Next;
use super::answer::Answer;
use super::head::Head;
use super::line::Line;
use crate::delivery::tunnel::{self, Connected};
use crate::delivery::{Arrival, Outbound};
use crate::live::Live;
use crate::policy::identify::Caller;
use crate::server::hang_up::unless;

pub(super) async fn serve(live: &Arc<Live>, line: &Line, head: Head, caller: &Arc<Caller>, idle: Duration) -> Next {
    let Head { method, target, version, fields, .. } = head;
    let body = Box::pin(line.body());
    let arrival = Arrival { method, version, target, fields, body, caller: Arc::clone(caller), interim: None };
    let connected = {
        let connecting = pin!(tunnel::connect(live, arrival));
        let Some(connected) = unless(line.hangs_up(), connecting).await else { return Next::Abandon };
        connected
    };
    match connected {
        // What follows was meant for the tunnel (RFC 9110 §9.3.6): none of it is served as a request.
        Connected::Refused(response) => match write(line, response, version, idle, false).await {
            true => Next::Close,
            false => Next::Abandon,
        },
        Connected::Tunnel(tunnel) => match write(line, tunnel.answer(live), version, idle, true).await {
            true => Next::Carry(tunnel),
            false => Next::Abandon,
        },
        Connected::Inspect(inspection) => match write(line, inspection.answer(), version, idle, true).await {
            true => Next::Inspect(inspection),
            false => Next::Abandon,
        },
    }
}

/// A tunnel opens whatever the client said of keeping its connection: many say `close`.
async fn write(line: &Line, response: Response<Outbound>, version: Version, idle: Duration, opens: bool) -> bool {
    Answer::new(response, &Method::CONNECT, version, opens).write(line, idle).await.is_ok()
}
