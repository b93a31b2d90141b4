//! Pools of source addresses, and the selection of hops: the only module that creates a [`Hop`].
//! From which source address does this delivery leave?
//!
//! Every address of a range is used, including the first and the last. The ranges are routed to this host, so they
//! contain no network or broadcast address.

pub mod actions;
pub mod allow_list_gap;
mod check;
pub(super) mod cover;
pub mod ejection;
pub mod list;
mod mix;
pub mod notice;
pub mod observations;
mod span;
mod survey;

use std::collections::BTreeMap;
use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;
use smallvec::SmallVec;

use super::guard::ClearedAddresses;
use crate::config::{self, Config, Problem, SelectionPolicy};
use crate::names::PoolName;
use mix::{mix, mix_u128};
use span::{AddressSpan, ip_to_u128, is_v6, u128_to_ip};
pub use survey::{ComparedRanges, NewRanges, Survey, survey};

/// The maximum number of a target's addresses to dial. A name with a thousand addresses must not cause a thousand
/// connection attempts for one webhook.
pub const TARGET_ADDRESSES_MAX: usize = 16;
/// The number of random draws before the selection walks the pool. If half of a pool is unusable, every second draw
/// fails.
const DRAWS_MAX: u64 = 64;
/// The number of addresses that a walk tries. It covers all of a small pool, so that the last usable address is found.
const WALK_MAX: u128 = 4096;

/// A pair of a source address of the pool and a cleared target address. Only [`select_hops`] and [`survey()`] create
/// one, so a socket opened for a `Hop` is bound and guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hop {
    from: IpAddr,
    seen_as: IpAddr,
    to: SocketAddr,
}

impl Hop {
    pub fn from(&self) -> IpAddr {
        self.from
    }
    /// Returns the address that the target sees: behind NAT, it is not the address that the connection is bound to.
    pub fn seen_as(&self) -> IpAddr {
        self.seen_as
    }
    pub fn to(&self) -> SocketAddr {
        self.to
    }

    #[cfg(test)]
    pub(crate) fn for_test(from: IpAddr, to: SocketAddr) -> Self {
        Self { from, seen_as: from, to }
    }
}

/// The hops of one delivery, in the order of attempts. Most deliveries have few.
pub type Hops = SmallVec<[Hop; 4]>;

/// The reason why no hop exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopError {
    /// No address of the pool is usable.
    NoUsableSource,
    /// The pool has usable addresses, but none of the target's address families.
    NoCommonFamily,
}

/// The address families of a pool's addresses. A target's addresses of other families are unreachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    pub v4: bool,
    pub v6: bool,
}

/// Returns the hops in the order of attempts. The target's address families are interleaved, IPv6 first (RFC 8305 §4),
/// from one source per family. With `failover`, the same hops follow from one other source per family.
///
/// `affinity` is the hash that selects a sticky source. `sequence` counts deliveries, or is random if the pool's policy
/// is `random`. `is_usable` returns whether this host can bind an address; the number of calls is bounded.
pub fn select_hops(
    pool: &Pool,
    cleared: &ClearedAddresses,
    affinity: u64,
    sequence: u64,
    now: Timestamp,
    is_usable: &dyn Fn(IpAddr) -> bool,
) -> Result<Hops, HopError> {
    let has_family = |v6| cleared.addresses().iter().any(|to| to.is_ipv6() == v6);
    let select = |v6, usable: &dyn Fn(IpAddr) -> bool| pool.select_source(v6, affinity, sequence, now, usable);
    // Indexed by family: IPv4 at 0 and IPv6 at 1.
    let sources = [false, true].map(|v6| if has_family(v6) { select(v6, is_usable) } else { None });
    if sources == [None, None] {
        let elsewhere = [false, true].into_iter().any(|v6| !has_family(v6) && select(v6, is_usable).is_some());
        return Err(if elsewhere { HopError::NoCommonFamily } else { HopError::NoUsableSource });
    }
    let has_more = |from: &IpAddr| pool.failover && pool.size(now, from.is_ipv6()) > 1;
    let other = |from: IpAddr| select(from.is_ipv6(), &|ip| ip != from && is_usable(ip));
    let others = sources.map(|from| from.filter(has_more).and_then(other));

    let mut hops = Hops::new();
    for sources in [sources, others] {
        let sources = sources.map(|from| from.map(|from| (from, pool.seen_as(from, now))));
        let candidates = interleave(cleared.addresses()).filter_map(|to| {
            let (from, seen_as) = sources[usize::from(to.is_ipv6())]?;
            Some(Hop { from, seen_as, to: (to, cleared.port()).into() })
        });
        hops.extend(candidates.take(TARGET_ADDRESSES_MAX));
    }
    Ok(hops)
}

/// Interleaves the address families, IPv6 first, and keeps the order within each family.
fn interleave(addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    let mut v6 = addresses.iter().filter(|ip| ip.is_ipv6());
    let mut v4 = addresses.iter().filter(|ip| ip.is_ipv4());
    let mut six = false;
    iter::from_fn(move || {
        six = !six;
        if six { v6.next().or_else(|| v4.next()) } else { v4.next().or_else(|| v6.next()) }.copied()
    })
}

