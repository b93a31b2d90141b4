//! The laws of limits, over whatever may happen to them: time, attempts, reloads, waiters that hang up.
//! Does ever one too many pass, or one too few?

use std::collections::VecDeque;
use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use governor::clock::FakeRelativeClock;
use outgate::config::LimitScope;
use outgate::names::{ClientName, Host, LimitName, PoolName, RouteName};
use outgate::policy::limits::{Limit, LimitDescriptor, Quota};
use outgate::state::limits::{LimitExceeded, LimitPermit, Limits};
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(1);

type Attempt<'a> = Pin<Box<dyn Future<Output = Result<LimitPermit, LimitExceeded>> + 'a>>;

fn limit(quota: Option<Quota>, concurrency: Option<u32>, wait: Duration) -> [Arc<Limit>; 1] {
    let (name, per) = (LimitName::new("l"), vec![LimitScope::Host]);
    [Arc::new(Limit { name, quota, concurrency, per, wait, bandwidth: None, report_only: false })]
}

fn quota(count: u32, period: Duration, burst: u32) -> Quota {
    let [count, burst] = [count, burst].map(|n| NonZeroU32::new(n).expect("not zero"));
    Quota { count, period, burst }
}

fn attempt<'a>(limits: &'a Limits<FakeRelativeClock>, by: [Arc<Limit>; 1]) -> Attempt<'a> {
    Box::pin(async move {
        let (client, route, egress) = (ClientName::new("c"), RouteName::new("r"), PoolName::new("e"));
        let host = Host::Name("hooks.acme.example".into());
        limits
            .acquire(
                &by,
                &LimitDescriptor { client: &client, tenant: None, route: &route, host: &host, egress: &egress },
            )
            .await
    })
}

fn poll<T>(attempt: &mut Pin<Box<dyn Future<Output = T> + '_>>) -> Poll<T> {
    attempt.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// A clock that the test advances.
fn on_a_still_clock(then: impl Future<Output = Result<(), TestCaseError>>) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a timer").block_on(then)
}

#[derive(Clone, Debug)]
enum Event {
    /// Milliseconds.
    Advance(u32),
    /// Advances the clock by milliseconds.
    Ask(u64),
    /// Count a second, and burst. In force from the next attempt on.
    Reload(u32, u32),
    /// One of those in line.
    HangUp(prop::sample::Index),
    /// One of those under way ends.
    End(prop::sample::Index),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (0u32..300).prop_map(Event::Advance),
        6 => prop::sample::select(vec![0u64, 0, 50, 400, 3000]).prop_map(Event::Ask),
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
    /// How many ticks ago there was none.
    due: u32,
}

