//! Connections to one target from many source addresses, opened as deliveries open them. A probe sends no request, unless
//! the target is an echo service.
//! Which source addresses does this target accept, and which certificate does it send to them?

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use http::Method;
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::echo;
use crate::delivery::context::Delivery;
use crate::delivery::judge::{JudgeInput, JudgedClient, Judgment, judge};
use crate::delivery::refusal::{Blame, Code, Refusal};
use crate::delivery::request::target::RequestTarget;
use crate::delivery::steps;
use crate::names::{ClientName, Scheme, Target, TenantName};
use crate::net::dial::{self, DialError};
use crate::net::tls::{AlpnOffer, ClientTls, HandshakeInfo};
use crate::net::{local, tls};
use crate::policy::authn::Authenticated;
use crate::policy::egress::allow_list_gap::{AddressRange, AllowListGap};
use crate::policy::egress::{self, ComparedRanges, Families, Hop, NewRanges, Pool, Survey};
use crate::policy::route::Route;
use crate::state::Runtime;
use crate::state::config::ActiveConfig;

/// Rejected sources of a range that try again. If one of them gets an answer, the others try, too.
const CONFIRMATIONS_PER_RANGE: usize = 2;
/// The pause before rejected sources try again, in which a target that limits the rate of connections recovers.
const CONFIRMATION_PAUSE: Duration = Duration::from_secs(1);

pub struct ProbeRequest<'a> {
    pub url: &'a str,
    pub client: &'a ClientName,
    pub tenant: Option<&'a TenantName>,
    /// The pool to use instead of the route's.
    pub pool: Option<&'a Arc<Pool>>,
    /// The ranges to compare with the active ones. The probe connects from the addresses of them that this host has.
    pub new: &'a NewRanges,
    /// Source addresses to try at most, of the active and of the new ranges each. If there are more, the probe tries a
    /// sample.
    pub max_sources: usize,
    /// Connections to open at the same time. A target that counts connections must not take the probe for an attack.
    pub connections_max: usize,
    /// Whether sources that the target rejects try again, if the target answers others.
    pub confirms: bool,
    /// The time for the first tries. Those that have not ended then have no result.
    pub limit: Option<Duration>,
    /// The timeout of DNS, TCP and TLS each, instead of the route's.
    pub timeout: Option<Duration>,
    /// The path of an echo service, which is asked for the address that it sees.
    pub echo: Option<&'a str>,
}

pub struct ProbeReport {
    pub target: Target,
    /// The route of deliveries to the target, with the pool and the timeout of the probe.
    pub route: Arc<Route>,
    /// The addresses of the target's name.
    pub addresses: Vec<IpAddr>,
    pub resolved: Duration,
    pub survey: Survey,
    pub ranges: ComparedRanges,
    /// The results in the order of the survey's hops.
    pub results: Vec<ProbeResult>,
    /// The addresses of the target that answered a source and rejected it when it tried again.
    pub unsteady: BTreeSet<SocketAddr>,
    pub gaps: Vec<AllowListGap>,
}

/// The result for one hop.
pub struct ProbeResult {
    pub hop: Hop,
    /// The time until TCP was connected, or failed.
    pub connect: Duration,
    /// The time of the handshake, if there was one.
    pub tls: Option<Duration>,
    /// `Ok(None)`: the target speaks plaintext.
    pub outcome: Result<Option<ProbeHandshake>, Refusal>,
    /// The address that the echo service sees, or why it is unknown; `None`: it was not asked.
    pub echo: Option<Result<IpAddr, String>>,
}

pub struct ProbeHandshake {
    pub info: HandshakeInfo,
    pub issuer: String,
}

