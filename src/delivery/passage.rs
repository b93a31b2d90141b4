//! Getting to the target: over a connection that is open already, or a new one that is dialled and verified.
//! By which connection does this webhook travel?

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant as Clock};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::record::Record;
use super::refusal::{Code, Refusal};
use super::webhook::Sealed;
use super::{Interim, fields};
use crate::live::reuse::{Key, Lease, Reuse};
use crate::live::{InForce, Live};
use crate::names::{Host, Scheme, Target, TenantName};
use crate::net::connection::{Socket, Wire};
use crate::net::dial::{self, DialFault, Dialled};
use crate::net::exchange::{self, Connection, SendFault, Upload};
use crate::net::tls::{self, Proof, TlsFault};
use crate::policy::egress::Hop;
use crate::policy::route::Route;

/// Interim answers (1xx) that one request may get before the final one.
const INTERIM_MAX: usize = 16;

/// What a connection for this delivery may be.
pub(super) struct Passage<'a> {
    pub(super) live: &'a Live,
    pub(super) in_force: &'a InForce,
    pub(super) route: &'a Route,
    pub(super) target: &'a Target,
    /// Its connections and TLS sessions are nobody else's.
    pub(super) tenant: Option<&'a TenantName>,
    /// In the order they may be tried; all cleared by the guard, all from the pool.
    pub(super) hops: Vec<Hop>,
    /// When the delivery began.
    pub(super) started: Clock,
}

impl Passage<'_> {
    /// An open connection whose every part is what a new one would be, else a new one.
    pub(super) async fn open(&self, record: &mut Record) -> Result<Lease, Refusal> {
        for from in self.chosen_sources() {
            let may_go = |hop: Hop| self.hops.contains(&hop);
            if let Some(lease) = self.live.reuse.take(&self.key_from(from), &self.route.timeouts, may_go).await {
                record.over(&lease, true);
                return Ok(lease);
            }
        }
        self.dial(record).await
    }

    /// The source of each family that was chosen, in the order of the hops; those behind them are for failover.
    fn chosen_sources(&self) -> impl Iterator<Item = IpAddr> {
        let first = self.hops.first().map(Hop::from);
        let other =
            self.hops.iter().map(Hop::from).find(|from| Some(from.is_ipv4()) != first.map(|from| from.is_ipv4()));
        first.into_iter().chain(other)
    }

    /// A new connection to the target, with nothing said on it, and how long it took.
    pub(super) async fn connect(&self) -> Result<(Dialled, Duration), Refusal> {
        let start = Clock::now();
        let dialled = self.dial_one_of(&self.hops).await?;
        Ok((dialled, start.elapsed()))
    }

    /// Verifies the target by a handshake on a connection that carries nothing else, and closes the connection.
    pub(super) async fn verify(&self, socket: Socket) -> Result<Proof, TlsFault> {
        let (wire, proof) = self.handshake(socket).await?;
        tls::close(wire).await;
        Ok(proof)
    }

    async fn handshake(&self, socket: Socket) -> Result<(Wire, Proof), TlsFault> {
        let terms = self.in_force.tls_terms(&self.route.trust);
        let deadline = Instant::now() + self.patience(self.route.timeouts.tls);
        tls::handshake(socket, &terms, self.tenant, &self.target.host, deadline).await
    }

    pub(super) async fn dial_one_of(&self, hops: &[Hop]) -> Result<Dialled, DialFault> {
        dial(self.live, &self.target.host, hops, self.patience(self.route.timeouts.connect)).await
    }

    async fn dial(&self, record: &mut Record) -> Result<Lease, Refusal> {
        let (dialled, took) = self.connect().await?;
        let connected = Clock::now();
        let liveness = dialled.socket.liveness();
        let (wire, proof) = match self.target.scheme {
            Scheme::Http => (dialled.socket.into_plaintext(), None),
            Scheme::Https => {
                let (wire, proof) = self.handshake(dialled.socket).await?;
                (wire, Some(proof))
            }
        };
        record.dialled(took, proof.is_some().then(|| connected.elapsed()));
        let connection =
            Box::pin(Connection::open(wire, liveness, dialled.hop, proof)).await.map_err(|fault| lost(&fault))?;
        let lease = Reuse::lease(&self.live.reuse, self.key_from(dialled.hop.from()), connection);
        record.over(&lease, false);
        Ok(lease)
    }

    fn key_from(&self, from: IpAddr) -> Key {
        Key { from, target: self.target.clone(), trust: self.route.trust.fingerprint, tenant: self.tenant.cloned() }
    }

    /// Sends the request, once. Only where not a byte of it was written may it go over another connection.
    pub(super) async fn forward(
        &self,
        mut lease: Lease,
        sealed: Sealed,
        record: &mut Record,
    ) -> Result<(Lease, Response<Incoming>), Refusal> {
        let Sealed { mut request, progress, interim } = sealed;
        let flooded = forward_interim(&mut request, interim);
        // The response timeout runs from the last byte of the request: an upload that streams has its own time first.
        let mut late = pin!(async {
            if let Some(progress) = &progress {
                progress.ended().await;
            }
            tokio::time::sleep(self.patience(self.route.timeouts.response)).await;
        });
        let mut is_second = false;
        loop {
            let sent = tokio::select! {
                biased;
                () = flooded.notified() => {
                    return Err(Refusal::new(Code::ResponseMalformed, "the target sends interim answers without an end"));
                }
                sent = lease.send(request) => sent,
                () = &mut late => {
                    return Err(Refusal::new(Code::ResponseTimeout, "no answer within the response timeout"));
                }
            };
            match sent {
                Ok(response) => return Ok((lease, response)),
                Err(SendFault::Lost(fault)) => {
                    lease.end_exchange(); // by the target's word: a stream that it resets ends nothing else
                    let inbound = progress.as_ref().and_then(|progress| progress.fault());
                    let alert = lease.alert().map(Refusal::from);
                    return Err(inbound.map(Refusal::from).or(alert).unwrap_or_else(|| lost(&fault)));
                }
                // After a stale connection a fresh one is tried; if that one fails as early, it is the target's doing.
                Err(SendFault::Unsent(_)) if is_second => {
                    let lost =
                        || Refusal::new(Code::ConnectionLost, "the target closes connections as soon as they open");
                    return Err(lease.alert().map_or_else(lost, Into::into));
                }
                Err(SendFault::Unsent(unsent)) => {
                    is_second = true;
                    request = *unsent;
                    lease = self.dial(record).await?;
                }
            }
        }
    }

    /// How long the target may keep us waiting, from now. Where the total timeout ends before this one, and most of it was
    /// the target's own, that says as much of the target; else it says nothing, and ends the delivery by itself.
    fn patience(&self, timeout: Duration) -> Duration {
        let total = self.route.timeouts.total;
        let left = total.saturating_sub(self.started.elapsed());
        if left >= total / 2 { timeout.min(left) } else { timeout }
    }
}

