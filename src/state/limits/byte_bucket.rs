//! The token bucket of one key's bytes: it holds the bytes of one second and refills at the bandwidth.
//! May this many bytes pass now, and if not, when?

use std::time::Duration;

use tokio::time::Instant;

/// The bucket counts in billionths of a byte.
const UNITS_PER_BYTE: u128 = 1_000_000_000;

/// Bytes per second equal billionths of a byte per nanosecond, so no refill is rounded.
#[derive(Clone, Debug)]
pub(in crate::state) struct ByteBucket {
    /// The bandwidth in bytes per second.
    bandwidth: u64,
    units: u128,
    updated_at: Instant,
}

impl ByteBucket {
    pub(in crate::state) fn new(bandwidth: u64, now: Instant) -> Self {
        Self { bandwidth, units: u128::from(bandwidth) * UNITS_PER_BYTE, updated_at: now }
    }

    /// Sets the bandwidth, and returns whether it has changed. The bytes in the bucket stay, up to its new capacity.
    pub(in crate::state) fn set_bandwidth(&mut self, bandwidth: u64, now: Instant) -> bool {
        self.refill(now);
        let has_changed = bandwidth != self.bandwidth;
        self.bandwidth = bandwidth;
        self.units = self.units.min(self.capacity());
        has_changed
    }

    /// Takes these bytes, which must be at most the bandwidth. The error is the time until they are there.
    pub(in crate::state) fn try_take(&mut self, bytes: u64, now: Instant) -> Result<u64, Duration> {
        self.refill(now);
        let cost = u128::from(bytes) * UNITS_PER_BYTE;
        if let Some(deficit) = cost.checked_sub(self.units).filter(|deficit| *deficit > 0) {
            let wait = deficit.div_ceil(u128::from(self.bandwidth.max(1)));
            return Err(Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX)));
        }
        self.units -= cost;
        Ok(bytes)
    }

    /// Returns bytes that were taken and not forwarded.
    pub(in crate::state) fn refund(&mut self, bytes: u64) {
        self.units = self.units.saturating_add(u128::from(bytes) * UNITS_PER_BYTE).min(self.capacity());
    }

    pub(in crate::state) fn bandwidth(&self) -> u64 {
        self.bandwidth
    }

    /// Returns whether the bucket is as if it had never been used.
    pub(in crate::state) fn is_full(&self, now: Instant) -> bool {
        self.units_at(now) == self.capacity()
    }

    fn capacity(&self) -> u128 {
        u128::from(self.bandwidth) * UNITS_PER_BYTE
    }

    fn units_at(&self, now: Instant) -> u128 {
        let refilled = now.saturating_duration_since(self.updated_at).as_nanos() * u128::from(self.bandwidth);
        self.units.saturating_add(refilled).min(self.capacity())
    }

    fn refill(&mut self, now: Instant) {
        self.units = self.units_at(now);
        self.updated_at = self.updated_at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The bucket gives exactly one second's bytes and the refill since, however requests and bandwidth vary.
        #[test]
        fn byte_bucket_gives_exactly_the_bytes_of_its_bandwidth(
            first in 1u64..100_000,
            steps in prop::collection::vec((0u64..1_500_000_000, 1u64..50_000, prop::option::of(1u64..100_000)), 1..100),
        ) {
            let mut now = Instant::now();
            let mut bucket = ByteBucket::new(first, now);
            let (mut bandwidth, mut left) = (first, u128::from(first) * UNITS_PER_BYTE);
            for (nanos, bytes, change) in steps {
                now += Duration::from_nanos(nanos);
                left = (left + u128::from(nanos) * u128::from(bandwidth)).min(u128::from(bandwidth) * UNITS_PER_BYTE);
                if let Some(change) = change {
                    prop_assert_eq!(bucket.set_bandwidth(change, now), change != bandwidth);
                    bandwidth = change;
                    left = left.min(u128::from(bandwidth) * UNITS_PER_BYTE);
                }
                let bytes = bytes.min(bandwidth);
                let cost = u128::from(bytes) * UNITS_PER_BYTE;
                match bucket.try_take(bytes, now) {
                    Ok(taken) => {
                        prop_assert_eq!(taken, bytes);
                        prop_assert!(cost <= left);
                        left -= cost;
                    }
                    Err(wait) => {
                        prop_assert!(cost > left);
                        // The bytes are due after `wait`, and not a nanosecond before.
                        prop_assert!(bucket.clone().try_take(bytes, now + wait).is_ok());
                        prop_assert!(bucket.clone().try_take(bytes, now + wait - Duration::from_nanos(1)).is_err());
                    }
                }
            }
        }
    }
}
