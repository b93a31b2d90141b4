//! Rates, concurrency permits, queues and reloads of limits.
//! Does a limit hold under time, hang-ups and reloads?

use std::future::Future;
use std::num::NonZeroU32;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use governor::clock::FakeRelativeClock;
use outgate::config::LimitDimension;
use outgate::names::{ClientName, Host, LimitName, PoolName, RouteName};
use outgate::policy::limits::{Limit, Quota, rate_limit_headers};
use outgate::state::limits::{LimitExceeded, LimitKind, LimitPermit, Limits};
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

type Admission = Result<LimitPermit, LimitExceeded>;

/// Limits and their clock, which the test advances.
struct Fixture {
    limits: Limits<FakeRelativeClock>,
    clock: FakeRelativeClock,
}

impl Fixture {
    fn new() -> Self {
        let clock = FakeRelativeClock::default();
        Self { limits: Limits::with_clock(clock.clone()), clock }
    }

    fn acquire<'a>(&'a self, limits: &'a [Arc<Limit>]) -> Pin<Box<dyn Future<Output = Admission> + Send + 'a>> {
        Box::pin(acquire(&self.limits, limits))
    }

    /// Acquires the limits without waiting.
    fn try_acquire(&self, limits: &[Arc<Limit>]) -> Admission {
        match poll(&mut self.acquire(limits)) {
            Poll::Ready(admission) => admission,
            Poll::Pending => panic!("waits"),
        }
    }

    /// Returns the number of deliveries that the limit admits at this moment.
    fn count_admitted(&self, limit: &Arc<Limit>) -> usize {
        (0..1000).take_while(|_| self.try_acquire(std::slice::from_ref(limit)).is_ok()).count()
    }
}

async fn acquire<C: governor::clock::Clock>(limits: &Limits<C>, configured: &[Arc<Limit>]) -> Admission {
    let (client, route, egress) = (ClientName::new("c"), RouteName::new("r"), PoolName::new("e"));
    let host = Host::Name("hooks.acme.example".into());
    let descriptor = outgate::policy::limits::LimitDescriptor {
        client: &client,
        tenant: None,
        route: &route,
        host: &host,
        egress: &egress,
    };
    limits.acquire(configured, &descriptor).await
}

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Returns a runtime with a timer, which a waiting delivery needs.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a timer")
}

fn quota(count: u32, period: Duration, burst: u32) -> Quota {
    let [count, burst] = [count, burst].map(|n| NonZeroU32::new(n).expect("not zero"));
    Quota { count, period, burst }
}

fn limit(name: &str, quota: Option<Quota>, concurrency: Option<u32>, wait: Duration) -> Arc<Limit> {
    Arc::new(Limit {
        name: LimitName::new(name),
        quota,
        concurrency,
        per: vec![LimitDimension::Host],
        wait,
        bandwidth: None,
        is_fleet_wide: false,
        report_only: false,
    })
}

fn rate(count: u32, period: Duration, burst: u32) -> Arc<Limit> {
    limit("l", Some(quota(count, period, burst)), None, Duration::ZERO)
}

fn concurrency_limit(maximum: u32, wait: Duration) -> Arc<Limit> {
    limit("l", None, Some(maximum), wait)
}

#[test]
fn limit_permit_is_send_and_static() {
    fn assert_send<T: Send + Sync + 'static>() {}
    assert_send::<LimitPermit>();
}

