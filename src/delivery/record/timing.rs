//! The time that each step of a delivery took, in the record of deliveries that fail, too.
//! How long did each step take, and in which step did the delivery end?

use std::time::{Duration, Instant};

use serde::Serialize;

/// The steps that are timed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Step {
    Admit,
    Token,
    ReadBody,
    Resolve,
    Connect,
    Tls,
    Sign,
    Response,
}

/// Milliseconds by step; `None`: the delivery did not come to it, or not in this way.
#[derive(Serialize, Default, Clone, Debug)]
pub(super) struct StepTimes {
    #[serde(skip_serializing_if = "Option::is_none")]
    admit: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    take_in: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resolve: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sign: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<f64>,
    total: f64,
}

pub(super) struct StepTimer {
    started: Instant,
    /// The end of the last step.
    last: Instant,
    underway: Option<Step>,
    took: StepTimes,
}

impl StepTimer {
    pub(super) fn start() -> Self {
        let now = Instant::now();
        Self { started: now, last: now, underway: None, took: StepTimes::default() }
    }

    pub(super) fn started(&self) -> Instant {
        self.started
    }

    /// What is between two steps counts for the second, but not for the way to the target.
    pub(super) fn begin(&mut self, step: Step) {
        if matches!(step, Step::Connect | Step::Tls) {
            self.mark();
        }
        self.underway = Some(step);
    }

    /// Ends a step, which has taken the time since the end of the last one. A step that is taken again, such as a second connection, counts with the first.
    pub(super) fn end(&mut self, step: Step) {
        let took = self.last.elapsed();
        let slot = match step {
            Step::Admit => &mut self.took.admit,
            Step::Token => &mut self.took.token,
            Step::ReadBody => &mut self.took.take_in,
            Step::Resolve => &mut self.took.resolve,
            Step::Connect => &mut self.took.connect,
            Step::Tls => &mut self.took.tls,
            Step::Sign => &mut self.took.sign,
            Step::Response => &mut self.took.response,
        };
        *slot = Some(milliseconds(took + Duration::from_secs_f64(slot.unwrap_or_default() / 1e3)));
        self.underway = None;
        self.mark();
    }

    /// The next step begins now.
    pub(super) fn mark(&mut self) {
        self.last = Instant::now();
    }

    /// Ends the step under way, if there is one.
    pub(super) fn stop(&mut self) {
        self.underway.into_iter().for_each(|step| self.end(step));
    }

    /// Returns the time of the whole delivery.
    pub(super) fn finish(&mut self) -> Duration {
        self.stop();
        let took = self.started.elapsed();
        self.took.total = milliseconds(took);
        took
    }

    /// Ends the timing, and gives its times away.
    pub(super) fn take_times(&mut self) -> StepTimes {
        self.finish();
        std::mem::take(&mut self.took)
    }

    pub(super) fn milliseconds(&self) -> &StepTimes {
        &self.took
    }
}

pub fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
