//! The circuit of one target: closed while it answers, open after it has failed too often, half-open while one delivery
//! tries it again.
//! Is it worth knocking there now?
//!
//! A target is a host and port as one pool reaches it: what fails from one pool's addresses may work from another's. It
//! opens after so many failures in a row within a time: one success, of whomever, begins the count anew. So a host that
//! many customers share is never closed to all of them by the path of one on which nothing answers.

use std::time::{Duration, Instant};

use crate::config;

/// Pauses differ by up to this part, so that circuits that opened together are not tried together.
const JITTER: u32 = 10;

/// When a circuit opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fuse {
    /// In a row.
    failures: u32,
    /// All of them within this time.
    window: Duration,
    open: Duration,
    open_max: Duration,
}

impl Fuse {
    /// `None`: no circuit ever opens.
    pub fn compile(config: &config::Circuit) -> Option<Self> {
        let config::Circuit { failures, window, open, open_max } = *config;
        (failures > 0).then_some(Self { failures, window, open, open_max: open_max.max(open) })
    }

    /// What follows on `pauses` that were for nothing; `dice` is any number.
    fn pause(&self, pauses: u32, dice: u64) -> Duration {
        let doubled = self.open.saturating_mul(1_u32.checked_shl(pauses).unwrap_or(u32::MAX));
        let pause = doubled.min(self.open_max);
        pause + (pause / JITTER).mul_f64((dice % 1024) as f64 / 1024.0)
    }
}

/// What has been heard of a target lately. One of which nothing bad was heard needs none.
#[derive(Debug)]
pub struct Circuit {
    state: State,
}

#[derive(Debug)]
enum State {
    /// Failures in a row, and when the first of them was.
    Closed { failures: u32, first: Instant },
    Open {
        since: Instant,
        until: Instant,
        /// Pauses so far, this one not counted.
        pauses: u32,
        /// Somebody tries.
        is_tried: bool,
    },
}

/// A delivery's leave to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// One of many.
    Plain,
    /// The one that tries a target whose circuit is open.
    Probe,
}

/// No leave before this time has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    pub again_in: Duration,
}

/// A probe is under way: nobody knows how long it takes.
const PROBE: Duration = Duration::from_secs(1);

impl Circuit {
    /// After the first failure.
    pub fn new(now: Instant) -> Self {
        Self { state: State::Closed { failures: 0, first: now } }
    }

    pub fn enter(&mut self, now: Instant) -> Result<Leave, Open> {
        match &mut self.state {
            State::Closed { .. } => Ok(Leave::Plain),
            State::Open { until, .. } if now < *until => Err(Open { again_in: *until - now }),
            State::Open { is_tried: true, .. } => Err(Open { again_in: PROBE }),
            State::Open { is_tried, .. } => {
                *is_tried = true;
                Ok(Leave::Probe)
            }
        }
    }

    /// Whether this failure has opened the circuit.
    pub fn failed(&mut self, leave: Leave, fuse: &Fuse, now: Instant, dice: u64) -> bool {
        match &mut self.state {
            State::Closed { failures, first } => {
                if now.saturating_duration_since(*first) > fuse.window {
                    (*failures, *first) = (0, now);
                }
                *failures += 1;
                if *failures < fuse.failures {
                    return false;
                }
                let until = now + fuse.pause(0, dice);
                self.state = State::Open { since: now, until, pauses: 0, is_tried: false };
                true
            }
            State::Open { until, pauses, is_tried, .. } => {
                // What began before the circuit opened says nothing new.
                if leave == Leave::Probe {
                    *pauses += 1;
                    (*until, *is_tried) = (now + fuse.pause(*pauses, dice), false);
                }
                false
            }
        }
    }

    /// A probe has ended, and nothing is known of the target: another may try.
    pub fn released(&mut self) {
        if let State::Open { is_tried, .. } = &mut self.state {
            *is_tried = false;
        }
    }

