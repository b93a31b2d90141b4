//! The time that each step of a delivery took, including the step in which it failed.
//! How long did each step take, and in which step did the delivery end?

use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use crate::state::observability::metrics::{STEPS, StepSeconds};

/// The steps that a record times, in the order of the metrics.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::delivery) enum Step {
    Admit,
    Token,
    ReadBody,
    Resolve,
    Connect,
    Tls,
    Sign,
    Response,
}

/// The names of the steps in a record.
const NAMES: [&str; STEPS.len()] = ["admit", "token", "take_in", "resolve", "connect", "tls", "sign", "response"];

/// The time of each step, in the order of [`Step`]. `None`: the delivery did not take the step.
#[derive(Default, Clone, Debug)]
pub(super) struct StepTimes {
    pub(super) steps: [Option<StepTime>; STEPS.len()],
    pub(super) total: Duration,
}

/// The time of a step since the start of the delivery.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepTime {
    pub(super) began: Duration,
    pub(super) took: Duration,
}

/// Writes milliseconds.
impl Serialize for StepTimes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let steps = NAMES.into_iter().zip(self.steps).filter_map(|(name, time)| Some((name, time?.took)));
        serializer.collect_map(steps.chain([("total", self.total)]).map(|(name, time)| (name, milliseconds(time))))
    }
}

pub(super) struct StepTimer {
    started: Instant,
    /// The end of the last step.
    last: Instant,
    current: Option<Step>,
    times: StepTimes,
}

impl StepTimer {
    pub(super) fn start() -> Self {
        let now = Instant::now();
        Self { started: now, last: now, current: None, times: StepTimes::default() }
    }

    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// Begins a step. The time since the last step counts for it, except for the steps of a connection.
    pub(super) fn begin(&mut self, step: Step) {
        if matches!(step, Step::Connect | Step::Tls) {
            self.mark();
        }
        self.current = Some(step);
    }

    /// Ends a step, which has taken the time since the end of the last one. A second time, such as that of a second
    /// connection, is added to the first.
    pub(super) fn end(&mut self, step: Step) {
        let first = StepTime { began: self.last.duration_since(self.started), took: Duration::ZERO };
        self.times.steps[step as usize].get_or_insert(first).took += self.last.elapsed();
        self.current = None;
        self.mark();
    }

    /// Sets the beginning of the next step to now.
    pub(super) fn mark(&mut self) {
        self.last = Instant::now();
    }

    /// Ends the current step, if there is one.
    pub(super) fn stop(&mut self) {
        self.current.into_iter().for_each(|step| self.end(step));
    }

    /// Ends the timing, and returns the time of the whole delivery.
    pub(super) fn finish(&mut self) -> Duration {
        self.stop();
        self.times.total = self.started.elapsed();
        self.times.total
    }

    /// Ends the timing, and returns its times.
    pub(super) fn take_times(&mut self) -> StepTimes {
        self.finish();
        std::mem::take(&mut self.times)
    }

    /// Returns the seconds of each step, in the order of the metrics.
    pub(super) fn seconds(&self) -> StepSeconds {
        self.times.steps.map(|time| time.map(|time| time.took.as_secs_f64()))
    }

    pub(super) fn times(&self) -> &StepTimes {
        &self.times
    }
}

pub fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
