//! Limits as deliveries meet them: rates, places, waiting in line, reloads.
//! Does a limit hold, whatever happens around it?

use std::future::Future;
use std::num::NonZeroU32;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use governor::clock::FakeRelativeClock;
use outgate::config::LimitScope;
use outgate::names::{ClientName, Host, LimitName, PoolName, RouteName};
use outgate::policy::limits::{Limit, Quota, rate_limit_headers};
use outgate::state::limits::{LimitExceeded, LimitKind, LimitPermit, Limits};
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

type Admission = Result<LimitPermit, LimitExceeded>;

/// Limits with a clock that the test advances.
struct Bench {
    limits: Limits<FakeRelativeClock>,
    clock: FakeRelativeClock,
}

impl Bench {
    fn new() -> Self {
        let clock = FakeRelativeClock::default();
        Self { limits: Limits::with_clock(clock.clone()), clock }
    }

    fn admit<'a>(&'a self, limits: &'a [Arc<Limit>]) -> Pin<Box<dyn Future<Output = Admission> + Send + 'a>> {
        Box::pin(admit(&self.limits, limits))
    }

    /// Acquires the limits without waiting.
    fn now(&self, limits: &[Arc<Limit>]) -> Admission {
        match poll(&mut self.admit(limits)) {
            Poll::Ready(admission) => admission,
            Poll::Pending => panic!("waits"),
        }
    }

    /// How many pass at this moment.
    fn pass(&self, limit: &Arc<Limit>) -> usize {
        (0..1000).take_while(|_| self.now(std::slice::from_ref(limit)).is_ok()).count()
    }
}

async fn admit<C: governor::clock::Clock>(limits: &Limits<C>, by: &[Arc<Limit>]) -> Admission {
    let (client, route, egress) = (ClientName::new("c"), RouteName::new("r"), PoolName::new("e"));
    let host = Host::Name("hooks.acme.example".into());
    let who = outgate::policy::limits::LimitDescriptor {
        client: &client,
        tenant: None,
        route: &route,
        host: &host,
        egress: &egress,
    };
    limits.acquire(by, &who).await
}

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Waiting needs a timer, if only to give up.
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
        per: vec![LimitScope::Host],
        wait,
        bandwidth: None,
        report_only: false,
    })
}

fn rate(count: u32, period: Duration, burst: u32) -> Arc<Limit> {
    limit("l", Some(quota(count, period, burst)), None, Duration::ZERO)
}

fn at_once(maximum: u32, wait: Duration) -> Arc<Limit> {
    limit("l", None, Some(maximum), wait)
}

#[test]
fn limit_permit_is_send_and_static() {
    fn sendable<T: Send + Sync + 'static>() {}
    sendable::<LimitPermit>();
}

