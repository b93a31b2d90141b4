//! The name servers, asked one after the other: the next one as soon as one fails, and soon when one is silent.
//! Which server's response counts?

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use hickory_proto::op::Message;
use hickory_proto::rr::{Name, RecordType};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::answer::{self, AnswerWithTtl, FamilyAnswer, ParsedResponse};
use super::cache::QueryFlight;
use super::health::ServerHealth;
use super::query;

/// A server that is silent for this long has the next one asked beside it.
const NEXT_SERVER: Duration = Duration::from_millis(300);
/// A round of questions to the servers that are silent is repeated after this: a datagram may be lost.
const RESEND: Duration = Duration::from_secs(1);
/// The wait doubles up to this.
const RESEND_MAX: Duration = Duration::from_secs(5);
/// Questions beyond the first to each server that wait for a response at once, for one name and family: each is an open
/// socket. The first ones wait on, since a slow server may take longer for each question than until the next one.
const REPEATED_MAX: usize = 3;
/// Questions for the names that a name is an alias of.
const ALIAS_QUESTIONS_MAX: usize = 8;

/// Silence of all servers for this long has them probed.
const SUSPICIOUS: Duration = Duration::from_millis(150);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two probes while no server responds.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct NameServers {
    /// Not empty.
    addresses: Vec<SocketAddr>,
    /// The one that responded last is asked first.
    preferred: AtomicUsize,
    pub(super) health: ServerHealth,
}

/// A question under way.
struct PendingQuery {
    server: usize,
    response: Pin<Box<dyn Future<Output = io::Result<Message>> + Send>>,
}

impl NameServers {
    pub(super) fn new(addresses: Vec<SocketAddr>) -> Self {
        Self { addresses, preferred: AtomicUsize::new(0), health: ServerHealth::default() }
    }

    pub(super) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Finds the addresses of one family. Goes on for as long as the caller lets it, while a server is silent.
    ///
    /// A chain of aliases that leads nowhere is the fault of the servers that gave it, and the others are asked for the
    /// name from the beginning.
    pub(super) async fn find(self: &Arc<Self>, name: &str, kind: RecordType, flight: &QueryFlight) -> AnswerWithTtl {
        // The last dot makes it absolute: there are no search domains.
        let Ok(name) = Name::from_ascii(format!("{name}.")) else { return AnswerWithTtl::nothing(true, Duration::MAX) };
        let mut distrusted = vec![None; self.addresses.len()];
        loop {
            let mut chain = Vec::new();
            let code = match self.follow(&name, kind, flight, &distrusted, &mut chain).await {
                Ok(found) => return found,
                Err(code) => code,
            };
            for server in &chain {
                distrusted[*server] = Some(code);
            }
            if chain.is_empty() || distrusted.iter().all(Option::is_some) {
                return AnswerWithTtl { answer: FamilyAnswer::Failed(code), ttl: Duration::ZERO };
            }
            flight.progress().set_error(code);
        }
    }

    /// Asks for the name, and for the names that it is an alias of. Adds each server that gave an alias to `chain`.
    async fn follow(
        self: &Arc<Self>,
        name: &Name,
        kind: RecordType,
        flight: &QueryFlight,
        distrusted: &[Option<&'static str>],
        chain: &mut Vec<usize>,
    ) -> Result<AnswerWithTtl, &'static str> {
        let (mut name, mut ttl) = (name.clone(), Duration::MAX);
        for _ in 0..ALIAS_QUESTIONS_MAX {
            match self.query(&name, (kind, ttl), flight, distrusted).await? {
                (_, ParsedResponse::Answer(found)) => return Ok(found),
                (server, ParsedResponse::Alias(next, shortest)) => {
                    (name, ttl) = (next, shortest);
                    chain.push(server);
                }
            }
        }
        Err(answer::ENDLESS_CHAIN)
    }

