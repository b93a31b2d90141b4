//! The announcement of this process to its fleet, made from the state of the process.
//! What do the other instances and the operators learn of this one?

use std::sync::Arc;

use data_encoding::HEXLOWER;
use jiff::Timestamp;

use super::Fleet;
use crate::config::SourceSnapshot;
use crate::digest::Fingerprint;
use crate::policy::egress::{AnnouncedRange, Pool, RangePhase};
use crate::policy::fleet::status::{InstanceAnnouncement, RangeAnnouncement, RangeState};
use crate::policy::load::LoadFactor;
use crate::state::Runtime;
use crate::state::drain::DrainStage;
use crate::state::upstreams::sources::SourcesSnapshot;

/// Limits the parts of one range. A host that has every second address of a large range has more.
const PARTS_MAX: usize = 256;

/// The digests of a configuration: with and without the name of this instance.
#[derive(Clone, Default)]
pub(super) struct ConfigDigests {
    whole: String,
    common: String,
}

impl ConfigDigests {
    /// Returns the digests of the active configuration. A large configuration is hashed once, apart from the traffic.
    pub(super) async fn update(&mut self, runtime: &Runtime, instance: &str) {
        let snapshot = Arc::clone(&runtime.config_status.adopted().snapshot);
        if self.whole != snapshot.digest {
            let (whole, name) = (snapshot.digest.clone(), format!("\"{instance}\""));
            let hashing = tokio::task::spawn_blocking(move || common_digest(&snapshot, &name)).await;
            *self = Self { whole, common: hashing.unwrap_or_default() };
        }
    }
}

/// Hashes the files of a configuration without `name`: each instance of a fleet writes its own.
fn common_digest(snapshot: &SourceSnapshot, name: &str) -> String {
    let texts = snapshot.texts.iter().map(|(_, text)| text.replace(name, ""));
    let mut fingerprint = Fingerprint::default();
    texts.for_each(|text| fingerprint.part(text.as_bytes()));
    snapshot.contents.values().for_each(|digest| fingerprint.part(digest.as_bytes()));
    HEXLOWER.encode(&fingerprint.finish())
}

pub(super) fn announce(
    runtime: &Runtime,
    fleet: &Fleet,
    digests: &ConfigDigests,
    clock_offset_ms: Option<i64>,
    now: Timestamp,
) -> InstanceAnnouncement {
    let (active, snapshot, weight) = (runtime.active_config(), runtime.sources.snapshot(), runtime.load(now).weight());
    let of_pool = |pool: &Pool| {
        let ranges = pool.announced_ranges(now).filter(|range| range.phase != RangePhase::Ended);
        ranges.map(|range| announce_range(pool, &range, &snapshot, fleet)).collect::<Vec<_>>()
    };
    let digests = digests.clone();
    InstanceAnnouncement {
        instance: fleet.instance.clone(),
        process: fleet.process.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        digest: digests.whole,
        common_digest: digests.common,
        started: runtime.started_at,
        weight: weight.percent,
        limited_by: weight.limited_by.map(|factor| LoadFactor::as_str(factor).to_owned()),
        blocked: runtime.blocked(now),
        stopping: runtime.drain_stage() == DrainStage::Stopping,
        clock_offset_ms,
        ranges: active.plan.pools.values().flat_map(|pool| of_pool(pool)).collect(),
        announced_ms: 0,
    }
}

fn announce_range(pool: &Pool, range: &AnnouncedRange, snapshot: &SourcesSnapshot, fleet: &Fleet) -> RangeAnnouncement {
    let count = snapshot.count_ranges(&[range.cidr]);
    let parts = snapshot.usable_ranges(&[range.cidr]);
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
        parts: parts.iter().take(PARTS_MAX).map(|part| range.seen_part(part)).collect(),
    }
}