#[test]
fn rate_limit_admits_its_burst_and_then_its_rate() {
    let bench = Bench::new();
    let limit = rate(2, SECOND, 3);
    assert_eq!(bench.pass(&limit), 3);
    let refused = bench.now(std::slice::from_ref(&limit)).err().unwrap();
    assert_eq!((refused.kind, refused.limit.as_str()), (LimitKind::Rate, "l"));
    assert_eq!(refused.retry_after, Duration::from_millis(500));
    let [(_, policy), (_, left)] = rate_limit_headers(&refused.statuses).unwrap();
    assert_eq!((policy.to_str().unwrap(), left.to_str().unwrap()), (r#""l";q=3;w=2"#, r#""l";r=0;t=1"#));

    bench.clock.advance(refused.retry_after);
    assert_eq!(bench.pass(&limit), 1);
    bench.clock.advance(HOUR);
    let permit = bench.now(std::slice::from_ref(&limit)).ok().unwrap();
    let [_, (_, left)] = rate_limit_headers(permit.statuses()).unwrap();
    assert_eq!(left.to_str().unwrap(), r#""l";r=2;t=1"#);
    assert_eq!(bench.pass(&limit), 2);
}

proptest! {
    /// However the attempts fall, never more than the burst and what came back since pass.
    #[test]
    fn never_more_than_burst_and_rate(
        count in 1u32..200, seconds in prop::sample::select(vec![1u64, 60, 3600]), burst in 1u32..50,
        steps in prop::collection::vec((0u64..3_000_000_000, 1usize..20), 1..60),
    ) {
        let bench = Bench::new();
        let limit = rate(count, Duration::from_secs(seconds), burst);
        let (mut elapsed, mut passed) = (0u128, 0u128);
        for (nanos, attempts) in steps {
            bench.clock.advance(Duration::from_nanos(nanos));
            elapsed += u128::from(nanos);
            for _ in 0..attempts {
                passed += u128::from(bench.now(std::slice::from_ref(&limit)).is_ok());
            }
            let period = u128::from(seconds) * 1_000_000_000;
            prop_assert!(passed <= u128::from(burst) + elapsed * u128::from(count) / period);
        }
    }

    /// However often quotas change, all that was earned passes, and no more. Counted in billionths of a token.
    #[test]
    fn reloads_neither_refill_nor_starve(
        changes in prop::collection::vec((1u32..20, 1u32..30, 0u32..500, 1usize..4), 2..60),
    ) {
        const TOKEN: u128 = 1_000_000_000;
        let bench = Bench::new();
        bench.clock.advance(HOUR);
        let mut left = u128::MAX;
        for (count, burst, millis, attempts) in changes {
            left = left.min(u128::from(burst) * TOKEN);
            let limit = rate(count, SECOND, burst);
            let passed = (0..attempts).filter(|_| bench.now(std::slice::from_ref(&limit)).is_ok()).count();
            prop_assert!(passed as u128 * TOKEN <= left);
            prop_assert!(passed as u128 >= (attempts as u128).min(left.saturating_sub(TOKEN / 1000) / TOKEN));
            left -= passed as u128 * TOKEN;
            bench.clock.advance(Duration::from_millis(millis.into()));
            left = (left + u128::from(count * millis) * 1_000_000).min(u128::from(burst) * TOKEN);
        }
    }
}

#[test]
fn rate_limit_keeps_its_bucket_over_a_reload() {
    for (before, used, after, expected) in [
        // The same quota in another plan.
        (rate(1, HOUR, 10), 4, rate(1, HOUR, 10), 6),
        // A larger burst is not there at once; it comes at the rate.
        (rate(1, HOUR, 10), 10, rate(1, HOUR, 20), 0),
        (rate(1, HOUR, 10), 4, rate(1, HOUR, 20), 6),
        // A smaller one holds at once.
        (rate(1, HOUR, 20), 5, rate(1, HOUR, 10), 10),
        (rate(1, HOUR, 20), 15, rate(1, HOUR, 10), 5),
        // Another rate.
        (rate(1, HOUR, 10), 10, rate(1000, SECOND, 10), 0),
    ] {
        let bench = Bench::new();
        for _ in 0..used {
            assert!(bench.now(std::slice::from_ref(&before)).is_ok());
        }
        assert_eq!(bench.pass(&after), expected, "{before:?} {used} {after:?}");
    }
    // A hundred reloads, there and back.
    let bench = Bench::new();
    let plans = [rate(1, HOUR, 10), rate(1, HOUR, 20)];
    let passed = (0..100).filter(|i| bench.now(std::slice::from_ref(&plans[i % 2])).is_ok()).count();
    assert_eq!(passed, 10);
}

#[test]
fn concurrency_limit_counts_deliveries_in_flight_over_a_reload() {
    let bench = Bench::new();
    let (two, three, one) = ([at_once(2, Duration::ZERO)], [at_once(3, Duration::ZERO)], [at_once(1, Duration::ZERO)]);
    let mut held = vec![bench.now(&two).ok().unwrap(), bench.now(&two).ok().unwrap()];
    let refused = bench.now(&two).err().unwrap();
    assert_eq!((refused.kind, refused.retry_after), (LimitKind::Concurrency, SECOND));
    held.push(bench.now(&three).ok().unwrap());
    assert!(bench.now(&three).is_err());
    held.truncate(1);
    assert!(bench.now(&one).is_err());
    held.clear();
    assert!(bench.now(&one).is_ok());
}

#[test]
fn limits_of_a_delivery_are_acquired_all_or_none() {
    let bench = Bench::new();
    let places = limit("places", None, Some(1), Duration::ZERO);
    let tokens = limit("tokens", Some(quota(1, HOUR, 1)), None, Duration::ZERO);
    let both = [places.clone(), tokens.clone()];
    assert!(bench.now(&both).is_ok());
    let refused = bench.now(&both).err().unwrap();
    assert_eq!(refused.limit.as_str(), "tokens");
    let held = bench.now(std::slice::from_ref(&places));
    assert!(held.is_ok(), "the place taken for the refused delivery is free again");
    // A delivery that gets no permit spends no token.
    bench.clock.advance(HOUR);
    assert!(bench.now(&[tokens.clone(), places]).is_err());
    assert_eq!(bench.pass(&tokens), 1);
}

#[test]
fn concurrency_permits_are_granted_in_order_of_arrival() {
    let (bench, runtime) = (Bench::new(), runtime());
    let _timer = runtime.enter();
    let limit = [at_once(1, HOUR)];
    let first = bench.now(&limit).ok().unwrap();
    let [mut second, mut third, mut fourth] = [bench.admit(&limit), bench.admit(&limit), bench.admit(&limit)];
    for waiting in [&mut second, &mut third, &mut fourth] {
        assert!(poll(waiting).is_pending());
    }
    assert!(bench.now(&[at_once(1, Duration::ZERO)]).is_err());
    drop(first);
    assert!(bench.now(&[at_once(1, Duration::ZERO)]).is_err(), "nobody overtakes");
    assert!(poll(&mut fourth).is_pending());
    let Poll::Ready(Ok(permit)) = poll(&mut second) else { panic!("not served") };
    drop(second);
    // The next in line hangs up; the one behind moves up.
    assert!(poll(&mut third).is_pending());
    drop(third);
    assert!(poll(&mut fourth).is_pending());
    drop(permit);
    assert!(matches!(poll(&mut fourth), Poll::Ready(Ok(_))));
    drop(fourth);
    assert!(bench.now(&limit).is_ok(), "nothing is left behind");
}

#[test]
fn concurrency_limit_raised_by_a_reload_admits_waiters() {
    let (bench, runtime) = (Bench::new(), runtime());
    let _timer = runtime.enter();
    let (old, new) = ([at_once(1, HOUR)], [at_once(3, HOUR)]);
    let _first = bench.now(&old);
    let mut second = bench.admit(&old);
    assert!(poll(&mut second).is_pending());
    let third = bench.now(&new);
    assert!(third.is_ok());
    let _second = poll(&mut second);
    assert!(matches!(_second, Poll::Ready(Ok(_))), "admitted together with the third");
    assert!(poll(&mut bench.admit(&new)).is_pending(), "the raised limit is used up");
}

#[test]
fn limit_queue_is_bounded() {
    let (bench, runtime) = (Bench::new(), runtime());
    let _timer = runtime.enter();
    let limit = [at_once(1, HOUR)];
    let _first = bench.now(&limit);
    let mut line: Vec<_> = (0..1000).map(|_| bench.admit(&limit)).collect();
    assert!(line.iter_mut().all(|waiting| poll(waiting).is_pending()));
    assert!(bench.now(&limit).is_err());
    drop(line);
    assert!(poll(&mut bench.admit(&limit)).is_pending());
}

#[test]
fn rate_limit_refuses_at_once_a_delivery_that_its_wait_does_not_cover() {
    let (bench, runtime) = (Bench::new(), runtime());
    let _timer = runtime.enter();
    let limit = [limit("l", Some(quota(1, HOUR, 1)), None, SECOND)];
    assert!(bench.now(&limit).is_ok());
    assert_eq!(bench.now(&limit).err().unwrap().retry_after, HOUR);
}

#[test]
fn concurrency_limit_refuses_a_waiter_after_its_wait() {
    let bench = Bench::new();
    let limit = [at_once(1, Duration::from_millis(20))];
    let _first = bench.now(&limit);
    let refused = runtime().block_on(bench.admit(&limit)).err().unwrap();
    assert_eq!(refused.kind, LimitKind::Concurrency);
}

#[test]
fn rate_limit_releases_waiters_in_order_of_arrival() {
    let limits = Limits::default();
    let by = [limit("l", Some(quota(200, SECOND, 1)), None, HOUR)];
    let begun = std::time::Instant::now();
    let mut order = Vec::new();
    runtime().block_on(async {
        let mut line: Vec<_> = (0..6).map(|_| Box::pin(admit(&limits, &by))).collect();
        let mut served = vec![false; line.len()];
        std::future::poll_fn(|context| {
            for i in 0..line.len() {
                if !served[i] && pin!(&mut line[i]).poll(context).is_ready() {
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
    let bench = Bench::new();
    let limit = [rate(1, SECOND, 1)];
    let permit = bench.now(&limit);
    bench.clock.advance(HOUR);
    runtime().block_on(bench.limits.sweep());
    assert_eq!(bench.limits.key_count(), 1);
    drop(permit);
    runtime().block_on(bench.limits.sweep());
    assert_eq!(bench.limits.key_count(), 0);
}