/// Connects to the target of a URL from the sources of its pool.
///
/// The judgment, the resolver, the guard, the dialling and the handshake are those of deliveries. A probe resumes no TLS
/// session: what one source gets is no evidence for another.
pub async fn probe(runtime: &Arc<Runtime>, request: &ProbeRequest<'_>) -> Result<ProbeReport, Refusal> {
    let active = runtime.active_config();
    let (target, route) = judge_probe(&active, request)?;
    let ranges = route.pool.compared_ranges(request.new, Timestamp::now());
    let groups = [&ranges.active, &ranges.new].map(|ranges| ranges.iter().map(|range| range.cidr).collect::<Vec<_>>());
    let started = Clock::now();
    let delivery = Delivery {
        runtime,
        active: &active,
        route: &route,
        client: request.client,
        tenant: request.tenant,
        target: &target,
        separates_clients: true,
        started,
        capture: None,
    };
    let has = |v6| groups.iter().flatten().any(|net| net.network().is_ipv6() == v6);
    let cleared = steps::resolve(&delivery, Families { v4: has(false), v6: has(true) }).await?;
    let resolved = started.elapsed();
    let snapshot = runtime.sources.snapshot();
    let usable = groups.map(|ranges| snapshot.usable_ranges(&IpNet::aggregate(&ranges)));
    let survey = egress::survey(&route.pool, &cleared, &usable, request.max_sources, Timestamp::now())?;
    let deadline = request.limit.map(|limit| Instant::now() + limit);
    let mut results = probe_hops(&delivery, alternate(&survey.hops, &ranges), request, deadline).await;
    let unsteady = match request.confirms {
        true => confirm(&delivery, request, &ranges, &mut results).await,
        false => BTreeSet::new(),
    };
    let results: Vec<_> = results.into_values().collect();
    let gaps = gaps(&target, &survey, &results);
    let addresses = cleared.addresses().to_vec();
    Ok(ProbeReport { target, route, addresses, resolved, survey, ranges, results, unsteady, gaps })
}

/// Returns the target of a probe and the route of deliveries to it, without a connection.
pub fn probe_route(runtime: &Runtime, request: &ProbeRequest<'_>) -> Result<(Target, Arc<Route>), Refusal> {
    judge_probe(&runtime.active_config(), request)
}

/// Judges the URL as a webhook without a body, and returns its target and route.
fn judge_probe(active: &ActiveConfig, request: &ProbeRequest<'_>) -> Result<(Target, Arc<Route>), Refusal> {
    let plan = &active.plan;
    let request_target = RequestTarget::parse(&Method::POST, request.url, request.tenant.cloned());
    let input = JudgeInput::hypothetical(&Method::POST, request_target, Timestamp::now());
    // An unknown client is not refused, because a probe sends no request. It gets the route of clients that no route names.
    let Judgment { decisions, outcome } = judge(plan, input, |_| {
        let client = plan.clients.get(request.client);
        let authenticated = client.map(Authenticated::without_proof);
        Ok(JudgedClient { name: request.client, authenticated })
    });
    let (route, target) = match (outcome, decisions.route, decisions.target) {
        (Ok(_), Some(route), Some(target)) => (route, target),
        (Err(refusal), Some(route), Some(target)) if decisions.is_target_allowed && lacks_key(&refusal) => {
            (route, target)
        }
        (Err(refusal), ..) => return Err(refusal),
        (Ok(_), ..) => return Err(Refusal::new(Code::Internal, "the request has no target")),
    };
    let mut route = Route::clone(route);
    if let Some(pool) = request.pool {
        route.pool = Arc::clone(pool);
    }
    if let Some(timeout) = request.timeout {
        (route.timeouts.dns, route.timeouts.connect, route.timeouts.tls) = (timeout, timeout, timeout);
    }
    Ok((target, Arc::new(route)))
}

/// Returns whether only a signing key is missing, given that the target is allowed. A probe signs nothing.
fn lacks_key(refusal: &Refusal) -> bool {
    matches!(refusal.code, Code::ClientForbidden | Code::Internal)
}

/// Returns the hops with their indices, from a new and an active source in turn. A limit that the target reaches in the
/// course of a probe then affects both.
fn alternate(hops: &[Hop], ranges: &ComparedRanges) -> Vec<(usize, Hop)> {
    let is_new = |hop: &Hop| ranges.new.iter().any(|range| range.cidr.contains(&hop.from()));
    let (new, active): (Vec<_>, Vec<_>) = hops.iter().copied().enumerate().partition(|(_, hop)| is_new(hop));
    let mut ranked: Vec<_> = [new, active].into_iter().flat_map(|group| group.into_iter().enumerate()).collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, hop)| hop).collect()
}

