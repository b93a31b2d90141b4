//! The ways to one target tried from many source addresses, as deliveries would go them, and nothing sent.
//! Which of our addresses does this target let in, and what does it show them?

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use http::Method;
use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::judge::{JudgeInput, JudgedClient, Judgment, judge};
use super::refusal::{Code, Refusal};
use super::request_target::RequestTarget;
use crate::names::{ClientName, Scheme, Target, TenantName};
use crate::net::tls::{AlpnOffer, ClientTls, HandshakeInfo};
use crate::net::{dial, tls};
use crate::policy::authn::Authenticated;
use crate::policy::egress::allow_list_gap::{AddressRange, AllowListGap};
use crate::policy::egress::{self, Hop, Pool, Survey};
use crate::policy::route::Route;
use crate::state::Runtime;
use crate::state::config::ActiveConfig;

/// Connections under way at once: a target that counts them should not take us for an attack.
const AT_ONCE: usize = 16;

/// What is to be found out.
pub struct ProbeRequest<'a> {
    pub url: &'a str,
    pub client: &'a ClientName,
    pub tenant: Option<&'a TenantName>,
    /// Instead of the route's.
    pub pool: Option<&'a Arc<Pool>>,
    /// Source addresses to try; of more, a sample.
    pub most: usize,
    /// For DNS, TCP and TLS each, instead of the route's.
    pub timeout: Option<Duration>,
}

pub struct ProbeReport {
    pub target: Target,
    /// As deliveries to the target would take it, but for what was asked otherwise.
    pub route: Route,
    /// All that the name has.
    pub addresses: Vec<IpAddr>,
    pub resolved: Duration,
    pub survey: Survey,
    /// In the order of the survey's hops.
    pub met: Vec<ProbeResult>,
    pub gaps: Vec<AllowListGap>,
}

/// What came of one way.
pub struct ProbeResult {
    pub hop: Hop,
    /// Until the connection was there, or failed.
    pub connect: Duration,
    /// The same for the handshake, if it came to one.
    pub tls: Option<Duration>,
    /// `None`: the target is spoken to in plaintext.
    pub outcome: Result<Option<ProbeHandshake>, Refusal>,
}

pub struct ProbeHandshake {
    pub proof: HandshakeInfo,
    pub issuer: String,
}

/// Route, guard, resolver, pool and trust are the configuration's own; each hop is dialled and each handshake made by the
/// code that deliveries use. Only sessions are not resumed: what a target shows to one address says nothing of another.
pub async fn probe(runtime: &Runtime, asked: &ProbeRequest<'_>) -> Result<ProbeReport, Refusal> {
    let active = runtime.active_config();
    let (target, route) = settle(&active, asked)?;
    let start = Clock::now();
    let families = route.pool.families(Timestamp::now());
    let answers = active.resolver.resolve(&target.host, families, route.timeouts.dns).await?;
    let resolved = start.elapsed();
    let cleared = active.plan.guard.clear(&target, &answers.addresses, &runtime.sources.own())?;
    let now = Timestamp::now();
    let usable = runtime.sources.view().of(&route.pool.in_force(now));
    let survey = egress::survey(&route.pool, &cleared, &usable, asked.most, now)?;
    let met = try_all(&survey.hops, &route, &target, asked.tenant).await;
    let gaps = gaps(&target, &survey, &met);
    let addresses = cleared.addresses().to_vec();
    Ok(ProbeReport { target, route, addresses, resolved, survey, met, gaps })
}

fn settle(active: &ActiveConfig, asked: &ProbeRequest<'_>) -> Result<(Target, Route), Refusal> {
    let plan = &active.plan;
    let ask = RequestTarget::of(&Method::POST, asked.url, asked.tenant.cloned());
    let subject = JudgeInput::question(&Method::POST, ask, Timestamp::now());
    // Nothing is sent, so an unknown client is not refused: its route is that of the clients that no route names.
    let Judgment { decided, outcome } = judge(plan, subject, |_| {
        let client = plan.clients.get(asked.client);
        let known = client.map(|client| Authenticated { client, proof: None, signed: None });
        Ok(JudgedClient { name: asked.client, known })
    });
    let (route, target) = match (outcome, decided.route, decided.target) {
        (Ok(_), Some(route), Some(target)) => (route, target),
        (Err(refusal), Some(route), Some(target)) if decided.is_target_allowed && lacks_key(&refusal) => {
            (route, target)
        }
        (Err(refusal), ..) => return Err(refusal),
        (Ok(_), ..) => return Err(Refusal::new(Code::Internal, "the request has no target")),
    };
    let mut route = Route::clone(route);
    if let Some(pool) = asked.pool {
        route.pool = Arc::clone(pool);
    }
    if let Some(timeout) = asked.timeout {
        (route.timeouts.dns, route.timeouts.connect, route.timeouts.tls) = (timeout, timeout, timeout);
    }
    Ok((target, route))
}

