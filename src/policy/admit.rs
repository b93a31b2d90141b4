//! Limits as written, the keys they count by, and how a client is told where it stands.
//! What is limited, and per what?

use std::collections::BTreeMap;
use std::fmt::Write;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::config::WarningCode;
use crate::config::{self, At, Config, Per, Problem};
use crate::names::{ClientName, Host, LimitName, PoolName, RouteName, TenantName};

/// A burst takes at most this long to come back: longer is a slip of the pen, and nanoseconds must fit in 64 bits.
const REFILL_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Who waits holds a connection and memory.
const WAIT_MAX: Duration = Duration::from_secs(60 * 60);

/// At most so many deliveries at a rate, or at once, for each key.
#[derive(Debug)]
pub struct Limit {
    pub name: LimitName,
    pub quota: Option<Quota>,
    pub concurrency: Option<u32>,
    pub per: Vec<Per>,
    /// How long a delivery may be held back before it is refused.
    pub wait: Duration,
    /// Bytes a second, in both directions together.
    pub bandwidth: Option<u64>,
    /// Judged, recorded and counted, and not enforced.
    pub report_only: bool,
}

/// `count` in each `period`, and `burst` at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub count: NonZeroU32,
    pub period: Duration,
    pub burst: NonZeroU32,
}

impl Quota {
    /// The time that one delivery costs; rounded up, so that never more than the rate pass.
    pub fn interval(&self) -> Duration {
        self.time_for(1)
    }

    fn time_for(&self, deliveries: u32) -> Duration {
        let nanos = (self.period.as_nanos() * u128::from(deliveries)).div_ceil(u128::from(self.count.get()));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// What a limit may count by.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    pub client: &'a ClientName,
    pub tenant: Option<&'a TenantName>,
    pub route: &'a RouteName,
    pub host: &'a Host,
    pub egress: &'a PoolName,
}

/// What one counter of a limit counts. A field is `None` where the limit does not count by it; a delivery for no tenant
/// is `Some(None)`, so that it is told from a limit that does not ask. All of it goes into the hash that the counter is
/// known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LimitKey<'a> {
    client: Option<&'a ClientName>,
    tenant: Option<Option<&'a TenantName>>,
    route: Option<&'a RouteName>,
    host: Option<&'a Host>,
    egress: Option<&'a PoolName>,
}

impl LimitKey<'_> {
    /// Returns the parts that the limit counts by, under their names in `per`; the tenant is `None` where there is none.
    pub fn parts(&self) -> BTreeMap<&'static str, Option<String>> {
        let part = |name, text: Option<Option<String>>| text.map(|text| (name, text));
        let parts = [
            part("client", self.client.map(|name| Some(name.to_string()))),
            part("tenant", self.tenant.map(|name| name.map(TenantName::to_string))),
            part("route", self.route.map(|name| Some(name.to_string()))),
            part("host", self.host.map(|host| Some(host.to_string()))),
            part("egress", self.egress.map(|name| Some(name.to_string()))),
        ];
        parts.into_iter().flatten().collect()
    }
}

impl Limit {
    /// Unambiguous within this limit; another limit counts on its own.
    pub fn key<'a>(&self, who: &Who<'a>) -> LimitKey<'a> {
        let per = |what| self.per.contains(&what);
        LimitKey {
            client: per(Per::Client).then_some(who.client),
            tenant: per(Per::Tenant).then_some(who.tenant),
            route: per(Per::Route).then_some(who.route),
            host: per(Per::Host).then_some(who.host),
            egress: per(Per::Egress).then_some(who.egress),
        }
    }
}

