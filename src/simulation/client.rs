//! A client of the simulation: one connection, with the requests and the hang-ups that its seed draws.
//! What does a client send, when does it give up, and which response does it see?

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::dns::DOMAIN;
use super::ledger::Seen;
use super::random::Random;
use super::wire::{self, Framing};
use super::world::World;
use crate::net::simulated::SimulatedSocket;

/// The time after which a patient client gives up. It exceeds every timeout of a delivery.
const PATIENCE: Duration = Duration::from_secs(100);

/// One connection of a client.
#[derive(Debug)]
pub(super) struct ClientPlan {
    pub(super) starts: Duration,
    pub(super) requests: Vec<RequestPlan>,
    /// The connection's task is dropped at this poll.
    pub(super) cancel_at: Option<u64>,
    pub(super) random: Random,
}

#[derive(Debug)]
pub(super) struct RequestPlan {
    pub(super) id: u32,
    is_head: bool,
    /// HTTP/1.0 has no chunks: the end of the connection ends a response without a length.
    is_http10: bool,
    bytes: Vec<u8>,
    head_length: usize,
    body: Vec<u8>,
    hangup: Option<(usize, Hangup)>,
    /// The client reads at most this much of the response.
    read_max: Option<usize>,
    patience: Duration,
    pause: Duration,
}

/// How a client stops sending.
#[derive(Clone, Copy, Debug)]
enum Hangup {
    Close,
    Reset,
    HalfClose,
    Stall,
}

impl RequestPlan {
    /// Draws a request. `trouble`: how many of a thousand requests go wrong.
    pub(super) fn draw(id: u32, targets: usize, trouble: usize, random: &mut Random) -> Self {
        let route = random.one_of(&["signed", "plain", "limited", "limited", "limited"]);
        let method = if random.permille(850) { "POST" } else { random.one_of(&["GET", "HEAD", "PUT"]) };
        let is_http10 = random.permille(100);
        let body = wire::body_of(id, if matches!(method, "GET" | "HEAD") { 0 } else { random.length() });
        let is_chunked = !body.is_empty() && !is_http10 && random.permille(300);
        let (host, version) = (random.below(targets), if is_http10 { "1.0" } else { "1.1" });
        let mut bytes = format!(
            "{method} http://t{host}.{DOMAIN}/{route}/{id} HTTP/{version}\r\nHost: t{host}.{DOMAIN}\r\nX-Case: Kept\r\n"
        );
        if is_http10 && random.permille(500) {
            bytes.push_str("Connection: keep-alive\r\n");
        }
        if !body.is_empty() && !is_http10 && random.permille(100) {
            bytes.push_str("Expect: 100-continue\r\n");
        }
        match () {
            () if is_chunked => bytes.push_str("Transfer-Encoding: chunked\r\n\r\n"),
            () if body.is_empty() && random.permille(500) => bytes.push_str("\r\n"),
            () => bytes.push_str(&format!("Content-Length: {}\r\n\r\n", body.len())),
        }
        let mut bytes = bytes.into_bytes();
        let head_length = bytes.len();
        match is_chunked {
            true => bytes.extend_from_slice(&wire::encode_chunks(&body, random.between(1, 2000))),
            false => bytes.extend_from_slice(&body),
        }
        let hangups = [Hangup::Close, Hangup::Reset, Hangup::HalfClose, Hangup::Stall];
        let hangup = random.permille(trouble / 2).then(|| (random.below(bytes.len() + 1), random.one_of(&hangups)));
        Self {
            id,
            is_head: method == "HEAD",
            is_http10,
            hangup,
            bytes,
            head_length,
            body,
            read_max: random.permille(trouble / 4).then(|| random.below(500)),
            patience: if random.permille(trouble / 2) { random.millis(0, 4000) } else { PATIENCE },
            pause: if random.permille(500) { Duration::ZERO } else { random.millis(0, 5000) },
        }
    }
}

/// Sends the requests of a connection, one after the other.
pub(super) async fn run(world: &Arc<World>, io: SimulatedSocket, plan: &mut ClientPlan) {
    let (mut offset, mut is_complete, mut inbox) = (0, true, Vec::new());
    for request in &plan.requests {
        {
            let mut ledger = world.ledger();
            let facts = ledger.facts(request.id);
            facts.body.clone_from(&request.body);
            facts.head_end = Some((io.probe(), offset + request.head_length as u64));
            facts.follows_complete = is_complete;
        }
        let exchange = exchange(world, &io, request, &mut inbox, &mut plan.random);
        if !timeout(request.patience, exchange).await.unwrap_or(false) {
            world.trace(format_args!("client gives up or ends after request {}", request.id));
            return;
        }
        is_complete = world.ledger().facts(request.id).is_sent;
        offset += request.bytes.len() as u64;
        if !inbox.is_empty() {
            world.ledger().violated(format!("bytes follow the response to request {}", request.id));
        }
        if !request.pause.is_zero() {
            sleep(request.pause).await;
        }
    }
}

