//! The decisions of the story, told instead of acted on.
//! What would happen to this webhook, and which rule says so?

mod current_state;
mod route_match;

use std::net::IpAddr;

use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::judge::{JudgeInput, Judgment, JudgmentOutcome, Routed, judge};
use super::refusal::{Code, Refusal};
use super::request_target::RequestTarget;
use super::steps::affinity_hash;
use super::tunnel_mode::TunnelMode;
use crate::config::{AuthMethod, CrlPolicy, LimitScope, SelectionPolicy, Timeouts, TlsVersion, VerifyMode};
use crate::names::{ClientName, Host, KeyId, TenantName, pluralize};
use crate::policy::Plan;
use crate::policy::authn::{Authenticated, Client};
use crate::policy::egress;
use crate::policy::guard::{ClearedAddresses, LocalAddresses};
use crate::policy::limits::Limit;
use crate::policy::route::{Route, Split};
use crate::policy::sign::Signer;
use crate::policy::trust::Trust;
use crate::state::Runtime;

/// Steps with what was decided in each, and the refusal that ended them, if one did.
pub struct Explanation {
    pub lines: Vec<(&'static str, String)>,
    pub refusal: Option<Code>,
}

impl Explanation {
    pub fn as_json(&self) -> Value {
        let steps: Vec<_> = self.lines.iter().map(|(step, what)| json!({ "step": step, "what": what })).collect();
        json!({ "steps": steps, "refusal": self.refusal.map(Code::name) })
    }
}

/// A webhook that would be sent, or a tunnel that would be opened.
pub struct ExplainRequest<'a> {
    pub method: &'a Method,
    /// Of a CONNECT, host and port.
    pub url: &'a str,
    pub client: &'a ClientName,
    pub tenant: Option<&'a TenantName>,
    pub now: Timestamp,
}

impl ExplainRequest<'_> {
    fn is_tunnel(&self) -> bool {
        self.method == Method::CONNECT
    }
}

/// No name is resolved: for a target that is a name, and that the configuration gives no address, the guard's verdict on
/// its addresses stays open.
pub fn explain(plan: &Plan, question: &ExplainRequest<'_>, own: &LocalAddresses) -> Explanation {
    routed(plan, question, own).0
}

/// The same by the plan in force, with what the proxy knows at this moment.
pub fn explain_now(runtime: &Runtime, question: &ExplainRequest<'_>) -> Explanation {
    let active = runtime.active_config();
    let (mut explained, routed) = routed(&active.plan, question, &runtime.sources.own());
    // A request that is refused before comes to no limit.
    let Some(routed) = routed else { return explained };
    let current_state::Now { lines, not_admitted, no_egress } =
        current_state::now(runtime, &active.plan, question, &routed);
    explained.lines.extend(lines);
    // In the order of a delivery: the configuration's own refusal comes from the pool or the guard.
    explained.refusal = not_admitted.or(explained.refusal).or(no_egress);
    explained
}

/// Returns the explanation, and the decisions if nothing refuses the request before it is admitted.
fn routed<'p>(
    plan: &'p Plan,
    question: &ExplainRequest<'p>,
    own: &LocalAddresses,
) -> (Explanation, Option<Routed<'p>>) {
    let mut lines = Vec::new();
    let judged = judged(plan, question, &mut lines);
    let (routed, refusal) = match judged {
        Ok(Some(routed)) => {
            let refusal = foretell(plan, question, own, &routed, &mut lines).err();
            (Some(routed), refusal)
        }
        Ok(None) => (None, None),
        Err(refusal) => (None, Some(refusal)),
    };
    if let Some(refusal) = &refusal {
        let cause = refusal.cause().map(|cause| format!(" ({cause})")).unwrap_or_default();
        lines.push((
            "refused",
            format!("{} {}: {}{cause}", refusal.effective_status().as_u16(), refusal.code.name(), refusal.detail()),
        ));
    }
    (Explanation { lines, refusal: refusal.map(|refusal| refusal.code) }, routed)
}