/// A token is never split so finely by a quota that changes.
const CRUMB: f64 = 1e-4;
/// Timers go by the millisecond, and round up.
const LATE: u32 = 3;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// A window of any length admits at most the burst and the tokens that come back in it.
    #[test]
    fn rate_limit_admits_no_more_than_its_rate_in_any_window(
        count in 1u32..200, seconds in prop::sample::select(vec![1u64, 60, 3600]), burst in 1u32..20,
        steps in prop::collection::vec((0u64..3_000_000_000, 1usize..20), 1..40),
    ) {
        let clock = FakeRelativeClock::default();
        let limits = Limits::with_clock(clock.clone());
        let by = limit(Some(quota(count, Duration::from_secs(seconds), burst)), None, Duration::ZERO);
        let (mut now, mut passed) = (0u128, Vec::new());
        for (nanos, attempts) in steps {
            clock.advance(Duration::from_nanos(nanos));
            now += u128::from(nanos);
            for _ in 0..attempts {
                if matches!(poll(&mut attempt(&limits, by.clone())), Poll::Ready(Ok(_))) {
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

    /// A rate gives every token that is due, and no other, in order of arrival.
    #[test]
    fn rate_limit_admits_a_delivery_as_soon_as_its_token_is_due(events in events()) {
        on_a_still_clock(async {
            let clock = FakeRelativeClock::default();
            let limits = Limits::with_clock(clock.clone());
            let mut plan = (20, 3);
            let mut tokens = Tokens { left: f64::INFINITY, count: 20.0, burst: f64::INFINITY, due: 0 };
            let mut line: VecDeque<Attempt<'_>> = VecDeque::new();
            for event in events {
                match event {
                    Event::Advance(ticks) => for _ in 0..ticks {
                        clock.advance(TICK);
                        tokio::time::advance(TICK).await;
                        tokens.left = (tokens.left + tokens.count / 1000.0).min(tokens.burst);
                        serve(&mut line, |_| tokens.left -= 1.0)?;
                        prop_assert!(tokens.left > -CRUMB, "one too many: {}", tokens.left);
                        let is_due = !line.is_empty() && tokens.left > 1.0 + CRUMB;
                        tokens.due = if is_due { tokens.due + 1 } else { 0 };
                        prop_assert!(tokens.due <= LATE, "one too few: {}", tokens.left);
                    },
                    Event::Ask(wait) => {
                        let (count, burst) = plan;
                        let quota = quota(count, SECOND, burst);
                        let mut asked = attempt(&limits, limit(Some(quota), None, Duration::from_millis(wait)));
                        let polled = poll(&mut asked);
                        (tokens.count, tokens.burst) = (f64::from(count), f64::from(burst));
                        tokens.left = tokens.left.min(tokens.burst);
                        match polled {
                            Poll::Ready(Ok(_)) => {
                                prop_assert!(line.is_empty(), "overtaken");
                                tokens.left -= 1.0;
                                prop_assert!(tokens.left > -CRUMB, "one too many: {}", tokens.left);
                            }
                            Poll::Ready(Err(_)) => prop_assert!(!line.is_empty() || tokens.left < 1.0 + CRUMB),
                            Poll::Pending => line.push_back(asked),
                        }
                    }
                    Event::Reload(count, burst) => plan = (count, burst),
                    Event::HangUp(which) if !line.is_empty() => drop(line.remove(which.index(line.len()))),
                    Event::HangUp(_) | Event::End(_) => {}
                }
            }
            Ok(())
        })?;
    }

    /// All permits are in use while deliveries wait, in order of arrival, whichever delivery ends or hangs up.
    #[test]
    fn concurrency_limit_neither_loses_nor_invents_permits(events in events()) {
        on_a_still_clock(async {
            let clock = FakeRelativeClock::default();
            let limits = Limits::with_clock(clock.clone());
            // The maximum is that of the newest attempt.
            let (mut plan, mut maximum) = (3, 3);
            let mut line: VecDeque<Attempt<'_>> = VecDeque::new();
            let mut held: Vec<LimitPermit> = Vec::new();
            for event in events {
                match event {
                    Event::Advance(millis) => tokio::time::advance(TICK * millis).await,
                    Event::Ask(wait) => {
                        maximum = plan;
                        let mut asked = attempt(&limits, limit(None, Some(plan), Duration::from_millis(wait)));
                        match poll(&mut asked) {
                            Poll::Ready(Ok(permit)) => {
                                // A raised maximum admits the waiters and the newcomer in one step.
                                serve(&mut line, |permit| held.push(permit))?;
                                prop_assert!(line.is_empty(), "overtaken");
                                held.push(permit);
                                prop_assert!(held.len() <= maximum as usize);
                            }
                            Poll::Ready(Err(_)) => prop_assert!(!line.is_empty() || held.len() >= maximum as usize),
                            Poll::Pending => line.push_back(asked),
                        }
                    }
                    Event::Reload(_, most) => plan = most,
                    Event::HangUp(which) if !line.is_empty() => drop(line.remove(which.index(line.len()))),
                    Event::End(which) if !held.is_empty() => drop(held.swap_remove(which.index(held.len()))),
                    Event::HangUp(_) | Event::End(_) => {}
                }
                let before = held.len();
                serve(&mut line, |permit| held.push(permit))?;
                prop_assert!(held.len() == before || held.len() <= maximum as usize, "one too many");
                prop_assert!(line.is_empty() || held.len() >= maximum as usize, "one too few");
            }
            drop((line, held));
            let left = (0..10).map(|_| attempt(&limits, limit(None, Some(3), Duration::ZERO)));
            let mut left: Vec<_> = left.collect();
            let entered: Vec<_> = left.iter_mut().map(poll).filter(|polled| matches!(polled, Poll::Ready(Ok(_)))).collect();
            prop_assert_eq!(entered.len(), 3, "nothing is left behind");
            Ok(())
        })?;
    }
}

/// Polls those in line until none gets on; who passes must have stood before all others that go on waiting.
fn serve(line: &mut VecDeque<Attempt<'_>>, mut passes: impl FnMut(LimitPermit)) -> Result<(), TestCaseError> {
    loop {
        let (mut moved, mut still) = (false, VecDeque::new());
        for mut attempt in line.drain(..) {
            match poll(&mut attempt) {
                Poll::Ready(Ok(permit)) => {
                    moved = true;
                    prop_assert!(still.is_empty(), "overtaken in line");
                    passes(permit);
                }
                Poll::Ready(Err(_)) => moved = true,
                Poll::Pending => still.push_back(attempt),
            }
        }
        *line = still;
        if !moved {
            return Ok(());
        }
    }
}