/// Probes hops, several at a time, until the deadline. Returns the results by the indices of the hops.
async fn probe_hops(
    delivery: &Delivery<'_>,
    hops: Vec<(usize, Hop)>,
    request: &ProbeRequest<'_>,
    deadline: Option<Instant>,
) -> BTreeMap<usize, ProbeResult> {
    let mut waiting = hops.into_iter();
    let mut running = JoinSet::new();
    let mut ended = BTreeMap::new();
    loop {
        for (index, hop) in waiting.by_ref().take(request.connections_max - running.len()) {
            let (route, target) = (Arc::clone(delivery.route), delivery.target.clone());
            let (tenant, echo) = (delivery.tenant.cloned(), request.echo.map(str::to_owned));
            running
                .spawn(async move { (index, probe_hop(hop, &route, &target, tenant.as_ref(), echo.as_deref()).await) });
        }
        let next = match deadline {
            None => running.join_next().await,
            Some(deadline) => timeout_at(deadline, running.join_next()).await.unwrap_or_default(),
        };
        match next {
            Some(Ok((index, result))) => drop(ended.insert(index, result)),
            Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            None => return ended,
        }
    }
}

/// Tries rejected sources again, and then a source that got an answer from the same address of the target. Returns the
/// addresses of the target that do not answer that source again: they say nothing about an allow-list.
async fn confirm(
    delivery: &Delivery<'_>,
    request: &ProbeRequest<'_>,
    ranges: &ComparedRanges,
    results: &mut BTreeMap<usize, ProbeResult>,
) -> BTreeSet<SocketAddr> {
    let answered = results.iter().filter(|(_, result)| result.is_answered());
    let mut controls: BTreeMap<SocketAddr, (usize, Hop)> =
        answered.map(|(index, result)| (result.hop.to(), (*index, result.hop))).collect();
    let mut rejected: BTreeMap<_, Vec<(usize, Hop)>> = BTreeMap::new();
    for (index, ProbeResult { hop, .. }) in results.iter().filter(|(_, result)| result.is_rejected()) {
        if controls.contains_key(&hop.to()) {
            let range = ranges.range_of(hop.from()).map(|range| range.cidr);
            rejected.entry((hop.to(), range)).or_default().push((*index, *hop));
        }
    }
    if rejected.is_empty() {
        return BTreeSet::new();
    }
    controls.retain(|to, _| rejected.keys().any(|(of, _)| of == to));
    sleep(CONFIRMATION_PAUSE).await;
    let first = rejected.values().flat_map(|hops| hops.iter().take(CONFIRMATIONS_PER_RANGE));
    let mut again = probe_hops(delivery, first.chain(controls.values()).copied().collect(), request, None).await;
    let is_rejected_again = |(index, _): &(usize, Hop)| again.get(index).is_none_or(ProbeResult::is_rejected);
    let unconfirmed = rejected.values().filter(|hops| !hops.iter().all(is_rejected_again));
    let others = unconfirmed.flat_map(|hops| hops.iter().skip(CONFIRMATIONS_PER_RANGE).copied()).collect();
    let unsteady = controls.iter().filter(|(_, (index, _))| !again.get(index).is_some_and(ProbeResult::is_answered));
    let unsteady = unsteady.map(|(to, _)| *to).collect();
    again.extend(probe_hops(delivery, others, request, None).await);
    again.retain(|index, _| results.get(index).is_some_and(ProbeResult::is_rejected));
    results.extend(again);
    unsteady
}

