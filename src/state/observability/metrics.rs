//! The metrics, in the text format of OpenMetrics.
//! How many deliveries were there, how did they end, and how long did they take?

mod family;
mod fleet;
mod histogram;
mod labels;
mod process;
mod routes;

use std::cell::LazyCell;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::runtime::Handle;

use family::BoundedFamily;
use labels::{
    AlertLabels, BuildLabels, CaptureLabels, ConnectLabels, DecisionLabels, ExpiryLabels, HandshakeLabels, LimitLabels,
    NoLabels, PoolLabels, ProblemLabels, ReasonLabels, ReportLabels, ResourceLabels, ResultLabels, RouteLabels,
    SignerLabels, SinkLabels, SourceLabels, SourceStateLabels, SplitLabels, TenantLabels, TokenLabels,
};
use routes::{OutcomeFamily, RouteTable};
pub use routes::{RouteSeries, STEPS, StepSeconds};

use crate::names::{CaptureName, CredentialName, LimitName, PoolName, RouteName, SignerName};
use crate::policy::Plan;
use crate::policy::expiry::Expiry;
use crate::policy::load::Load;
use crate::policy::route::Route;
use crate::state::limits::LimitReport;
use crate::state::upstreams::sources::AddressCount;

/// Declares the metrics, each with its help. Its name follows `outgate_`; a time has the unit seconds. The registry ends
/// each help text with a full stop.
macro_rules! metrics {
    ($($visibility:vis $name:ident: $type:ty = $help:literal,)*) => {
        pub struct Metrics {
            registry: Registry,
            routes: Arc<RouteTable>,
            $($visibility $name: $type,)*
        }

        impl Metrics {
            fn register(mut registry: Registry, routes: Arc<RouteTable>) -> Self {
                let own = registry.sub_registry_with_prefix("outgate");
                $(
                    let $name = <$type>::default();
                    match stringify!($name) {
                        name if name.ends_with("_timestamp") => {
                            own.register_with_unit(name, $help, Unit::Seconds, $name.clone());
                        }
                        name => own.register(name, $help, $name.clone()),
                    }
                )*
                Self { registry, routes, $($name,)* }
            }
        }
    };
}

