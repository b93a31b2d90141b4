//! The circuit breaker of one target: closed while the target responds, open after too many failures, half-open while
//! one delivery probes it.
//! Should a delivery contact the target now?
//!
//! A target is a host and port as reached from one pool: a failure from one pool's addresses may be a success from
//! another's. The breaker opens after a number of consecutive failures within a window. One response to any client
//! resets the count. Failures that arrive together count once, unless each is known to be an event of its own. So one client
//! whose path never responds does not open the breaker of a shared host.

use std::time::{Duration, Instant};

use crate::config;

/// The divisor of the backoff that bounds its jitter. Jitter keeps breakers that opened together from probing together.
const JITTER_DIVISOR: u32 = 10;

/// The minimum time from the first counted failure to the last. One event, such as a restart of the target, fails many
/// deliveries at once and counts as one failure. Failures that are known to be different events have no minimum.
const FAILURE_SPREAD_MIN: Duration = Duration::from_secs(1);

/// The divisor of the number of failures after a hint. One lost packet must not open the breaker of the default settings.
const HINT_DIVISOR: u32 = 3;

/// The time after which a probe without an outcome lets another delivery probe. Its client may send the body slowly,
/// and the target may have recovered.
pub const PROBE_MAX: Duration = Duration::from_secs(1);

/// The configuration of a circuit breaker: when it opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerConfig {
    /// The number of consecutive failures that open the breaker.
    failures: u32,
    /// The time within which all of these failures occur.
    window: Duration,
    /// The minimum time between two counted failures. An earlier failure is not counted.
    failure_spacing: Duration,
    open: Duration,
    open_max: Duration,
}

impl BreakerConfig {
    /// Returns `None` if the configuration disables circuit breaking.
    pub fn compile(config: &config::Circuit) -> Option<Self> {
        let config::Circuit { failures, window, open, open_max } = *config;
        let failure_spacing = FAILURE_SPREAD_MIN.min(window / 2) / failures.saturating_sub(1).max(1);
        (failures > 0).then_some(Self { failures, window, failure_spacing, open, open_max: open_max.max(open) })
    }

    /// Returns the configuration for a target whose circuit is open on another instance: a third of the failures opens it.
    pub fn with_hint(self) -> Self {
        Self { failures: self.failures.div_ceil(HINT_DIVISOR), ..self }
    }

    /// Returns the configuration for a failure that is known to be an event of its own.
    pub fn without_spacing(self) -> Self {
        Self { failure_spacing: Duration::ZERO, ..self }
    }

    /// Returns the number of consecutive failures that open the breaker.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Returns the backoff after a number of failed probes. `jitter` is any number.
    fn backoff(&self, failed_probes: u32, jitter: u64) -> Duration {
        let exponential = self.open.saturating_mul(1_u32.checked_shl(failed_probes).unwrap_or(u32::MAX));
        let capped = exponential.min(self.open_max);
        capped + (capped / JITTER_DIVISOR).mul_f64((jitter % 1024) as f64 / 1024.0)
    }
}

/// The recent failures of one target. A target without failures needs no breaker.
#[derive(Debug)]
pub struct CircuitBreaker {
    state: BreakerState,
}

#[derive(Debug)]
enum BreakerState {
    /// The number of consecutive counted failures, and the times of the first and the last.
    Closed { failures: u32, first: Instant, last: Instant },
    Open {
        since: Instant,
        /// The time at which the breaker opened or, later, at which the last probe failed.
        failed: Instant,
        until: Instant,
        /// The number of failed probes so far.
        failed_probes: u32,
        /// The start of the newest probe without an outcome.
        probe: Option<Instant>,
    },
}

/// The permit of a delivery to contact the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerPermit {
    /// The breaker is closed.
    Normal,
    /// The breaker is half-open, and this delivery is its probe.
    Probe,
}

/// The breaker refuses the delivery until this time has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerOpen {
    pub retry_after: Duration,
}

impl CircuitBreaker {
    /// Creates a closed breaker without failures.
    pub fn new(now: Instant) -> Self {
        Self { state: BreakerState::Closed { failures: 0, first: now, last: now } }
    }

