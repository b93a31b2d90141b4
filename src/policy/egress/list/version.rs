//! The version of the configured ranges: which ranges, and the time since which they are configured.
//! Has a reload changed the list that customers see?

use std::time::Duration;

use data_encoding::HEXLOWER;
use jiff::{Timestamp, ToSpan};
use serde::{Deserialize, Serialize};

use super::super::Pool;
use super::state;
use crate::digest::Fingerprint;

/// The ranges of a configuration as a fingerprint. The history keeps it, so that a restart does not change the serial.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListVersion {
    fingerprint: String,
    /// The time at which the fingerprint was taken. Ranges that were no longer in the list then are not part of it.
    at: Timestamp,
    /// The time since which the configured ranges are the same, in whole seconds.
    pub since: Timestamp,
}

impl ListVersion {
    /// Returns the version of `pools`, which were changed at `changed_at` if they differ from `former`. A version is at
    /// least a second later than the version before it.
    pub fn of<'p>(
        pools: impl Iterator<Item = &'p Pool> + Clone,
        grace: Duration,
        former: Option<&ListVersion>,
        changed_at: Timestamp,
        now: Timestamp,
    ) -> Self {
        let changed_at = Timestamp::from_second(changed_at.min(now).as_second()).unwrap_or(now);
        let since = match former {
            None => changed_at,
            Some(former) if fingerprint(pools.clone(), grace, former.at) == former.fingerprint => former.since,
            Some(former) => former.since.checked_add(1.second()).map_or(changed_at, |next| changed_at.max(next)),
        };
        Self { fingerprint: fingerprint(pools, grace, now), at: now, since }
    }
}

fn fingerprint<'p>(pools: impl Iterator<Item = &'p Pool>, grace: Duration, now: Timestamp) -> String {
    let mut fingerprint = Fingerprint::default();
    for pool in pools {
        for range in pool.announced_ranges(now).filter(|range| state(range, grace, now).is_some()) {
            fingerprint
                .part(format!("{} {} {:?} {:?}", pool.name(), range.seen_as, range.from, range.until).as_bytes());
        }
    }
    HEXLOWER.encode(&fingerprint.finish())
}
