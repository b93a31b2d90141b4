//! Property tests of limits under random sequences of time, attempts, reloads and hang-ups.
//! Does a limit admit exactly as many deliveries as it should?

use std::collections::VecDeque;
use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use governor::clock::FakeRelativeClock;
use outgate::config::LimitDimension;
use outgate::names::{ClientName, Host, LimitName, PoolName, RouteName};
use outgate::policy::limits::{Limit, LimitDescriptor, Quota};
use outgate::state::limits::{LimitExceeded, LimitPermit, Limits};
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(1);

type Attempt<'a> = Pin<Box<dyn Future<Output = Result<LimitPermit, LimitExceeded>> + 'a>>;

fn limit(quota: Option<Quota>, concurrency: Option<u32>, wait: Duration) -> [Arc<Limit>; 1] {
    let (name, per) = (LimitName::new("l"), vec![LimitDimension::Host]);
    [Arc::new(Limit { name, quota, concurrency, per, wait, bandwidth: None, is_fleet_wide: false, report_only: false })]
}

fn quota(count: u32, period: Duration, burst: u32) -> Quota {
    let [count, burst] = [count, burst].map(|n| NonZeroU32::new(n).expect("not zero"));
    Quota { count, period, burst }
}

fn attempt<'a>(limits: &'a Limits<FakeRelativeClock>, configured: [Arc<Limit>; 1]) -> Attempt<'a> {
    Box::pin(async move {
        let (client, route, egress) = (ClientName::new("c"), RouteName::new("r"), PoolName::new("e"));
        let host = Host::Name("hooks.acme.example".into());
        limits
            .acquire(
                &configured,
                &LimitDescriptor { client: &client, tenant: None, route: &route, host: &host, egress: &egress },
            )
            .await
    })
}

fn poll<T>(attempt: &mut Pin<Box<dyn Future<Output = T> + '_>>) -> Poll<T> {
    attempt.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// Runs a future with paused time, which the test advances.
fn with_paused_time(then: impl Future<Output = Result<(), TestCaseError>>) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a timer").block_on(then)
}

#[derive(Clone, Debug)]
enum Event {
    /// Attempts to acquire the limit, with this wait in milliseconds.
    Advance(u32),
    /// Attempts to acquire the limit, with this wait in milliseconds.
    Attempt(u64),
    /// Changes the count per second and the burst from the next attempt on.
    Reload(u32, u32),
    /// Drops one of the queued attempts.
    HangUp(prop::sample::Index),
    /// Ends one of the admitted deliveries.
    End(prop::sample::Index),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (0u32..300).prop_map(Event::Advance),
        6 => prop::sample::select(vec![0u64, 0, 50, 400, 3000]).prop_map(Event::Attempt),
        1 => (prop::sample::select(vec![1u32, 2, 5, 8, 20, 50, 100]), 1u32..8).prop_map(|(n, b)| Event::Reload(n, b)),
        1 => any::<prop::sample::Index>().prop_map(Event::HangUp),
        2 => any::<prop::sample::Index>().prop_map(Event::End),
    ];
    prop::collection::vec(event, 1..80)
}

/// The model of the limit: a token bucket.
struct Tokens {
    left: f64,
    count: f64,
    burst: f64,
    /// The number of ticks for which a token has been available while an attempt waits.
    due: u32,
}

