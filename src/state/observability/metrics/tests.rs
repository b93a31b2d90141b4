//! The largest scrape.
//! Is a scrape bounded, whatever the configuration names?

use std::time::Duration;

use super::family::SERIES_MAX;
use super::*;
use crate::policy::route::OWN_SERIES_MAX;

/// The longest name of the configuration, in bytes.
const NAME_MAX: usize = 64;
/// Codes of a delivery with their blame, and the longest of them.
const OUTCOMES: usize = 40;
const LONGEST_CODE: &str = "client_unauthenticated";

/// Returns a name of the greatest length.
fn name(number: usize) -> String {
    format!("{number:0>NAME_MAX$}")
}

/// Adds every series that there may be.
fn fill(metrics: &Metrics) {
    // Larger than any real value in its text.
    let steps = [Some(123.456_789); STEPS.len()];
    let codes: Vec<&'static str> = (0..OUTCOMES).map(|n| &*format!("{LONGEST_CODE}{n}").leak()).collect();
    let routes: Vec<Arc<RouteSeries>> =
        (0..OWN_SERIES_MAX).map(|n| metrics.routes.own(&RouteName::new(name(n)))).collect();
    let shared = [metrics.route_series(None)];
    for series in routes.iter().chain(&shared) {
        let trace_id = Some([0xff; 16]);
        codes.iter().for_each(|code| series.observe(code, "outgate", &steps, Some(123.456_789), trace_id));
        let buckets = super::histogram::BOUNDS;
        buckets.iter().for_each(|b| series.observe(codes[0], "outgate", &[Some(*b); STEPS.len()], Some(*b), trace_id));
    }
    for n in 0..SERIES_MAX + 10 {
        let name = name(n);
        let code = codes[n % OUTCOMES];
        let series = &routes[n % OWN_SERIES_MAX];
        metrics.split(series, ["main", "split"][n % 2], code);
        metrics.unverified(series);
        metrics.would_take(series);
        metrics.report_only("route", &name, code);
        metrics.token_request(&CredentialName::new(&*name), code);
        let source = IpAddr::from([0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, n as u16 | 0x8000]);
        metrics.connect_attempt(&PoolName::new(&*name), source, "unreachable");
    }
    let names: Vec<String> = (0..SERIES_MAX + 10).map(name).collect();
    let limits: Vec<_> = names.iter().map(|name| (LimitName::new(&**name), LimitReport::default())).collect();
    metrics.limits(&limits);
    let pools: Vec<PoolName> = names.iter().map(|name| PoolName::new(&**name)).collect();
    metrics.pools(pools.iter().map(|pool| (pool, AddressCount { configured: u128::MAX, usable: u128::MAX })));
    let report = SourceReport { open: u32::MAX, time_wait: u32::MAX, ports_left: u32::MAX };
    metrics.sources(pools.iter().map(|pool| (pool, IpAddr::from([0xffff; 8]), report)));
    let signers: Vec<SignerName> = names.iter().map(|name| SignerName::new(&**name)).collect();
    metrics.signing_keys(signers.iter().map(|signer| (signer, Timestamp::MAX)));
    metrics.tenants(signers.iter().map(|signer| (signer, usize::MAX / 2, 1)));
}

#[test]
fn the_largest_scrape_has_at_most_five_megabytes() {
    let metrics = Metrics::new();
    fill(&metrics);
    let started = std::time::Instant::now();
    let text = metrics.render();
    // Without optimisation, and beside other tests.
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let samples = text.lines().filter(|line| !line.starts_with('#')).count();
    assert!(samples > 25_000 && text.len() <= 5_000_000, "{samples} samples, {} bytes", text.len());
    for family in ["outgate_split_deliveries_total{route=\"*\"", "outgate_limit_decisions_total{limit=\"*\""] {
        assert!(text.contains(family), "{family}");
    }
}

#[test]
fn audit_metric_has_a_series_only_with_an_audit_log() {
    let metrics = Metrics::new();
    let sample = || metrics.render().lines().find(|line| line.starts_with("outgate_audit_writable")).map(str::to_owned);
    assert_eq!(sample(), None);
    metrics.set_audit_writable(Some(false));
    assert_eq!(sample().as_deref(), Some("outgate_audit_writable{} 0"));
    metrics.set_audit_writable(Some(true));
    assert_eq!(sample().as_deref(), Some("outgate_audit_writable{} 1"));
    metrics.set_audit_writable(None);
    assert_eq!(sample(), None);
}

#[test]
fn series_of_all_further_sources_has_their_fewest_ports_and_goes_with_them() {
    let metrics = Metrics::new();
    let pool = PoolName::new("default");
    let source = |n: usize| IpAddr::from([10, 0, (n / 256) as u8, n as u8]);
    let report = |n: usize| SourceReport { open: 1, time_wait: 0, ports_left: n as u32 };
    let overflow = || {
        let text = metrics.render();
        text.lines().find(|line| line.starts_with("outgate_egress_ports_left{pool=\"*\"")).map(str::to_owned)
    };
    metrics.sources((1..=SERIES_MAX + 3).map(|n| (&pool, source(n), report(n))));
    let fewest = format!("outgate_egress_ports_left{{pool=\"*\",address=\"*\"}} {}", SERIES_MAX + 1);
    assert_eq!(overflow(), Some(fewest));
    metrics.sources((1..=3).map(|n| (&pool, source(n), report(n))));
    assert_eq!(overflow(), None);
}
