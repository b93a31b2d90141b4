//! The random numbers of a seed (SplitMix64).
//! Which choice does a seed make next?

use std::time::Duration;

/// A stream of numbers that its seed determines.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns an independent stream. Draws from one stream do not shift those from another.
    pub(super) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `end`, which is not 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Returns a number from `start` up to and without `end`.
    pub(super) fn between(&mut self, start: usize, end: usize) -> usize {
        start + self.below(end - start)
    }

    /// Returns true in this many of a thousand cases.
    pub(super) fn permille(&mut self, chance: usize) -> bool {
        self.below(1000) < chance
    }

    pub(super) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    pub(super) fn millis(&mut self, start: usize, end: usize) -> Duration {
        Duration::from_millis(self.between(start, end) as u64)
    }

    /// Returns a length: mostly short, seldom longer than the window of a connection.
    pub(super) fn length(&mut self) -> usize {
        match self.below(10) {
            0..2 => 0,
            2..7 => self.between(1, 400),
            7..9 => self.between(400, 6_000),
            _ => self.between(6_000, 60_000),
        }
    }
}
