//! The deliveries of the last hour, counted by minute and by the party that ended them.
//! How much traffic and how many refusals were there lately?

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::state::counters::PeriodCounter;

/// The minutes that are kept.
pub const MINUTES: usize = 60;
/// The parties that a delivery is counted for. `none`: the target got the webhook.
pub const BLAMES: [&str; 4] = ["none", "client", "target", "outgate"];

/// The counters of the last hour. A counter that has an older minute counts as zero.
pub struct TrafficHistory {
    start: Instant,
    counters: [[PeriodCounter; BLAMES.len()]; MINUTES],
    /// The deliveries since the start.
    totals: [AtomicU64; BLAMES.len()],
}

/// The deliveries of one minute, by [`BLAMES`].
pub type MinuteCount = [u64; BLAMES.len()];

impl TrafficHistory {
    pub fn new(now: Instant) -> Self {
        Self { start: now, counters: std::array::from_fn(|_| Default::default()), totals: Default::default() }
    }

    /// Counts a delivery. `ended`: `None` counts it in the totals only.
    pub fn count(&self, blame: &str, ended: Option<Instant>) {
        let Some(party) = BLAMES.iter().position(|name| *name == blame) else { return };
        self.totals[party].fetch_add(1, Ordering::Relaxed);
        let Some(ended) = ended else { return };
        let minute = self.minute(ended);
        self.counters[minute as usize % MINUTES][party].increment(minute, u32::MAX);
    }

    /// Returns the deliveries since the start, by [`BLAMES`].
    pub fn totals(&self) -> MinuteCount {
        self.totals.each_ref().map(|total| total.load(Ordering::Relaxed))
    }

    /// Returns the counts by minute, the oldest first. The last minute is not over.
    pub fn minutes(&self, now: Instant) -> Vec<MinuteCount> {
        let last = self.minute(now);
        let first = (last + 1).saturating_sub(MINUTES as u32).max(1);
        (first..=last)
            .map(|minute| self.counters[minute as usize % MINUTES].each_ref().map(|counter| counter.read(minute)))
            .collect()
    }

    /// Returns the number of the minute since the start, from 1: a counter of 0 has never counted.
    fn minute(&self, now: Instant) -> u32 {
        1 + (now.saturating_duration_since(self.start).as_secs() / Duration::from_mins(1).as_secs()) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_history_counts_by_minute_and_forgets_after_an_hour() {
        let start = Instant::now();
        let history = TrafficHistory::new(start);
        let at = |seconds| start + Duration::from_secs(seconds);
        for (blame, seconds) in [("none", 0), ("none", 59), ("target", 59), ("none", 60), ("unknown", 60)] {
            history.count(blame, Some(at(seconds)));
        }
        history.count("outgate", None);
        assert_eq!(history.totals(), [3, 0, 1, 1]);
        assert_eq!(history.minutes(at(61)), [[2, 0, 1, 0], [1, 0, 0, 0]]);
        let hour = history.minutes(at(60 * 60));
        assert_eq!((hour.len(), hour[0], hour[1]), (MINUTES, [1, 0, 0, 0], [0; 4]), "the first minute has gone");
        history.count("client", Some(at(60 * 60)));
        assert_eq!(history.minutes(at(60 * 60))[MINUTES - 1], [0, 1, 0, 0], "its counters are used again");
        assert_eq!(history.minutes(at(10_000_000)), vec![[0; 4]; MINUTES]);
    }

    #[test]
    fn traffic_history_loses_no_delivery_of_concurrent_threads() {
        let start = Instant::now();
        let history = TrafficHistory::new(start);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10_000).for_each(|_| history.count("none", Some(start))));
            }
        });
        assert_eq!(history.minutes(start), [[40_000, 0, 0, 0]]);
    }
}
