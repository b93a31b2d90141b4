//! Tests of compiled limits, their keys and the rate limit headers.
//! What does each setting allow?

use super::*;
use crate::config::Rate;
use crate::policy::fixture::{at, config, messages};
use std::collections::HashSet;

const HOUR: Duration = Duration::from_secs(3600);

fn quota(count: u32, seconds: u64, burst: u32) -> Quota {
    let [count, burst] = [count, burst].map(|n| NonZeroU32::new(n).unwrap());
    Quota { count, period: Duration::from_secs(seconds), burst }
}

fn limit(name: &str, quota: Option<Quota>, concurrency: Option<u32>, per: &[LimitDimension]) -> Arc<Limit> {
    let wait = Duration::ZERO;
    Arc::new(Limit {
        name: LimitName::new(name),
        quota,
        concurrency,
        per: per.into(),
        wait,
        bandwidth: None,
        is_fleet_wide: false,
        report_only: false,
    })
}

#[test]
fn fleet_keys_are_the_same_in_each_process_and_differ_by_limit_and_dimension() {
    let (client, route, egress) = (ClientName::new("c"), RouteName::new("r"), PoolName::new("e"));
    let (acme, other) = (TenantName::new("acme"), TenantName::new("other"));
    let host = Host::Name("hooks.example".into());
    let descriptor = |tenant| LimitDescriptor { client: &client, tenant, route: &route, host: &host, egress: &egress };
    let limit = |name: &str, per: &[LimitDimension]| Limit {
        name: LimitName::new(name),
        quota: None,
        concurrency: Some(1),
        per: per.to_vec(),
        wait: Duration::ZERO,
        bandwidth: None,
        is_fleet_wide: true,
        report_only: false,
    };
    let per_tenant = limit("l", &[LimitDimension::Tenant]);
    let keys = [
        per_tenant.fleet_key(&descriptor(Some(&acme))),
        per_tenant.fleet_key(&descriptor(Some(&other))),
        per_tenant.fleet_key(&descriptor(None)),
        limit("m", &[LimitDimension::Tenant]).fleet_key(&descriptor(Some(&acme))),
        limit("l", &[LimitDimension::Tenant, LimitDimension::Host]).fleet_key(&descriptor(Some(&acme))),
        limit("l", &[]).fleet_key(&descriptor(Some(&acme))),
        per_tenant.fleet_overflow_key(0),
        per_tenant.fleet_overflow_key(1),
        limit("m", &[LimitDimension::Tenant]).fleet_overflow_key(0),
    ];
    assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len(), "{keys:?}");
    let dimensions = |per: &[LimitDimension], tenant| {
        let found = limit("l", per).key(&descriptor(tenant)).dimensions(&Redactor::default());
        let text = |(name, value): (&'static str, Option<Redacted<'_>>)| format!("{name}={value:?}");
        found.into_iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(dimensions(&[], Some(&acme)), [""; 0]);
    assert_eq!(dimensions(&[LimitDimension::Tenant], None), ["tenant=None"]);
    let all = [LimitDimension::Client, LimitDimension::Tenant, LimitDimension::Route, LimitDimension::Host];
    assert_eq!(dimensions(&all, Some(&acme)).len(), 4);
    // Other versions of outgate in the fleet must find the same key.
    assert_eq!(keys[0], "ec0a538ba6d14a72b80fb8138fa7941c");
}

#[test]
fn fleet_limit_needs_a_fleet_and_something_to_count() {
    let scope = Some(at(2, LimitScope::Fleet));
    let problems = |limit: config::Limit| {
        let mut config = config();
        config.limits.insert(LimitName::new("l"), at(1, limit));
        let mut problems = Vec::new();
        compile(&config, &mut problems);
        messages(&problems)
    };
    let limit = |concurrency: Option<u32>, report_only| config::Limit {
        concurrency: concurrency.map(|concurrency| at(1, concurrency)),
        bandwidth: Some(at(1, 1000)),
        scope: scope.clone(),
        report_only,
        ..config::Limit::default()
    };
    let no_fleet = "this limit is one of a fleet, and there is no section [fleet]";
    assert_eq!(problems(limit(Some(1), false)), [no_fleet]);
    let found = problems(limit(None, true));
    assert_eq!(
        found[found.len() - 2..],
        ["a limit that only reports counts on each host", "the bandwidth of a limit is that of each host"]
    );
}

