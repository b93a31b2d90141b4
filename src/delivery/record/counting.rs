//! The counting of a finished delivery in the metrics.
//! Which metrics does a delivery change?

use std::time::Duration;

use http::Method;

use super::Record;
use crate::policy::trace::TraceContext;

impl Record {
    /// Counts the delivery once, when it ends. The client decides how long a tunnel takes, so a tunnel has no duration.
    pub(super) fn count(&self, code: &'static str, blame: &'static str, elapsed: Duration) {
        self.runtime.traffic.count(blame, self.timer.started() + elapsed);
        let is_tunnel = self.method.as_ref() == Some(&Method::CONNECT);
        let total = (!is_tunnel).then_some(elapsed.as_secs_f64());
        let sampled = self.evidence.trace.filter(TraceContext::is_sampled).map(|trace| trace.trace_id);
        self.series.observe(code, blame, &self.timer.seconds(), total, sampled);
        if self.evidence.tls.as_ref().is_some_and(|tls| !tls.verified) {
            self.runtime.metrics.unverified(&self.series);
        }
        if let Some(side) = self.evidence.side {
            self.runtime.metrics.split(&self.series, side, code);
        }
    }
}
