//! The time that each step of a delivery took, including the step in which it failed.
//! How long did each step take, and in which step did the delivery end?

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::state::observability::metrics::StepSeconds;

/// The steps that a record times.
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

/// Milliseconds of each step. `None`: the delivery did not take the step.
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
        let elapsed = self.last.elapsed();
        let slot = match step {
            Step::Admit => &mut self.times.admit,
            Step::Token => &mut self.times.token,
            Step::ReadBody => &mut self.times.take_in,
            Step::Resolve => &mut self.times.resolve,
            Step::Connect => &mut self.times.connect,
            Step::Tls => &mut self.times.tls,
            Step::Sign => &mut self.times.sign,
            Step::Response => &mut self.times.response,
        };
        *slot = Some(milliseconds(elapsed + Duration::from_secs_f64(slot.unwrap_or_default() / 1e3)));
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
        let elapsed = self.started.elapsed();
        self.times.total = milliseconds(elapsed);
        elapsed
    }

    /// Ends the timing, and returns its times.
    pub(super) fn take_times(&mut self) -> StepTimes {
        self.finish();
        std::mem::take(&mut self.times)
    }

    /// Returns the seconds of each step, in the order of the metrics.
    pub(super) fn seconds(&self) -> StepSeconds {
        let &StepTimes { admit, token, take_in, resolve, connect, tls, sign, response, .. } = &self.times;
        [admit, token, take_in, resolve, connect, tls, sign, response].map(|time| time.map(|time| time / 1e3))
    }

    pub(super) fn milliseconds(&self) -> &StepTimes {
        &self.times
    }
}

pub fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