#[test]
fn rate_limit_admits_its_burst_and_then_its_rate() {
    let fixture = Fixture::new();
    let limit = rate(2, SECOND, 3);
    assert_eq!(fixture.count_admitted(&limit), 3);
    let refused = fixture.try_acquire(std::slice::from_ref(&limit)).err().unwrap();
    assert_eq!((refused.kind, refused.limit.as_str()), (LimitKind::Rate, "l"));
    assert_eq!(refused.retry_after, Duration::from_millis(500));
    let [(_, policy), (_, left)] = rate_limit_headers(&refused.statuses).unwrap();
    assert_eq!((policy.to_str().unwrap(), left.to_str().unwrap()), (r#""l";q=3;w=2"#, r#""l";r=0;t=1"#));

    fixture.clock.advance(refused.retry_after);
    assert_eq!(fixture.count_admitted(&limit), 1);
    fixture.clock.advance(HOUR);
    let permit = fixture.try_acquire(std::slice::from_ref(&limit)).ok().unwrap();
    let [_, (_, left)] = rate_limit_headers(permit.statuses()).unwrap();
    assert_eq!(left.to_str().unwrap(), r#""l";r=2;t=1"#);
    assert_eq!(fixture.count_admitted(&limit), 2);
}

proptest! {
    /// A limit admits at most the burst and the replenished tokens.
    #[test]
    fn never_more_than_burst_and_rate(
        count in 1u32..200, seconds in prop::sample::select(vec![1u64, 60, 3600]), burst in 1u32..50,
        steps in prop::collection::vec((0u64..3_000_000_000, 1usize..20), 1..60),
    ) {
        let fixture = Fixture::new();
        let limit = rate(count, Duration::from_secs(seconds), burst);
        let (mut elapsed, mut passed) = (0u128, 0u128);
        for (nanos, attempts) in steps {
            fixture.clock.advance(Duration::from_nanos(nanos));
            elapsed += u128::from(nanos);
            for _ in 0..attempts {
                passed += u128::from(fixture.try_acquire(std::slice::from_ref(&limit)).is_ok());
            }
            let period = u128::from(seconds) * 1_000_000_000;
            prop_assert!(passed <= u128::from(burst) + elapsed * u128::from(count) / period);
        }
    }

    /// A limit keeps its tokens over changes of the quota. The test counts in billionths of a token.
    #[test]
    fn reloads_neither_refill_nor_starve(
        changes in prop::collection::vec((1u32..20, 1u32..30, 0u32..500, 1usize..4), 2..60),
    ) {
        const TOKEN: u128 = 1_000_000_000;
        let fixture = Fixture::new();
        fixture.clock.advance(HOUR);
        let mut left = u128::MAX;
        for (count, burst, millis, attempts) in changes {
            left = left.min(u128::from(burst) * TOKEN);
            let limit = rate(count, SECOND, burst);
            let passed = (0..attempts).filter(|_| fixture.try_acquire(std::slice::from_ref(&limit)).is_ok()).count();
            prop_assert!(passed as u128 * TOKEN <= left);
            prop_assert!(passed as u128 >= (attempts as u128).min(left.saturating_sub(TOKEN / 1000) / TOKEN));
            left -= passed as u128 * TOKEN;
            fixture.clock.advance(Duration::from_millis(millis.into()));
            left = (left + u128::from(count * millis) * 1_000_000).min(u128::from(burst) * TOKEN);
        }
    }
}

#[test]
fn rate_limit_keeps_its_bucket_over_a_reload() {
    for (before, used, after, expected) in [
        // The same quota in another plan.
        (rate(1, HOUR, 10), 4, rate(1, HOUR, 10), 6),
        // A larger burst is not available at once. Its tokens come at the rate.
        (rate(1, HOUR, 10), 10, rate(1, HOUR, 20), 0),
        (rate(1, HOUR, 10), 4, rate(1, HOUR, 20), 6),
        // A smaller burst takes effect at once.
        (rate(1, HOUR, 20), 5, rate(1, HOUR, 10), 10),
        (rate(1, HOUR, 20), 15, rate(1, HOUR, 10), 5),
        // Another rate.
        (rate(1, HOUR, 10), 10, rate(1000, SECOND, 10), 0),
    ] {
        let fixture = Fixture::new();
        for _ in 0..used {
            assert!(fixture.try_acquire(std::slice::from_ref(&before)).is_ok());
        }
        assert_eq!(fixture.count_admitted(&after), expected, "{before:?} {used} {after:?}");
    }
    // A hundred reloads that alternate between two quotas.
    let fixture = Fixture::new();
    let plans = [rate(1, HOUR, 10), rate(1, HOUR, 20)];
    let passed = (0..100).filter(|i| fixture.try_acquire(std::slice::from_ref(&plans[i % 2])).is_ok()).count();
    assert_eq!(passed, 10);
}

#[test]
fn concurrency_limit_counts_deliveries_in_flight_over_a_reload() {
    let fixture = Fixture::new();
    let (two, three, one) = (
        [concurrency_limit(2, Duration::ZERO)],
        [concurrency_limit(3, Duration::ZERO)],
        [concurrency_limit(1, Duration::ZERO)],
    );
    let mut held = vec![fixture.try_acquire(&two).ok().unwrap(), fixture.try_acquire(&two).ok().unwrap()];
    let refused = fixture.try_acquire(&two).err().unwrap();
    assert_eq!((refused.kind, refused.retry_after), (LimitKind::Concurrency, SECOND));
    held.push(fixture.try_acquire(&three).ok().unwrap());
    assert!(fixture.try_acquire(&three).is_err());
    held.truncate(1);
    assert!(fixture.try_acquire(&one).is_err());
    held.clear();
    assert!(fixture.try_acquire(&one).is_ok());
}

#[test]
fn limits_of_a_delivery_are_acquired_all_or_none() {
    let fixture = Fixture::new();
    let permits = limit("places", None, Some(1), Duration::ZERO);
    let tokens = limit("tokens", Some(quota(1, HOUR, 1)), None, Duration::ZERO);
    let both = [permits.clone(), tokens.clone()];
    assert!(fixture.try_acquire(&both).is_ok());
    let refused = fixture.try_acquire(&both).err().unwrap();
    assert_eq!(refused.limit.as_str(), "tokens");
    let held = fixture.try_acquire(std::slice::from_ref(&permits));
    assert!(held.is_ok(), "the permit of the refused delivery is free again");
    // A delivery that gets no permit spends no token.
    fixture.clock.advance(HOUR);
    assert!(fixture.try_acquire(&[tokens.clone(), permits]).is_err());
    assert_eq!(fixture.count_admitted(&tokens), 1);
}

#[test]
fn concurrency_permits_are_granted_in_order_of_arrival() {
    let (fixture, runtime) = (Fixture::new(), runtime());
    let _timer = runtime.enter();
    let limit = [concurrency_limit(1, HOUR)];
    let first = fixture.try_acquire(&limit).ok().unwrap();
    let [mut second, mut third, mut fourth] =
        [fixture.acquire(&limit), fixture.acquire(&limit), fixture.acquire(&limit)];
    for waiting in [&mut second, &mut third, &mut fourth] {
        assert!(poll(waiting).is_pending());
    }
    assert!(fixture.try_acquire(&[concurrency_limit(1, Duration::ZERO)]).is_err());
    drop(first);
    assert!(fixture.try_acquire(&[concurrency_limit(1, Duration::ZERO)]).is_err(), "a new delivery does not overtake");
    assert!(poll(&mut fourth).is_pending());
    let Poll::Ready(Ok(permit)) = poll(&mut second) else { panic!("not served") };
    drop(second);
    // The next waiting delivery hangs up, so the one after it moves up.
    assert!(poll(&mut third).is_pending());
    drop(third);
    assert!(poll(&mut fourth).is_pending());
    drop(permit);
    assert!(matches!(poll(&mut fourth), Poll::Ready(Ok(_))));
    drop(fourth);
    assert!(fixture.try_acquire(&limit).is_ok(), "the permit is free again");
}

#[test]
fn concurrency_limit_raised_by_a_reload_admits_waiters() {
    let (fixture, runtime) = (Fixture::new(), runtime());
    let _timer = runtime.enter();
    let (old, new) = ([concurrency_limit(1, HOUR)], [concurrency_limit(3, HOUR)]);
    let _first = fixture.try_acquire(&old);
    let mut second = fixture.acquire(&old);
    assert!(poll(&mut second).is_pending());
    let third = fixture.try_acquire(&new);
    assert!(third.is_ok());
    let _second = poll(&mut second);
    assert!(matches!(_second, Poll::Ready(Ok(_))), "admitted together with the third");
    assert!(poll(&mut fixture.acquire(&new)).is_pending(), "the raised limit is used up");
}

#[test]
fn limit_queue_is_bounded() {
    let (fixture, runtime) = (Fixture::new(), runtime());
    let _timer = runtime.enter();
    let limit = [concurrency_limit(1, HOUR)];
    let _first = fixture.try_acquire(&limit);
    let mut queue: Vec<_> = (0..1000).map(|_| fixture.acquire(&limit)).collect();
    assert!(queue.iter_mut().all(|waiting| poll(waiting).is_pending()));
    assert!(fixture.try_acquire(&limit).is_err());
    drop(queue);
    assert!(poll(&mut fixture.acquire(&limit)).is_pending());
}

#[test]
fn rate_limit_refuses_at_once_a_delivery_that_its_wait_does_not_cover() {
    let (fixture, runtime) = (Fixture::new(), runtime());
    let _timer = runtime.enter();
    let limit = [limit("l", Some(quota(1, HOUR, 1)), None, SECOND)];
    assert!(fixture.try_acquire(&limit).is_ok());
    assert_eq!(fixture.try_acquire(&limit).err().unwrap().retry_after, HOUR);
}

#[test]
fn concurrency_limit_refuses_a_waiter_after_its_wait() {
    let fixture = Fixture::new();
    let limit = [concurrency_limit(1, Duration::from_millis(20))];
    let _first = fixture.try_acquire(&limit);
    let refused = runtime().block_on(fixture.acquire(&limit)).err().unwrap();
    assert_eq!(refused.kind, LimitKind::Concurrency);
}

#[test]
fn rate_limit_releases_waiters_in_order_of_arrival() {
    let limits = Limits::default();
    let configured = [limit("l", Some(quota(200, SECOND, 1)), None, HOUR)];
    let begun = std::time::Instant::now();
    let mut order = Vec::new();
    runtime().block_on(async {
        let mut queue: Vec<_> = (0..6).map(|_| Box::pin(acquire(&limits, &configured))).collect();
        let mut served = vec![false; queue.len()];
        std::future::poll_fn(|context| {
            for i in 0..queue.len() {
                if !served[i] && pin!(&mut queue[i]).poll(context).is_ready() {
                    served[i] = true;
                    order.push(i);
                }
            }
            if order.len() == served.len() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    });
    assert_eq!(order, [0, 1, 2, 3, 4, 5]);
    assert!(begun.elapsed() >= Duration::from_millis(25), "{:?}", begun.elapsed());
}

#[test]
fn limit_sweep_keeps_the_entries_of_deliveries_in_flight() {
    let fixture = Fixture::new();
    let limit = [rate(1, SECOND, 1)];
    let permit = fixture.try_acquire(&limit);
    fixture.clock.advance(HOUR);
    runtime().block_on(fixture.limits.sweep());
    assert_eq!(fixture.limits.key_count(), 1);
    drop(permit);
    runtime().block_on(fixture.limits.sweep());
    assert_eq!(fixture.limits.key_count(), 0);
}