/// Adds what was decided before anything is waited for.
fn judged<'p>(
    plan: &'p Plan,
    question: &ExplainRequest<'p>,
    lines: &mut Vec<(&'static str, String)>,
) -> Result<Option<Routed<'p>>, Refusal> {
    let &ExplainRequest { method, url, client, tenant, now } = question;
    let ask = RequestTarget::of(method, url, tenant.cloned())?;
    let mut known = None;
    let Judgment { decided, outcome } = judge(plan, JudgeInput::question(method, Ok(ask.clone()), now), |_| {
        let client = plan.clients.get(client);
        let client =
            client.ok_or_else(|| Refusal::new(Code::ClientUnauthenticated, "anonymous clients are not allowed"))?;
        known = Some(client);
        Ok(Authenticated { client, proof: None, signed: None }.into())
    });
    lines.extend(known.map(|client| ("client", client_in_words(client))));
    lines.extend(tenant.filter(|_| decided.client.is_some()).map(|tenant| ("tenant", tenant.to_string())));
    if let Some((shadow, refused)) = decided.shadow {
        let refused = refused.map(|code| format!(", and would refuse it as {}", code.name())).unwrap_or_default();
        lines.push(("shadow", format!("{} would be taken, but only reports{refused}", shadow.name)));
    }
    if let Some(route) = decided.route {
        let (written, why) = route_match::reason(plan, question, &ask, route);
        lines.push(("route", format!("{}: {why}", route.name)));
        let split = written.split.as_ref();
        lines.extend(split.map(|split| ("split", split_in_words(split, route, tenant, &ask.host))));
    }
    lines.extend(decided.target.map(|target| ("target", target.to_string())));
    lines.extend(decided.opens.map(|opens| ("tunnel", tunnel_in_words(opens))));
    match outcome? {
        JudgmentOutcome::Routed(routed) => Ok(Some(routed)),
        JudgmentOutcome::LocalOptions => Ok(None),
    }
}

/// Adds what the steps come to that follow, as far as the configuration tells, so that the first refusal is the same.
fn foretell(
    plan: &Plan,
    question: &ExplainRequest<'_>,
    own: &LocalAddresses,
    routed: &Routed<'_>,
    lines: &mut Vec<(&'static str, String)>,
) -> Result<(), Refusal> {
    let &ExplainRequest { tenant, now, .. } = question;
    let Routed { route, target, opens, .. } = routed;
    lines.extend(route.limits.iter().map(|limit| ("limit", limit_in_words(limit))));
    if opens.is_some_and(|opens| opens != TunnelMode::Passthrough) {
        return Ok(());
    }
    if route.pool.in_force(now).is_empty() {
        return Err(egress::HopError::NoUsableSource.into());
    }
    let addresses = plan.guard.pinned(&target.host);
    let cleared = addresses.map(|addresses| plan.guard.clear(target, addresses, own)).transpose()?;
    let denied = cleared.as_ref().and_then(ClearedAddresses::would_deny);
    lines.extend(denied.map(|denied| ("guard", format!("{denied} would deny it, but only reports"))));
    lines.push(("egress", egress_in_words(route, &target.host, cleared.as_ref(), question)?));
    lines.push(("trust", trust_in_words(&route.trust)));
    let timeouts = &route.timeouts;
    if question.is_tunnel() {
        let Timeouts { dns, connect, tls, idle, tunnel, .. } = timeouts;
        let words = format!("dns {dns:?}, connect {connect:?}, tls {tls:?}, idle {idle:?}, tunnel {tunnel:?}");
        lines.push(("timeouts", words));
        return Ok(());
    }
    if let Some(credential) = &route.credential {
        lines.push(("credential", format!("{}: {}", credential.name, credential.kind())));
    }
    match route.signers.as_slice() {
        [] => lines.push(("sign", "unsigned: the body streams".to_owned())),
        signers => lines.extend(signers.iter().map(|signer| ("sign", signer_in_words(signer, tenant, now)))),
    }
    lines.push(("body", format!("at most {} bytes within {:?}", route.body_max, timeouts.body)));
    lines.push((
        "timeouts",
        format!(
            "dns {:?}, connect {:?}, tls {:?}, response {:?}, total {:?}",
            timeouts.dns, timeouts.connect, timeouts.tls, timeouts.response, timeouts.total
        ),
    ));
    Ok(())
}

/// `route` is the side that is taken.
fn split_in_words(split: &Split, route: &Route, tenant: Option<&TenantName>, host: &Host) -> String {
    let (percent, place) = (split.percent(), route.split_percentile(tenant, host));
    let side = if route.is_trial() { "on the other side, with what the split says" } else { "not on the other side" };
    format!("{percent} %: this tenant and host, at {place:.2} % of all, are {side}")
}

fn tunnel_in_words(opens: TunnelMode) -> String {
    let words = match opens {
        TunnelMode::Passthrough => "opened when the target has proven its name: what is inside is not seen",
        TunnelMode::Inspect => "inspected: each request inside is judged for itself, by its own URL",
        TunnelMode::Plaintext => "served: each plaintext request inside is judged for itself, and goes over TLS",
    };
    words.to_owned()
}

fn trust_in_words(trust: &Trust) -> String {
    let version = version(trust.min_version);
    let mut words = match trust.verify {
        VerifyMode::None => format!("{}: certificates are NOT verified, TLS {version} or newer", trust.name),
        VerifyMode::Full => {
            let roots = pluralize(trust.roots.len(), "root");
            format!("{}: certificates are verified against {roots}, TLS {version} or newer", trust.name)
        }
    };
    if trust.own() > 0 && trust.verify == VerifyMode::Full {
        words.push_str(&format!(", {} trusted individually", pluralize(trust.own(), "certificate")));
    }
    if trust.strict && trust.verify == VerifyMode::Full {
        words.push_str(", under the rules of the Web PKI");
    }
    if !trust.pins.is_empty() {
        words.push_str(&format!(", {}", pluralize(trust.pins.len(), "pinned key")));
    }
    if trust.lists() > 0 {
        let policy = if trust.crl_policy == CrlPolicy::Require { "required" } else { "if they speak of it" };
        words.push_str(&format!(", {}, {policy}", pluralize(trust.lists(), "revocation list")));
    }
    if trust.identity.is_some() {
        words.push_str(", and we show a certificate of our own");
    }
    words
}

fn client_in_words(client: &Client) -> String {
    let words = |proofs: &[AuthMethod]| proofs.iter().map(|proof| proof.as_str()).collect::<Vec<_>>();
    let (proofs, require) = client.proofs();
    let credentials: Vec<AuthMethod> = proofs.iter().copied().filter(|proof| *proof != AuthMethod::Network).collect();
    let how = match (proofs, credentials.as_slice(), require) {
        ([], ..) => "nothing proves it".to_owned(),
        (_, [], _) => "proven by network".to_owned(),
        (_, any, []) => format!("proven by {}", words(any).join(" or ")),
        (_, _, all) => format!("proven by {}, all of it", words(all).join(" and ")),
    };
    let only =
        if proofs.contains(&AuthMethod::Network) && !credentials.is_empty() { ", from its networks only" } else { "" };
    format!("{}: {how}{only}", client.name())
}

fn version(version: TlsVersion) -> &'static str {
    match version {
        TlsVersion::V1_2 => "1.2",
        TlsVersion::V1_3 => "1.3",
    }
}