metrics! {
    build_info: BoundedFamily<BuildLabels, Gauge> = "1, with the version as a label",
    pub deliveries_in_flight: Gauge = "Deliveries of all routes, without tunnels",
    pub deliveries_waiting: Gauge = "Deliveries that wait until fewer than server.max_deliveries are in flight",
    pub deliveries_shed: Counter = "Deliveries refused because server.max_deliveries were already in flight",
    load_weight: Gauge = "Share of its usual traffic that this instance asks load balancers for, in percent",
    load_used_ratio: BoundedFamily<ResourceLabels, Gauge<f64, AtomicU64>> =
        "Used share of each bound that lowers the weight",
    unverified_deliveries: BoundedFamily<RouteLabels, Counter> =
        "Deliveries to targets that proved nothing (verify = \"none\")",
    report_only: BoundedFamily<ReportLabels, Counter> = "Deliveries that a report_only setting would have refused",
    shadowed_deliveries: BoundedFamily<RouteLabels, Counter> = "Deliveries that a report_only route would have taken",
    split_deliveries: BoundedFamily<SplitLabels, Counter> = "Deliveries on routes with a split, by side and outcome",
    token_requests: BoundedFamily<TokenLabels, Counter> = "Requests for tokens of credentials, by result",
    limit_decisions: BoundedFamily<DecisionLabels, Counter> = "Deliveries by what the limit decided",
    limit_keys: BoundedFamily<LimitLabels, Gauge> = "Keys in use of the limit",
    limit_keys_near_full: BoundedFamily<LimitLabels, Gauge> =
        "Keys that use 90 % or more of the limit's burst or concurrency",
    pub ready: Gauge = "1 while /readyz answers 200",
    pub draining: Gauge = "1 while a drain is announced or in progress",
    reloads: BoundedFamily<ResultLabels, Counter> = "Configurations adopted and rejected",
    pub reload_failed: Gauge = "1 while the configuration on disk is rejected",
    pub config_drift: Gauge = "1 while the configuration on disk is not the active one",
    pub history_failed: Gauge = "1 while the history cannot store the active configuration",
    pub config_adopted_timestamp: Gauge = "When the active configuration was adopted, as Unix time",
    pub client_connections: Gauge = "Open connections from clients",
    client_connections_closed: BoundedFamily<ReasonLabels, Counter> =
        "Connections closed to make room, by the bound of [server] that was reached",
    pub client_streams: Gauge = "Open HTTP/2 requests of clients",
    pub tunnels: Gauge = "Open CONNECT tunnels",
    pub idle_target_connections: Gauge = "Connections to targets kept for reuse",
    target_tls_handshakes: BoundedFamily<HandshakeLabels, Counter> = "TLS handshakes with targets that succeeded",
    egress_addresses: BoundedFamily<PoolLabels, Gauge<f64, AtomicU64>> = "Source addresses of each pool",
    egress_connects: BoundedFamily<ConnectLabels, Counter> =
        "Attempts to connect to targets, by source address and result",
    egress_connections: BoundedFamily<SourceStateLabels, Gauge> = "TCP connections to targets, by source address",
    egress_ports_left: BoundedFamily<SourceLabels, Gauge> =
        "Ephemeral ports of a source address that are free towards its fullest target",
    pub egress_ports: Gauge = "Ports for outgoing connections of each source address towards one target",
    pub suspected_allow_list_gaps: Gauge = "Targets that answer some source addresses and not others",
    pub egress_addresses_cut_off: Gauge = "Source addresses that no target answers",
    pub dns_outage: Gauge = "1 while no name server responds",
    pub circuits_open: Gauge = "Open circuits",
    pub circuits_opened: Counter = "How often a circuit opened",
    certificate_expiry_timestamp: BoundedFamily<ExpiryLabels, Gauge> =
        "When the first certificate or revocation list of a file expires, as Unix time",
    signing_key_end_timestamp: BoundedFamily<SignerLabels, Gauge> =
        "When a signer first has no key in force for one of its owners, as Unix time",
    tenants_with_keys: BoundedFamily<TenantLabels, Gauge> = "Tenants with a folder of keys of their own, by signer",
    fleet_store_up: BoundedFamily<NoLabels, Gauge> = "0 while the store of the fleet is away",
    fleet_problems: BoundedFamily<ProblemLabels, Gauge> = "Problems of the fleet, on the instance that observes it",
    pub fleet_instances: Gauge = "Live instances of the fleet when its store last answered",
    pub fleet_share_deliveries: Counter =
        "Tokens and permits of limits of the fleet that this instance's share gave, without the store",
    pub fleet_local_signatures: Counter =
        "Signatures that only this instance checked for an earlier use, because the store was away or late",
    pub fleet_store_calls: Counter = "Calls to the store of the fleet",
    pub fleet_store_errors: Counter = "Calls to the store of the fleet that failed",
    pub records_sampled_out: Counter = "Delivery records that log.sample left out",
    pub records_lost: Counter = "Delivery records that could not be written",
    pub spans_exported: Counter = "Spans that the collector took",
    pub spans_dropped: Counter = "Spans that the collector did not take, or that found the queue full",
    pub log_lines_lost: Counter = "Log lines that stderr did not take",
    pub log_reopen_failed: Gauge = "1 while records go to the former file",
    audit_writable: BoundedFamily<NoLabels, Gauge> = "0 while the audit log cannot be written",
    pub audit_records: Counter = "Audit records written",
    pub audit_failures: Counter = "Writes of the audit log that failed",
    pub audit_events_lost: Counter = "Events that the audit log does not have",
    audit_sink_dropped: BoundedFamily<SinkLabels, Counter> = "Audit records that a sink did not get",
    captures: BoundedFamily<CaptureLabels, Counter> = "Deliveries that a section [captures.NAME] selects, by result",
    alerts: BoundedFamily<AlertLabels, Gauge> = "Active alerts",
}

/// Counts one object in a gauge until it is dropped.
pub struct GaugeGuard(Gauge);

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The use of one source address now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceReport {
    pub open: u32,
    pub time_wait: u32,
    pub ports_left: u32,
}

