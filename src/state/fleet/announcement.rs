//! The announcement of this process to its fleet, made from the state of the process.
//! What do the other instances and the operators learn of this one?

use std::sync::Arc;

use jiff::Timestamp;

use super::Fleet;
use crate::policy::egress::{AnnouncedRange, Pool, RangePhase};
use crate::policy::fleet::status::{InstanceAnnouncement, PARTS_MAX, RANGES_MAX, RangeAnnouncement, RangeState};
use crate::policy::load::LoadFactor;
use crate::state::Runtime;
use crate::state::drain::DrainStage;
use crate::state::upstreams::sources::SourcesSnapshot;

/// Limits the parts of all ranges together, so that the announcement is not too long for its readers.
const ALL_PARTS_MAX: usize = 2048;

/// The memory of the task that announces this instance.
#[derive(Default)]
pub(super) struct Announcer {
    /// The digests of the active configuration: of the whole, and of what the hosts of a fleet should have in common.
    digest: String,
    common_digest: String,
    pub(super) clock_offset_ms: Option<i64>,
    /// Whether there was an attempt to announce this instance.
    pub(super) has_tried: bool,
}

impl Announcer {
    /// Computes the digests. A large configuration is hashed once, apart from the traffic.
    async fn update_digests(&mut self, runtime: &Runtime) {
        let snapshot = Arc::clone(&runtime.config_status.adopted().snapshot);
        if self.digest != snapshot.digest {
            self.digest.clone_from(&snapshot.digest);
            let hashing = tokio::task::spawn_blocking(move || snapshot.common_digest()).await;
            self.common_digest = hashing.unwrap_or_default();
        }
    }

    pub(super) async fn announcement(&mut self, runtime: &Runtime, fleet: &Fleet) -> InstanceAnnouncement {
        self.update_digests(runtime).await;
        let now = Timestamp::now();
        let (active, snapshot, weight) =
            (runtime.active_config(), runtime.sources.snapshot(), runtime.load(now).weight());
        let all =
            active.plan.pools.values().flat_map(|pool| pool.announced_ranges(now).map(move |range| (pool, range)));
        let whole: Vec<_> = all.filter(|(_, range)| range.phase != RangePhase::Ended).collect();
        // A range of which a part is assigned has several states.
        let (assigned, mut ranges) = (fleet.assignments(), Vec::new());
        for (pool, range) in &whole {
            let parts = assigned.parts_of(range.seen_as);
            ranges.extend(parts.iter().filter_map(|part| Some((*pool, range.part(part)?))));
        }
        let ranges = if ranges.len() > RANGES_MAX { whole } else { ranges };
        let parts_max = PARTS_MAX.min(ALL_PARTS_MAX / ranges.len().max(1)).max(1);
        let announced = ranges.iter().map(|(pool, range)| announce_range(pool, range, parts_max, &snapshot, fleet));
        InstanceAnnouncement {
            instance: fleet.instance.clone(),
            process: fleet.process.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            digest: self.digest.clone(),
            common_digest: self.common_digest.clone(),
            started: runtime.started_at,
            weight: weight.percent,
            limited_by: weight.limited_by.map(|factor| LoadFactor::as_str(factor).to_owned()),
            blocked: runtime.blocked(now),
            stopping: runtime.drain_stage() == DrainStage::Stopping,
            clock_offset_ms: self.clock_offset_ms,
            ranges: announced.collect(),
            bundle_error: fleet.rollout().fetch_error.clone(),
            announced_ms: 0,
        }
    }
}

fn announce_range(
    pool: &Pool,
    range: &AnnouncedRange,
    parts_max: usize,
    snapshot: &SourcesSnapshot,
    fleet: &Fleet,
) -> RangeAnnouncement {
    let count = snapshot.count_ranges(&[range.cidr]);
    let (parts, is_truncated) = snapshot.parts_or_more(range.cidr, parts_max);
    let state = fleet.assigned_state(&range.seen_as).unwrap_or(match (range.phase, range.until) {
        (RangePhase::Upcoming, _) => RangeState::Upcoming,
        (_, None) => RangeState::Active,
        (_, Some(_)) => RangeState::Retiring,
    });
    RangeAnnouncement {
        pool: pool.name().to_string(),
        range: range.seen_as,
        source: range.cidr,
        state,
        until: range.until,
        addresses: count.configured.to_string(),
        present: snapshot.count_present(&[range.cidr]).to_string(),
        usable: count.usable.to_string(),
        parts: parts.iter().map(|part| range.seen_part(part)).collect(),
        is_truncated,
    }
}
