//! Getting to the target: over a connection that is open already, or a new one that is dialled and verified.
//! By which connection does this webhook travel?

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant as Clock};

use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::errors::{self, map_hyper_error};
use super::record::{Record, Step};
use super::refusal::{Code, Refusal};
use super::webhook::SignedRequest;
use super::{InterimCallback, fields};
use crate::config::VerifyMode;
use crate::names::{ClientName, Host, Scheme, Target, TenantName};
use crate::net::connection::{MaybeTlsStream, OutboundSocket};
use crate::net::dial::{self, DialError, DialledSocket};
use crate::net::http_client::{self, Connection, SendError, Unprocessed, Upload};
use crate::net::tls::{self, AlpnOffer, HandshakeError, HandshakeInfo, TlsError};
use crate::policy::egress::Hop;
use crate::policy::route::Route;
use crate::state::Runtime;
use crate::state::config::ActiveConfig;
use crate::state::upstreams::pool::{ConnectionPool, PoolKey, PooledConnection};

/// Interim answers (1xx) that one request may get before the final one.
const INTERIM_MAX: usize = 16;

const OVERSIZED_HEAD: &str = "request_head_too_large";
/// The target closed an HTTP/1.1 connection after a head that is larger than common servers accept.
pub(super) const LARGE_HEAD: &str = "large_request_head";

/// What a connection for this delivery may be.
pub(super) struct UpstreamConnector<'a> {
    pub(super) runtime: &'a Runtime,
    pub(super) active: &'a ActiveConfig,
    pub(super) route: &'a Route,
    pub(super) target: &'a Target,
    /// Its connections and TLS sessions are nobody else's.
    pub(super) tenant: Option<&'a TenantName>,
    /// Its connections are no other client's; `None`: those of all clients.
    pub(super) client: Option<&'a ClientName>,
    /// In the order they may be tried; all cleared by the guard, all from the pool.
    pub(super) hops: Vec<Hop>,
    /// When the delivery began.
    pub(super) started: Clock,
}

