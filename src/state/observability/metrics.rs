//! The metrics, in the text format of OpenMetrics.
//! How many deliveries were there, how did they end, and how long did they take?

mod family;
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
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry, Unit};
use tokio::runtime::Handle;

use family::ShardedFamily;
use labels::{
    BuildLabels, ConnectLabels, DecisionLabels, ExpiryLabels, HandshakeLabels, LimitLabels, NoLabels, PoolLabels,
    ReasonLabels, ReportLabels, ResultLabels, RouteLabels, SignerLabels, SinkLabels, SourceLabels, SourceStateLabels,
    SplitLabels, TenantLabels, TokenLabels,
};
use routes::{DurationFamily, OutcomeFamily, RouteTable, StepFamily};
pub use routes::{RouteSeries, STEPS, StepSeconds};

use crate::names::{CredentialName, LimitName, PoolName, RouteName, SignerName};
use crate::policy::Plan;
use crate::policy::expiry::Expiry;
use crate::policy::route::Route;
use crate::state::limits::LimitReport;
use crate::state::upstreams::sources::AddressCount;

pub struct Metrics {
    registry: Registry,
    routes: Arc<RouteTable>,
    pub deliveries_in_flight: Gauge,
    pub deliveries_waiting: Gauge,
    pub deliveries_shed: Counter,
    unverified: ShardedFamily<RouteLabels, Counter>,
    report_only: ShardedFamily<ReportLabels, Counter>,
    would_take: ShardedFamily<RouteLabels, Counter>,
    split: ShardedFamily<SplitLabels, Counter>,
    token_requests: ShardedFamily<TokenLabels, Counter>,
    limit_decisions: ShardedFamily<DecisionLabels, Counter>,
    limit_keys: ShardedFamily<LimitLabels, Gauge>,
    limit_keys_near_full: ShardedFamily<LimitLabels, Gauge>,
    pub ready: Gauge,
    pub draining: Gauge,
    reloads: ShardedFamily<ResultLabels, Counter>,
    pub reload_failed: Gauge,
    pub config_drift: Gauge,
    pub history_failed: Gauge,
    pub config_adopted: Gauge,
    pub client_connections: Gauge,
    connections_closed: ShardedFamily<ReasonLabels, Counter>,
    pub client_streams: Gauge,
    pub tunnels: Gauge,
    pub idle_target_connections: Gauge,
    handshakes: ShardedFamily<HandshakeLabels, Counter>,
    addresses: ShardedFamily<PoolLabels, Gauge<f64, AtomicU64>>,
    connects: ShardedFamily<ConnectLabels, Counter>,
    egress_connections: ShardedFamily<SourceStateLabels, Gauge>,
    ports_left: ShardedFamily<SourceLabels, Gauge>,
    pub egress_ports: Gauge,
    pub suspected_gaps: Gauge,
    pub cut_off: Gauge,
    pub dns_outage: Gauge,
    pub circuits_open: Gauge,
    pub circuits_opened: Counter,
    expiries: ShardedFamily<ExpiryLabels, Gauge>,
    signing_key_ends: ShardedFamily<SignerLabels, Gauge>,
    tenants: ShardedFamily<TenantLabels, Gauge>,
    pub records_lost: Counter,
    pub log_lines_lost: Counter,
    pub log_reopen_failed: Gauge,
    audit_writable: ShardedFamily<NoLabels, Gauge>,
    pub audit_records: Counter,
    pub audit_failures: Counter,
    pub audit_events_lost: Counter,
    audit_sink_dropped: ShardedFamily<SinkLabels, Counter>,
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

/// Registers metrics. The registry ends each help text with a full stop.
struct Registration<'a>(&'a mut Registry);

