//! The explanation of a delivery: its decisions as text, without their effects.
//! What would happen to this webhook, and which rule decides it?

mod current_state;
mod route_match;

use std::net::IpAddr;

use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use current_state::{CurrentState, explain_current_state};

use crate::config::{AuthMethod, CrlPolicy, LimitDimension, SelectionPolicy, Timeouts, TlsVersion, VerifyMode};
use crate::delivery::judge::{JudgeInput, Judgment, JudgmentOutcome, Routed, judge};
use crate::delivery::refusal::{Code, Refusal};
use crate::delivery::request::target::RequestTarget;
use crate::delivery::request::tunnel_mode::TunnelMode;
use crate::delivery::steps::affinity_hash;
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

/// The decision of each step, and the refusal that ends them, if there is one.
pub struct Explanation {
    pub lines: Vec<(&'static str, String)>,
    pub refusal: Option<Code>,
}

impl Explanation {
    pub fn as_json(&self) -> Value {
        let steps: Vec<_> = self.lines.iter().map(|(step, text)| json!({ "step": step, "what": text })).collect();
        json!({ "steps": steps, "refusal": self.refusal.map(Code::name) })
    }
}

/// A webhook or a tunnel that no client has sent.
pub struct ExplainRequest<'a> {
    pub method: &'a Method,
    /// The URL, or the host and port of a CONNECT.
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

/// Explains a delivery under a plan.
///
/// It resolves no name, so it has no verdict of the guard on the addresses of a name, unless the configuration pins them.
pub fn explain(plan: &Plan, request: &ExplainRequest<'_>, local: &LocalAddresses) -> Explanation {
    explain_routed(plan, request, local).0
}

/// Explains a delivery under the active plan, with the current state of the proxy.
pub fn explain_now(runtime: &Runtime, request: &ExplainRequest<'_>) -> Explanation {
    let active = runtime.active_config();
    let (mut explanation, routed) = explain_routed(&active.plan, request, &runtime.sources.local_addresses());
    // A request that the judgment refuses takes no place of a limit.
    let Some(routed) = routed else { return explanation };
    let CurrentState { lines, not_admitted, no_egress } =
        explain_current_state(runtime, &active.plan, request, &routed);
    explanation.lines.extend(lines);
    // The order is that of a delivery: the refusal that the plan implies comes from the pool or the guard.
    explanation.refusal = not_admitted.or(explanation.refusal).or(no_egress);
    explanation
}

/// Returns the explanation, and the routed request unless the judgment refuses it.
fn explain_routed<'p>(
    plan: &'p Plan,
    request: &ExplainRequest<'p>,
    local: &LocalAddresses,
) -> (Explanation, Option<Routed<'p>>) {
    let mut lines = Vec::new();
    let (routed, refusal) = match explain_judgment(plan, request, &mut lines) {
        Ok(Some(routed)) => {
            let refusal = explain_steps(plan, request, local, &routed, &mut lines).err();
            (Some(routed), refusal)
        }
        Ok(None) => (None, None),
        Err(refusal) => (None, Some(refusal)),
    };
    if let Some(refusal) = &refusal {
        let (detail, cause) = (refusal.detail(&plan.redactor), refusal.cause(&plan.redactor));
        let cause = cause.map(|cause| format!(" ({cause})")).unwrap_or_default();
        let (status, code) = (refusal.effective_status().as_u16(), refusal.code.name());
        lines.push(("refused", format!("{status} {code}: {detail}{cause}")));
    }
    (Explanation { lines, refusal: refusal.map(|refusal| refusal.code) }, routed)
}

