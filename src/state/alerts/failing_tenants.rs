//! The tenants whose deliveries all fail, in a bounded table.
//! Which tenants have had no success lately?

use std::time::{Duration, Instant};

use crate::lru::LruCache;
use crate::names::TenantName;
use crate::panics::Mutex;
use crate::state::counters::TableSize;

/// The tenants with failures that are known. A new one evicts the one that failed least recently.
const TENANTS_MAX: usize = 10_000;
/// The failures without a success that concern an operator: this many, or fewer over a longer time.
const FAILURES_MIN: u32 = 10;
const FAILURES_MIN_OVER_TIME: u32 = 3;
const FAILING_TIME: Duration = Duration::from_secs(300);
/// The age of the last failure at which a tenant is forgotten.
const WINDOW: Duration = Duration::from_secs(3600);

/// The failures of a tenant since its last success.
struct Failures {
    count: u32,
    first: Instant,
    last: Instant,
}

pub struct FailingTenants {
    /// While no tenant is known, a success takes no lock.
    size: TableSize,
    tenants: Mutex<LruCache<TenantName, Failures>>,
}

impl Default for FailingTenants {
    fn default() -> Self {
        Self { size: TableSize::default(), tenants: Mutex::new(LruCache::new(TENANTS_MAX)) }
    }
}

impl FailingTenants {
    pub fn failed(&self, tenant: &TenantName, now: Instant) {
        let mut tenants = self.tenants.lock();
        let failures = tenants.get_or_insert_with(tenant, || Failures { count: 0, first: now, last: now });
        if failures.count == 0 {
            failures.first = now;
        }
        (failures.count, failures.last) = (failures.count.saturating_add(1), now);
        self.size.set(tenants.len());
    }

    pub fn succeeded(&self, tenant: &TenantName) {
        if !self.size.is_zero()
            && let Some(failures) = self.tenants.lock().peek(tenant)
        {
            failures.count = 0;
        }
    }

    /// Returns the tenants whose deliveries all fail, each with the number of failures. Forgets those that had a success,
    /// and those whose last failure is older than [`WINDOW`].
    pub fn review(&self, now: Instant) -> Vec<(TenantName, u32)> {
        let (mut tenants, mut failing) = (self.tenants.lock(), Vec::new());
        tenants.retain(|tenant, Failures { count, first, last }| {
            let lasts = last.saturating_duration_since(*first) >= FAILING_TIME;
            if *count >= FAILURES_MIN || *count >= FAILURES_MIN_OVER_TIME && lasts {
                failing.push((tenant.clone(), *count));
            }
            *count > 0 && now.saturating_duration_since(*last) < WINDOW
        });
        self.size.set(tenants.len());
        failing.sort();
        failing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenant_fails_after_many_failures_or_a_few_over_time_and_until_a_success() {
        let (tenants, start) = (FailingTenants::default(), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        let [busy, quiet] = ["busy", "quiet"].map(TenantName::new);
        (0..9).for_each(|second| tenants.failed(&busy, at(second)));
        [0, 150].into_iter().for_each(|second| tenants.failed(&quiet, at(second)));
        assert_eq!(tenants.review(at(200)), []);
        tenants.failed(&busy, at(210));
        tenants.failed(&quiet, at(300));
        assert_eq!(tenants.review(at(300)), [(busy.clone(), 10), (quiet.clone(), 3)]);
        tenants.succeeded(&busy);
        assert_eq!(tenants.review(at(310)), [(quiet.clone(), 3)]);
        assert_eq!(
            tenants.review(at(300 + 3600)).len() + tenants.review(at(301 + 3600)).len(),
            1,
            "the last look forgets"
        );
        assert!(tenants.size.is_zero());
    }
}
