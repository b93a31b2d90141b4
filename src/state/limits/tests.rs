//! Tests of the limits with a clock that stands still.
//! Are keys bounded in number, and is their use reported?

use super::*;
use crate::config::LimitDimension;
use crate::names::{ClientName, Host, PoolName, RouteName};
use crate::policy::limits::Quota;
use governor::clock::FakeRelativeClock;
use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

const HOUR: Duration = Duration::from_secs(3600);

/// Polls a future that waits for no timer until it is ready.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    let (mut future, mut context) = (pin!(future), Context::from_waker(Waker::noop()));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
}

fn with_host<T>(host: usize, then: impl FnOnce(&LimitDescriptor<'_>) -> T) -> T {
    let (client, route, egress) = (ClientName::new("c"), RouteName::new("r"), PoolName::new("e"));
    let host = Host::Name(host.to_string().into());
    then(&LimitDescriptor { client: &client, tenant: None, route: &route, host: &host, egress: &egress })
}

fn acquire(limits: &Limits<FakeRelativeClock>, limit: &Arc<Limit>, host: usize) -> Result<LimitPermit, LimitExceeded> {
    with_host(host, |descriptor| block_on(limits.acquire(std::slice::from_ref(limit), descriptor)))
}

fn limit(count: u32, burst: u32, concurrency: u32) -> Arc<Limit> {
    let [count, burst] = [count, burst].map(|n| NonZeroU32::new(n).unwrap());
    Arc::new(Limit {
        name: LimitName::new("l"),
        quota: Some(Quota { count, period: HOUR, burst }),
        concurrency: Some(concurrency),
        per: vec![LimitDimension::Host],
        wait: Duration::ZERO,
        bandwidth: None,
        is_fleet_wide: false,
        report_only: false,
    })
}

#[test]
fn limit_keys_are_bounded_and_a_flood_of_new_keys_resets_none() {
    let clock = FakeRelativeClock::default();
    let limits = Limits { keys_max: SHARDS, ..Limits::with_clock(clock.clone()) };
    let limit = limit(1, 1, 1);
    let admitted = |host| acquire(&limits, &limit, host).is_ok();
    let flood = (0..5000).filter(|&host| admitted(host)).count();
    assert_eq!(
        (limits.key_count(), flood),
        (SHARDS, 2 * SHARDS),
        "one for each key in the table, and one for each overflow"
    );
    assert!(!admitted(0), "the first key keeps its state");
    assert!(!admitted(9000), "and the overflow keeps its own");

    // An hour later all tokens are back, and idle keys make room for new ones.
    clock.advance(HOUR);
    let again = (5000..10_000).filter(|&host| admitted(host)).count();
    assert_eq!((limits.key_count(), again), (SHARDS, 2 * SHARDS));

    block_on(limits.sweep());
    assert_eq!(limits.key_count(), SHARDS, "none of them is idle");
    clock.advance(HOUR);
    block_on(limits.sweep());
    assert_eq!((limits.key_count(), limits.tables.read().len()), (0, 0));
}

/// A key that was counted in the overflow inherits its debt when it gets its own state.
#[test]
fn limit_key_that_leaves_the_overflow_inherits_its_debt() {
    let clock = FakeRelativeClock::default();
    let limits = Limits { keys_max: SHARDS, ..Limits::with_clock(clock.clone()) };
    let limit = limit(10, 10, 2000);
    let left = || with_host(5000, |descriptor| limits.usage(&limit, descriptor).rate.unwrap().remaining);
    (0..5000).for_each(|host| drop(acquire(&limits, &limit, host)));
    assert_eq!((limits.key_count(), left()), (SHARDS, 0), "the overflow is used up");
    // One token comes back to each: the keys in the table have used no more than one.
    clock.advance(HOUR / 10);
    block_on(limits.sweep());
    assert_eq!((limits.key_count(), left()), (0, 1));
    let used = (0..10).filter(|_| acquire(&limits, &limit, 5000).is_ok()).count();
    assert_eq!((limits.key_count(), used), (1, 1));
}

#[test]
fn limit_usage_adds_no_key() {
    let clock = FakeRelativeClock::default();
    let limits = Limits::with_clock(clock.clone());
    let limit = limit(2, 3, 2);
    let usage = |host| with_host(host, |descriptor| limits.usage(&limit, descriptor));
    let fresh = RateStatus { remaining: 3, retry_after: Duration::ZERO };
    let unused = LimitUsage { rate: Some(fresh), in_flight: 0, max_in_flight: Some(2), waiting: 0 };
    assert_eq!((usage(1), limits.key_count()), (unused, 0));
    let held = acquire(&limits, &limit, 1);
    let rate = Some(RateStatus { remaining: 2, retry_after: HOUR / 2 });
    assert_eq!(usage(1), LimitUsage { rate, in_flight: 1, ..unused });
    assert_eq!((usage(2), limits.key_count()), (unused, 1));
    drop(held);
    clock.advance(HOUR / 4);
    let rate = Some(RateStatus { remaining: 2, retry_after: HOUR / 4 });
    assert_eq!(usage(1), LimitUsage { rate, ..unused });
}

#[test]
fn limit_report_counts_decisions_and_keys_near_full() {
    let clock = FakeRelativeClock::default();
    let limits = Limits::with_clock(clock.clone());
    let limit = limit(10, 10, 2000);
    let report = || {
        block_on(limits.sweep());
        let reports = limits.report(|name| name.as_str() == "l");
        reports.first().map(|(_, report)| *report).unwrap_or_default()
    };
    assert_eq!(report(), LimitReport::default());
    let taken = |host, count| (0..count).filter(|_| acquire(&limits, &limit, host).is_ok()).count();
    assert_eq!((taken(1, 8), taken(2, 11)), (8, 10));
    let full = LimitReport { allowed: 18, paced: 0, refused: 1, keys: 2, keys_near_full: 1 };
    assert_eq!(report(), full);
    assert_eq!(taken(1, 1), 1);
    assert_eq!(report(), LimitReport { allowed: 19, keys_near_full: 2, ..full });
    clock.advance(HOUR);
    assert_eq!(
        report(),
        LimitReport { allowed: 19, keys: 0, keys_near_full: 0, ..full },
        "the counts outlive the keys"
    );
    assert!(limits.report(|_| false).is_empty());
    assert_eq!(report(), LimitReport::default(), "a removed limit starts again");
}

#[tokio::test(start_paused = true)]
async fn limit_report_tells_a_paced_delivery_from_an_allowed_one() {
    let limits = Limits::default();
    let mut limit = Arc::into_inner(limit(10, 10, 1)).unwrap();
    limit.wait = Duration::from_secs(1);
    let limit = [Arc::new(limit)];
    let (client, route, egress) = (ClientName::new("c"), RouteName::new("r"), PoolName::new("e"));
    let host = Host::Name("h".into());
    let descriptor = LimitDescriptor { client: &client, tenant: None, route: &route, host: &host, egress: &egress };
    let held = limits.acquire(&limit, &descriptor).await.unwrap();
    let (waiting, released) = tokio::join!(limits.acquire(&limit, &descriptor), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        drop(held);
    });
    let ((), Ok(_held)) = (released, waiting) else { panic!("the second delivery gets the permit of the first") };
    assert!(limits.acquire(&limit, &descriptor).await.is_err(), "the wait ends");
    let reports = limits.report(|_| true);
    let [(_, report)] = reports.as_slice() else { panic!("{reports:?}") };
    assert_eq!((report.allowed, report.paced, report.refused), (1, 1, 1));
}