impl Registration<'_> {
    fn add<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0.register(name, help, metric.clone());
        metric
    }

    fn add_timestamp<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0.register_with_unit(name, help, Unit::Seconds, metric.clone());
        metric
    }
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
        let duration = "Duration of deliveries, from the head of the request to the last byte of the response";
        own.register_with_unit("delivery_duration", duration, Unit::Seconds, DurationFamily(Arc::clone(&routes)));
        let step = "Duration of each step that deliveries took";
        own.register_with_unit("step_duration", step, Unit::Seconds, StepFamily(Arc::clone(&routes)));
        let mut own = Registration(own);
        let build: ShardedFamily<BuildLabels, Gauge> = own.add("build_info", "1, with the version as a label");
        build.get(&BuildLabels { version: env!("CARGO_PKG_VERSION"), arch: std::env::consts::ARCH }).set(1);
        Self {
            routes,
            deliveries_in_flight: own.add("deliveries_in_flight", "Deliveries of all routes, without tunnels"),
            deliveries_waiting: own
                .add("deliveries_waiting", "Deliveries that wait until fewer than server.max_deliveries are in flight"),
            deliveries_shed: own
                .add("deliveries_shed", "Deliveries refused because server.max_deliveries were already in flight"),
            unverified: own
                .add("unverified_deliveries", "Deliveries to targets that proved nothing (verify = \"none\")"),
            report_only: own.add("report_only", "Deliveries that a report_only setting would have refused"),
            would_take: own.add("shadowed_deliveries", "Deliveries that a report_only route would have taken"),
            split: own.add("split_deliveries", "Deliveries on routes with a split, by side and outcome"),
            token_requests: own.add("token_requests", "Requests for tokens of credentials, by result"),
            limit_decisions: own.add("limit_decisions", "Deliveries by what the limit decided"),
            limit_keys: own.add("limit_keys", "Keys in use of the limit"),
            limit_keys_near_full: own
                .add("limit_keys_near_full", "Keys that use 90 % or more of the limit's burst or concurrency"),
            ready: own.add("ready", "1 while /readyz answers 200"),
            draining: own.add("draining", "1 while the process drains"),
            reloads: own.add("reloads", "Configurations adopted and rejected"),
            reload_failed: own.add("reload_failed", "1 while the configuration on disk is rejected"),
            config_drift: own.add("config_drift", "1 while the configuration on disk is not the active one"),
            history_failed: own.add("history_failed", "1 while the history cannot store the active configuration"),
            config_adopted: own
                .add_timestamp("config_adopted_timestamp", "When the active configuration was adopted, as Unix time"),
            client_connections: own.add("client_connections", "Open connections from clients"),
            connections_closed: own.add(
                "client_connections_closed",
                "Connections closed to make room, by the bound of [server] that was reached",
            ),
            client_streams: own.add("client_streams", "Open HTTP/2 requests of clients"),
            tunnels: own.add("tunnels", "Open CONNECT tunnels"),
            idle_target_connections: own.add("idle_target_connections", "Connections to targets kept for reuse"),
            handshakes: own.add("target_tls_handshakes", "TLS handshakes with targets that succeeded"),
            addresses: own.add("egress_addresses", "Source addresses of each pool"),
            connects: own.add("egress_connects", "Attempts to connect to targets, by source address and result"),
            egress_connections: own.add("egress_connections", "TCP connections to targets, by source address"),
            ports_left: own.add(
                "egress_ports_left",
                "Ephemeral ports of a source address that are free towards its fullest target",
            ),
            egress_ports: own.add("egress_ports", "Ports in net.ipv4.ip_local_port_range"),
            suspected_gaps: own
                .add("suspected_allow_list_gaps", "Targets that answer some source addresses and not others"),
            cut_off: own.add("egress_addresses_cut_off", "Source addresses that no target answers"),
            dns_outage: own.add("dns_outage", "1 while no name server responds"),
            circuits_open: own.add("circuits_open", "Open circuits"),
            circuits_opened: own.add("circuits_opened", "How often a circuit opened"),
            expiries: own.add_timestamp(
                "certificate_expiry_timestamp",
                "When the first certificate or revocation list of a file expires, as Unix time",
            ),
            signing_key_ends: own.add_timestamp(
                "signing_key_end_timestamp",
                "When a signer first has no key in force for one of its owners, as Unix time",
            ),
            tenants: own.add("tenants_with_keys", "Tenants with a folder of keys of their own, by signer"),
            records_lost: own.add("records_lost", "Delivery records that could not be written"),
            log_lines_lost: own.add("log_lines_lost", "Log lines that stderr did not take"),
            log_reopen_failed: own.add("log_reopen_failed", "1 while records go to the former file"),
            audit_writable: own.add("audit_writable", "0 while the audit log cannot be written"),
            audit_records: own.add("audit_records", "Audit records written"),
            audit_failures: own.add("audit_failures", "Writes of the audit log that failed"),
            audit_events_lost: own.add("audit_events_lost", "Events that the audit log does not have"),
            audit_sink_dropped: own.add("audit_sink_dropped", "Audit records that a sink did not get"),
            registry,
        }
    }

    /// Returns the series that a delivery on this route adds to. `None`: it has no route.
    pub fn route_series(&self, route: Option<&Route>) -> Arc<RouteSeries> {
        self.routes.series(route)
    }

    pub fn unverified(&self, series: &RouteSeries) {
        self.unverified.get(&RouteLabels { route: series.label.clone() }).inc();
    }

    pub fn would_take(&self, series: &RouteSeries) {
        self.would_take.get(&RouteLabels { route: series.label.clone() }).inc();
    }

    pub fn split(&self, series: &RouteSeries, side: &'static str, code: &'static str) {
        self.split.get(&SplitLabels { route: series.label.clone(), side, code }).inc();
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
        self.connects.get(&ConnectLabels { pool, address, result }).inc();
    }

    pub fn target_handshake(&self, version: &'static str, suite: &'static str) {
        self.handshakes.get(&HandshakeLabels { version, suite }).inc();
    }

    /// Drops the series of objects that `plan` does not have. A delivery that began before a reload may recreate one, which
    /// is dropped before the next scrape.
    pub fn prune(&self, plan: &Plan) {
        let now = Timestamp::now();
        let own = plan.routes.all().filter(|route| route.has_own_series);
        let own: HashSet<&RouteName> = own.map(|route| &route.name).collect();
        self.routes.retain(&own);
        for by_route in [&self.unverified, &self.would_take] {
            by_route.retain(|labels| labels.route.is_in(&own));
        }
        self.split.retain(|labels| labels.route.is_in(&own));
        let routes = LazyCell::new(|| plan.routes.all().map(|route| route.name.as_str()).collect::<HashSet<_>>());
        self.report_only.retain(|labels| match labels.kind {
            "route" => routes.contains(labels.name.as_str()),
            "limit" => plan.limits.contains_key(labels.name.as_str()),
            _ => plan.guard.report_only_denials().iter().any(|denied| denied.to_string() == labels.name),
        });
        self.token_requests.retain(|labels| plan.credentials.contains_key(labels.credential.as_str()));
        self.connects.retain(|labels| {
            let pool = plan.pools.get(labels.pool.as_str());
            pool.zip(labels.address.parse().ok()).is_some_and(|(pool, address)| pool.contains(address, now))
        });
    }

    /// Replaces the series of the limits, which must come in the order of their names.
    pub fn limits(&self, limits: &[(LimitName, LimitReport)]) {
        self.limit_decisions.retain(|_| false);
        for by_limit in [&self.limit_keys, &self.limit_keys_near_full] {
            by_limit.retain(|_| false);
        }
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
        self.addresses.retain(|_| false);
        for (pool, AddressCount { configured, usable }) in pools {
            for (state, count) in [("configured", configured), ("usable", usable)] {
                self.addresses.get(&PoolLabels { pool: pool.to_string(), state }).inc_by(count as f64);
            }
        }
    }

    /// Replaces the series of the source addresses in use.
    pub fn sources<'a>(&self, sources: impl Iterator<Item = (&'a PoolName, IpAddr, SourceReport)>) {
        self.egress_connections.retain(|_| false);
        self.ports_left.retain(|_| false);
        for (pool, source, report) in sources {
            let (pool, address) = (pool.to_string(), source.to_string());
            for (state, count) in [("open", report.open), ("time_wait", report.time_wait)] {
                let labels = SourceStateLabels { pool: pool.clone(), address: address.clone(), state };
                self.egress_connections.get(&labels).inc_by(i64::from(count));
            }
            self.ports_left.get(&SourceLabels { pool, address }).set(i64::from(report.ports_left));
        }
    }

    /// Replaces the series of certificates by those of the active configuration.
    pub fn expiries(&self, expiries: &[Expiry]) {
        self.expiries.retain(|_| false);
        for expiry in expiries {
            let (file, trust) = (expiry.path.display().to_string(), expiry.trust.clone());
            let gauge = self.expiries.get(&ExpiryLabels { usage: expiry.usage.as_str(), trust, file });
            set_earliest(&gauge, expiry.expires_at);
        }
    }

    /// Replaces the series of signing keys. A signer that always has a key has none.
    pub fn signing_keys<'a>(&self, ends: impl Iterator<Item = (&'a SignerName, Timestamp)>) {
        self.signing_key_ends.retain(|_| false);
        for (signer, end) in ends {
            set_earliest(&self.signing_key_ends.get(&SignerLabels { signer: signer.to_string() }), end);
        }
    }

    /// Sets, for each signer with a folder of tenants' keys, the number of tenants with valid and with broken keys.
    pub fn tenants<'a>(&self, signers: impl Iterator<Item = (&'a SignerName, usize, usize)>) {
        self.tenants.retain(|_| false);
        for (signer, count, broken) in signers {
            for (folder, count) in [("whole", count - broken), ("broken", broken)] {
                let labels = TenantLabels { signer: signer.to_string(), folder };
                self.tenants.get(&labels).inc_by(gauge(count));
            }
        }
    }

    /// Sets whether the audit log can be written. `None`: the configuration has none, and the metric no series.
    pub fn set_audit_writable(&self, is_writable: Option<bool>) {
        self.audit_writable.retain(|_| false);
        if let Some(is_writable) = is_writable {
            self.audit_writable.get(&NoLabels {}).set(is_writable.into());
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
        self.reloads.get(&ResultLabels { result }).inc();
        self.reload_failed.set(i64::from(!adopted));
    }

    /// Returns the metrics as OpenMetrics 1.0.0.
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes every write");
        text
    }
}

/// Returns a count as the value of a gauge.
pub fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Sets a new gauge, or the gauge of several times to the earliest.
fn set_earliest(gauge: &Gauge, time: Timestamp) {
    let seconds = time.as_second();
    if gauge.get() == 0 || seconds < gauge.get() {
        gauge.set(seconds);
    }
}

#[cfg(test)]
mod tests;
