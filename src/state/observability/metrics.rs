//! The metrics, in the text format of Prometheus.
//! How many deliveries were there, how did they end, and how long did they take?

mod family;

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use family::ShardedFamily;

use crate::names::{CredentialName, PoolName, RouteName, SignerName};
use crate::policy::Plan;
use crate::policy::expiry::Expiry;
use crate::state::upstreams::sources::AddressCount;

/// Seconds. A webhook takes between a millisecond and the response timeout.
const LATENCIES: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

pub struct Metrics {
    registry: Registry,
    deliveries: ShardedFamily<DeliveryLabels, Counter>,
    pub deliveries_in_flight: Gauge,
    pub deliveries_waiting: Gauge,
    pub deliveries_shed: Counter,
    latency: ShardedFamily<RouteLabels, Histogram>,
    unverified: ShardedFamily<RouteLabels, Counter>,
    report_only: ShardedFamily<ReportLabels, Counter>,
    would_take: ShardedFamily<RouteLabels, Counter>,
    split: ShardedFamily<SplitLabels, Counter>,
    token_requests: ShardedFamily<TokenLabels, Counter>,
    reloads: ShardedFamily<ReloadLabels, Counter>,
    pub reload_failed: Gauge,
    pub config_drift: Gauge,
    pub history_failed: Gauge,
    pub client_connections: Gauge,
    connections_closed: ShardedFamily<ReasonLabels, Counter>,
    pub tunnels: Gauge,
    pub idle_target_connections: Gauge,
    addresses: ShardedFamily<PoolLabels, Gauge<f64, AtomicU64>>,
    expiries: ShardedFamily<ExpiryLabels, Gauge>,
    tenants: ShardedFamily<TenantLabels, Gauge>,
    pub suspected_gaps: Gauge,
    pub cut_off: Gauge,
    pub dns_outage: Gauge,
    pub circuits_open: Gauge,
    pub circuits_opened: Counter,
    pub records_lost: Counter,
    pub log_lines_lost: Counter,
    pub log_reopen_failed: Gauge,
}

