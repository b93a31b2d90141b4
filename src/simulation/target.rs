//! A target of the simulation: one connection, with the replies and the faults that its seed draws.
//! Which bytes does a target send, and are they a complete response?

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::ledger::Answer;
use super::random::Random;
use super::wire::{self, Framing};
use super::world::World;
use crate::net::simulated::SimulatedSocket;

/// The time for which a stalled target keeps its connection. It exceeds every timeout of a delivery.
const STALL: Duration = Duration::from_secs(120);

/// The reply of a target to a request.
struct Reply {
    /// Interim responses, and the response.
    bytes: Vec<u8>,
    status: u16,
    body: Vec<u8>,
    /// The bytes are a well-formed response.
    is_valid: bool,
    /// The target sends only this part of the bytes.
    cut: Option<usize>,
    /// Bytes that follow the response.
    stray: &'static [u8],
    end: End,
    /// The end of the connection ends the response.
    is_until_close: bool,
    /// The target responds before it has the body.
    is_early: bool,
}

/// The end of the connection after the response.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    KeepOpen,
    Close,
    Reset,
    Stall,
}

/// Serves a connection that outgate has opened.
pub(super) async fn serve(world: Arc<World>, io: SimulatedSocket, mut random: Random) {
    if random.permille(world.rules.trouble / 3) {
        return misbehave_at_start(&io, &mut random).await;
    }
    let mut inbox = Vec::new();
    while let Some(request) = read_head(&world, &io, &mut inbox, &mut random).await {
        let Reply { bytes, status, body, is_valid, cut, stray, end, is_until_close, is_early } =
            draw_reply(&world, &request, &mut random);
        if !is_early && !read_body(&world, &io, &request, &mut inbox, &mut random).await {
            return;
        }
        if random.permille(300) {
            sleep(random.millis(1, 1500)).await;
        }
        let sent = &bytes[..cut.unwrap_or(bytes.len())];
        world.trace(format_args!("target answers request {}: {status}, {} bytes", request.id, sent.len()));
        let is_written = wire::write_in_pieces(&io, sent, &mut random).await;
        world.trace(format_args!("target has answered request {}: {is_written}", request.id));
        // Unread bytes of the request make the close a reset.
        let is_ended = !is_until_close || (end == End::Close && !io.resets());
        let is_complete = is_written && is_valid && cut.is_none() && is_ended;
        if is_written || !sent.is_empty() {
            world.ledger().facts(request.id).answer = Some(Answer { status, body, is_complete });
        }
        let has_stray = !stray.is_empty() && is_written;
        match end {
            _ if !is_written || wire::write_all(&io, stray).await.is_err() => return,
            // The next request is on its way: outgate cannot distinguish the stray bytes from its response.
            End::KeepOpen if has_stray && io.resets() => world.ledger().has_late_stray = true,
            End::KeepOpen => {}
            End::Close => return,
            End::Reset => return io.reset(),
            End::Stall => return sleep(STALL).await,
        }
        if is_early && !read_body(&world, &io, &request, &mut inbox, &mut random).await {
            return;
        }
        if random.permille(world.rules.trouble / 2) && !misbehave_when_idle(&io, &mut random).await {
            return;
        }
    }
}

