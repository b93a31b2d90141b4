//! The counting of a finished delivery in the metrics.
//! Which metrics does a delivery change?

use std::time::Duration;

use http::Method;

use super::Record;
use crate::delivery::refusal::Code;
use crate::policy::trace::TraceContext;
use crate::state::observability::records::Sampling;

impl Record {
    /// Returns whether the target accepted the webhook.
    pub(super) fn is_success(&self, code: &str) -> bool {
        code == "delivered" && matches!(self.evidence.status_class, None | Some("2xx"))
    }

    /// Returns whether the log has the record, and counts it if not. The log has all but plain successes.
    pub(super) fn sample(&self, code: &str) -> Sampling {
        let is_report_only = self.evidence.would_take.is_some() || !self.evidence.would_refuse.is_empty();
        if is_report_only || !self.is_success(code) {
            return Sampling::ALWAYS;
        }
        let sampling = self.runtime.records.sample(self.request_id());
        if !sampling.is_kept {
            self.runtime.metrics.records_sampled_out.inc();
        }
        sampling
    }

    /// Counts the delivery once, when it ends. The client decides how long a tunnel takes, so a tunnel has no duration.
    pub(super) fn count(&self, code: &'static str, blame: &'static str, elapsed: Duration) {
        let ended = self.timer.started() + elapsed;
        // The refusals of a drain are what its operator wants, and not a reason for an alert.
        let is_of_drain = code == Code::Draining.name();
        self.runtime.traffic.count(blame, (!is_of_drain).then_some(ended));
        match self.evidence.tenant.as_ref().filter(|_| self.evidence.is_tenant_proven) {
            Some(tenant) if self.is_success(code) => self.runtime.failing_tenants.succeeded(tenant),
            Some(tenant) if blame != "client" && !is_of_drain => self.runtime.failing_tenants.failed(tenant, ended),
            _ => {}
        }
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
