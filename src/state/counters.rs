//! Atomic counters with a rule between threads. `tests/loom` checks this file under every order of the threads' steps.
//! What may a thread conclude from a counter that it reads without a lock?

// In `tests/loom`, `super` has the atomics of loom.
use super::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The number of entries of a table behind a lock, readable without the lock. Each change happens under the lock of the entry
/// that it counts.
///
/// A thread that knows of an entry, through any synchronisation, reads a number that counts it. So a delivery may skip the
/// lock if the number is zero.
#[derive(Debug, Default)]
pub(super) struct TableSize(AtomicUsize);

impl TableSize {
    pub(super) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn is_zero(&self) -> bool {
        self.get() == 0
    }

    pub(super) fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn decrement(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// Sets the number. The table must have one lock only.
    pub(super) fn set(&self, size: usize) {
        self.0.store(size, Ordering::Relaxed);
    }
}

/// The low half of a [`PeriodCounter`].
const COUNT_BITS: u32 = 32;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// A counter that begins again with each period, such as a minute. The number of the period and the count are one word, so
/// that a count is added to its own period. A thread that is late counts in the next period, if that has begun: otherwise
/// the count of the next period would begin again, and exceed its maximum.
#[derive(Debug, Default)]
pub(super) struct PeriodCounter(AtomicU64);

impl PeriodCounter {
    /// Adds 1 to the count of this period, unless the count has reached `max`. Returns whether it was added.
    pub(super) fn increment(&self, period: u32, max: u32) -> bool {
        let add = |word| {
            let next = period.wrapping_add(1);
            let period = if word >> COUNT_BITS == u64::from(next) { next } else { period };
            let count = Self::count_in(word, period);
            (count < u64::from(max)).then_some(u64::from(period) << COUNT_BITS | (count + 1))
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    /// Returns the count of this period. It is 0 if another period was counted last.
    pub(super) fn read(&self, period: u32) -> u64 {
        Self::count_in(self.0.load(Ordering::Relaxed), period)
    }

    fn count_in(word: u64, period: u32) -> u64 {
        if word >> COUNT_BITS == u64::from(period) { word & COUNT_MASK } else { 0 }
    }
}
