//! The name servers, queried in order: the next one at once after a failure, and soon after a server does not respond.
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

/// The time without a response after which the next server is queried in parallel.
const NEXT_SERVER: Duration = Duration::from_millis(300);
/// The time after which a round of queries is repeated, since a datagram may be lost.
const RESEND: Duration = Duration::from_secs(1);
/// The maximum of that time, which doubles each round.
const RESEND_MAX: Duration = Duration::from_secs(5);
/// The repeated queries in flight for one name and family, besides the first one to each server: each is an open socket. The
/// first ones stay in flight, since a slow server may need longer for a response than the time between rounds.
const REPEATED_MAX: usize = 3;
/// The queries for the names that a name is an alias of.
const ALIAS_QUERIES_MAX: usize = 8;

/// The time without any response after which all servers are probed.
const PROBE_AFTER: Duration = Duration::from_millis(150);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// The time between two probes while no server responds.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct NameServers {
    /// Not empty.
    addresses: Vec<SocketAddr>,
    /// The server that responded last, which is queried first.
    preferred: AtomicUsize,
    pub(super) health: ServerHealth,
}

/// A query in flight.
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

    /// Finds the addresses of one family. It has no timeout of its own.
    ///
    /// The servers that gave a chain of aliases without an end are excluded, and the others are queried from the start.
    pub(super) async fn find(self: &Arc<Self>, name: &str, kind: RecordType, flight: &QueryFlight) -> AnswerWithTtl {
        // The final dot makes the name absolute, so that no search domain applies.
        let Ok(name) = Name::from_ascii(format!("{name}.")) else { return AnswerWithTtl::no_data(true, Duration::MAX) };
        let mut excluded = vec![None; self.addresses.len()];
        loop {
            let mut chain = Vec::new();
            let code = match self.follow(&name, kind, flight, &excluded, &mut chain).await {
                Ok(found) => return found,
                Err(code) => code,
            };
            for server in &chain {
                excluded[*server] = Some(code);
            }
            if chain.is_empty() || excluded.iter().all(Option::is_some) {
                return AnswerWithTtl { answer: FamilyAnswer::Failed(code), ttl: Duration::ZERO };
            }
            flight.progress().set_error(code);
        }
    }

    /// Queries the name, and the names that it is an alias of. Adds each server that gave an alias to `chain`.
    async fn follow(
        self: &Arc<Self>,
        name: &Name,
        kind: RecordType,
        flight: &QueryFlight,
        excluded: &[Option<&'static str>],
        chain: &mut Vec<usize>,
    ) -> Result<AnswerWithTtl, &'static str> {
        let (mut name, mut ttl) = (name.clone(), Duration::MAX);
        for _ in 0..ALIAS_QUERIES_MAX {
            match self.query(&name, (kind, ttl), flight, excluded).await? {
                (_, ParsedResponse::Answer(found)) => return Ok(found),
                (server, ParsedResponse::Alias(next, shortest)) => {
                    (name, ttl) = (next, shortest);
                    chain.push(server);
                }
            }
        }
        Err(answer::ENDLESS_CHAIN)
    }

    /// Returns the first usable response and its server, without the `excluded` servers. `ttl` is the shortest
    /// TTL of the aliases that led to `name`. If all servers fail, the error is that of the first one.
    async fn query(
        self: &Arc<Self>,
        name: &Name,
        (kind, ttl): (RecordType, Duration),
        flight: &QueryFlight,
        excluded: &[Option<&'static str>],
    ) -> Result<(usize, ParsedResponse), &'static str> {
        let (start, count) = (Instant::now(), self.addresses.len());
        let first = self.preferred.load(Ordering::Relaxed) % count;
        let mut errors = excluded.to_vec();
        let mut unreachable = vec![false; count];
        let mut running: Vec<PendingQuery> = Vec::new();
        let (mut turn, mut pause, mut is_probed) = (0, RESEND, false);
        loop {
            let server = (first + turn) % count;
            turn += 1;
            if errors[server].is_none() {
                if running.len() >= count + REPEATED_MAX {
                    running.remove(count); // the oldest repeated query
                }
                let (address, name) = (self.addresses[server], name.clone());
                let response = Box::pin(async move { query::send_query(address, &name, kind).await });
                running.push(PendingQuery { server, response });
            }
            let (sent, is_round) = (Instant::now(), turn % count == 0);
            let mut until = sent + if is_round { pause } else { NEXT_SERVER };
            if is_round {
                pause = (2 * pause).min(RESEND_MAX);
            } else if errors[server].is_some() {
                continue; // the server has failed: query the next one
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
                                        errors[server] = Some(code);
                                    }
                                }
                            }
                            Err(error) => unreachable[server] |= is_network_error(&error),
                        }
                        if errors.iter().all(Option::is_some) {
                            return Err(errors[first].unwrap_or_default());
                        }
                        if unreachable.iter().all(|one| *one) {
                            self.health.observe_silence(start.into_std());
                            self.probe();
                        }
                        if !is_round {
                            break;
                        }
                    }
                    () = flight.joined() => until = until.min(sent + RESEND),
                    () = sleep_until(start + PROBE_AFTER), if !is_probed => {
                        is_probed = true;
                        if !self.health.has_responded_since(start.into_std()) {
                            self.probe();
                        }
                    }
                    // Without a waiting caller the query stays in flight, and nothing is repeated.
                    () = sleep_until(until), if flight.has_followers() => break,
                }
            }
        }
    }

    /// Queries all servers for the NS records of the root, which every server knows, until one responds. This distinguishes an
    /// outage from a slow name. At most one task does so.
    fn probe(self: &Arc<Self>) {
        if !self.health.begin_probing() {
            return;
        }
        let servers = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                let Some(servers) = servers.upgrade() else { return };
                let started = Instant::now();
                let mut running: Vec<PendingQuery> =
                    (0..servers.addresses.len()).map(|server| servers.query_root(server)).collect();
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
                if servers.health.has_responded_since(started.into_std()) {
                    servers.health.end_probing();
                    return;
                }
                servers.health.observe_silence(started.into_std());
                drop(servers);
                sleep(PROBE_INTERVAL).await;
            }
        });
    }

    fn query_root(&self, server: usize) -> PendingQuery {
        let address = self.addresses[server];
        PendingQuery {
            server,
            response: Box::pin(async move { query::send_query(address, &Name::root(), RecordType::NS).await }),
        }
    }
}

/// Returns whether the error means that the server cannot be reached. Other errors are local, such as too many open files.
fn is_network_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkDown | NetworkUnreachable)
}

/// Waits for the first query that ends, and removes it.
async fn next(running: &mut Vec<PendingQuery>) -> (usize, io::Result<Message>) {
    let (index, ended) = poll_fn(|cx| {
        for (index, query) in running.iter_mut().enumerate() {
            if let Poll::Ready(ended) = query.response.as_mut().poll(cx) {
                return Poll::Ready((index, ended));
            }
        }
        Poll::Pending
    })
    .await;
    (running.remove(index).server, ended)
}