async fn probe_hop(
    hop: Hop,
    route: &Route,
    target: &Target,
    tenant: Option<&TenantName>,
    echo: Option<&str>,
) -> ProbeResult {
    let started = Clock::now();
    // A probe also leaves from ranges that no delivery uses yet.
    let dialled = dial::dial(&[hop], |_| true, Instant::now() + route.timeouts.connect).await.outcome;
    let connect = started.elapsed();
    let socket = match dialled {
        Ok(dialled) => dialled.socket,
        // The kernel reports a missing route of this host as it reports a router or firewall that rejects the packet.
        Err((DialError::Unreachable, _)) if local::route_from(hop.from(), hop.to().ip()).is_err() => {
            return ProbeResult { hop, connect, tls: None, outcome: Err(DialError::Prohibited.into()), echo: None };
        }
        Err((error, _)) => return ProbeResult { hop, connect, tls: None, outcome: Err(error.into()), echo: None },
    };
    let limit = route.timeouts.response;
    if target.scheme == Scheme::Http {
        let echo = echo::ask(socket.into_plaintext(), target, echo, limit).await;
        return ProbeResult { hop, connect, tls: None, outcome: Ok(None), echo };
    }
    let (client_tls, started) = (ClientTls::new(&route.trust), Clock::now());
    let offer = if echo.is_some() { AlpnOffer::Http1 } else { AlpnOffer::Http2OrHttp1 };
    let deadline = Instant::now() + route.timeouts.tls;
    let handshake = tls::handshake(socket, &client_tls, tenant, &target.host, offer, deadline).await;
    let tls = Some(started.elapsed());
    match handshake {
        Ok((stream, info)) => {
            let issuer = tls::issuer(&stream).unwrap_or_default();
            let outcome = Ok(Some(ProbeHandshake { info, issuer }));
            let echo = echo::ask(stream, target, echo, limit).await;
            ProbeResult { hop, connect, tls, outcome, echo }
        }
        Err(error) => ProbeResult { hop, connect, tls, outcome: Err(error.error.into()), echo: None },
    }
}

impl ProbeResult {
    /// Returns whether the target or a firewall has rejected the source: TCP failed, or the handshake did not end. A fault
    /// of this host is no rejection.
    pub fn is_rejected(&self) -> bool {
        use Code::{ConnectRefused, ConnectTimeout, ConnectUnreachable, ConnectionLost};
        let rejects = |refusal: &Refusal| {
            matches!(refusal.code, ConnectRefused | ConnectTimeout | ConnectUnreachable | ConnectionLost)
                && refusal.effective_blame() == Blame::Target
        };
        self.outcome.as_ref().err().is_some_and(rejects)
    }

    /// Returns whether the target has accepted or rejected the handshake itself, or plaintext connected.
    pub fn is_answered(&self) -> bool {
        let code = self.outcome.as_ref().err().map(|refusal| refusal.code);
        matches!(code, None | Some(Code::CertificateUntrusted | Code::TlsFailed))
    }
}

/// Returns the gaps of each address of the target by itself, which may have a firewall of its own.
fn gaps(target: &Target, survey: &Survey, results: &[ProbeResult]) -> Vec<AllowListGap> {
    let mut addresses: Vec<_> = results.iter().map(|result| result.hop.to()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let is_only_address = addresses.len() == 1;
    let gap = |to: SocketAddr| {
        let of_address = || results.iter().filter(move |result| result.hop.to() == to);
        let sources = |matches: fn(&ProbeResult) -> bool| -> Vec<_> {
            let matching: Vec<_> =
                of_address().filter(|result| matches(result)).map(|result| result.hop.seen_as()).collect();
            if !survey.is_sample() {
                return AddressRange::from_addresses(matching);
            }
            let probed: Vec<_> = of_address().map(|result| result.hop.seen_as()).collect();
            AddressRange::from_sample(&probed, |source| matching.contains(&source))
        };
        let (answers, lacks) = (sources(ProbeResult::is_answered), sources(ProbeResult::is_rejected));
        let at = if is_only_address { String::new() } else { format!(" at {}", to.ip()) };
        let target = format!("{}:{}{at}", target.host, target.port);
        (!answers.is_empty() && !lacks.is_empty()).then_some(AllowListGap { target, answers, lacks })
    };
    addresses.into_iter().filter_map(gap).collect()
}