/// Sends a request and reads its response. Returns whether the next request may follow.
async fn exchange(
    world: &Arc<World>,
    io: &SimulatedSocket,
    request: &RequestPlan,
    inbox: &mut Vec<u8>,
    random: &mut Random,
) -> bool {
    let (mut write_random, mut read_random) = (random.fork(), random.fork());
    let writing = async {
        let is_written = write(io, request, &mut write_random).await;
        if is_written {
            world.ledger().facts(request.id).is_sent = true;
        } else if !matches!(request.hangup, Some((_, Hangup::HalfClose | Hangup::Stall))) {
            return false;
        } else {
            std::future::pending::<()>().await;
        }
        is_written
    };
    let reading = read_response(world, io, request, inbox, &mut read_random);
    let (mut writing, mut reading) = (std::pin::pin!(writing), std::pin::pin!(reading));
    tokio::select! {
        biased;
        may_follow = &mut reading => may_follow && writing.await,
        is_written = &mut writing => {
            let is_hangup = !is_written && matches!(request.hangup, Some((_, Hangup::Close | Hangup::Reset)));
            // The response may have arrived before outgate closed its end.
            !is_hangup && reading.await && is_written
        }
    }
}

/// Returns whether the whole request was written.
async fn write(io: &SimulatedSocket, request: &RequestPlan, random: &mut Random) -> bool {
    let (length, hangup) = request.hangup.map_or((request.bytes.len(), None), |(at, hangup)| (at, Some(hangup)));
    if !wire::write_in_pieces(io, &request.bytes[..length], random).await {
        return false;
    }
    match hangup {
        None => return true,
        Some(Hangup::Reset) => {
            sleep(random.millis(0, 50)).await;
            io.reset();
        }
        Some(Hangup::Close) => sleep(random.millis(0, 50)).await,
        Some(Hangup::HalfClose) => drop(io.shutdown()),
        Some(Hangup::Stall) => {}
    }
    false
}

/// Reads the final response. Returns whether the connection may carry another request.
async fn read_response(
    world: &Arc<World>,
    io: &SimulatedSocket,
    request: &RequestPlan,
    inbox: &mut Vec<u8>,
    random: &mut Random,
) -> bool {
    let (is_slow, mut total) = (random.permille(150), 0);
    let (status, head_length) = loop {
        match wire::head_length(inbox) {
            Some(length) if is_interim(&inbox[..length]) => drop(inbox.drain(..length)),
            Some(length) => break (status_of(&inbox[..length]), length),
            None if read_piece(io, inbox, &mut total, (request, is_slow), random).await => {}
            None => return false,
        }
    };
    let head = String::from_utf8_lossy(&inbox[..head_length]).into_owned();
    let without = if request.is_http10 { Framing::UntilClose } else { Framing::Length(usize::MAX) };
    let has_body = !request.is_head && !matches!(status, 204 | 304);
    let framing = if has_body { wire::framing(&head, without) } else { Framing::None };
    let seen = |body: Vec<u8>, is_complete| Seen {
        status,
        target: wire::field(&head, "x-target-id").and_then(|id| id.parse().ok()),
        code: wire::field(&head, "outgate-error").map(str::to_owned),
        body,
        is_complete,
    };
    loop {
        let body = wire::decode(&inbox[head_length..], framing);
        if let Some(length) = body.length {
            inbox.drain(..head_length + length);
            world.trace(format_args!("client saw {status} for request {}", request.id));
            world.ledger().facts(request.id).seen = Some(seen(body.data, true));
            let closes = wire::field(&head, "connection").is_some_and(|value| value.contains("close"));
            return !closes && !request.is_http10;
        }
        if !read_piece(io, inbox, &mut total, (request, is_slow), random).await {
            // An orderly end completes a response that is delimited by it.
            let is_complete = framing == Framing::UntilClose && !io.resets() && total < usize::MAX;
            world.trace(format_args!("client saw {status} break off for request {}", request.id));
            world.ledger().facts(request.id).seen = Some(seen(body.data, is_complete));
            inbox.clear();
            return false;
        }
    }
}

fn is_interim(head: &[u8]) -> bool {
    head.starts_with(b"HTTP/1.1 1")
}

fn status_of(head: &[u8]) -> u16 {
    head.get(9..12).and_then(|status| std::str::from_utf8(status).ok()?.parse().ok()).unwrap_or_default()
}

/// Reads more of the response. Returns false at its end, or when the client wants no more; then `total` is `usize::MAX`.
async fn read_piece(
    io: &SimulatedSocket,
    inbox: &mut Vec<u8>,
    total: &mut usize,
    (request, is_slow): (&RequestPlan, bool),
    random: &mut Random,
) -> bool {
    if is_slow {
        sleep(random.millis(0, 80)).await;
    }
    match wire::read(io, inbox, if is_slow { random.between(1, 2000) } else { 4096 }).await {
        Ok(count @ 1..) => *total += count,
        _ => return false,
    }
    let wants_more = request.read_max.is_none_or(|max| *total <= max);
    if !wants_more {
        *total = usize::MAX;
    }
    wants_more
}
