//! Limits as configured, the keys that they count by, and the rate limit headers that report them to clients.
//! Which deliveries does a limit count, and under which key?

use std::collections::BTreeMap;
use std::fmt::Write;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;
use http::{HeaderName, HeaderValue};

use crate::config::WarningCode;
use crate::config::{self, Config, LimitDimension, LimitScope, Located, Problem};
use crate::digest::Fingerprint;
use crate::names::{ClientName, Host, LimitName, PoolName, RouteName, TenantName};
use crate::policy::redact::{Redacted, Redactor};

/// The maximum time in which a burst refills. A longer time is likely a typing error, and nanoseconds must fit in 64
/// bits.
const REFILL_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The maximum wait. A waiting delivery holds a connection and memory.
const WAIT_MAX: Duration = Duration::from_secs(60 * 60);

/// The bytes of the hash in the name of a fleet's key. The chance that any two of ten million keys collide is 1 in 10^24.
const FLEET_KEY_BYTES: usize = 16;

/// A maximum rate, concurrency or bandwidth of deliveries for each key.
#[derive(Debug)]
pub struct Limit {
    pub name: LimitName,
    pub quota: Option<Quota>,
    pub concurrency: Option<u32>,
    pub per: Vec<LimitDimension>,
    /// How long a delivery may wait before it is refused.
    pub wait: Duration,
    /// Bytes per second, both directions together.
    pub bandwidth: Option<u64>,
    /// Whether all instances of the fleet count together.
    pub is_fleet_wide: bool,
    /// Whether the limit is recorded and counted but not enforced.
    pub report_only: bool,
}

/// A rate of `count` deliveries in each `period`, with bursts of up to `burst`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub count: NonZeroU32,
    pub period: Duration,
    pub burst: NonZeroU32,
}

impl Quota {
    /// Returns the time that one delivery consumes. It is rounded up, so that the rate is never exceeded.
    pub fn interval(&self) -> Duration {
        self.time_for(1)
    }

    fn time_for(&self, deliveries: u32) -> Duration {
        let nanos = (self.period.as_nanos() * u128::from(deliveries)).div_ceil(u128::from(self.count.get()));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Returns the nanoseconds of a time, and those of 584 years for a longer one.
pub fn saturating_nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The properties of a delivery that a limit may count by.
#[derive(Clone, Copy, Debug)]
pub struct LimitDescriptor<'a> {
    pub client: &'a ClientName,
    pub tenant: Option<&'a TenantName>,
    pub route: &'a RouteName,
    pub host: &'a Host,
    pub egress: &'a PoolName,
}

/// The key of one counter of a limit. A field is `None` if the limit does not count by it. A delivery without a tenant
/// has `Some(None)`, so that it differs from a limit that does not count by tenant. The hash of the counter covers all
/// fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LimitKey<'a> {
    client: Option<&'a ClientName>,
    tenant: Option<Option<&'a TenantName>>,
    route: Option<&'a RouteName>,
    host: Option<&'a Host>,
    egress: Option<&'a PoolName>,
}

impl LimitKey<'_> {
    /// Returns the dimensions that the limit counts by, under their names in `per`, as they may be written. The tenant is
    /// `None` for a delivery without one.
    pub fn dimensions(&self, redactor: &Redactor) -> BTreeMap<&'static str, Option<Redacted<'static>>> {
        let part = |name, text: Option<Option<Redacted<'_>>>| text.map(|text| (name, text.map(Redacted::into_owned)));
        let parts = [
            part("client", self.client.map(|name| Some(Redacted::configured(name.as_str())))),
            part("tenant", self.tenant.map(|tenant| tenant.map(|tenant| redactor.tenant(tenant, true)))),
            part("route", self.route.map(|name| Some(Redacted::configured(name.as_str())))),
            part("host", self.host.map(|host| Some(redactor.host(host)))),
            part("egress", self.egress.map(|name| Some(Redacted::configured(name.as_str())))),
        ];
        parts.into_iter().flatten().collect()
    }
}

impl Limit {
    /// Returns the name of a delivery's key in the store of the fleet: a hash, so that the store has no names of tenants.
    pub fn fleet_key(&self, descriptor: &LimitDescriptor<'_>) -> String {
        let key = self.key(descriptor);
        let mut fingerprint = Fingerprint::default();
        fingerprint.part(self.name.as_str().as_bytes());
        let mut part = |dimension: LimitDimension, value: Option<Option<&str>>| {
            if let Some(value) = value {
                fingerprint.part(dimension.as_str().as_bytes());
                fingerprint.number(u64::from(value.is_some()));
                fingerprint.part(value.unwrap_or_default().as_bytes());
            }
        };
        part(LimitDimension::Client, key.client.map(|client| Some(client.as_str())));
        part(LimitDimension::Tenant, key.tenant.map(|tenant| tenant.map(TenantName::as_str)));
        part(LimitDimension::Route, key.route.map(|route| Some(route.as_str())));
        part(LimitDimension::Host, key.host.map(ToString::to_string).as_deref().map(Some));
        part(LimitDimension::Egress, key.egress.map(|egress| Some(egress.as_str())));
        HEXLOWER.encode(&fingerprint.finish()[..FLEET_KEY_BYTES])
    }