/// Otherwise, they would take the tokens of the key that came first.
#[test]
fn fleet_limit_counts_keys_without_room_under_names_of_their_own() {
    let limits = Limits { keys_max: SHARDS, ..Limits::with_clock(FakeRelativeClock::default()) };
    let text = "[fleet]\nstore = \"redis://127.0.0.1:1\"\ninstance = \"egress-1\"";
    let config = crate::config::parse(text, std::path::Path::new("config.toml")).ok().unwrap().config;
    assert!(limits.fleet.set(Arc::new(Fleet::new(&config.fleet.unwrap(), 1).unwrap())).is_ok());
    let limit = Arc::new(Limit { is_fleet_wide: true, ..Arc::into_inner(limit(1, 1, 1)).unwrap() });
    let mut held = Vec::new(); // otherwise, idle keys would make room
    let names = |host| {
        with_host(host, |descriptor| {
            let claim = limits.claim(&limit, descriptor);
            let name = claim.limiter.0.lock().key().unwrap().name.to_string();
            held.push(claim);
            (name, limit.fleet_key(descriptor))
        })
    };
    let (own, shared): (Vec<_>, Vec<_>) = (0..5000).map(names).partition(|(name, own)| name == own);
    let shared: BTreeSet<String> = shared.into_iter().map(|(name, _)| name).collect();
    let expected: BTreeSet<String> = (0..SHARDS).map(|number| limit.fleet_overflow_key(number)).collect();
    assert_eq!((own.len(), shared), (SHARDS, expected));
}
