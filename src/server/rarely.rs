//! Words about what goes wrong before there is a request to record: each kind once a minute, with a count.
//! How is an operator told of a flood without being flooded?

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

const PERIOD: Duration = Duration::from_secs(60);

/// What has a remedy of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Kind {
    /// The error number.
    Accept(Option<i32>),
    /// From a network that may not send the PROXY protocol.
    NoProxy,
    Header,
    Handshake,
    /// One address has too many connections.
    Crowd,
}

pub(super) struct Rarely(Mutex<HashMap<Kind, Heard>>);

struct Heard {
    said: Instant,
    /// Since then.
    unsaid: u64,
}

impl Rarely {
    pub(super) fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    pub(super) fn warn(&self, kind: Kind, words: impl FnOnce() -> String) {
        match self.is_due(kind, Instant::now()) {
            Some(0) => warn!("{}", words()),
            Some(unsaid) => warn!("{}; {unsaid} more like it in the last minute or so", words()),
            None => {}
        }
    }

    /// How many went unsaid, if this one is to be said.
    fn is_due(&self, kind: Kind, now: Instant) -> Option<u64> {
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(heard) = kinds.get_mut(&kind) else {
            kinds.insert(kind, Heard { said: now, unsaid: 0 });
            return Some(0);
        };
        if now.duration_since(heard.said) < PERIOD {
            heard.unsaid += 1;
            return None;
        }
        heard.said = now;
        Some(std::mem::take(&mut heard.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_told_once_a_minute_and_counted() {
        let (rarely, start) = (Rarely::new(), Instant::now());
        let later = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(rarely.is_due(Kind::Header, start), Some(0));
        assert_eq!(rarely.is_due(Kind::Header, later(1)), None);
        assert_eq!(rarely.is_due(Kind::Accept(Some(24)), later(2)), Some(0));
        assert_eq!(rarely.is_due(Kind::Header, later(59)), None);
        assert_eq!(rarely.is_due(Kind::Header, later(60)), Some(2));
        assert_eq!(rarely.is_due(Kind::Header, later(61)), None);
        assert_eq!(rarely.is_due(Kind::Accept(Some(24)), later(120)), Some(0));
    }
}