impl Metrics {
    #[expect(clippy::new_without_default, reason = "made once, by Runtime")]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(process::ProcessCollector::default()));
        let own = registry.sub_registry_with_prefix("outgate");
        own.register_collector(Box::new(process::RuntimeCollector(Handle::try_current().ok())));
        let routes = Arc::<RouteTable>::default();
        own.register("deliveries", "Deliveries by outcome", OutcomeFamily(Arc::clone(&routes)));
        let metrics = Self::register(registry, routes);
        metrics
            .build_info
            .get(&BuildLabels { version: env!("CARGO_PKG_VERSION"), arch: std::env::consts::ARCH })
            .set(1);
        metrics
    }

    /// Returns the series that a delivery on this route adds to. `None`: it has no route.
    pub fn route_series(&self, route: Option<&Route>) -> Arc<RouteSeries> {
        self.routes.series(route)
    }

    pub fn unverified(&self, series: &RouteSeries) {
        self.unverified_deliveries.get(&RouteLabels { route: series.label.clone() }).inc();
    }

    pub fn would_take(&self, series: &RouteSeries) {
        self.shadowed_deliveries.get(&RouteLabels { route: series.label.clone() }).inc();
    }

    pub fn split(&self, series: &RouteSeries, side: &'static str, code: &'static str) {
        self.split_deliveries.get(&SplitLabels { route: series.label.clone(), side, code }).inc();
    }

    pub fn report_only(&self, kind: &'static str, name: &str, code: &'static str) {
        self.report_only.get(&ReportLabels { kind, name: name.to_owned(), code }).inc();
    }

    pub fn token_request(&self, credential: &CredentialName, result: &'static str) {
        self.token_requests.get(&TokenLabels { credential: credential.to_string(), result }).inc();
    }

    /// Counts an attempt to connect from an address of a pool.
    pub fn connect_attempt(&self, pool: &PoolName, source: IpAddr, result: &'static str) {
        let (pool, address) = (pool.to_string(), source.to_string());
        self.egress_connects.get(&ConnectLabels { pool, address, result }).inc();
    }

    pub fn target_handshake(&self, version: &'static str, suite: &'static str) {
        self.target_tls_handshakes.get(&HandshakeLabels { version, suite }).inc();
    }

    pub fn capture(&self, name: &CaptureName, result: &'static str) {
        self.captures.get(&CaptureLabels { capture: name.to_string(), result }).inc();
    }

    /// Drops the series of objects that `plan` does not have. A delivery that began before a reload may recreate one, which
    /// is dropped before the next scrape.
    pub fn prune(&self, plan: &Plan) {
        let now = Timestamp::now();
        self.captures.retain(|labels| plan.captures.iter().any(|capture| capture.name.as_str() == labels.capture));
        let own = plan.routes.all().filter(|route| route.has_own_series);
        let own: HashSet<&RouteName> = own.map(|route| &route.name).collect();
        self.routes.retain(&own);
        for by_route in [&self.unverified_deliveries, &self.shadowed_deliveries] {
            by_route.retain(|labels| labels.route.is_in(&own));
        }
        self.split_deliveries.retain(|labels| labels.route.is_in(&own));
        let routes = LazyCell::new(|| plan.routes.all().map(|route| route.name.as_str()).collect::<HashSet<_>>());
        self.report_only.retain(|labels| match labels.kind {
            "route" => routes.contains(labels.name.as_str()),
            "limit" => plan.limits.contains_key(labels.name.as_str()),
            _ => plan.guard.report_only_denials().iter().any(|denied| denied.to_string() == labels.name),
        });
        self.token_requests.retain(|labels| plan.credentials.contains_key(labels.credential.as_str()));
        self.egress_connects.retain(|labels| {
            let pool = plan.pools.get(labels.pool.as_str());
            pool.zip(labels.address.parse().ok()).is_some_and(|(pool, address)| pool.contains(address, now))
        });
    }

    /// Replaces the series of the limits, which must come in the order of their names.
    pub fn limits(&self, limits: &[(LimitName, LimitReport)]) {
        self.limit_decisions.clear();
        self.limit_keys.clear();
        self.limit_keys_near_full.clear();
        for (name, report) in limits {
            let limit = name.to_string();
            for (result, count) in [("allowed", report.allowed), ("paced", report.paced), ("refused", report.refused)] {
                self.limit_decisions.get(&DecisionLabels { limit: limit.clone(), result }).inc_by(count);
            }
            let labels = LimitLabels { limit };
            self.limit_keys.get(&labels).inc_by(gauge(report.keys));
            self.limit_keys_near_full.get(&labels).inc_by(gauge(report.keys_near_full));
        }
    }

    /// Replaces the series of the pools: the number of configured and of usable addresses.
    pub fn pools<'a>(&self, pools: impl Iterator<Item = (&'a PoolName, AddressCount)>) {
        self.egress_addresses.clear();
        for (pool, AddressCount { configured, usable }) in pools {
            for (state, count) in [("configured", configured), ("usable", usable)] {
                self.egress_addresses.get(&PoolLabels { pool: pool.to_string(), state }).inc_by(count as f64);
            }
        }
    }

    /// Replaces the series of the source addresses in use.
    pub fn sources<'a>(&self, sources: impl Iterator<Item = (&'a PoolName, IpAddr, SourceReport)>) {
        self.egress_connections.clear();
        self.egress_ports_left.clear();
        for (pool, source, report) in sources {
            let (pool, address) = (pool.to_string(), source.to_string());
            for (state, count) in [("open", report.open), ("time_wait", report.time_wait)] {
                let labels = SourceStateLabels { pool: pool.clone(), address: address.clone(), state };
                self.egress_connections.get(&labels).inc_by(i64::from(count));
            }
            set_least(&self.egress_ports_left.get(&SourceLabels { pool, address }), i64::from(report.ports_left));
        }
    }

    /// Replaces the series of certificates by those of the active configuration.
    pub fn expiries(&self, expiries: &[Expiry]) {
        self.certificate_expiry_timestamp.clear();
        for expiry in expiries {
            let (file, trust) = (expiry.path.display().to_string(), expiry.trust.clone());
            let gauge =
                self.certificate_expiry_timestamp.get(&ExpiryLabels { usage: expiry.usage.as_str(), trust, file });
            set_least(&gauge, expiry.expires_at.as_second());
        }
    }

    /// Replaces the series of signing keys. A signer that always has a key has none.
    pub fn signing_keys<'a>(&self, ends: impl Iterator<Item = (&'a SignerName, Timestamp)>) {
        self.signing_key_end_timestamp.clear();
        for (signer, end) in ends {
            set_least(
                &self.signing_key_end_timestamp.get(&SignerLabels { signer: signer.to_string() }),
                end.as_second(),
            );
        }
    }

    /// Sets, for each signer with a folder of tenants' keys, the number of tenants with valid and with broken keys.
    pub fn tenants<'a>(&self, signers: impl Iterator<Item = (&'a SignerName, usize, usize)>) {
        self.tenants_with_keys.clear();
        for (signer, count, broken) in signers {
            for (folder, count) in [("valid", count - broken), ("broken", broken)] {
                let labels = TenantLabels { signer: signer.to_string(), folder };
                self.tenants_with_keys.get(&labels).inc_by(gauge(count));
            }
        }
    }

    /// Sets whether the audit log can be written. `None`: the configuration has none, and the metric no series.
    pub fn set_audit_writable(&self, is_writable: Option<bool>) {
        self.audit_writable.clear();
        if let Some(is_writable) = is_writable {
            self.audit_writable.get(&NoLabels {}).set(is_writable.into());
        }
    }

    /// Sets the weight, and the used share of each bound that lowers it.
    pub fn load(&self, load: &Load) {
        self.load_weight.set(load.weight().percent.into());
        for (factor, usage) in load.usages() {
            self.load_used_ratio.get(&ResourceLabels { resource: factor.as_str() }).set(usage.share());
        }
    }

    /// Sets, for each sink of the audit log, the number of records that it did not get.
    pub fn audit_sinks<'a>(&self, sinks: impl Iterator<Item = (&'a str, u64)>) {
        let sinks: Vec<_> = sinks.collect();
        self.audit_sink_dropped.retain(|labels| sinks.iter().any(|(sink, _)| *sink == labels.sink));
        for (sink, dropped) in sinks {
            let counter = self.audit_sink_dropped.get(&SinkLabels { sink: sink.to_owned() });
            counter.inner().fetch_max(dropped, Ordering::Relaxed);
        }
    }

    /// Sets the number of active alerts of each name.
    pub fn set_alerts(&self, counts: impl Iterator<Item = (&'static str, usize)>) {
        for (name, count) in counts {
            self.alerts.get(&AlertLabels { name }).set(gauge(count));
        }
    }

    /// Counts a tunnel until the returned guard is dropped.
    pub fn tunnel(&self) -> GaugeGuard {
        self.tunnels.inc();
        GaugeGuard(self.tunnels.clone())
    }

    pub fn connection_closed(&self, reason: &'static str) {
        self.client_connections_closed.get(&ReasonLabels { reason }).inc();
    }

    pub fn reloaded(&self, adopted: bool) {
        let result = if adopted { "adopted" } else { "rejected" };
        self.reloads.get(&ResultLabels { result }).inc();
        self.reload_failed.set(i64::from(!adopted));
    }

    /// Returns the metrics as OpenMetrics 1.0.0.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let written = encode_registry(&mut text, &self.registry)
            .and_then(|()| self.routes.write_durations(&mut text))
            .and_then(|()| encode_eof(&mut text));
        written.expect("a String takes every write");
        text
    }
}

/// Returns a count as the value of a gauge.
pub fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Sets a new gauge, or the gauge of several values to the least.
fn set_least(gauge: &Gauge, value: i64) {
    if gauge.get() == 0 || value < gauge.get() {
        gauge.set(value);
    }
}

#[cfg(test)]
mod tests;