/// Adds the decisions of the judgment.
fn explain_judgment<'p>(
    plan: &'p Plan,
    request: &ExplainRequest<'p>,
    lines: &mut Vec<(&'static str, String)>,
) -> Result<Option<Routed<'p>>, Refusal> {
    let &ExplainRequest { method, url, client, tenant, now } = request;
    let request_target = RequestTarget::parse(method, url, tenant.cloned())?;
    let redactor = &plan.redactor;
    let mut configured = None;
    let input = JudgeInput::hypothetical(method, Ok(request_target.clone()), now);
    let Judgment { decisions, outcome } = judge(plan, input, |_| {
        let client = plan.clients.get(client);
        let client = client.ok_or_else(|| {
            Refusal::new(Code::ClientUnauthenticated, "anonymous clients are not allowed: name a client (--client)")
        })?;
        configured = Some(client);
        Ok(Authenticated::without_proof(client).into())
    });
    lines.extend(configured.map(|client| ("client", describe_client(client))));
    let tenant_shown = tenant.filter(|_| decisions.client.is_some()).map(|tenant| redactor.tenant(tenant, true));
    lines.extend(tenant_shown.map(|tenant| ("tenant", tenant.to_string())));
    if let Some((shadow, refused)) = decisions.shadow {
        let refused =
            refused.map(|code| format!("; it would refuse the request as {}", code.name())).unwrap_or_default();
        lines.push(("shadow", format!("{} would match, but is report_only{refused}", shadow.name)));
    }
    if let Some(route) = decisions.route {
        let (written, reason) = route_match::explain_match(plan, request, &request_target, route);
        lines.push(("route", format!("{}: {reason}", route.name)));
        let split = written.split.as_ref();
        lines.extend(split.map(|split| ("split", describe_split(split, route, tenant, &request_target.host))));
    }
    lines.extend(decisions.target.map(|target| ("target", redactor.text(&target.to_string()).to_string())));
    if let Some(route) = decisions.route.filter(|_| !request.is_tunnel()) {
        let path = redactor.path(&route.paths, &request_target.host, request_target.path());
        let path = path.map_or_else(|| "none in records".to_owned(), |path| format!("{path} in records"));
        lines.push(("path", path));
    }
    lines.extend(decisions.tunnel_mode.map(|mode| ("tunnel", describe_tunnel(mode))));
    match outcome? {
        JudgmentOutcome::Routed(routed) => Ok(Some(routed)),
        JudgmentOutcome::LocalOptions => Ok(None),
    }
}