    /// Since when, and until when nobody may try.
    pub fn open(&self) -> Option<(Instant, Instant)> {
        match self.state {
            State::Open { since, until, .. } => Some((since, until)),
            State::Closed { .. } => None,
        }
    }

    /// Whether to forget it changes nothing. An open circuit that nobody comes to try goes with its longest pause: who
    /// comes after that is one delivery, and its failure counts like the first.
    pub fn is_idle(&self, fuse: &Fuse, now: Instant) -> bool {
        match self.state {
            State::Closed { first, .. } => now.saturating_duration_since(first) > fuse.window,
            State::Open { until, is_tried, .. } => !is_tried && now.saturating_duration_since(until) > fuse.open_max,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn fuse() -> Fuse {
        Fuse { failures: 3, window: 30 * SECOND, open: 10 * SECOND, open_max: 60 * SECOND }
    }

    /// A circuit that opened at the moment it gives.
    fn opened() -> (Circuit, Instant) {
        let now = Instant::now();
        let mut circuit = Circuit::new(now);
        let heard = [0, 1, 2].map(|_| circuit.failed(Leave::Plain, &fuse(), now, 0));
        assert_eq!(heard, [false, false, true]);
        (circuit, now)
    }

    #[test]
    fn it_opens_after_failures_in_a_row_within_the_window() {
        let (mut circuit, now) = opened();
        assert_eq!(circuit.enter(now), Err(Open { again_in: 10 * SECOND }));
        let mut slow = Circuit::new(now);
        for second in [0, 20, 40, 60, 80] {
            assert!(!slow.failed(Leave::Plain, &fuse(), now + second * SECOND, 0), "{second}");
        }
        assert_eq!(slow.enter(now), Ok(Leave::Plain));
    }

    #[test]
    fn one_tries_it_and_its_failure_doubles_the_pause() {
        let (mut circuit, start) = opened();
        let (mut now, mut pauses) = (start, vec![]);
        for _ in 0..5 {
            let Err(Open { again_in }) = circuit.enter(now) else { panic!("it is open") };
            pauses.push(again_in.as_secs());
            now += again_in;
            assert_eq!(circuit.enter(now), Ok(Leave::Probe));
            assert_eq!(circuit.enter(now), Err(Open { again_in: PROBE }), "one at a time");
            assert!(!circuit.failed(Leave::Plain, &fuse(), now, 0), "what began before says nothing");
            assert_eq!(circuit.enter(now), Err(Open { again_in: PROBE }));
            assert!(!circuit.failed(Leave::Probe, &fuse(), now, 0));
        }
        assert_eq!(pauses, [10, 20, 40, 60, 60]);
    }

    #[test]
    fn a_probe_that_learns_nothing_leaves_its_place_to_another() {
        let (mut circuit, now) = opened();
        let later = now + 10 * SECOND;
        assert_eq!(circuit.enter(later), Ok(Leave::Probe));
        circuit.released();
        assert_eq!(circuit.enter(later), Ok(Leave::Probe));
    }

    #[test]
    fn it_is_forgotten_when_that_changes_nothing() {
        let (circuit, now) = opened();
        let closed = Circuit::new(now);
        assert_eq!([29, 31].map(|second| closed.is_idle(&fuse(), now + second * SECOND)), [false, true]);
        assert_eq!([69, 71].map(|second| circuit.is_idle(&fuse(), now + second * SECOND)), [false, true]);
    }

    proptest! {
        #[test]
        fn a_pause_is_never_shorter_than_written_nor_much_longer_than_the_longest(
            open in 1_u64..1000, longest in 1_u64..100_000, pauses in 0_u32..100, dice in any::<u64>(),
        ) {
            let [open, open_max] = [open, longest.max(open)].map(Duration::from_secs);
            let pause = Fuse { open, open_max, ..fuse() }.pause(pauses, dice);
            prop_assert!(pause >= open && pause <= open_max + open_max / JITTER, "{:?}", pause);
        }
    }
}