    /// Returns the name of a key of this limit that keys without room share, in the store of the fleet. Each instance has as many
    /// of them, with the same numbers.
    pub fn fleet_overflow_key(&self, number: usize) -> String {
        let mut fingerprint = Fingerprint::default();
        fingerprint.part(self.name.as_str().as_bytes());
        fingerprint.part(b"overflow");
        fingerprint.number(number as u64);
        HEXLOWER.encode(&fingerprint.finish()[..FLEET_KEY_BYTES])
    }

    /// Returns the key of a delivery. It is unambiguous within this limit; every limit has its own counters.
    pub fn key<'a>(&self, descriptor: &LimitDescriptor<'a>) -> LimitKey<'a> {
        let per = |dimension| self.per.contains(&dimension);
        LimitKey {
            client: per(LimitDimension::Client).then_some(descriptor.client),
            tenant: per(LimitDimension::Tenant).then_some(descriptor.tenant),
            route: per(LimitDimension::Route).then_some(descriptor.route),
            host: per(LimitDimension::Host).then_some(descriptor.host),
            egress: per(LimitDimension::Egress).then_some(descriptor.egress),
        }
    }
}

/// The status of a delivery's key in one limit.
#[derive(Clone, Debug)]
pub struct LimitStatus {
    pub limit: Arc<Limit>,
    pub rate: Option<RateStatus>,
    /// How many more deliveries may be in flight.
    pub concurrency_left: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateStatus {
    pub remaining: u32,
    /// The time until one more delivery is allowed.
    pub retry_after: Duration,
}

/// Returns `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10), or `None` without limits.
///
/// `q` in `w` seconds is the rate. If the burst is larger, it is the burst and its refill time, so that `r` never
/// exceeds `q`.
pub fn rate_limit_headers<'a>(
    statuses: impl IntoIterator<Item = &'a LimitStatus>,
) -> Option<[(HeaderName, HeaderValue); 2]> {
    let (mut policy, mut status) = (String::new(), String::new());
    for LimitStatus { limit, rate, concurrency_left } in statuses {
        if let Some(quota) = limit.quota {
            let q = quota.burst.max(quota.count).get();
            let w = whole_seconds(quota.time_for(q));
            push_item(&mut policy, &limit.name, "", format_args!(";q={q};w={w}"));
            if let Some(RateStatus { remaining, retry_after }) = rate {
                push_item(
                    &mut status,
                    &limit.name,
                    "",
                    format_args!(";r={remaining};t={}", whole_seconds(*retry_after)),
                );
            }
        }
        if let Some(maximum) = limit.concurrency {
            // A policy is identified by its name, so a limit of both kinds needs two names.
            let suffix = if limit.quota.is_some() { "/concurrency" } else { "" };
            push_item(&mut policy, &limit.name, suffix, format_args!(";q={maximum};qu=\"concurrent-requests\""));
            if let Some(concurrency_left) = concurrency_left {
                push_item(&mut status, &limit.name, suffix, format_args!(";r={concurrency_left}"));
            }
        }
    }
    let value = |text: &str| HeaderValue::from_str(text).ok().filter(|value| !value.is_empty());
    let policy = (HeaderName::from_static("ratelimit-policy"), value(&policy)?);
    Some([policy, (HeaderName::from_static("ratelimit"), value(&status)?)])
}

/// Rounds up to whole seconds, at least 1, for `Retry-After` (RFC 9110 §10.2.3). So a retry is never too early.
pub fn whole_seconds(time: Duration) -> u64 {
    (time.as_secs() + u64::from(time.subsec_nanos() > 0)).max(1)
}

/// Appends an Item with parameters to a List (RFC 9651 §3.1); a String holds printable ASCII only (§3.3.3).
fn push_item(list: &mut String, name: &LimitName, suffix: &str, parameters: std::fmt::Arguments<'_>) {
    list.push_str(if list.is_empty() { "\"" } else { ", \"" });
    for c in name.as_str().chars().chain(suffix.chars()) {
        match c {
            '"' | '\\' => list.extend(['\\', c]),
            ' '..='~' => list.push(c),
            _ => list.push('?'),
        }
    }
    list.push('"');
    // Writing to a String cannot fail.
    let _ = list.write_fmt(parameters);
}

pub fn compile(config: &Config, problems: &mut Vec<Problem>) -> BTreeMap<LimitName, Arc<Limit>> {
    let limits =
        config.limits.iter().map(|(name, written)| (name.clone(), Arc::new(compile_limit(name, written, problems))));
    let limits = limits.collect();
    for written in config.limits.values() {
        check_scope(written, config.fleet.is_some(), problems);
    }
    limits
}