impl UpstreamConnector<'_> {
    /// An open connection whose every part is what a new one would be, else a new one.
    pub(super) async fn open(&self, record: &mut Record) -> Result<PooledConnection, Refusal> {
        let may_serve = |connection: &Connection| {
            // Connections of before the target has demanded HTTP/1.1 do not count either.
            let is_version_fit = connection.http_version() != "2" || !self.runtime.http1_only.contains(self.target);
            self.hops.contains(&connection.hop()) && is_version_fit
        };
        for from in self.chosen_sources() {
            if let Some(lease) =
                self.runtime.connection_pool.acquire(&self.key_from(from), &self.route.timeouts, may_serve).await
            {
                record.set_connection(&lease, true);
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

    /// Verifies the target by a handshake on a connection that carries nothing else, and closes the connection.
    pub(super) async fn verify(&self, socket: OutboundSocket, record: &mut Record) -> Result<HandshakeInfo, TlsError> {
        let (wire, proof) = self.handshake(socket, AlpnOffer::Http2OrHttp1, record).await?;
        tls::close(wire).await;
        Ok(proof)
    }

    async fn handshake(
        &self,
        socket: OutboundSocket,
        offer: AlpnOffer,
        record: &mut Record,
    ) -> Result<(MaybeTlsStream, HandshakeInfo), TlsError> {
        record.begin(Step::Tls);
        let terms = self.active.tls_terms(&self.route.trust);
        let deadline = Instant::now() + self.remaining_timeout(self.route.timeouts.tls, Duration::ZERO);
        let shaken = tls::handshake(socket, &terms, self.tenant, &self.target.host, offer, deadline).await;
        record.step(Step::Tls);
        shaken.map_err(|HandshakeError { error: fault, certificate }| {
            let verdict = match (&fault, self.route.trust.verify) {
                (TlsError::Certificate { fault, .. }, _) => fault.as_str(),
                (_, VerifyMode::Full) => "accepted",
                (_, VerifyMode::None) => "unverified",
            };
            record.failed_certificate(certificate, verdict);
            fault
        })
    }

    /// A new connection by one of these hops, with nothing said on it.
    pub(super) async fn connect(&self, hops: &[Hop], record: &mut Record) -> Result<DialledSocket, DialError> {
        let timeout = self.remaining_timeout(self.route.timeouts.connect, Duration::ZERO);
        dial(self.runtime, &self.target.host, self.tenant, hops, timeout, record).await
    }

    /// A new connection, which other deliveries may use, too.
    async fn dial(&self, record: &mut Record) -> Result<PooledConnection, Refusal> {
        let connection = self.dial_new(record).await?;
        let (key, idle) = (self.key_from(connection.hop().from()), self.route.timeouts.idle);
        let lease = ConnectionPool::lease(&self.runtime.connection_pool, key, connection, idle);
        record.set_connection(&lease, false);
        Ok(lease)
    }

    /// A new connection for this delivery alone.
    async fn dial_dedicated(&self, record: &mut Record) -> Result<PooledConnection, Refusal> {
        let connection = self.dial_new(record).await?;
        let lease = ConnectionPool::lease_dedicated(
            &self.runtime.connection_pool,
            self.key_from(connection.hop().from()),
            connection,
        );
        record.set_connection(&lease, false);
        Ok(lease)
    }

    async fn dial_new(&self, record: &mut Record) -> Result<Connection, Refusal> {
        record.needs_connection();
        let dialled = self.connect(&self.hops, record).await?;
        let liveness = dialled.socket.liveness();
        let (wire, proof) = match self.target.scheme {
            Scheme::Http => (dialled.socket.into_plaintext(), None),
            Scheme::Https => {
                let offer = if self.runtime.http1_only.contains(self.target) {
                    AlpnOffer::Http1
                } else {
                    AlpnOffer::Http2OrHttp1
                };
                let (wire, proof) = self.handshake(dialled.socket, offer, record).await?;
                (wire, Some(proof))
            }
        };
        let opening = Connection::open(wire, liveness, dialled.hop, proof, self.route.response_head_max);
        Box::pin(opening).await.map_err(|fault| map_hyper_error(&fault, self.route.response_head_max, 0))
    }

    fn key_from(&self, from: IpAddr) -> PoolKey {
        PoolKey {
            from,
            target: self.target.clone(),
            trust: self.route.trust.fingerprint,
            tenant: self.tenant.cloned(),
            client: self.client.cloned(),
            head_max: self.route.response_head_max,
        }
    }

    /// Sends the request. It goes over another connection only where the target has not processed it.
    pub(super) async fn forward(
        &self,
        mut lease: PooledConnection,
        sealed: SignedRequest,
        record: &mut Record,
    ) -> Result<(PooledConnection, Response<Incoming>), Refusal> {
        let head = http_client::head_size(&sealed.request);
        if !lease.accepts_head(head).await {
            lease = self.dial_dedicated(record).await?;
        }
        let sent = self.send(&mut lease, sealed, head, record).await;
        // A response, however malformed or incomplete, shows that the webhook has arrived.
        let sent = sent.map_err(|refusal| if lease.response_has_begun() { refusal.responded() } else { refusal });
        sent.map(|response| (lease, response))
    }

    async fn send(
        &self,
        lease: &mut PooledConnection,
        sealed: SignedRequest,
        head: usize,
        record: &mut Record,
    ) -> Result<Response<Incoming>, Refusal> {
        let SignedRequest { mut request, progress, interim } = sealed;
        let interims = forward_interim(&mut request, interim);
        // The response timeout runs from the last byte of the request. An upload that streams has its own time first, while
        // its client is waited for; a target that takes no more of it has the response timeout to go on.
        // A request that is sent again has all of it once more.
        let patience = |waited| self.remaining_timeout(self.route.timeouts.response, waited);
        let late = || async {
            match &progress {
                Some(progress) => progress.overdue(patience).await,
                None => tokio::time::sleep(patience(Duration::ZERO)).await,
            }
        };
        let mut returns = ResendBudget::default();
        loop {
            progress.iter().for_each(|progress| progress.begin());
            record.begin(Step::Response);
            let sent = tokio::select! {
                biased;
                () = interims.flooded.notified() => {
                    return Err(Refusal::new(Code::ResponseMalformed, "the target sends interim answers without an end"));
                }
                sent = lease.send(request) => sent,
                () = late() => {
                    let stalled = progress.as_ref().is_some_and(|progress| !progress.has_ended());
                    let detail = match stalled {
                        true => "the target took no more of the request body within the response timeout",
                        false => "no answer within the response timeout",
                    };
                    return Err(Refusal::new(Code::ResponseTimeout, detail));
                }
            };
            if lease.requires_http1() {
                self.runtime.http1_only.remember(self.target);
            }
            let is_oversized = head > lease.request_head_max();
            match sent {
                Ok(response) => {
                    record.responded(response.status());
                    self.runtime.source_health.responded(lease.hop().from());
                    lease.observe_keep_alive(response.headers());
                    return Ok(response);
                }
                Err(SendError::Malformed(violation)) => {
                    lease.finish_exchange(); // only its stream has ended
                    self.runtime.source_health.responded(lease.hop().from());
                    return Err(errors::malformed_response(violation, self.route.response_head_max));
                }
                Err(SendError::Lost(fault)) => {
                    lease.finish_exchange(); // by the target's word: a stream that it resets ends nothing else
                    let inbound = progress.as_ref().and_then(|progress| progress.fault());
                    let refusal = inbound.map(Refusal::from).or(lease.alert_error().map(Refusal::from));
                    let received = lease.response_bytes().saturating_sub(interims.bytes.load(Ordering::Relaxed));
                    let lost = || {
                        map_hyper_error(&fault, self.route.response_head_max, received)
                            .with_cause(lease.failure_cause(&fault))
                    };
                    let refusal = refusal.unwrap_or_else(lost);
                    let is_unanswered = refusal.code == Code::ConnectionLost && !lease.response_has_begun();
                    return Err(match is_oversized && is_unanswered && !lease.requires_http1() {
                        true if lease.http_version() == "2" => oversized(head, lease),
                        // It has no such limit to announce, and a target that restarts looks the same.
                        true => refusal.with_details(LARGE_HEAD),
                        false => refusal,
                    });
                }
                Err(SendError::Unprocessed { reason: why, request: returned }) => {
                    if why == Unprocessed::RequiresHttp1 {
                        self.runtime.http1_only.remember(self.target); // and nothing new goes over this connection
                    } else {
                        lease.finish_exchange();
                    }
                    request = match returned.filter(|_| returns.may_resend(why)) {
                        Some(returned) => *returned,
                        None => {
                            let refusal = || match why {
                                Unprocessed::Refused if is_oversized => returned_oversized(head, lease),
                                _ => not_processed(why),
                            };
                            return Err(lease.alert_error().map_or_else(refusal, Into::into));
                        }
                    };
                    *lease = if lease.accepts_head(head).await {
                        self.dial(record).await?
                    } else {
                        self.dial_dedicated(record).await?
                    };
                }
            }
        }
    }

    /// How long the target may keep us waiting, from now. Where the total timeout ends before this one, and most of it was
    /// the target's own, that says as much of the target; else it says nothing, and ends the delivery by itself. `waited`:
    /// for the target already, by this upload.
    fn remaining_timeout(&self, timeout: Duration, waited: Duration) -> Duration {
        let total = self.route.timeouts.total;
        let left = total.saturating_sub(self.started.elapsed());
        if waited + left >= total / 2 { timeout.min(left) } else { timeout }
    }
}

/// Passes the target's interim answers on to the client (RFC 9110 §15.2), and tells when there are too many of them.
fn forward_interim(request: &mut Request<Upload>, interim: Option<InterimCallback>) -> Arc<InterimCounter> {
    let interims = Arc::new(InterimCounter::default());
    let (heard, ours) = (AtomicUsize::new(0), Arc::clone(&interims));
    http_client::on_interim(request, move |status, headers| {
        ours.bytes.fetch_add(interim_size(headers), Ordering::Relaxed);
        if heard.fetch_add(1, Ordering::Relaxed) >= INTERIM_MAX {
            ours.flooded.notify_one();
        } else if status != StatusCode::CONTINUE
            && let Some(interim) = &interim
        {
            // 100 Continue is a matter between us and the target: the client had its own from us.
            let mut headers = headers.clone();
            fields::strip_interim(&mut headers);
            interim(status, &headers);
        }
    });
    interims
}

/// The interim answers that have come, of HTTP/1.1.
#[derive(Default)]
struct InterimCounter {
    /// Their heads, in bytes.
    bytes: AtomicUsize,
    /// There are too many of them.
    flooded: Notify,
}

/// Returns the bytes of an interim head over HTTP/1.1, without optional white space and the words of its status line.
fn interim_size(headers: &HeaderMap) -> usize {
    let fields = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ":\r\n".len());
    "HTTP/1.1 103 \r\n\r\n".len() + fields.sum::<usize>()
}

/// How often a request has been returned unprocessed.
#[derive(Default)]
struct ResendBudget {
    /// It was sent over another connection.
    elsewhere: bool,
    /// It was sent over HTTP/1.1.
    over_http1: bool,
}

impl ResendBudget {
    /// Returns whether to send the request again: once over another connection, and once over HTTP/1.1.
    fn may_resend(&mut self, why: Unprocessed) -> bool {
        let was_resent = match why {
            Unprocessed::Unsent | Unprocessed::Refused => &mut self.elsewhere,
            Unprocessed::RequiresHttp1 => &mut self.over_http1,
        };
        !std::mem::replace(was_resent, true)
    }
}

fn not_processed(why: Unprocessed) -> Refusal {
    let how = match why {
        Unprocessed::Unsent => "closes connections as soon as they open",
        Unprocessed::Refused => "returned the request unprocessed (REFUSED_STREAM or GOAWAY)",
        Unprocessed::RequiresHttp1 => "returned the request unprocessed (HTTP_1_1_REQUIRED)",
    };
    Refusal::new(Code::ConnectionLost, format!("the target {how}; the webhook has not arrived")).unprocessed()
}

/// The target ended the exchange without a response, for which the size of the request head is reason enough: the target
/// is not to blame, and another client's webhook would fare better.
fn oversized(head: usize, lease: &PooledConnection) -> Refusal {
    let accepted = lease.request_head_max();
    let detail = format!(
        "the target ended the exchange without a response: the request head has {head} bytes, and the target accepts \
         {accepted} (its SETTINGS_MAX_HEADER_LIST_SIZE, or 16 KiB where it announces none)"
    );
    Refusal::malformed(detail).status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE).with_details(OVERSIZED_HEAD)
}

