//! The health of this instance around the adoption of a bundle.
//! Is it ready, and does it refuse more than before?

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::policy::rollout::health::Outcomes;
use crate::state::Runtime;

/// The samples that are kept: one a second, for the longest pause.
const SAMPLES_MAX: usize = 3600;
/// The time without readiness after which an instance goes back. A reload itself may take a moment.
const UNREADY_AFTER: Duration = Duration::from_secs(3);

pub(super) struct HealthWatch {
    samples: VecDeque<(Instant, Outcomes)>,
    /// The time of the adoption or of the start, and the counts then.
    begun: (Instant, Outcomes),
    ready_at: Instant,
}

impl HealthWatch {
    pub(super) fn new(runtime: &Runtime) -> Self {
        let now = Instant::now();
        Self { samples: VecDeque::new(), begun: (now, count(runtime)), ready_at: now }
    }

    /// Counts the deliveries until now.
    pub(super) fn sample(&mut self, runtime: &Runtime) {
        self.samples.truncate(SAMPLES_MAX - 1);
        self.samples.push_front((Instant::now(), count(runtime)));
        if self.is_ready(runtime) {
            self.ready_at = Instant::now();
        }
    }

    /// Begins the pause of a bundle.
    pub(super) fn begin(&mut self, runtime: &Runtime) {
        let now = Instant::now();
        (self.begun, self.ready_at) = ((now, count(runtime)), now);
    }

    pub(super) fn adopted_for(&self) -> Duration {
        self.begun.0.elapsed()
    }

    /// Returns the deliveries of the last `time`.
    pub(super) fn before(&self, time: Duration) -> Outcomes {
        let now = self.samples.front().map(|(_, count)| *count).unwrap_or_default();
        let earlier = self.samples.iter().take_while(|(at, _)| at.elapsed() <= time).last();
        now.since(earlier.map(|(_, count)| *count).unwrap_or_default())
    }

    /// Returns why this instance is worse off than before the adoption.
    pub(super) fn fault(&self, runtime: &Runtime, before: Outcomes) -> Option<String> {
        let after = count(runtime).since(self.begun.1);
        if after.is_worse_than(before) {
            let share = |Outcomes { deliveries, failures }| format!("{failures} of {deliveries}");
            return Some(format!("it refused or failed {} deliveries, and {} before", share(after), share(before)));
        }
        let is_unready = self.ready_at.elapsed() > UNREADY_AFTER;
        is_unready.then(|| format!("it is not ready: {}", runtime.impaired(Timestamp::now()).join(", ")))
    }

    pub(super) fn is_ready(&self, runtime: &Runtime) -> bool {
        runtime.impaired(Timestamp::now()).is_empty()
    }
}

/// Returns the deliveries since the start. A delivery that outgate refused and one that its target failed both count as failures.
fn count(runtime: &Runtime) -> Outcomes {
    let [succeeded, failed @ ..] = runtime.traffic.totals();
    let failures = failed.iter().sum();
    Outcomes { deliveries: succeeded + failures, failures }
}
