//! The bytes of one key: a bucket of one second's worth, filled at the bandwidth.
//! How many bytes may pass now, and if not enough, when?

use std::time::Duration;

use tokio::time::Instant;

const SECOND: u128 = 1_000_000_000;

/// Counted in billionths of a byte: bytes a second are as many billionths a nanosecond, so nothing is rounded.
#[derive(Clone, Debug)]
pub(in crate::state) struct ByteBucket {
    /// Bytes a second.
    bandwidth: u64,
    left: u128,
    at: Instant,
}

impl ByteBucket {
    pub(in crate::state) fn new(bandwidth: u64, now: Instant) -> Self {
        Self { bandwidth, left: u128::from(bandwidth) * SECOND, at: now }
    }

    /// Goes on at this bandwidth; whether it is another than before. What was left is left, up to the new second's
    /// worth.
    pub(in crate::state) fn adopt(&mut self, bandwidth: u64, now: Instant) -> bool {
        self.fill(now);
        let changed = bandwidth != self.bandwidth;
        self.bandwidth = bandwidth;
        self.left = self.left.min(self.whole());
        changed
    }

    /// These bytes, no more than come in a second; or the time until they are there.
    pub(in crate::state) fn try_take(&mut self, bytes: u64, now: Instant) -> Result<u64, Duration> {
        self.fill(now);
        let needs = u128::from(bytes) * SECOND;
        if let Some(lacks) = needs.checked_sub(self.left).filter(|lacks| *lacks > 0) {
            let wait = lacks.div_ceil(u128::from(self.bandwidth.max(1)));
            return Err(Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX)));
        }
        self.left -= needs;
        Ok(bytes)
    }

    /// Takes back bytes that were taken and did not pass.
    pub(in crate::state) fn refund(&mut self, bytes: u64) {
        self.left = self.left.saturating_add(u128::from(bytes) * SECOND).min(self.whole());
    }

    pub(in crate::state) fn bandwidth(&self) -> u64 {
        self.bandwidth
    }

    /// As if it had never been used.
    pub(in crate::state) fn is_full(&self, now: Instant) -> bool {
        self.by(now) == self.whole()
    }

    fn whole(&self) -> u128 {
        u128::from(self.bandwidth) * SECOND
    }

    fn by(&self, now: Instant) -> u128 {
        let came = now.saturating_duration_since(self.at).as_nanos() * u128::from(self.bandwidth);
        self.left.saturating_add(came).min(self.whole())
    }

    fn fill(&mut self, now: Instant) {
        self.left = self.by(now);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whoever asks for whatever and however the bandwidth changes: never a byte more than a second's worth and what
        /// came since, nor one less.
        #[test]
        fn every_byte_that_is_due_passes_and_no_other(
            first in 1u64..100_000,
            steps in prop::collection::vec((0u64..1_500_000_000, 1u64..50_000, prop::option::of(1u64..100_000)), 1..100),
        ) {
            let mut now = Instant::now();
            let mut flow = ByteBucket::new(first, now);
            let (mut bandwidth, mut left) = (first, u128::from(first) * SECOND);
            for (nanos, bytes, change) in steps {
                now += Duration::from_nanos(nanos);
                left = (left + u128::from(nanos) * u128::from(bandwidth)).min(u128::from(bandwidth) * SECOND);
                if let Some(change) = change {
                    prop_assert_eq!(flow.adopt(change, now), change != bandwidth);
                    bandwidth = change;
                    left = left.min(u128::from(bandwidth) * SECOND);
                }
                let bytes = bytes.min(bandwidth);
                let cost = u128::from(bytes) * SECOND;
                match flow.try_take(bytes, now) {
                    Ok(taken) => {
                        prop_assert_eq!(taken, bytes);
                        prop_assert!(cost <= left);
                        left -= cost;
                    }
                    Err(wait) => {
                        prop_assert!(cost > left);
                        // And it is there when it was promised, not a nanosecond before.
                        prop_assert!(flow.clone().try_take(bytes, now + wait).is_ok());
                        prop_assert!(flow.clone().try_take(bytes, now + wait - Duration::from_nanos(1)).is_err());
                    }
                }
            }
        }
    }
}