/// Checks `scope = "fleet"`, which needs a store and something to count.
fn check_scope(written: &Located<config::Limit>, has_fleet: bool, problems: &mut Vec<Problem>) {
    let Some(scope) = written.scope.as_ref().filter(|scope| scope.value == LimitScope::Fleet) else { return };
    let mut report = |message, help| problems.push(Problem::at(scope.span, message).help(help));
    if !has_fleet {
        report("this limit is one of a fleet, and there is no section [fleet]", "add [fleet] with its store");
    }
    if written.report_only {
        report("a limit that only reports counts on each host", "remove scope until you enforce the limit");
    }
    if written.rate.is_none() && written.concurrency.is_none() {
        problems.push(
            Problem::at(scope.span, "the bandwidth of a limit is that of each host")
                .related(written.span, "this limit has neither rate nor concurrency")
                .help("add a rate or a concurrency, or remove scope"),
        );
    }
}

fn compile_limit(name: &LimitName, written: &Located<config::Limit>, problems: &mut Vec<Problem>) -> Limit {
    if written.rate.is_none() && written.concurrency.is_none() && written.bandwidth.is_none() {
        let help = "add rate = \"50/s\", concurrency = 20 or bandwidth = \"10 MiB/s\"";
        problems.push(Problem::at(written.span, format!("the limit {name} limits nothing")).help(help));
    }
    if let (Some(burst), None) = (&written.burst, &written.rate) {
        problems.push(
            Problem::at(burst.span, "burst has no effect without a rate")
                .related(written.span, "this limit has no rate")
                .help("add rate = \"50/s\", or remove burst"),
        );
    }
    if let Some(concurrency) = written.concurrency.as_ref().filter(|concurrency| concurrency.value == 0) {
        let help = "to refuse every delivery, remove the route; to limit nothing, remove this key";
        problems.push(Problem::at(concurrency.span, "a concurrency of 0 refuses every delivery").help(help));
    }
    if let Some(bandwidth) = written.bandwidth.as_ref().filter(|bandwidth| bandwidth.value == 0) {
        let help = "to refuse every delivery, remove the route; to limit nothing, remove this key";
        problems.push(Problem::at(bandwidth.span, "a bandwidth of 0 stops every delivery").help(help));
    }
    if let Some(bandwidth) = written.bandwidth.as_ref().filter(|_| written.report_only) {
        let help = "a bandwidth limit delays deliveries and refuses none, so there is nothing to report";
        let (code, message) = (WarningCode::BandwidthReports, "report_only disables the bandwidth limit");
        problems.push(Problem::warning(code, Some(bandwidth.span), message).help(help));
    }
    if written.wait > WAIT_MAX {
        let help = "write at most 1 hour; clients retry refused deliveries";
        problems.push(Problem::at(written.span, "the wait is longer than 1 hour").help(help));
    }
    for (i, per) in written.per.iter().enumerate() {
        if let Some(first) = written.per[..i].iter().find(|first| first.value == per.value) {
            problems.push(Problem::at(per.span, "this scope is written twice").related(first.span, "first here"));
        }
    }
    Limit {
        name: name.clone(),
        quota: compile_quota(written, problems),
        concurrency: written.concurrency.as_ref().map(|concurrency| concurrency.value),
        per: written.per.iter().map(|per| per.value).collect(),
        wait: written.wait.min(WAIT_MAX),
        bandwidth: written.bandwidth.as_ref().map(|bandwidth| bandwidth.value),
        is_fleet_wide: written.scope.as_ref().is_some_and(|scope| scope.value == LimitScope::Fleet),
        report_only: written.report_only,
    }
}

fn compile_quota(written: &config::Limit, problems: &mut Vec<Problem>) -> Option<Quota> {
    let rate = written.rate.as_ref()?;
    let count = NonZeroU32::new(rate.count);
    if count.is_none() || rate.period.is_zero() {
        let help = "to refuse every delivery, remove the route; to limit nothing, remove this key";
        problems.push(Problem::at(rate.span, "a rate of 0 refuses every delivery").help(help));
    }
    let burst = match &written.burst {
        None => count,
        Some(burst) => NonZeroU32::new(burst.value).or_else(|| {
            let help = "write at least 1; the default is the number of the rate";
            problems.push(Problem::at(burst.span, "a burst of 0 refuses every delivery").help(help));
            None
        }),
    };
    let quota = Quota { count: count?, period: rate.period, burst: burst? };
    if quota.time_for(quota.burst.get()) > REFILL_MAX {
        let place = written.burst.as_ref().map_or(rate.span, |burst| burst.span);
        let problem = Problem::at(place, "at this rate the burst takes more than 30 days to refill");
        problems.push(problem.related(rate.span, "the rate is here").help("write a smaller burst or a higher rate"));
        return None;
    }
    Some(quota)
}

#[cfg(test)]
mod tests;