/// Passes the target's interim answers on to the client (RFC 9110 §15.2), and tells when there are too many of them.
fn forward_interim(request: &mut Request<Upload>, interim: Option<Interim>) -> Arc<Notify> {
    let flooded = Arc::new(Notify::new());
    let (heard, flood) = (AtomicUsize::new(0), Arc::clone(&flooded));
    exchange::on_interim(request, move |status, headers| {
        if heard.fetch_add(1, Ordering::Relaxed) >= INTERIM_MAX {
            flood.notify_one();
        } else if status != StatusCode::CONTINUE
            && let Some(interim) = &interim
        {
            // 100 Continue is a matter between us and the target: the client had its own from us.
            let mut headers = headers.clone();
            fields::strip(&mut headers);
            interim(status, &headers);
        }
    });
    flooded
}

pub(super) fn lost(fault: &hyper::Error) -> Refusal {
    let refusal = if fault.is_parse_too_large() {
        Refusal::new(Code::ResponseTooLarge, "the header fields of the target's answer are too large")
            .proxy_status("http_response_header_section_size")
    } else if exchange::breaks_the_protocol(fault) {
        Refusal::new(Code::ResponseMalformed, "the target's answer breaks HTTP")
    } else {
        Refusal::new(Code::ConnectionLost, "the connection ended before the answer; the webhook may have arrived")
    };
    refusal.cause(fault)
}

/// Dials one of the hops, and records what the attempts say of their sources.
pub(super) async fn dial(live: &Live, host: &Host, hops: &[Hop], timeout: Duration) -> Result<Dialled, DialFault> {
    let dialling = dial::dial(hops, Instant::now() + timeout).await;
    for source in dialling.unusable {
        live.sources.refused(source);
    }
    let answered = dialling.outcome.as_ref().ok().map(|dialled| dialled.hop);
    live.reach.heard(host, answered, &dialling.unanswered);
    dialling.outcome
}

impl From<DialFault> for Refusal {
    fn from(fault: DialFault) -> Self {
        match fault {
            DialFault::Refused => Refusal::new(Code::ConnectRefused, "the target refused the connection"),
            DialFault::Timeout => Refusal::new(Code::ConnectTimeout, "no connection within the connect timeout"),
            DialFault::Unreachable => Refusal::new(Code::ConnectUnreachable, "no network path to the target"),
            DialFault::NoSource => Refusal::new(Code::NoEgress, "no source address of the pool is usable"),
            DialFault::Other(cause) => Refusal::new(Code::Internal, "the connection could not be made").cause(cause),
        }
    }
}
