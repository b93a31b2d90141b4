//! Warnings about connections that fail before a request: each kind once a minute, with a count.
//! How does a flood of bad connections not flood the log?

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::panics::Mutex;

const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A kind of failure with its own remedy.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum WarningKind {
    /// The error number.
    Accept(Option<i32>),
    /// The peer's network may not send the PROXY protocol.
    UntrustedProxy,
    ProxyHeader,
    TlsHandshake,
    /// One address has too many connections.
    PerIpLimit,
}

/// The last warning of each kind.
pub(super) struct ThrottledLog(Mutex<HashMap<WarningKind, LogState>>);

struct LogState {
    last_logged: Instant,
    /// The number of warnings suppressed since `last_logged`.
    suppressed: u64,
}

impl ThrottledLog {
    pub(super) fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    pub(super) fn warn(&self, kind: WarningKind, message: impl FnOnce() -> String) {
        match self.should_log(kind, Instant::now()) {
            Some(0) => warn!("{}", message()),
            Some(suppressed) => {
                warn!("{}; {suppressed} similar warnings were suppressed since the last one", message())
            }
            None => {}
        }
    }

    /// Returns the number of suppressed warnings if this warning should be logged.
    fn should_log(&self, kind: WarningKind, now: Instant) -> Option<u64> {
        let mut kinds = self.0.lock();
        let Some(state) = kinds.get_mut(&kind) else {
            kinds.insert(kind, LogState { last_logged: now, suppressed: 0 });
            return Some(0);
        };
        if now.duration_since(state.last_logged) < LOG_INTERVAL {
            state.suppressed += 1;
            return None;
        }
        state.last_logged = now;
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttled_log_writes_each_kind_once_a_minute_and_counts_the_suppressed() {
        let (log, start) = (ThrottledLog::new(), Instant::now());
        let later = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(log.should_log(WarningKind::ProxyHeader, start), Some(0));
        assert_eq!(log.should_log(WarningKind::ProxyHeader, later(1)), None);
        assert_eq!(log.should_log(WarningKind::Accept(Some(24)), later(2)), Some(0));
        assert_eq!(log.should_log(WarningKind::ProxyHeader, later(59)), None);
        assert_eq!(log.should_log(WarningKind::ProxyHeader, later(60)), Some(2));
        assert_eq!(log.should_log(WarningKind::ProxyHeader, later(61)), None);
        assert_eq!(log.should_log(WarningKind::Accept(Some(24)), later(120)), Some(0));
    }
}