    /// The first response that is one, and the server that gave it; `distrusted` servers are not asked. `ttl` is the
    /// shortest of the aliases that led to `name`. The error is the response code of the first server, once all failed.
    async fn query(
        self: &Arc<Self>,
        name: &Name,
        (kind, ttl): (RecordType, Duration),
        flight: &QueryFlight,
        distrusted: &[Option<&'static str>],
    ) -> Result<(usize, ParsedResponse), &'static str> {
        let (start, count) = (Instant::now(), self.addresses.len());
        let first = self.preferred.load(Ordering::Relaxed) % count;
        let mut faults = distrusted.to_vec();
        let mut unreachable = vec![false; count];
        let mut running: Vec<PendingQuery> = Vec::new();
        let (mut turn, mut pause, mut is_suspicious) = (0, RESEND, false);
        loop {
            let server = (first + turn) % count;
            turn += 1;
            if faults[server].is_none() {
                if running.len() >= count + REPEATED_MAX {
                    running.remove(count); // the oldest but for the first ones
                }
                let (address, name) = (self.addresses[server], name.clone());
                let response = Box::pin(async move { query::send_query(address, &name, kind).await });
                running.push(PendingQuery { server, response });
            }
            let (sent, is_round) = (Instant::now(), turn % count == 0);
            let mut until = sent + if is_round { pause } else { NEXT_SERVER };
            if is_round {
                pause = (2 * pause).min(RESEND_MAX);
            } else if faults[server].is_some() {
                continue; // it has nothing to say: on to the next one
            }
            loop {
                tokio::select! {
                    biased;
                    (server, response) = next(&mut running) => {
                        match response {
                            Ok(response) => {
                                self.health.responded();
                                match answer::read(&response, name, kind, ttl) {
                                    Ok(read) => {
                                        self.preferred.store(server, Ordering::Relaxed);
                                        return Ok((server, read));
                                    }
                                    Err(code) => {
                                        flight.progress().set_error(code);
                                        faults[server] = Some(code);
                                    }
                                }
                            }
                            Err(error) => unreachable[server] |= is_of_the_network(&error),
                        }
                        if faults.iter().all(Option::is_some) {
                            return Err(faults[first].unwrap_or_default());
                        }
                        if unreachable.iter().all(|one| *one) {
                            self.health.silent_since(start.into_std());
                            self.probe();
                        }
                        if !is_round {
                            break;
                        }
                    }
                    () = flight.joined() => until = until.min(sent + RESEND),
                    () = sleep_until(start + SUSPICIOUS), if !is_suspicious => {
                        is_suspicious = true;
                        if !self.health.has_responded_since(start.into_std()) {
                            self.probe();
                        }
                    }
                    // A response may still come for whom nobody waits for; nothing is repeated for that.
                    () = sleep_until(until), if flight.has_followers() => break,
                }
            }
        }
    }

    /// Asks all servers for what each of them knows, the root's name servers, until one responds: a name that takes long
    /// is no outage. At most one task does so.
    fn probe(self: &Arc<Self>) {
        if !self.health.begin_probing() {
            return;
        }
        let servers = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                let Some(servers) = servers.upgrade() else { return };
                let asked = Instant::now();
                let mut running: Vec<PendingQuery> =
                    (0..servers.addresses.len()).map(|server| servers.ask_root(server)).collect();
                let responded = async {
                    while !running.is_empty() {
                        if next(&mut running).await.1.is_ok() {
                            return;
                        }
                    }
                    std::future::pending().await
                };
                if timeout(PROBE_TIMEOUT, responded).await.is_ok() {
                    servers.health.responded();
                }
                if servers.health.has_responded_since(asked.into_std()) {
                    servers.health.end_probing();
                    return;
                }
                servers.health.silent_since(asked.into_std());
                drop(servers);
                sleep(PROBE_INTERVAL).await;
            }
        });
    }

    fn ask_root(&self, server: usize) -> PendingQuery {
        let address = self.addresses[server];
        PendingQuery {
            server,
            response: Box::pin(async move { query::send_query(address, &Name::root(), RecordType::NS).await }),
        }
    }
}

/// That the server cannot be reached. Other errors are this host's own, such as too many open files.
fn is_of_the_network(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkDown | NetworkUnreachable)
}

/// Waits for whichever question ends first, and takes it out.
async fn next(running: &mut Vec<PendingQuery>) -> (usize, io::Result<Message>) {
    let (index, ended) = poll_fn(|cx| {
        for (index, asking) in running.iter_mut().enumerate() {
            if let Poll::Ready(ended) = asking.response.as_mut().poll(cx) {
                return Poll::Ready((index, ended));
            }
        }
        Poll::Pending
    })
    .await;
    (running.remove(index).server, ended)
}