    /// Returns the permit that a delivery would get now. Takes no probe, so a delivery can call this before it spends
    /// anything.
    pub fn check(&self, now: Instant) -> Result<BreakerPermit, BreakerOpen> {
        match self.state {
            BreakerState::Closed { .. } => Ok(BreakerPermit::Normal),
            BreakerState::Open { until, .. } if now < until => Err(BreakerOpen { retry_after: until - now }),
            BreakerState::Open { probe: Some(began), .. } if now < began + PROBE_MAX => {
                Err(BreakerOpen { retry_after: began + PROBE_MAX - now })
            }
            BreakerState::Open { .. } => Ok(BreakerPermit::Probe),
        }
    }

    /// Acquires a permit for a delivery that contacts the target now. A probe permit excludes other probes.
    pub fn acquire(&mut self, now: Instant) -> Result<BreakerPermit, BreakerOpen> {
        let permit = self.check(now)?;
        if let (BreakerPermit::Probe, BreakerState::Open { probe, .. }) = (permit, &mut self.state) {
            *probe = Some(now);
        }
        Ok(permit)
    }

    /// Counts the failure of an attempt that began at `began`. Returns whether this failure opened the breaker.
    pub fn observe_failure(
        &mut self,
        permit: BreakerPermit,
        began: Instant,
        config: &BreakerConfig,
        now: Instant,
        jitter: u64,
    ) -> bool {
        match &mut self.state {
            BreakerState::Closed { failures, first, last } => {
                if now.saturating_duration_since(*first) > config.window {
                    (*failures, *first) = (0, now);
                }
                if *failures > 0 && now.saturating_duration_since(*last) < config.failure_spacing {
                    return false;
                }
                (*failures, *last) = (*failures + 1, now);
                if *failures < config.failures {
                    return false;
                }
                let until = now + config.backoff(0, jitter);
                self.state = BreakerState::Open { since: now, failed: now, until, failed_probes: 0, probe: None };
                true
            }
            BreakerState::Open { failed, until, failed_probes, probe, .. } => {
                // An attempt that began before the last failure adds no information: the breaker opened since, or
                // another probe failed.
                if permit == BreakerPermit::Probe && began > *failed {
                    *failed_probes += 1;
                    (*failed, *until, *probe) = (now, now + config.backoff(*failed_probes, jitter), None);
                }
                false
            }
        }
    }

    /// Releases the probe that began at this time without an outcome, so that another delivery may probe.
    pub fn release(&mut self, began: Instant) {
        if let BreakerState::Open { probe, .. } = &mut self.state
            && *probe == Some(began)
        {
            *probe = None;
        }
    }

    /// Returns when the breaker opened and until when it refuses deliveries. `None` if it is closed.
    pub fn open_period(&self) -> Option<(Instant, Instant)> {
        match self.state {
            BreakerState::Open { since, until, .. } => Some((since, until)),
            BreakerState::Closed { .. } => None,
        }
    }

