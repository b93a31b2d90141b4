//! Targets that chose HTTP/2 in the handshake and then demanded HTTP/1.1 (HTTP_1_1_REQUIRED, RFC 9113 §7).
//! Which version is offered to this target?

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::lru::LruCache;
use crate::names::Target;

/// How long a target is offered HTTP/1.1 alone. Afterwards one request finds out whether it still demands it.
const REMEMBERED_FOR: Duration = Duration::from_secs(10 * 60);
/// Targets that are remembered; for one more, the target is forgotten that was asked about least recently.
const TARGETS_MAX: usize = 1024;

pub struct Http1OnlyTargets {
    /// When each has demanded it last.
    since: Mutex<LruCache<Target, Instant>>,
}

impl Default for Http1OnlyTargets {
    fn default() -> Self {
        Self { since: Mutex::new(LruCache::new(TARGETS_MAX)) }
    }
}

impl Http1OnlyTargets {
    /// Remembers that the target demands HTTP/1.1.
    pub fn remember(&self, target: &Target) {
        self.remember_at(target, Instant::now());
    }

    /// Returns whether the target has demanded HTTP/1.1 lately.
    pub fn contains(&self, target: &Target) -> bool {
        self.contains_at(target, Instant::now())
    }

    fn remember_at(&self, target: &Target, now: Instant) {
        self.since.lock().insert(target.clone(), now);
    }

    fn contains_at(&self, target: &Target, now: Instant) -> bool {
        let mut since = self.since.lock();
        since.get(target).is_some_and(|demanded| now.saturating_duration_since(*demanded) < REMEMBERED_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{Host, Scheme};

    fn target(port: usize) -> Target {
        let host = Host::Name("hook.example".into());
        Target { scheme: Scheme::Https, host, port: u16::try_from(port).unwrap() }
    }

    #[test]
    fn http1_only_is_forgotten_after_ten_minutes() {
        let (http1_only, start) = (Http1OnlyTargets::default(), Instant::now());
        http1_only.remember_at(&target(1), start);
        assert!(http1_only.contains_at(&target(1), start + REMEMBERED_FOR - Duration::from_secs(1)));
        assert!(!http1_only.contains_at(&target(2), start));
        assert!(!http1_only.contains_at(&target(1), start + REMEMBERED_FOR));
    }

    #[test]
    fn http1_only_forgets_the_oldest_target_when_it_is_full() {
        let (http1_only, start) = (Http1OnlyTargets::default(), Instant::now());
        for port in 0..=TARGETS_MAX {
            http1_only.remember_at(&target(port), start + Duration::from_millis(port as u64));
        }
        let now = start + Duration::from_secs(10);
        assert!(!http1_only.contains_at(&target(0), now));
        assert!(http1_only.contains_at(&target(1), now) && http1_only.contains_at(&target(TARGETS_MAX), now));
    }
}