/// The compiled pools by their names.
pub type Pools = BTreeMap<PoolName, Arc<Pool>>;

/// A compiled pool of source addresses.
#[derive(Debug)]
pub struct Pool {
    name: PoolName,
    select: SelectionPolicy,
    failover: bool,
    /// The time between the announcement of a range and its first webhook.
    notice: Duration,
    ranges: Vec<SourceRange>,
}

/// A configured range, and its addresses without the excluded ones.
#[derive(Debug)]
struct SourceRange {
    cidr: IpNet,
    /// The range that targets see behind NAT, of the same size.
    seen_as: Option<IpNet>,
    from: Option<Timestamp>,
    until: Option<Timestamp>,
    /// The identity of the range in rendezvous hashing: a hash of its CIDR alone, so that its position in the pool does
    /// not matter.
    id: u64,
    spans: Vec<AddressSpan>,
}

/// A part of a configured range, with its active time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnouncedRange {
    pub cidr: IpNet,
    /// The CIDR that targets see: behind NAT, it is not `cidr`.
    pub seen_as: IpNet,
    pub from: Option<Timestamp>,
    pub until: Option<Timestamp>,
    pub phase: RangePhase,
}

/// The phase of a range at a point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RangePhase {
    Upcoming,
    Active,
    Ended,
}

/// Compiles every pool, and reports the problems of each and between pools.
pub fn compile(config: &Config, now: Timestamp, problems: &mut Vec<Problem>) -> Pools {
    check::check(&config.egress, now, problems);
    config.egress.iter().map(|(name, pool)| (name.clone(), Arc::new(Pool::new(name, pool)))).collect()
}

impl Pool {
    fn new(name: &PoolName, pool: &config::Pool) -> Self {
        let ranges =
            pool.ranges.iter().map(|range| SourceRange::new(range, pool)).filter(|range| !range.spans.is_empty());
        Self {
            name: name.clone(),
            select: pool.select,
            failover: pool.failover,
            notice: pool.notice,
            ranges: ranges.collect(),
        }
    }

    pub fn name(&self) -> &PoolName {
        &self.name
    }
    pub fn select(&self) -> SelectionPolicy {
        self.select
    }
    pub fn failover(&self) -> bool {
        self.failover
    }

    /// Returns exactly the addresses that deliveries may leave from, in the smallest number of CIDRs.
    pub fn active_ranges(&self, now: Timestamp) -> Vec<IpNet> {
        let active = self.ranges.iter().filter(|range| range.phase(now) == RangePhase::Active);
        IpNet::aggregate(&active.flat_map(SourceRange::to_nets).collect())
    }

    /// Returns the number of active addresses of one family.
    pub fn size(&self, now: Timestamp, v6: bool) -> u128 {
        self.spans(now, v6).map(AddressSpan::size).sum()
    }

    pub fn families(&self, now: Timestamp) -> Families {
        let has = |v6| self.ranges(now, v6).next().is_some();
        Families { v4: has(false), v6: has(true) }
    }

    pub fn contains(&self, ip: IpAddr, now: Timestamp) -> bool {
        self.ranges(now, ip.is_ipv6()).any(|range| range.contains(ip_to_u128(ip)))
    }

    /// Returns every past, active and upcoming range, for customers who allow-list them in advance.
    pub fn announced_ranges(&self, now: Timestamp) -> impl Iterator<Item = AnnouncedRange> {
        self.ranges.iter().flat_map(move |range| {
            let phase = range.phase(now);
            range.to_nets().map(move |cidr| AnnouncedRange {
                cidr,
                seen_as: range.seen_as(&cidr),
                from: range.from,
                until: range.until,
                phase,
            })
        })
    }

    /// Returns the address that targets see for a source address: behind NAT, that of `seen_as`.
    pub fn seen_as(&self, source: IpAddr, now: Timestamp) -> IpAddr {
        let holds = |range: &&SourceRange| {
            range.seen_as.is_some() && range.is_v6() == source.is_ipv6() && range.contains(ip_to_u128(source))
        };
        // The connections of an ended range outlive it, and another range may have its addresses by then.
        let ranges = self.ranges.iter().filter(holds);
        let range = ranges.max_by_key(|range| range.phase(now) == RangePhase::Active);
        range.map_or(source, |range| range.seen_as(&source.into()).addr())
    }

    /// Returns the sticky source of each family, if it is usable.
    pub fn sticky_sources(&self, affinity: u64, now: Timestamp) -> impl Iterator<Item = IpAddr> {
        [true, false].into_iter().filter_map(move |v6| self.select_source(v6, affinity, 0, now, &|_| true))
    }

    fn ranges(&self, now: Timestamp, v6: bool) -> impl Iterator<Item = &SourceRange> {
        self.ranges.iter().filter(move |range| range.is_v6() == v6 && range.phase(now) == RangePhase::Active)
    }

    fn spans(&self, now: Timestamp, v6: bool) -> impl Iterator<Item = &AddressSpan> {
        self.ranges(now, v6).flat_map(|range| &range.spans)
    }