/// Adds the decisions of the steps that follow, as far as the plan implies them, up to the first refusal.
fn explain_steps(
    plan: &Plan,
    request: &ExplainRequest<'_>,
    local: &LocalAddresses,
    routed: &Routed<'_>,
    lines: &mut Vec<(&'static str, String)>,
) -> Result<(), Refusal> {
    let &ExplainRequest { tenant, now, .. } = request;
    let Routed { route, target, tunnel_mode, .. } = routed;
    lines.extend(route.limits.iter().map(|limit| ("limit", describe_limit(limit))));
    if tunnel_mode.is_some_and(|mode| mode != TunnelMode::Passthrough) {
        return Ok(());
    }
    if route.pool.active_ranges(now).is_empty() {
        return Err(egress::HopError::NoUsableSource.into());
    }
    let addresses = plan.guard.pinned_addresses(&target.host);
    let cleared = addresses.map(|addresses| plan.guard.clear(target, addresses, local)).transpose()?;
    let denied = cleared.as_ref().and_then(ClearedAddresses::would_deny);
    lines.extend(denied.map(|denied| ("guard", format!("{denied} would deny the target, but is report_only"))));
    lines.push(("egress", describe_egress(route, &target.host, cleared.as_ref(), request)?));
    lines.push(("trust", describe_trust(&route.trust)));
    let timeouts = &route.timeouts;
    if request.is_tunnel() {
        let Timeouts { dns, connect, tls, idle, tunnel, .. } = timeouts;
        let text = format!("dns {dns:?}, connect {connect:?}, tls {tls:?}, idle {idle:?}, tunnel {tunnel:?}");
        lines.push(("timeouts", text));
        return Ok(());
    }
    if let Some(credential) = &route.credential {
        lines.push(("credential", format!("{}: {}", credential.name, credential.kind())));
    }
    match route.signers.as_slice() {
        [] => lines.push(("sign", "unsigned: the body streams".to_owned())),
        signers => lines.extend(signers.iter().map(|signer| ("sign", describe_signer(signer, tenant, now)))),
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

/// Describes a split. `route`: the side that the request takes.
fn describe_split(split: &Split, route: &Route, tenant: Option<&TenantName>, host: &Host) -> String {
    let (percent, percentile) = (split.percent(), route.split_percentile(tenant, host));
    let side = if route.is_split_variant() {
        "on the split side, with the settings of the split"
    } else {
        "on the route's own side"
    };
    format!("{percent} %: this tenant and host, at {percentile:.2} % of all, are {side}")
}

fn describe_tunnel(mode: TunnelMode) -> String {
    let text = match mode {
        TunnelMode::Passthrough => {
            "opened once the certificate of the target is verified; outgate does not see the requests inside"
        }
        TunnelMode::Inspect => "inspected: outgate selects a route for each request inside, by its own URL",
        TunnelMode::Plaintext => {
            "served: outgate selects a route for each plaintext request inside, and sends it over TLS"
        }
    };
    text.to_owned()
}

fn describe_trust(trust: &Trust) -> String {
    let version = version_name(trust.min_version);
    let mut text = match trust.verify {
        VerifyMode::None => format!("{}: certificates are NOT verified, TLS {version} or newer", trust.name),
        VerifyMode::Full => {
            let roots = pluralize(trust.roots.len(), "root");
            format!("{}: certificates are verified against {roots}, TLS {version} or newer", trust.name)
        }
    };
    if trust.directly_trusted_count() > 0 && trust.verify == VerifyMode::Full {
        text.push_str(&format!(", {} trusted individually", pluralize(trust.directly_trusted_count(), "certificate")));
    }
    if trust.strict && trust.verify == VerifyMode::Full {
        text.push_str(", under the rules of the Web PKI");
    }
    if !trust.pins.is_empty() {
        text.push_str(&format!(", {}", pluralize(trust.pins.len(), "pinned key")));
    }
    if trust.crl_count() > 0 {
        let policy =
            if trust.crl_policy == CrlPolicy::Require { "required" } else { "used where they cover a certificate" };
        text.push_str(&format!(", {}, {policy}", pluralize(trust.crl_count(), "revocation list")));
    }
    if trust.identity.is_some() {
        text.push_str(", and outgate presents a client certificate");
    }
    text
}

fn describe_client(client: &Client) -> String {
    let names = |proofs: &[AuthMethod]| proofs.iter().map(|proof| proof.as_str()).collect::<Vec<_>>();
    let (proofs, require) = client.proofs();
    let credentials: Vec<AuthMethod> = proofs.iter().copied().filter(|proof| *proof != AuthMethod::Network).collect();
    let methods = match (proofs, credentials.as_slice(), require) {
        ([], ..) => "not authenticated".to_owned(),
        (_, [], _) => "authenticated by network".to_owned(),
        (_, any, []) => format!("authenticated by {}", names(any).join(" or ")),
        (_, _, all) => format!("authenticated by {}, all of them required", names(all).join(" and ")),
    };
    let only =
        if proofs.contains(&AuthMethod::Network) && !credentials.is_empty() { ", from its networks only" } else { "" };
    format!("{}: {methods}{only}", client.name())
}

fn version_name(version: TlsVersion) -> &'static str {
    match version {
        TlsVersion::V1_2 => "1.2",
        TlsVersion::V1_3 => "1.3",
    }
}

fn describe_signer(signer: &Signer, tenant: Option<&TenantName>, now: Timestamp) -> String {
    let keys: Vec<_> = signer.signing_keys(tenant, now).map(KeyId::as_str).collect();
    let owner = match (signer.tenants(), tenant) {
        (None, _) => String::new(),
        (Some(_), Some(tenant)) if signer.has_own_keys(tenant) => format!(", of tenant {tenant} only"),
        (Some(_), Some(tenant)) => format!(", shared by tenants: {tenant} has no key folder"),
        (Some(_), None) => ", shared by tenants: the request names no tenant".to_owned(),
    };
    format!(
        "{}: {} with {}{owner}",
        signer.name(),
        signer.scheme(),
        if keys.is_empty() { "NO KEY".into() } else { keys.join(" and ") }
    )
}

fn describe_limit(limit: &Limit) -> String {
    let mut parts = Vec::new();
    if let Some(quota) = &limit.quota {
        parts.push(format!("{} per {:?}, burst {}", quota.count, quota.period, quota.burst));
    }
    parts.extend(limit.concurrency.map(|max| format!("{max} in flight")));
    parts.extend(limit.bandwidth.map(|bytes| format!("{bytes} bytes per second")));
    if !limit.per.is_empty() {
        let per = limit.per.iter().map(|per| match per {
            LimitDimension::Egress => "egress pool",
            per => per.as_str(),
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

/// Describes the sources that the delivery would use. Unless the target's addresses are known, they are one of each family.
fn describe_egress(
    route: &Route,
    host: &Host,
    cleared: Option<&ClearedAddresses>,
    &ExplainRequest { tenant, now, .. }: &ExplainRequest<'_>,
) -> Result<String, Refusal> {
    let pool = &route.pool;
    let (name, select) = (pool.name(), pool.select());
    if let Some(cleared) = cleared {
        egress::select_hops(pool, cleared, affinity_hash(tenant, host), 0, now, &|_| true)?;
    }
    if select != SelectionPolicy::Sticky {
        let order = if select == SelectionPolicy::Spread { "each in turn" } else { "at random" };
        return Ok(format!("pool {name}, {order}"));
    }
    let has_family = |source: &IpAddr| {
        cleared.is_none_or(|to| to.addresses().iter().any(|address| address.is_ipv6() == source.is_ipv6()))
    };
    let sources = pool.sticky_sources(affinity_hash(tenant, host), now).filter(has_family);
    let describe = |source: IpAddr| match pool.seen_as(source, now) {
        seen_as if seen_as == source => source.to_string(),
        seen_as => format!("{source} (seen as {seen_as})"),
    };
    let sources: Vec<_> = sources.map(describe).collect();
    Ok(format!("pool {name}, always {} for this tenant and host while it is usable", sources.join(" or ")))
}