/// Where a delivery's key stands in one limit.
#[derive(Clone, Debug)]
pub struct Standing {
    pub limit: Arc<Limit>,
    pub rate: Option<RateLeft>,
    /// How many more may be under way at once.
    pub places: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLeft {
    pub remaining: u32,
    /// Within this time one more is allowed.
    pub next: Duration,
}

/// `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10); none where nothing is limited.
///
/// `q` in `w` seconds is the rate, or the burst and the time it takes to come back where the burst is larger, so that
/// `r` never exceeds `q`.
pub fn headers<'a>(standings: impl IntoIterator<Item = &'a Standing>) -> Option<[(HeaderName, HeaderValue); 2]> {
    let (mut policy, mut left) = (String::new(), String::new());
    for Standing { limit, rate, places } in standings {
        if let Some(quota) = limit.quota {
            let q = quota.burst.max(quota.count).get();
            let w = whole_seconds(quota.time_for(q));
            item(&mut policy, &limit.name, "", format_args!(";q={q};w={w}"));
            if let Some(RateLeft { remaining, next }) = rate {
                item(&mut left, &limit.name, "", format_args!(";r={remaining};t={}", whole_seconds(*next)));
            }
        }
        if let Some(maximum) = limit.concurrency {
            // A policy is known by its name: a limit of both kinds needs two.
            let suffix = if limit.quota.is_some() { "/concurrency" } else { "" };
            item(&mut policy, &limit.name, suffix, format_args!(";q={maximum};qu=\"concurrent-requests\""));
            if let Some(places) = places {
                item(&mut left, &limit.name, suffix, format_args!(";r={places}"));
            }
        }
    }
    let value = |text: &str| HeaderValue::from_str(text).ok().filter(|value| !value.is_empty());
    let policy = (HeaderName::from_static("ratelimit-policy"), value(&policy)?);
    Some([policy, (HeaderName::from_static("ratelimit"), value(&left)?)])
}

/// `Retry-After` in whole seconds (RFC 9110 §10.2.3): never too early, never "at once".
pub fn whole_seconds(time: Duration) -> u64 {
    (time.as_secs() + u64::from(time.subsec_nanos() > 0)).max(1)
}

/// Appends an Item with parameters to a List (RFC 9651 §3.1); a String holds printable ASCII only (§3.3.3).
fn item(list: &mut String, name: &LimitName, suffix: &str, parameters: std::fmt::Arguments<'_>) {
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
    let limits = config.limits.iter().map(|(name, written)| (name.clone(), Arc::new(limit(name, written, problems))));
    limits.collect()
}

fn limit(name: &LimitName, written: &At<config::Limit>, problems: &mut Vec<Problem>) -> Limit {
    if written.rate.is_none() && written.concurrency.is_none() && written.bandwidth.is_none() {
        let help = "add rate = \"50/s\", concurrency = 20 or bandwidth = \"10 MiB/s\"";
        problems.push(Problem::at(written.place, format!("the limit {name} limits nothing")).help(help));
    }
    if let (Some(burst), None) = (&written.burst, &written.rate) {
        problems.push(Problem::at(burst.place, "a burst of no rate").help("add rate = \"50/s\", or leave burst out"));
    }
    if let Some(concurrency) = written.concurrency.as_ref().filter(|concurrency| concurrency.value == 0) {
        let help = "to refuse all, leave the route out; to limit nothing, leave this out";
        problems.push(Problem::at(concurrency.place, "a concurrency of 0 lets nothing pass").help(help));
    }
    if let Some(bandwidth) = written.bandwidth.as_ref().filter(|bandwidth| bandwidth.value == 0) {
        let help = "to refuse all, leave the route out; to limit nothing, leave this out";
        problems.push(Problem::at(bandwidth.place, "a bandwidth of 0 lets nothing pass").help(help));
    }
    if let Some(bandwidth) = written.bandwidth.as_ref().filter(|_| written.report_only) {
        let help = "a delivery that is slower is not refused: there is nothing to report of it";
        let (code, message) = (WarningCode::BandwidthReports, "a limit that only reports holds no bandwidth");
        problems.push(Problem::warning(code, Some(bandwidth.place), message).help(help));
    }
    if written.wait > WAIT_MAX {
        let help = "it paces a burst; what comes later, the client sends again";
        problems.push(Problem::at(written.place, "a wait of more than an hour").help(help));
    }
    for (i, per) in written.per.iter().enumerate() {
        if let Some(first) = written.per[..i].iter().find(|first| first.value == per.value) {
            problems.push(Problem::at(per.place, "written twice").also(first.place, "first here"));
        }
    }
    Limit {
        name: name.clone(),
        quota: quota(written, problems),
        concurrency: written.concurrency.as_ref().map(|concurrency| concurrency.value),
        per: written.per.iter().map(|per| per.value).collect(),
        wait: written.wait.min(WAIT_MAX),
        bandwidth: written.bandwidth.as_ref().map(|bandwidth| bandwidth.value),
        report_only: written.report_only,
    }
}