#[test]
fn rate_limit_headers_report_the_quota_and_what_remains() {
    let rate = |remaining, millis| Some(RateStatus { remaining, retry_after: Duration::from_millis(millis) });
    let table = [
        (limit("m", Some(quota(100, 60, 100)), None, &[]), rate(0, 2001), None, r#""m";q=100;w=60"#, r#""m";r=0;t=3"#),
        // A burst that is larger than the count of the rate, and a smaller one.
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
    for (limit, rate, concurrency_left, policy, status) in table {
        let headers = rate_limit_headers(&[LimitStatus { limit, rate, concurrency_left }]).unwrap();
        let [(_, first), (_, second)] = &headers;
        assert_eq!((first.to_str().unwrap(), second.to_str().unwrap()), (policy, status));
        assert_eq!((headers[0].0.as_str(), headers[1].0.as_str()), ("ratelimit-policy", "ratelimit"));
    }
    assert!(rate_limit_headers(&[]).is_none());
}

#[test]
fn retry_after_is_whole_seconds_and_never_too_early() {
    for (millis, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (59_999, 60)] {
        assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds, "{millis} ms");
    }
}

#[test]
fn limit_keys_differ_exactly_in_the_dimensions_of_per() {
    let (client, route, egress) = (ClientName::new("c"), RouteName::new("r"), PoolName::new("e"));
    let hosts = ["a.example", "b.example"].map(|name| Host::Name(name.into()));
    let tenants = [None, Some(TenantName::new("")), Some(TenantName::new("a.example"))];
    let keys = |per: &[LimitDimension]| -> usize {
        let limit = limit("l", None, Some(1), per);
        let mut keys = HashSet::<LimitKey<'_>>::new();
        for host in &hosts {
            for tenant in &tenants {
                let descriptor =
                    LimitDescriptor { client: &client, tenant: tenant.as_ref(), route: &route, host, egress: &egress };
                keys.insert(limit.key(&descriptor));
            }
        }
        keys.len()
    };
    assert_eq!(keys(&[]), 1);
    assert_eq!(keys(&[LimitDimension::Client, LimitDimension::Route, LimitDimension::Egress]), 1);
    assert_eq!(keys(&[LimitDimension::Host]), 2);
    assert_eq!(keys(&[LimitDimension::Tenant]), 3);
    assert_eq!(keys(&[LimitDimension::Tenant, LimitDimension::Host]), 6);
}

#[test]
fn limits_compile_or_report_each_problem() {
    let compiled =
        |count: Option<(u32, Duration)>, burst: Option<u32>, concurrency: Option<u32>, per: &[LimitDimension]| {
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
    assert_eq!(compiled(Some((1, HOUR)), Some(720), None, &[]), (Some(quota(1, 3600, 720)), nothing.clone()));
    assert_eq!(compiled(None, None, Some(1), &[LimitDimension::Host, LimitDimension::Tenant]), (None, nothing));
    for ((count, burst, concurrency, per), expected) in [
        ((None, None, None, &[][..]), "the limit l limits nothing"),
        ((None, Some(3), Some(1), &[]), "burst has no effect without a rate"),
        ((None, None, Some(0), &[]), "a concurrency of 0 refuses every delivery"),
        ((Some((0, second)), None, None, &[]), "a rate of 0 refuses every delivery"),
        ((Some((1, second)), Some(0), None, &[]), "a burst of 0 refuses every delivery"),
        ((Some((1, HOUR)), Some(721), None, &[]), "at this rate the burst takes more than 30 days to refill"),
        ((None, None, Some(1), &[LimitDimension::Host, LimitDimension::Host]), "this scope is written twice"),
    ] {
        assert_eq!(compiled(count, burst, concurrency, per), (None, vec![expected.into()]));
    }
}

#[test]
fn limit_wait_is_capped_at_one_hour() {
    let written = |wait| config::Limit { concurrency: Some(at(1, 1)), wait, ..config::Limit::default() };
    let name = LimitName::new("l");
    for (wait, expected) in [(HOUR, None), (Duration::MAX, Some("the wait is longer than 1 hour"))] {
        let mut problems = vec![];
        let config = Config { limits: [(name.clone(), at(10, written(wait)))].into(), ..config() };
        assert_eq!(compile(&config, &mut problems)[&name].wait, HOUR);
        assert_eq!(messages(&problems), Vec::from_iter(expected));
    }
}

#[test]
fn limit_may_have_a_bandwidth_alone() {
    let written = |bandwidth, report_only| {
        let limit = config::Limit { bandwidth: Some(at(1, bandwidth)), report_only, ..config::Limit::default() };
        let mut problems = vec![];
        let limit = super::compile_limit(&LimitName::new("l"), &at(10, limit), &mut problems);
        (limit.bandwidth, messages(&problems))
    };
    assert_eq!(written(1000, false), (Some(1000), vec![]));
    assert_eq!(written(0, false).1, ["a bandwidth of 0 stops every delivery"]);
    assert_eq!(written(1000, true).1, ["warning: report_only disables the bandwidth limit"]);
}

#[test]
fn quota_interval_is_never_shorter_than_the_rate_allows() {
    for (count, seconds) in [(7, 1), (3, 60), (1, 3600), (u32::MAX, 1)] {
        let quota = quota(count, seconds, 1);
        assert!(quota.interval().as_nanos() * u128::from(count) >= quota.period.as_nanos(), "{count}/{seconds}s");
    }
}