    /// Returns whether the breaker can be dropped without effect. An open breaker without a probe is dropped after its
    /// longest backoff; the next delivery then counts as the first.
    pub fn is_idle(&self, config: &BreakerConfig, now: Instant) -> bool {
        match self.state {
            BreakerState::Closed { first, .. } => now.saturating_duration_since(first) > config.window,
            BreakerState::Open { until, probe, .. } => {
                let quiet_since = probe.map_or(until, |began| until.max(began + PROBE_MAX));
                now.saturating_duration_since(quiet_since) > config.open_max
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker_config() -> BreakerConfig {
        let config = config::Circuit { failures: 3, window: 30 * SECOND, open: 10 * SECOND, open_max: 60 * SECOND };
        BreakerConfig::compile(&config).unwrap()
    }

    #[test]
    fn breaker_states_the_failures_that_open_it() {
        assert_eq!((breaker_config().failures(), breaker_config().with_hint().failures()), (3, 1));
    }

    fn observe_normal_failure(breaker: &mut CircuitBreaker, now: Instant) -> bool {
        breaker.observe_failure(BreakerPermit::Normal, now, &breaker_config(), now, 0)
    }

    /// Returns an open breaker and the time at which it opened.
    fn opened_breaker() -> (CircuitBreaker, Instant) {
        let start = Instant::now();
        let mut breaker = CircuitBreaker::new(start);
        let opened = [0, 1, 2].map(|second| observe_normal_failure(&mut breaker, start + second * SECOND));
        assert_eq!(opened, [false, false, true]);
        (breaker, start + 2 * SECOND)
    }

    #[test]
    fn breaker_opens_after_consecutive_failures_within_the_window() {
        let (mut breaker, now) = opened_breaker();
        assert_eq!(breaker.acquire(now), Err(BreakerOpen { retry_after: 10 * SECOND }));
        let mut slow = CircuitBreaker::new(now);
        for second in [0, 20, 40, 60, 80] {
            assert!(!observe_normal_failure(&mut slow, now + second * SECOND), "{second}");
        }
        assert_eq!(slow.acquire(now), Ok(BreakerPermit::Normal));
    }

    #[test]
    fn breaker_counts_simultaneous_failures_once() {
        let (start, burst) = (Instant::now(), Duration::from_millis(1));
        let mut breaker = CircuitBreaker::new(start);
        assert!((0..100).all(|failure| !observe_normal_failure(&mut breaker, start + failure * burst)));
        assert!((0..100).all(|failure| !observe_normal_failure(&mut breaker, start + SECOND / 2 + failure * burst)));
        assert!(observe_normal_failure(&mut breaker, start + SECOND), "three events, a second apart");
        // One failure opens the breaker if the operator configures so.
        let config = config::Circuit { failures: 1, window: SECOND, open: SECOND, open_max: SECOND };
        let breaker_config = BreakerConfig::compile(&config).unwrap();
        assert!(CircuitBreaker::new(start).observe_failure(BreakerPermit::Normal, start, &breaker_config, start, 0));
        // A short window still fits all of the failures.
        let config = config::Circuit { failures: 10, window: SECOND / 10, open: SECOND, open_max: SECOND };
        let breaker_config = BreakerConfig::compile(&config).unwrap();
        let mut breaker = CircuitBreaker::new(start);
        let opened = (0..10).map(|failure| {
            let now = start + failure * SECOND / 100;
            breaker.observe_failure(BreakerPermit::Normal, now, &breaker_config, now, 0)
        });
        assert_eq!(opened.filter(|opened| *opened).count(), 1);
    }

    #[test]
    fn breaker_without_spacing_counts_simultaneous_failures_one_by_one() {
        let start = Instant::now();
        let mut breaker = CircuitBreaker::new(start);
        let config = breaker_config().without_spacing();
        let opened = [0; 3].map(|_| breaker.observe_failure(BreakerPermit::Normal, start, &config, start, 0));
        assert_eq!(opened, [false, false, true]);
    }

    #[test]
    fn breaker_doubles_the_backoff_after_a_failed_probe() {
        let (mut breaker, start) = opened_breaker();
        let (mut now, mut backoffs) = (start, vec![]);
        for _ in 0..5 {
            let Err(BreakerOpen { retry_after }) = breaker.acquire(now) else { panic!("it is open") };
            backoffs.push(retry_after.as_secs());
            now += retry_after;
            assert_eq!(
                (breaker.check(now), breaker.check(now)),
                (Ok(BreakerPermit::Probe), Ok(BreakerPermit::Probe)),
                "takes nothing"
            );
            assert_eq!(breaker.acquire(now), Ok(BreakerPermit::Probe));
            assert_eq!(breaker.acquire(now), Err(BreakerOpen { retry_after: PROBE_MAX }), "one at a time");
            assert!(!observe_normal_failure(&mut breaker, now), "what began before says nothing");
            assert_eq!(breaker.acquire(now), Err(BreakerOpen { retry_after: PROBE_MAX }));
            assert!(!breaker.observe_failure(BreakerPermit::Probe, now, &breaker_config(), now, 0));
        }
        assert_eq!(backoffs, [10, 20, 40, 60, 60]);
    }

    #[test]
    fn breaker_allows_another_probe_when_the_first_has_no_outcome() {
        let (mut breaker, now) = opened_breaker();
        let first = now + 10 * SECOND;
        assert_eq!(breaker.acquire(first), Ok(BreakerPermit::Probe));
        breaker.release(first);
        assert_eq!(breaker.acquire(first), Ok(BreakerPermit::Probe));
        let second = first + PROBE_MAX;
        assert!(breaker.acquire(second - Duration::from_millis(1)).is_err());
        assert_eq!(breaker.acquire(second), Ok(BreakerPermit::Probe), "the first has had its time");
        breaker.release(first);
        assert!(breaker.acquire(second).is_err(), "the second goes on");
        // Of two failed probes, only one doubles the backoff.
        let failed = second + SECOND / 10;
        for began in [first, second] {
            breaker.observe_failure(BreakerPermit::Probe, began, &breaker_config(), failed, 0);
            assert_eq!(breaker.acquire(failed), Err(BreakerOpen { retry_after: 20 * SECOND }));
        }
    }

    #[test]
    fn breaker_counts_a_failure_at_the_end_of_the_window() {
        for (last, opens) in [(30 * SECOND, true), (30 * SECOND + Duration::from_nanos(1), false)] {
            let start = Instant::now();
            let mut breaker = CircuitBreaker::new(start);
            assert!(
                ![Duration::ZERO, 15 * SECOND]
                    .map(|at| observe_normal_failure(&mut breaker, start + at))
                    .contains(&true)
            );
            assert_eq!(observe_normal_failure(&mut breaker, start + last), opens, "{last:?}");
            assert_eq!(breaker.open_period().is_some(), opens);
        }
    }

    #[test]
    fn breaker_is_idle_when_its_failures_no_longer_count() {
        let (mut breaker, now) = opened_breaker();
        let closed = CircuitBreaker::new(now);
        let idle = [29, 30, 31].map(|second| closed.is_idle(&breaker_config(), now + second * SECOND));
        assert_eq!(idle, [false, false, true]);
        let idle = [69, 70, 71].map(|second| breaker.is_idle(&breaker_config(), now + second * SECOND));
        assert_eq!(idle, [false, false, true]);
        assert_eq!(breaker.acquire(now + 30 * SECOND), Ok(BreakerPermit::Probe));
        assert_eq!([90, 92].map(|second| breaker.is_idle(&breaker_config(), now + second * SECOND)), [false, true]);
    }

    #[test]
    fn breaker_backoff_has_a_jitter_of_up_to_a_tenth() {
        let backoff = |jitter| breaker_config().backoff(0, jitter).as_millis();
        assert_eq!([0, 256, 512, 1023, 1024, 1536].map(backoff), [10_000, 10_250, 10_500, 10_999, 10_000, 10_500]);
    }

    #[test]
    fn breaker_configuration_has_no_breaker_without_failures_and_no_open_max_below_open() {
        let config = config::Circuit { failures: 0, window: SECOND, open: 3 * SECOND, open_max: SECOND };
        assert_eq!(BreakerConfig::compile(&config), None);
        let compiled = BreakerConfig::compile(&config::Circuit { failures: 1, ..config }).unwrap();
        assert_eq!([0, 1, 100].map(|failed_probes| compiled.backoff(failed_probes, 0)), [3 * SECOND; 3]);
    }

    proptest! {
        #[test]
        fn breaker_backoff_is_at_least_open_and_at_most_open_max_with_jitter(
            open in 1_u64..1000, longest in 1_u64..100_000, failed_probes in 0_u32..100, jitter in any::<u64>(),
        ) {
            let [open, open_max] = [open, longest.max(open)].map(Duration::from_secs);
            let backoff = BreakerConfig { open, open_max, ..breaker_config() }.backoff(failed_probes, jitter);
            prop_assert!(backoff >= open && backoff <= open_max + open_max / JITTER_DIVISOR, "{:?}", backoff);
        }
    }
}
