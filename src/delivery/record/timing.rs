//! The time that each step of a delivery took, including the step in which it failed.
//! How long did each step take, and in which step did the delivery end?

use std::time::{Duration, Instant};

use super::json::{WriteJson, write_thousandths};
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

/// The time of a step, in nanoseconds, which need half the memory of a `Duration`: each tunnel has a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepTime {
    began: u64,
    took: u64,
}

impl StepTime {
    /// Returns the time from the start of the delivery to the start of the step.
    pub(super) fn began(self) -> Duration {
        Duration::from_nanos(self.began)
    }

    pub(super) fn took(self) -> Duration {
        Duration::from_nanos(self.took)
    }
}

impl WriteJson for StepTimes {
    fn write_json(&self, line: &mut Vec<u8>) {
        line.push(b'{');
        for (name, time) in NAMES.into_iter().zip(&self.steps) {
            let Some(time) = time else { continue };
            line.push(b'"');
            line.extend_from_slice(name.as_bytes());
            line.extend_from_slice(b"\":");
            Milliseconds(time.took()).write_json(line);
            line.push(b',');
        }
        line.extend_from_slice(b"\"total\":");
        Milliseconds(self.total).write_json(line);
        line.push(b'}');
    }
}

/// A time that a record has in milliseconds, to the microsecond.
#[derive(Clone, Copy, Debug)]
pub(super) struct Milliseconds(pub(super) Duration);

impl WriteJson for Milliseconds {
    fn write_json(&self, line: &mut Vec<u8>) {
        write_thousandths(microseconds(self.0), line);
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
        let (now, last) = (Instant::now(), self.last);
        let first = StepTime { began: nanoseconds(last.duration_since(self.started)), took: 0 };
        self.times.steps[step as usize].get_or_insert(first).took += nanoseconds(now.duration_since(last));
        (self.current, self.last) = (None, now);
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
        self.times.steps.map(|time| time.map(|time| time.took().as_secs_f64()))
    }

    pub(super) fn times(&self) -> &StepTimes {
        &self.times
    }
}

pub fn milliseconds(time: Duration) -> f64 {
    microseconds(time) as f64 / 1e3
}

/// Returns the nanoseconds of a time of up to 584 years.
fn nanoseconds(time: Duration) -> u64 {
    time.as_secs() * 1_000_000_000 + u64::from(time.subsec_nanos())
}

/// Returns the microseconds of a time, rounded.
fn microseconds(time: Duration) -> u64 {
    time.as_secs() * 1_000_000 + u64::from(time.subsec_nanos() + 500) / 1000
}