/// The same where the target has returned the request unprocessed, each time.
fn returned_oversized(head: usize, lease: &PooledConnection) -> Refusal {
    oversized(head, lease).unprocessed().with_details(OVERSIZED_HEAD)
}

/// Dials one of the hops, and records what the attempts say of their sources.
pub(super) async fn dial(
    runtime: &Runtime,
    host: &Host,
    tenant: Option<&TenantName>,
    hops: &[Hop],
    timeout: Duration,
    record: &mut Record,
) -> Result<DialledSocket, DialError> {
    record.dials(hops);
    let dialling = dial::dial(hops, Instant::now() + timeout).await;
    record.dialled(&dialling);
    for source in dialling.unusable_sources {
        runtime.sources.refused(source);
    }
    let answered = dialling.outcome.as_ref().ok().map(|dialled| dialled.hop);
    runtime.source_health.observe_dial(host, tenant, answered, &dialling.unresponsive_hops);
    dialling.outcome
}

impl From<DialError> for Refusal {
    fn from(fault: DialError) -> Self {
        match fault {
            DialError::Refused => Refusal::new(Code::ConnectRefused, "the target refused the connection"),
            DialError::Timeout => Refusal::new(Code::ConnectTimeout, "no connection within the connect timeout"),
            DialError::Unreachable => Refusal::new(Code::ConnectUnreachable, "no network path to the target"),
            DialError::NoSource => Refusal::new(Code::NoEgress, "no source address of the pool is usable"),
            DialError::Other(cause) => {
                Refusal::new(Code::Internal, "the connection could not be made").with_cause(cause)
            }
        }
    }
}
