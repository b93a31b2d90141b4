//! The counting of a finished delivery in the metrics.
//! Which metrics does a delivery change?

use std::time::Duration;

use http::Method;

use super::Record;

impl Record {
    /// Counts the delivery once, when it ends. The client decides how long a tunnel takes, so a tunnel has no duration.
    pub(super) fn count(&self, code: &'static str, blame: &'static str, elapsed: Duration) {
        self.runtime.traffic.count(blame, self.timer.started() + elapsed);
        let is_tunnel = self.method.as_ref() == Some(&Method::CONNECT);
        self.series.observe(code, blame, &self.timer.seconds(), (!is_tunnel).then_some(elapsed.as_secs_f64()));
        if self.evidence.tls.as_ref().is_some_and(|tls| !tls.verified) {
            self.runtime.metrics.unverified(&self.series);
        }
        if let Some(side) = self.evidence.side {
            self.runtime.metrics.split(&self.series, side, code);
        }
    }
}
