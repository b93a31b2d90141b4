//! A leaky bucket: a counter that decreases at a constant rate.
//! Has an event been too frequent lately?

use std::time::Duration;

use tokio::time::Instant;

const NANOSECONDS_PER_SECOND: u128 = 1_000_000_000;

/// A counter of units that leak at a constant rate.
pub struct LeakyBucket {
    leak_per_second: u64,
    count: u64,
    /// The time up to which leaked units are subtracted.
    last_leak: Option<Instant>,
}

impl LeakyBucket {
    pub fn new(leak_per_second: u64) -> Self {
        Self { leak_per_second, count: 0, last_leak: None }
    }

    /// Adds units, and returns the new count.
    pub fn add(&mut self, count: u64, now: Instant) -> u64 {
        let since = self.last_leak.get_or_insert(now);
        let rate = u128::from(self.leak_per_second);
        let leaked = now.saturating_duration_since(*since).as_nanos() * rate / NANOSECONDS_PER_SECOND;
        // A fraction of a unit is left for the next call.
        *since += Duration::from_nanos(u64::try_from(leaked * NANOSECONDS_PER_SECOND / rate).unwrap_or(u64::MAX));
        self.count = self.count.saturating_sub(u64::try_from(leaked).unwrap_or(u64::MAX));
        self.count = self.count.saturating_add(count);
        self.count
    }

    /// Removes units.
    pub fn subtract(&mut self, count: u64) {
        self.count = self.count.saturating_sub(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaky_bucket_leaks_at_the_rate() {
        let (mut leaky, start) = (LeakyBucket::new(1024), Instant::now());
        assert_eq!(leaky.add(4096, start), 4096);
        assert_eq!(leaky.add(1, start), 4097);
        let later = start + Duration::from_secs(1);
        assert_eq!(leaky.add(1, later), 4098 - 1024);
        assert_eq!(leaky.add(1, later + Duration::from_secs(60)), 1);
        leaky.add(9, later + Duration::from_secs(60));
        leaky.subtract(7);
        assert_eq!(leaky.add(1, later + Duration::from_secs(60)), 4);
        leaky.subtract(5);
        assert_eq!(leaky.add(1, later + Duration::from_secs(60)), 1);
        // Many small steps leak no less than a large one.
        let mut leaky = LeakyBucket::new(1024);
        leaky.add(5000, start);
        let last = (1..=1000).map(|step| leaky.add(0, start + step * Duration::from_micros(1900))).last();
        assert_eq!(last, Some(5000 - 1024 * 19 / 10));
    }
}