fn signer_in_words(signer: &Signer, tenant: Option<&TenantName>, now: Timestamp) -> String {
    let keys: Vec<_> = signer.signing_keys(tenant, now).map(KeyId::as_str).collect();
    let whose = match (signer.tenants(), tenant) {
        (None, _) => String::new(),
        (Some(_), Some(tenant)) if signer.has_own_keys(tenant) => format!(", of tenant {tenant} alone"),
        (Some(_), Some(tenant)) => format!(", which tenants share: {tenant} has no folder of its own"),
        (Some(_), None) => ", which tenants share: none is named".to_owned(),
    };
    format!(
        "{}: {} with {}{whose}",
        signer.name(),
        signer.scheme(),
        if keys.is_empty() { "NO KEY".into() } else { keys.join(" and ") }
    )
}

fn limit_in_words(limit: &Limit) -> String {
    let mut parts = Vec::new();
    if let Some(quota) = &limit.quota {
        parts.push(format!("{} per {:?}, burst {}", quota.count, quota.period, quota.burst));
    }
    parts.extend(limit.concurrency.map(|most| format!("{most} at once")));
    parts.extend(limit.bandwidth.map(|bytes| format!("{bytes} bytes per second")));
    if !limit.per.is_empty() {
        let per = limit.per.iter().map(|per| match per {
            LimitScope::Client => "client",
            LimitScope::Tenant => "tenant",
            LimitScope::Route => "route",
            LimitScope::Host => "host",
            LimitScope::Egress => "egress pool",
        });
        let per: Vec<_> = per.collect();
        parts.push(format!("for each {}", per.join(" and ")));
    }
    if !limit.wait.is_zero() {
        parts.push(format!("waiting at most {:?}", limit.wait));
    }
    if limit.report_only {
        parts.push("only reported, not enforced".to_owned());
    }
    format!("{}: {}", limit.name, parts.join(", "))
}

/// Where the addresses are known, the very source of their family; else one of each family, as far as the pool goes.
fn egress_in_words(
    route: &Route,
    host: &Host,
    cleared: Option<&ClearedAddresses>,
    &ExplainRequest { tenant, now, .. }: &ExplainRequest<'_>,
) -> Result<String, Refusal> {
    let pool = &route.pool;
    let (name, select) = (pool.name(), pool.select());
    if let Some(cleared) = cleared {
        egress::choose(pool, cleared, affinity_hash(tenant, host), 0, now, &|_| true)?;
    }
    if select != SelectionPolicy::Sticky {
        let how = if select == SelectionPolicy::Spread { "each in turn" } else { "at random" };
        return Ok(format!("pool {name}, {how}"));
    }
    let reaches = |source: &IpAddr| {
        cleared.is_none_or(|to| to.addresses().iter().any(|address| address.is_ipv6() == source.is_ipv6()))
    };
    let sources = pool.sticky(affinity_hash(tenant, host), now).filter(reaches);
    let sources: Vec<_> = sources.map(|source| source.to_string()).collect();
    Ok(format!("pool {name}, always {} for this tenant and host while it is usable", sources.join(" or ")))
}