/// The rounding error of the model, in tokens.
const TOLERANCE: f64 = 1e-4;
/// Timers have a resolution of 1 ms and round up.
const LATE_TICKS_MAX: u32 = 3;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A limit admits in any window at most the burst and the tokens that the window replenishes.
    #[test]
    fn rate_limit_admits_no_more_than_its_rate_in_any_window(
        count in 1u32..200, seconds in prop::sample::select(vec![1u64, 60, 3600]), burst in 1u32..20,
        steps in prop::collection::vec((0u64..3_000_000_000, 1usize..20), 1..40),
    ) {
        let clock = FakeRelativeClock::default();
        let limits = Limits::with_clock(clock.clone());
        let configured = limit(Some(quota(count, Duration::from_secs(seconds), burst)), None, Duration::ZERO);
        let (mut now, mut passed) = (0u128, Vec::new());
        for (nanos, attempts) in steps {
            clock.advance(Duration::from_nanos(nanos));
            now += u128::from(nanos);
            for _ in 0..attempts {
                if matches!(poll(&mut attempt(&limits, configured.clone())), Poll::Ready(Ok(_))) {
                    passed.push(now);
                }
            }
        }
        let period = u128::from(seconds) * 1_000_000_000;
        for (i, from) in passed.iter().enumerate() {
            for (j, until) in passed.iter().enumerate().skip(i) {
                prop_assert!((j - i + 1) as u128 <= u128::from(burst) + (until - from) * u128::from(count) / period);
            }
        }
    }

    /// A rate limit grants every token when it is due, in order of arrival.
    #[test]
    fn rate_limit_admits_a_delivery_as_soon_as_its_token_is_due(events in events()) {
        with_paused_time(async {
            let clock = FakeRelativeClock::default();
            let limits = Limits::with_clock(clock.clone());
            let mut plan = (20, 3);
            let mut tokens = Tokens { left: f64::INFINITY, count: 20.0, burst: f64::INFINITY, due: 0 };
            let mut queue: VecDeque<Attempt<'_>> = VecDeque::new();
            for event in events {
                match event {
                    Event::Advance(ticks) => for _ in 0..ticks {
                        clock.advance(TICK);
                        tokio::time::advance(TICK).await;
                        tokens.left = (tokens.left + tokens.count / 1000.0).min(tokens.burst);
                        poll_queue(&mut queue, |_| tokens.left -= 1.0)?;
                        prop_assert!(tokens.left > -TOLERANCE, "one too many: {}", tokens.left);
                        let is_due = !queue.is_empty() && tokens.left > 1.0 + TOLERANCE;
                        tokens.due = if is_due { tokens.due + 1 } else { 0 };
                        prop_assert!(tokens.due <= LATE_TICKS_MAX, "one too few: {}", tokens.left);
                    },
                    Event::Attempt(wait) => {
                        let (count, burst) = plan;
                        let quota = quota(count, SECOND, burst);
                        let mut pending = attempt(&limits, limit(Some(quota), None, Duration::from_millis(wait)));
                        let polled = poll(&mut pending);
                        (tokens.count, tokens.burst) = (f64::from(count), f64::from(burst));
                        tokens.left = tokens.left.min(tokens.burst);
                        match polled {
                            Poll::Ready(Ok(_)) => {
                                prop_assert!(queue.is_empty(), "overtaken");
                                tokens.left -= 1.0;
                                prop_assert!(tokens.left > -TOLERANCE, "one too many: {}", tokens.left);
                            }
                            Poll::Ready(Err(_)) => prop_assert!(!queue.is_empty() || tokens.left < 1.0 + TOLERANCE),
                            Poll::Pending => queue.push_back(pending),
                        }
                    }
                    Event::Reload(count, burst) => plan = (count, burst),
                    Event::HangUp(index) if !queue.is_empty() => drop(queue.remove(index.index(queue.len()))),
                    Event::HangUp(_) | Event::End(_) => {}
                }
            }
            Ok(())
        })?;
    }

    /// All permits are in use while deliveries wait, and waiting deliveries are admitted in order of arrival.
    #[test]
    fn concurrency_limit_neither_loses_nor_invents_permits(events in events()) {
        with_paused_time(async {
            let clock = FakeRelativeClock::default();
            let limits = Limits::with_clock(clock.clone());
            // The newest attempt determines the maximum.
            let (mut plan, mut maximum) = (3, 3);
            let mut queue: VecDeque<Attempt<'_>> = VecDeque::new();
            let mut permits: Vec<LimitPermit> = Vec::new();
            for event in events {
                match event {
                    Event::Advance(millis) => tokio::time::advance(TICK * millis).await,
                    Event::Attempt(wait) => {
                        maximum = plan;
                        let mut pending = attempt(&limits, limit(None, Some(plan), Duration::from_millis(wait)));
                        match poll(&mut pending) {
                            Poll::Ready(Ok(permit)) => {
                                // A raised maximum admits the waiting deliveries and the new one in one step.
                                poll_queue(&mut queue, |permit| permits.push(permit))?;
                                prop_assert!(queue.is_empty(), "overtaken");
                                permits.push(permit);
                                prop_assert!(permits.len() <= maximum as usize);
                            }
                            Poll::Ready(Err(_)) => prop_assert!(!queue.is_empty() || permits.len() >= maximum as usize),
                            Poll::Pending => queue.push_back(pending),
                        }
                    }
                    Event::Reload(_, most) => plan = most,
                    Event::HangUp(index) if !queue.is_empty() => drop(queue.remove(index.index(queue.len()))),
                    Event::End(index) if !permits.is_empty() => drop(permits.swap_remove(index.index(permits.len()))),
                    Event::HangUp(_) | Event::End(_) => {}
                }
                let before = permits.len();
                poll_queue(&mut queue, |permit| permits.push(permit))?;
                prop_assert!(permits.len() == before || permits.len() <= maximum as usize, "one too many");
                prop_assert!(queue.is_empty() || permits.len() >= maximum as usize, "one too few");
            }
            drop((queue, permits));
            let left = (0..10).map(|_| attempt(&limits, limit(None, Some(3), Duration::ZERO)));
            let mut left: Vec<_> = left.collect();
            let admitted: Vec<_> = left.iter_mut().map(poll).filter(|polled| matches!(polled, Poll::Ready(Ok(_)))).collect();
            prop_assert_eq!(admitted.len(), 3, "all permits are free again");
            Ok(())
        })?;
    }
}

/// Polls the queued attempts until none of them completes. An admitted attempt must be older than all that still wait.
fn poll_queue(
    queue: &mut VecDeque<Attempt<'_>>,
    mut on_admitted: impl FnMut(LimitPermit),
) -> Result<(), TestCaseError> {
    loop {
        let (mut moved, mut still) = (false, VecDeque::new());
        for mut attempt in queue.drain(..) {
            match poll(&mut attempt) {
                Poll::Ready(Ok(permit)) => {
                    moved = true;
                    prop_assert!(still.is_empty(), "overtaken in line");
                    on_admitted(permit);
                }
                Poll::Ready(Err(_)) => moved = true,
                Poll::Pending => still.push_back(attempt),
            }
        }
        *queue = still;
        if !moved {
            return Ok(());
        }
    }
}