async fn misbehave_at_start(io: &SimulatedSocket, random: &mut Random) {
    match random.below(5) {
        0 => {}
        1 => io.reset(),
        2 => {
            let _ = wire::write_all(io, b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n").await;
            sleep(random.millis(0, 50)).await;
        }
        3 => {
            sleep(random.millis(1, 300)).await;
            io.reset();
        }
        _ => sleep(STALL).await,
    }
}

/// Returns whether the connection goes on.
async fn misbehave_when_idle(io: &SimulatedSocket, random: &mut Random) -> bool {
    if random.permille(700) {
        sleep(random.millis(0, 3000)).await;
    }
    match random.below(4) {
        0 => return false,
        1 => io.reset(),
        2 => drop(wire::write_all(io, b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n").await),
        _ => return true,
    }
    false
}

struct Request {
    id: u32,
    is_head: bool,
    framing: Framing,
}

async fn read_head(
    world: &Arc<World>,
    io: &SimulatedSocket,
    inbox: &mut Vec<u8>,
    random: &mut Random,
) -> Option<Request> {
    let mut has_begun = false;
    loop {
        if !has_begun && !inbox.is_empty() {
            has_begun = true;
            world.ledger().exchanges += 1;
        }
        if let Some(length) = wire::head_length(inbox) {
            let head = String::from_utf8(inbox.drain(..length).collect()).expect("a head in ASCII");
            return Some(parse(world, &head));
        }
        if !read_more(io, inbox, random).await {
            return None;
        }
    }
}

fn parse(world: &Arc<World>, head: &str) -> Request {
    let mut line = head.split(' ');
    let (method, target) = (line.next().unwrap_or_default(), line.next().unwrap_or_default());
    let id = target.rsplit('/').next().and_then(|id| id.parse().ok());
    world.trace(format_args!("target got {method} {target}"));
    let id = id.unwrap_or_else(|| {
        world.ledger().violated(format!("a target got a request that no client sent: {head:?}"));
        0
    });
    let mut ledger = world.ledger();
    if head.starts_with("POST /signed/") && wire::field(head, "x-hub-signature-256").is_none() {
        ledger.violated(format!("request {id} arrived without its signature"));
    }
    ledger.facts(id).arrivals += 1;
    Request { id, is_head: method == "HEAD", framing: wire::framing(head, Framing::None) }
}

/// Reads the body to its end. Returns whether the connection goes on.
async fn read_body(
    world: &Arc<World>,
    io: &SimulatedSocket,
    request: &Request,
    inbox: &mut Vec<u8>,
    random: &mut Random,
) -> bool {
    if random.permille(world.rules.trouble / 4) {
        sleep(STALL).await; // a target that reads no more
        return false;
    }
    loop {
        let body = wire::decode(inbox, request.framing);
        if let Some(length) = body.length {
            inbox.drain(..length);
            world.ledger().facts(request.id).arrived = Some(body.data);
            return true;
        }
        if !read_more(io, inbox, random).await {
            return false;
        }
    }
}

async fn read_more(io: &SimulatedSocket, inbox: &mut Vec<u8>, random: &mut Random) -> bool {
    if random.permille(50) {
        sleep(random.millis(1, 100)).await;
    }
    matches!(wire::read(io, inbox, random.one_of(&[10, 100, 4096])).await, Ok(1..))
}

fn draw_reply(world: &Arc<World>, request: &Request, random: &mut Random) -> Reply {
    let status = random.one_of(&[200, 200, 200, 204, 304, 404, 503]);
    let has_body = !request.is_head && !matches!(status, 204 | 304);
    let body = wire::body_of(1_000_000 + request.id, if has_body { random.length() } else { 0 });
    let framing = match (has_body, random.below(10)) {
        (false, _) => Framing::None,
        (true, 0..6) => Framing::Length(body.len()),
        (true, 6..9) => Framing::Chunked,
        (true, _) => Framing::UntilClose,
    };
    let mut bytes = Vec::new();
    for _ in 0..(if random.permille(100) { random.between(1, 4) } else { 0 }) {
        bytes.extend_from_slice(b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n");
    }
    bytes.extend_from_slice(format!("HTTP/1.1 {status} Status\r\nX-Target-Id: {}\r\n", request.id).as_bytes());
    let closes = framing == Framing::UntilClose || random.permille(100);
    if closes {
        bytes.extend_from_slice(b"Connection: close\r\n");
    } else if random.permille(100) {
        bytes.extend_from_slice(b"Keep-Alive: timeout=2\r\n");
    }
    match framing {
        Framing::Length(length) => bytes.extend_from_slice(format!("Content-Length: {length}\r\n\r\n").as_bytes()),
        Framing::Chunked => bytes.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n"),
        Framing::None | Framing::UntilClose => bytes.extend_from_slice(b"\r\n"),
    }
    match framing {
        Framing::Chunked => bytes.extend_from_slice(&wire::encode_chunks(&body, random.between(1, 3000))),
        _ => bytes.extend_from_slice(&body),
    }
    let end = if closes { End::Close } else { End::KeepOpen };
    let is_early = random.permille(world.rules.trouble / 2);
    let is_until_close = framing == Framing::UntilClose;
    let stray = b"";
    let mut reply = Reply { bytes, status, body, is_valid: true, cut: None, stray, end, is_until_close, is_early };
    if random.permille(world.rules.trouble) {
        spoil(&mut reply, framing, random);
    }
    reply
}

/// Makes a reply one that no client may take for complete, or one that is followed by trouble.
fn spoil(reply: &mut Reply, framing: Framing, random: &mut Random) {
    let length = reply.bytes.len();
    match random.below(9) {
        // Only the end of the connection ends such a response: a client cannot notice that a close cuts it.
        0 if framing != Framing::UntilClose => {
            (reply.cut, reply.end) = (Some(random.below(length)), End::Close);
        }
        1 => (reply.cut, reply.end) = (Some(random.below(length)), End::Reset),
        2 => (reply.cut, reply.end) = (Some(random.below(length)), End::Stall),
        3 => (reply.cut, reply.end) = (Some(0), random.one_of(&[End::Close, End::Reset, End::Stall])),
        4 if matches!(framing, Framing::Length(_) | Framing::Chunked) => {
            // Bytes after the response: the next one would be shifted.
            reply.stray = b"HTTP/1.1 200 OK\r\nX-Target-Id: 0\r\nContent-Length: 0\r\n\r\n";
        }
        5 if matches!(framing, Framing::Length(_)) => {
            let text = String::from_utf8_lossy(&reply.bytes).replacen("Content-Length: ", "Content-Length: 1", 1);
            (reply.bytes, reply.is_valid, reply.end) = (text.into_bytes(), false, End::Close);
        }
        6 => {
            (reply.bytes, reply.is_valid) = (b"NONSENSE\r\n\r\n".to_vec(), false);
        }
        7 if framing == Framing::Chunked => {
            let at = reply.bytes.len() - 5;
            reply.bytes.splice(at.., *b"zz\r\n\r\n");
            reply.is_valid = false;
        }
        8 => {
            let mut flood = b"HTTP/1.1 102 Processing\r\n\r\n".repeat(random.between(10, 30));
            flood.append(&mut reply.bytes);
            (reply.bytes, reply.is_valid) = (flood, true);
        }
        _ => reply.end = random.one_of(&[End::Close, End::Reset, End::Stall]),
    }
}