/// Whether a question whose target is allowed lacks a signing key alone. A probe signs nothing, so it needs none.
fn lacks_key(refusal: &Refusal) -> bool {
    matches!(refusal.code, Code::ClientForbidden | Code::Internal)
}

async fn try_all(hops: &[Hop], route: &Route, target: &Target, tenant: Option<&TenantName>) -> Vec<ProbeResult> {
    let mut waiting = hops.iter().copied().enumerate();
    let mut running = JoinSet::new();
    let mut ended: Vec<(usize, ProbeResult)> = Vec::new();
    loop {
        for (index, hop) in waiting.by_ref().take(AT_ONCE - running.len()) {
            let (route, target, tenant) = (route.clone(), target.clone(), tenant.cloned());
            running.spawn(async move { (index, go(hop, &route, &target, tenant.as_ref()).await) });
        }
        match running.join_next().await {
            Some(Ok(met)) => ended.push(met),
            Some(Err(broken)) => std::panic::resume_unwind(broken.into_panic()),
            None => break,
        }
    }
    ended.sort_unstable_by_key(|(index, _)| *index);
    ended.into_iter().map(|(_, met)| met).collect()
}

async fn go(hop: Hop, route: &Route, target: &Target, tenant: Option<&TenantName>) -> ProbeResult {
    let start = Clock::now();
    let dialled = dial::dial(&[hop], Instant::now() + route.timeouts.connect).await.outcome;
    let connect = start.elapsed();
    let socket = match dialled {
        Ok(dialled) => dialled.socket,
        Err(fault) => return ProbeResult { hop, connect, tls: None, outcome: Err(fault.into()) },
    };
    if target.scheme == Scheme::Http {
        return ProbeResult { hop, connect, tls: None, outcome: Ok(None) };
    }
    let (terms, start) = (ClientTls::new(&route.trust), Clock::now());
    let (offer, deadline) = (AlpnOffer::Http2OrHttp1, Instant::now() + route.timeouts.tls);
    let shaken = tls::handshake(socket, &terms, tenant, &target.host, offer, deadline).await;
    let tls = Some(start.elapsed());
    let outcome =
        shaken.map(|(wire, proof)| Some(ProbeHandshake { proof, issuer: tls::issuer(&wire).unwrap_or_default() }));
    ProbeResult { hop, connect, tls, outcome: outcome.map_err(|failed| failed.error.into()) }
}

impl ProbeResult {
    /// Nothing came back but, at best, a connection.
    fn is_kept_out(&self) -> bool {
        use Code::{ConnectRefused, ConnectTimeout, ConnectUnreachable, ConnectionLost};
        let code = self.outcome.as_ref().err().map(|refusal| refusal.code);
        matches!(code, Some(ConnectRefused | ConnectTimeout | ConnectUnreachable | ConnectionLost))
    }

    /// The target itself has spoken, whatever it had to say.
    fn is_answered(&self) -> bool {
        let code = self.outcome.as_ref().err().map(|refusal| refusal.code);
        matches!(code, None | Some(Code::CertificateUntrusted | Code::TlsFailed))
    }
}

/// Each address of the target by itself: it may stand behind a firewall of its own.
fn gaps(target: &Target, survey: &Survey, met: &[ProbeResult]) -> Vec<AllowListGap> {
    let mut addresses: Vec<_> = met.iter().map(|met| met.hop.to()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let is_one = addresses.len() == 1;
    let gap = |to: SocketAddr| {
        let towards = || met.iter().filter(move |met| met.hop.to() == to);
        let of = |is_meant: fn(&ProbeResult) -> bool| -> Vec<_> {
            let meant: Vec<_> = towards().filter(|met| is_meant(met)).map(|met| met.hop.from()).collect();
            if !survey.is_sample() {
                return AddressRange::exactly(meant);
            }
            let asked: Vec<_> = towards().map(|met| met.hop.from()).collect();
            AddressRange::between(&asked, |source| meant.contains(&source))
        };
        let (answers, lacks) = (of(ProbeResult::is_answered), of(ProbeResult::is_kept_out));
        let at = if is_one { String::new() } else { format!(" at {}", to.ip()) };
        let target = format!("{}:{}{at}", target.host, target.port);
        (!answers.is_empty() && !lacks.is_empty()).then_some(AllowListGap { target, answers, lacks })
    };
    addresses.into_iter().filter_map(gap).collect()
}
