//! The targets that selected HTTP/2 by ALPN and then required HTTP/1.1 (HTTP_1_1_REQUIRED, RFC 9113 §7).
//! Which versions does outgate offer to this target?

use std::time::{Duration, Instant};

use crate::lru::LruCache;
use crate::names::Target;
use crate::panics::Mutex;

/// The time for which a target is offered only HTTP/1.1. The next request after it offers HTTP/2 again.
const REMEMBERED_FOR: Duration = Duration::from_secs(10 * 60);
/// The capacity. A new target evicts the least recently used one.
const TARGETS_MAX: usize = 1024;

pub struct Http1OnlyTargets {
    /// The last time that each target required HTTP/1.1.
    since: Mutex<LruCache<Target, Instant>>,
}

impl Default for Http1OnlyTargets {
    fn default() -> Self {
        Self { since: Mutex::new(LruCache::new(TARGETS_MAX)) }
    }
}

impl Http1OnlyTargets {
    /// Notes that the target requires HTTP/1.1.
    pub fn insert(&self, target: &Target, now: Instant) {
        self.since.lock().insert(target.clone(), now);
    }

    /// Returns whether the target has required HTTP/1.1 within [`REMEMBERED_FOR`].
    pub fn contains(&self, target: &Target, now: Instant) -> bool {
        let mut since = self.since.lock();
        since.get(target).is_some_and(|last| now.saturating_duration_since(*last) < REMEMBERED_FOR)
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
    fn http1_only_target_expires_after_ten_minutes() {
        let (http1_only, start) = (Http1OnlyTargets::default(), Instant::now());
        http1_only.insert(&target(1), start);
        assert!(http1_only.contains(&target(1), start + REMEMBERED_FOR - Duration::from_secs(1)));
        assert!(!http1_only.contains(&target(2), start));
        assert!(!http1_only.contains(&target(1), start + REMEMBERED_FOR));
    }

    #[test]
    fn http1_only_targets_evict_the_least_recently_used_one() {
        let (http1_only, start) = (Http1OnlyTargets::default(), Instant::now());
        for port in 0..=TARGETS_MAX {
            http1_only.insert(&target(port), start + Duration::from_millis(port as u64));
        }
        let now = start + Duration::from_secs(10);
        assert!(!http1_only.contains(&target(0), now));
        assert!(http1_only.contains(&target(1), now) && http1_only.contains(&target(TARGETS_MAX), now));
    }
}