    /// Selects a usable source of one family by the pool's policy.
    fn select_source(
        &self,
        v6: bool,
        affinity: u64,
        sequence: u64,
        now: Timestamp,
        is_usable: &dyn Fn(IpAddr) -> bool,
    ) -> Option<IpAddr> {
        let size = self.size(now, v6);
        if size == 0 {
            return None;
        }
        let seed = if self.select == SelectionPolicy::Sticky { affinity } else { sequence };
        for draw in 0..DRAWS_MAX {
            let ip = match self.select {
                SelectionPolicy::Sticky => self.rendezvous(v6, mix(seed, draw), now),
                SelectionPolicy::Spread if draw == 0 => self.nth(v6, u128::from(sequence) % size, now),
                SelectionPolicy::Spread | SelectionPolicy::Random => {
                    self.nth(v6, mix_u128(mix(seed, draw)) % size, now)
                }
            };
            if let Some(ip) = ip.filter(|ip| is_usable(*ip)) {
                return Some(ip);
            }
        }
        // Few addresses are usable: walk on from a random index.
        let start = mix_u128(mix(seed, DRAWS_MAX)) % size;
        let walk = (0..size.min(WALK_MAX)).map(|step| (start + step) % size);
        walk.filter_map(|index| self.nth(v6, index, now)).find(|ip| is_usable(*ip))
    }

    /// Returns the address that `seed` draws from the configured ranges; `None` if that address is excluded.
    ///
    /// This is weighted rendezvous hashing over the ranges (the least `-ln(u) / weight` wins), then a uniform draw
    /// within the winner. An unusable address is drawn again. So the disruption is minimal: a new range or address
    /// takes its own share of all keys and moves no other key. A removed one returns its own share, and the load on the
    /// others stays even.
    fn rendezvous(&self, v6: bool, seed: u64, now: Timestamp) -> Option<IpAddr> {
        let scored = self.ranges(now, v6).map(|range| (range.score(seed), range));
        let (_, winner) = scored.min_by(|(a, _), (b, _)| a.total_cmp(b))?;
        let drawn = winner.draw_address(seed);
        winner.contains(drawn).then(|| u128_to_ip(drawn, v6))
    }

    /// Returns the active address at `index`.
    fn nth(&self, v6: bool, mut index: u128, now: Timestamp) -> Option<IpAddr> {
        for span in self.spans(now, v6) {
            match index.checked_sub(span.size()) {
                Some(rest) => index = rest,
                None => return Some(u128_to_ip(span.first + index, v6)),
            }
        }
        None
    }
}

impl SourceRange {
    fn new(range: &config::PoolRange, pool: &config::Pool) -> Self {
        let cidr = range.cidr.trunc();
        let mut spans = vec![AddressSpan::of(&cidr)];
        for exclude in pool.exclude.iter().filter(|exclude| is_v6(exclude) == is_v6(&cidr)) {
            let hole = AddressSpan::of(exclude);
            spans = spans.iter().flat_map(|span| span.without(&hole)).collect();
        }
        let AddressSpan { first, .. } = AddressSpan::of(&cidr);
        let id = [first as u64, (first >> 64) as u64].into_iter().fold(cidr.prefix_len().into(), mix);
        let seen_as = range.seen_as.as_ref().map(|net| net.trunc());
        Self { cidr, seen_as, from: range.from, until: range.until, id, spans }
    }

    fn is_v6(&self) -> bool {
        is_v6(&self.cidr)
    }

    fn phase(&self, now: Timestamp) -> RangePhase {
        if self.from.is_some_and(|from| now < from) {
            RangePhase::Upcoming
        } else if self.until.is_some_and(|until| until <= now) {
            RangePhase::Ended
        } else {
            RangePhase::Active
        }
    }

    fn contains(&self, number: u128) -> bool {
        self.spans.iter().any(|span| (span.first..=span.last).contains(&number))
    }

    /// Returns the CIDR that targets see for a part of the range.
    fn seen_as(&self, part: &IpNet) -> IpNet {
        self.seen_as.map_or(*part, |outside| span::translate(part, &self.cidr, &outside))
    }

    fn host_bits(&self) -> u8 {
        self.cidr.max_prefix_len() - self.cidr.prefix_len()
    }

    /// Returns an exponentially distributed score whose rate is the number of addresses. Excluded addresses count, so
    /// that an exclusion moves only the keys of that address.
    fn score(&self, seed: u64) -> f64 {
        // An f64 holds 53 bits; the half keeps the logarithm finite.
        let uniform = ((mix(seed, self.id) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        -uniform.ln() / f64::from(self.host_bits()).exp2()
    }

    /// Draws an address of the configured range. Its size is a power of two, so random low bits are a uniform draw.
    fn draw_address(&self, seed: u64) -> u128 {
        let AddressSpan { first, last } = AddressSpan::of(&self.cidr);
        first | (mix_u128(mix(seed, !self.id)) & (first ^ last))
    }

    fn to_nets(&self) -> impl Iterator<Item = IpNet> {
        self.spans.iter().flat_map(|span| span.to_nets(self.is_v6()))
    }
}

#[cfg(test)]
mod tests;
