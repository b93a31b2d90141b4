//! Words about what goes wrong before there is a request to record: each kind once a minute, with a count.
//! How is an operator told of a flood without being flooded?

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::warn;

const PERIOD: Duration = Duration::from_secs(60);

/// What has a remedy of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum WarningKind {
    /// The error number.
    Accept(Option<i32>),
    /// From a network that may not send the PROXY protocol.
    UntrustedProxy,
    ProxyHeader,
    TlsHandshake,
    /// One address has too many connections.
    PerIpLimit,
}

pub(super) struct ThrottledLog(Mutex<HashMap<WarningKind, LogState>>);

struct LogState {
    said: Instant,
    /// Since then.
    suppressed: u64,
}

impl ThrottledLog {
    pub(super) fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    pub(super) fn warn(&self, kind: WarningKind, words: impl FnOnce() -> String) {
        match self.should_log(kind, Instant::now()) {
            Some(0) => warn!("{}", words()),
            Some(unsaid) => warn!("{}; {unsaid} more like it in the last minute or so", words()),
            None => {}
        }
    }

    /// How many went unsaid, if this one is to be said.
    fn should_log(&self, kind: WarningKind, now: Instant) -> Option<u64> {
        let mut kinds = self.0.lock();
        let Some(heard) = kinds.get_mut(&kind) else {
            kinds.insert(kind, LogState { said: now, suppressed: 0 });
            return Some(0);
        };
        if now.duration_since(heard.said) < PERIOD {
            heard.suppressed += 1;
            return None;
        }
        heard.said = now;
        Some(std::mem::take(&mut heard.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_told_once_a_minute_and_counted() {
        let (rarely, start) = (ThrottledLog::new(), Instant::now());
        let later = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(rarely.should_log(WarningKind::ProxyHeader, start), Some(0));
        assert_eq!(rarely.should_log(WarningKind::ProxyHeader, later(1)), None);
        assert_eq!(rarely.should_log(WarningKind::Accept(Some(24)), later(2)), Some(0));
        assert_eq!(rarely.should_log(WarningKind::ProxyHeader, later(59)), None);
        assert_eq!(rarely.should_log(WarningKind::ProxyHeader, later(60)), Some(2));
        assert_eq!(rarely.should_log(WarningKind::ProxyHeader, later(61)), None);
        assert_eq!(rarely.should_log(WarningKind::Accept(Some(24)), later(120)), Some(0));
    }
}