fn quota(written: &config::Limit, problems: &mut Vec<Problem>) -> Option<Quota> {
    let rate = written.rate.as_ref()?;
    let count = NonZeroU32::new(rate.count);
    if count.is_none() || rate.period.is_zero() {
        let help = "to refuse all, leave the route out; to limit nothing, leave this out";
        problems.push(Problem::at(rate.place, "a rate of 0 lets nothing pass").help(help));
    }
    let burst = match &written.burst {
        None => count,
        Some(burst) => NonZeroU32::new(burst.value).or_else(|| {
            let help = "at least 1; left out, it is the count of the rate";
            problems.push(Problem::at(burst.place, "a burst of 0 lets nothing pass").help(help));
            None
        }),
    };
    let quota = Quota { count: count?, period: rate.period, burst: burst? };
    if quota.time_for(quota.burst.get()) > REFILL_MAX {
        let place = written.burst.as_ref().map_or(rate.place, |burst| burst.place);
        let problem = Problem::at(place, "at this rate the burst takes more than 30 days to come back");
        problems.push(problem.also(rate.place, "the rate").help("a smaller burst or a higher rate"));
        return None;
    }
    Some(quota)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rate;
    use crate::policy::fixture::{at, config, messages};
    use std::collections::HashSet;

    const HOUR: Duration = Duration::from_secs(3600);

    fn quota(count: u32, seconds: u64, burst: u32) -> Quota {
        let [count, burst] = [count, burst].map(|n| NonZeroU32::new(n).unwrap());
        Quota { count, period: Duration::from_secs(seconds), burst }
    }

    fn limit(name: &str, quota: Option<Quota>, concurrency: Option<u32>, per: &[Per]) -> Arc<Limit> {
        let wait = Duration::ZERO;
        Arc::new(Limit {
            name: LimitName::new(name),
            quota,
            concurrency,
            per: per.into(),
            wait,
            bandwidth: None,
            report_only: false,
        })
    }

    #[test]
    fn headers_say_where_a_client_stands() {
        let rate = |remaining, millis| Some(RateLeft { remaining, next: Duration::from_millis(millis) });
        let table = [
            (
                limit("m", Some(quota(100, 60, 100)), None, &[]),
                rate(0, 2001),
                None,
                r#""m";q=100;w=60"#,
                r#""m";r=0;t=3"#,
            ),
            // A burst larger than the count of the rate, and a smaller one.
            (limit("b", Some(quota(50, 1, 100)), None, &[]), rate(99, 20), None, r#""b";q=100;w=2"#, r#""b";r=99;t=1"#),
            (limit("s", Some(quota(50, 1, 1)), None, &[]), rate(0, 20), None, r#""s";q=50;w=1"#, r#""s";r=0;t=1"#),
            (limit("c", None, Some(20), &[]), None, Some(19), r#""c";q=20;qu="concurrent-requests""#, r#""c";r=19"#),
            (
                limit("a\"ö", Some(quota(1, 1, 1)), Some(2), &[]),
                rate(0, 1000),
                Some(0),
                r#""a\"?";q=1;w=1, "a\"?/concurrency";q=2;qu="concurrent-requests""#,
                r#""a\"?";r=0;t=1, "a\"?/concurrency";r=0"#,
            ),
        ];
        for (limit, rate, places, policy, left) in table {
            let headers = headers(&[Standing { limit, rate, places }]).unwrap();
            let [(_, first), (_, second)] = &headers;
            assert_eq!((first.to_str().unwrap(), second.to_str().unwrap()), (policy, left));
            assert_eq!((headers[0].0.as_str(), headers[1].0.as_str()), ("ratelimit-policy", "ratelimit"));
        }
        assert!(headers(&[]).is_none());
    }

    #[test]
    fn retry_after_is_whole_seconds_and_never_too_early() {
        for (millis, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (59_999, 60)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds, "{millis} ms");
        }
    }

    #[test]
    fn keys_differ_in_what_the_limit_counts_by_and_in_nothing_else() {
        let (client, route, egress) = (ClientName::new("c"), RouteName::new("r"), PoolName::new("e"));
        let hosts = ["a.example", "b.example"].map(|name| Host::Name(name.into()));
        let tenants = [None, Some(TenantName::new("")), Some(TenantName::new("a.example"))];
        let keys = |per: &[Per]| -> usize {
            let limit = limit("l", None, Some(1), per);
            let mut keys = HashSet::<LimitKey<'_>>::new();
            for host in &hosts {
                for tenant in &tenants {
                    let who = Who { client: &client, tenant: tenant.as_ref(), route: &route, host, egress: &egress };
                    keys.insert(limit.key(&who));
                }
            }
            keys.len()
        };
        assert_eq!(keys(&[]), 1);
        assert_eq!(keys(&[Per::Client, Per::Route, Per::Egress]), 1);
        assert_eq!(keys(&[Per::Host]), 2);
        assert_eq!(keys(&[Per::Tenant]), 3);
        assert_eq!(keys(&[Per::Tenant, Per::Host]), 6);
    }

    #[test]
    fn compiles() {
        let compiled = |count: Option<(u32, Duration)>, burst: Option<u32>, concurrency: Option<u32>, per: &[Per]| {
            let limit = config::Limit {
                rate: count.map(|(count, period)| at(11, Rate { count, period })),
                burst: burst.map(|burst| at(12, burst)),
                concurrency: concurrency.map(|concurrency| at(13, concurrency)),
                per: per.iter().map(|per| at(14, *per)).collect(),
                ..config::Limit::default()
            };
            let name = LimitName::new("l");
            let mut problems = vec![];
            let config = Config { limits: [(name.clone(), at(10, limit))].into(), ..config() };
            (compile(&config, &mut problems)[&name].quota, messages(&problems))
        };
        let second = Duration::from_secs(1);
        let nothing = Vec::<String>::new();
        assert_eq!(compiled(Some((50, second)), None, None, &[]), (Some(quota(50, 1, 50)), nothing.clone()));
        assert_eq!(compiled(Some((50, second)), Some(7), Some(1), &[]), (Some(quota(50, 1, 7)), nothing.clone()));
        assert_eq!(compiled(None, None, Some(1), &[Per::Host, Per::Tenant]), (None, nothing));
        for ((count, burst, concurrency, per), expected) in [
            ((None, None, None, &[][..]), "the limit l limits nothing"),
            ((None, Some(3), Some(1), &[]), "a burst of no rate"),
            ((None, None, Some(0), &[]), "a concurrency of 0 lets nothing pass"),
            ((Some((0, second)), None, None, &[]), "a rate of 0 lets nothing pass"),
            ((Some((1, second)), Some(0), None, &[]), "a burst of 0 lets nothing pass"),
            ((Some((1, HOUR)), Some(721), None, &[]), "at this rate the burst takes more than 30 days to come back"),
            ((None, None, Some(1), &[Per::Host, Per::Host]), "written twice"),
        ] {
            assert_eq!(compiled(count, burst, concurrency, per), (None, vec![expected.into()]));
        }
    }

    #[test]
    fn no_wait_is_endless() {
        let written = |wait| config::Limit { concurrency: Some(at(1, 1)), wait, ..config::Limit::default() };
        let name = LimitName::new("l");
        for (wait, expected) in [(HOUR, None), (Duration::MAX, Some("a wait of more than an hour"))] {
            let mut problems = vec![];
            let config = Config { limits: [(name.clone(), at(10, written(wait)))].into(), ..config() };
            assert_eq!(compile(&config, &mut problems)[&name].wait, HOUR);
            assert_eq!(messages(&problems), Vec::from_iter(expected));
        }
    }

    #[test]
    fn a_bandwidth_may_stand_alone() {
        let written = |bandwidth, report_only| {
            let limit = config::Limit { bandwidth: Some(at(1, bandwidth)), report_only, ..config::Limit::default() };
            let mut problems = vec![];
            let limit = super::limit(&LimitName::new("l"), &at(10, limit), &mut problems);
            (limit.bandwidth, messages(&problems))
        };
        assert_eq!(written(1000, false), (Some(1000), vec![]));
        assert_eq!(written(0, false).1, ["a bandwidth of 0 lets nothing pass"]);
        assert_eq!(written(1000, true).1, ["warning: a limit that only reports holds no bandwidth"]);
    }

    #[test]
    fn an_interval_is_never_shorter_than_the_rate_allows() {
        for (count, seconds) in [(7, 1), (3, 60), (1, 3600), (u32::MAX, 1)] {
            let quota = quota(count, seconds, 1);
            assert!(quota.interval().as_nanos() * u128::from(count) >= quota.period.as_nanos(), "{count}/{seconds}s");
        }
    }
}