/// Counts one object in a gauge until it is dropped.
pub struct GaugeGuard(Gauge);

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct DeliveryLabels {
    route: RouteLabel,
    code: &'static str,
    blame: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct RouteLabels {
    route: RouteLabel,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct SplitLabels {
    route: RouteLabel,
    /// `main` or `split`.
    side: &'static str,
    code: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ReloadLabels {
    result: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ReasonLabels {
    /// The key of `[server]` that bounds them, or `unidentified`: the oldest that had proven no client was evicted.
    reason: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct TokenLabels {
    credential: String,
    /// `granted`, or the code of the refusal.
    result: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ReportLabels {
    /// The kind of the rule that only reports, such as `limit`.
    kind: &'static str,
    /// The name in the configuration, which bounds the number of series.
    name: String,
    code: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct PoolLabels {
    pool: String,
    /// `configured` or `usable`.
    state: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ExpiryLabels {
    usage: &'static str,
    /// The name of the trust; empty for the listener's certificates.
    trust: String,
    file: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct TenantLabels {
    signer: String,
    /// `whole` or `broken`.
    folder: &'static str,
}

/// Returns the label of a route; empty if no route was found.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct RouteLabel(Option<RouteName>);

impl EncodeLabelValue for RouteLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.0.as_ref().map_or("", RouteName::as_str), encoder)
    }
}

impl Metrics {
    #[expect(clippy::new_without_default, reason = "made once, by Runtime")]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("outgate");
        let meters = Self {
            deliveries: ShardedFamily::new(Default::default),
            deliveries_in_flight: Gauge::default(),
            deliveries_waiting: Gauge::default(),
            deliveries_shed: Counter::default(),
            latency: ShardedFamily::new(|| Histogram::new(LATENCIES)),
            unverified: ShardedFamily::new(Default::default),
            report_only: ShardedFamily::new(Default::default),
            would_take: ShardedFamily::new(Default::default),
            split: ShardedFamily::new(Default::default),
            token_requests: ShardedFamily::new(Default::default),
            reloads: ShardedFamily::new(Default::default),
            reload_failed: Gauge::default(),
            config_drift: Gauge::default(),
            history_failed: Gauge::default(),
            client_connections: Gauge::default(),
            connections_closed: ShardedFamily::new(Default::default),
            tunnels: Gauge::default(),
            idle_target_connections: Gauge::default(),
            addresses: ShardedFamily::new(Default::default),
            expiries: ShardedFamily::new(Default::default),
            tenants: ShardedFamily::new(Default::default),
            suspected_gaps: Gauge::default(),
            cut_off: Gauge::default(),
            dns_outage: Gauge::default(),
            circuits_open: Gauge::default(),
            circuits_opened: Counter::default(),
            records_lost: Counter::default(),
            log_lines_lost: Counter::default(),
            log_reopen_failed: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register("deliveries", "Deliveries by route, result and blame", meters.deliveries.clone());
        registry.register(
            "deliveries_in_flight",
            "Deliveries of all routes, without tunnels",
            meters.deliveries_in_flight.clone(),
        );
        registry.register(
            "deliveries_waiting",
            "Deliveries that wait for one of server.max_deliveries to end",
            meters.deliveries_waiting.clone(),
        );
        registry.register(
            "deliveries_shed",
            "Deliveries refused since there were server.max_deliveries already",
            meters.deliveries_shed.clone(),
        );
        let latency = meters.latency.clone();
        registry.register_with_unit(
            "delivery_duration",
            "From the head of the request to the last byte of the answer",
            Unit::Seconds,
            latency,
        );
        registry.register(
            "unverified_deliveries",
            "Deliveries over connections to targets that had to prove nothing (verify = \"none\")",
            meters.unverified.clone(),
        );
        registry.register(
            "report_only",
            "Deliveries that would have been refused, by what only reports (report_only = true)",
            meters.report_only.clone(),
        );
        registry.register(
            "shadowed_deliveries",
            "Deliveries that a route would have taken, if it did not only report",
            meters.would_take.clone(),
        );
        registry.register(
            "split_deliveries",
            "Deliveries on routes that are split, by side and result",
            meters.split.clone(),
        );
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "When the first certificate or revocation list of a configured file runs out, as Unix time",
            meters.expiries.clone(),
        );
        registry.register(
            "token_requests",
            "Requests for tokens of credentials, and what came of them",
            meters.token_requests.clone(),
        );
        registry.register(
            "tenants_with_keys",
            "Tenants with a folder of keys of their own, whole or broken, by signer",
            meters.tenants.clone(),
        );
        registry.register("reloads", "Configurations adopted and rejected", meters.reloads.clone());
        registry.register(
            "reload_failed",
            "1 while the configuration on disk is rejected",
            meters.reload_failed.clone(),
        );
        registry.register(
            "config_drift",
            "1 while the configuration on disk is not the one that runs",
            meters.config_drift.clone(),
        );
        registry.register(
            "history_failed",
            "1 while the configuration that runs could not be kept in the history",
            meters.history_failed.clone(),
        );
        registry.register("client_connections", "Open connections from clients", meters.client_connections.clone());
        registry.register(
            "client_connections_closed",
            "Connections closed since there were too many, by the bound of [server] that was reached; unidentified: the oldest that had proven no client",
            meters.connections_closed.clone(),
        );
        registry.register("tunnels", "Open CONNECT tunnels", meters.tunnels.clone());
        registry.register(
            "idle_target_connections",
            "Connections to targets kept for reuse",
            meters.idle_target_connections.clone(),
        );
        registry.register("egress_addresses", "Source addresses of each pool", meters.addresses.clone());
        registry.register(
            "suspected_allow_list_gaps",
            "Addresses of targets that answer some source addresses and not others",
            meters.suspected_gaps.clone(),
        );
        registry.register(
            "egress_addresses_cut_off",
            "Source addresses that no target answers any more, and that come last",
            meters.cut_off.clone(),
        );
        registry.register("dns_outage", "1 while no name server responds", meters.dns_outage.clone());
        registry.register(
            "circuits_open",
            "Open circuits: a target may have several, for different timeouts, trust, clients and tenants",
            meters.circuits_open.clone(),
        );
        registry.register("circuits_opened", "How often a circuit opened", meters.circuits_opened.clone());
        registry.register("records_lost", "Delivery records that could not be written", meters.records_lost.clone());
        registry.register("log_lines_lost", "Log lines that stderr did not take", meters.log_lines_lost.clone());
        registry.register("log_reopen_failed", "1 if records go to the former file", meters.log_reopen_failed.clone());
        Self { registry, ..meters }
    }

    /// Counts one finished delivery. `took` is `None` for a tunnel, whose duration its client decides.
    pub fn delivery(&self, route: Option<&RouteName>, code: &'static str, blame: &'static str, took: Option<Duration>) {
        let route = RouteLabel(route.cloned());
        if let Some(took) = took {
            self.latency.get(&RouteLabels { route: route.clone() }).observe(took.as_secs_f64());
        }
        self.deliveries.get(&DeliveryLabels { route, code, blame }).inc();
    }

    pub fn unverified(&self, route: &RouteName) {
        self.unverified.get(&RouteLabels { route: RouteLabel(Some(route.clone())) }).inc();
    }

    pub fn would_take(&self, route: &RouteName) {
        self.would_take.get(&RouteLabels { route: RouteLabel(Some(route.clone())) }).inc();
    }

    pub fn split(&self, route: &RouteName, side: &'static str, code: &'static str) {
        self.split.get(&SplitLabels { route: RouteLabel(Some(route.clone())), side, code }).inc();
    }

    pub fn report_only(&self, kind: &'static str, name: &str, code: &'static str) {
        self.report_only.get(&ReportLabels { kind, name: name.to_owned(), code }).inc();
    }

    pub fn token_request(&self, credential: &CredentialName, result: &'static str) {
        self.token_requests.get(&TokenLabels { credential: credential.to_string(), result }).inc();
    }

    /// Drops the series of routes, limits and credentials that `plan` does not have. A delivery that began before a reload
    /// may recreate a series, which is dropped before the next scrape.
    pub fn prune(&self, plan: &Plan) {
        let routes: HashSet<&str> = plan.routes.all().map(|route| route.name.as_str()).collect();
        let limits: HashSet<&str> =
            plan.routes.all().flat_map(|route| &route.limits).map(|limit| limit.name.as_str()).collect();
        let has = |route: &RouteLabel| route.0.as_ref().is_none_or(|route| routes.contains(route.as_str()));
        self.deliveries.retain(|labels| has(&labels.route));
        for by_route in [&self.unverified, &self.would_take] {
            by_route.retain(|labels| has(&labels.route));
        }
        self.latency.retain(|labels| has(&labels.route));
        self.split.retain(|labels| has(&labels.route));
        self.report_only.retain(|labels| match labels.kind {
            "route" => routes.contains(labels.name.as_str()),
            "limit" => limits.contains(labels.name.as_str()),
            _ => true,
        });
        self.token_requests.retain(|labels| plan.credentials.keys().any(|name| name.as_str() == labels.credential));
        self.addresses.retain(|labels| plan.pools.keys().any(|name| name.as_str() == labels.pool));
    }

    /// Replaces the series of certificates and keys by those of the active configuration.
    pub fn expiries(&self, expiries: &[Expiry]) {
        self.expiries.retain(|_| false);
        for expiry in expiries {
            let (file, trust) = (expiry.path.display().to_string(), expiry.trust.clone());
            let gauge = self.expiries.get(&ExpiryLabels { usage: expiry.usage.as_str(), trust, file });
            let ends = expiry.expires_at.as_second();
            if gauge.get() == 0 || ends < gauge.get() {
                gauge.set(ends);
            }
        }
    }

    /// Sets, for each signer with a folder of tenants' keys, the number of tenants with valid and with broken keys.
    pub fn tenants<'a>(&self, signers: impl Iterator<Item = (&'a SignerName, usize, usize)>) {
        self.tenants.retain(|_| false);
        for (signer, count, broken) in signers {
            for (folder, count) in [("whole", count - broken), ("broken", broken)] {
                let labels = TenantLabels { signer: signer.to_string(), folder };
                self.tenants.get(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }

    /// Counts a tunnel until the returned guard is dropped.
    pub fn tunnel(&self) -> GaugeGuard {
        self.tunnels.inc();
        GaugeGuard(self.tunnels.clone())
    }

    pub fn connection_closed(&self, reason: &'static str) {
        self.connections_closed.get(&ReasonLabels { reason }).inc();
    }

    pub fn reloaded(&self, adopted: bool) {
        let result = if adopted { "adopted" } else { "rejected" };
        self.reloads.get(&ReloadLabels { result }).inc();
        self.reload_failed.set(i64::from(!adopted));
    }

    pub fn pool(&self, pool: &PoolName, AddressCount { configured, usable }: AddressCount) {
        for (state, count) in [("configured", configured), ("usable", usable)] {
            self.addresses.get(&PoolLabels { pool: pool.to_string(), state }).set(count as f64);
        }
    }

    /// Returns the metrics in the text format, and its media type.
    pub fn render(&self) -> (String, &'static str) {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes every write");
        (text, "application/openmetrics-text; version=1.0.0; charset=utf-8")
    }
}
