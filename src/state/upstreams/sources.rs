//! The addresses of this host, as the kernel last listed them.
//! Is a source address of a pool usable?

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;

use crate::net::local::{self, LocalPrefixes};
use crate::panics::Mutex;
use crate::policy::egress::Pool;
use crate::policy::guard::LocalAddresses;

/// The addresses of this host. [`Sources::refresh`] reads them after each change that the kernel announces, and every few
/// seconds; refusals of the kernel update them in between.
pub struct Sources {
    snapshot: ArcSwap<SourcesSnapshot>,
    local_addresses: ArcSwap<LocalAddresses>,
    /// The addresses of the listeners. The lock also admits one writer at a time, since a writer copies the snapshot,
    /// changes it and replaces it.
    listeners: Mutex<Vec<SocketAddr>>,
    /// The kernel did not list the addresses the last time.
    stale: AtomicBool,
}

/// The addresses at one time. A delivery uses one snapshot.
#[derive(Default, Clone)]
pub struct SourcesSnapshot {
    /// The addresses that deliveries may use. `None`: the kernel has never listed them, and only its refusals count.
    local: Option<LocalPrefixes>,
    /// All addresses of the host.
    present: Option<LocalPrefixes>,
    /// Addresses that belong to other instances of the fleet, whether the host has them or not.
    withheld: Arc<[IpNet]>,
    refused: HashSet<IpAddr>,
}

/// The number of refused addresses that are kept between two refreshes.
const REFUSED_MAX: usize = 4096;

impl SourcesSnapshot {
    fn new(present: Option<LocalPrefixes>, withheld: Arc<[IpNet]>) -> Self {
        let every = || [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())].into_iter().collect();
        let local = match withheld.is_empty() {
            true => present.clone(),
            false => Some(present.clone().unwrap_or_else(every).without(&withheld)),
        };
        Self { local, present, withheld, refused: HashSet::new() }
    }

    /// Returns whether this host can send from `source`.
    pub fn has(&self, source: IpAddr) -> bool {
        self.local.as_ref().is_none_or(|local| local.contains(source)) && !self.refused.contains(&source)
    }

    /// Returns the parts of `ranges` that this host has, including addresses that the kernel has refused.
    pub fn usable_ranges(&self, ranges: &[IpNet]) -> Vec<IpNet> {
        parts(ranges, self.local.as_ref())
    }

    /// Returns the usable parts of a range. If they are more than `max`, it returns fewer that contain them all, and true.
    pub fn parts_or_more(&self, range: IpNet, max: usize) -> (Vec<IpNet>, bool) {
        let usable = self.usable_ranges(&[range]);
        if usable.len() <= max {
            return (usable, false);
        }
        // Another instance waits until the parts that are assigned to it are not listed here.
        let allowed = LocalPrefixes::from_iter([range]).without(&self.withheld).prefixes().to_vec();
        (if allowed.len() <= max { allowed } else { vec![range] }, true)
    }

    /// Counts the addresses of a pool's active ranges.
    pub fn count(&self, pool: &Pool, now: Timestamp) -> AddressCount {
        self.count_ranges(&pool.active_ranges(now))
    }

    pub fn count_ranges(&self, ranges: &[IpNet]) -> AddressCount {
        AddressCount { configured: total(ranges), usable: self.count_usable(ranges) }
    }

    /// Returns the end of a sentence about a pool: how many of its addresses other instances have. Empty: none.
    pub fn withheld_note(&self, pool: &Pool, now: Timestamp) -> String {
        match total(&parts(&pool.active_ranges(now), Some(&LocalPrefixes::from_iter(self.withheld.iter().copied())))) {
            0 => String::new(),
            count => format!(", because {count} are assigned to other instances of the fleet"),
        }
    }

    /// Counts the addresses that this host has, including those that the kernel has refused.
    pub fn count_present(&self, ranges: &[IpNet]) -> u128 {
        total(&parts(ranges, self.present.as_ref()))
    }

    /// Returns the share of a pool's addresses that this host can send from. IPv4 and IPv6 count alike: a /64 has more
    /// addresses than all of IPv4. `None`: the pool has no range now, on no host.
    pub fn usable_share(&self, pool: &Pool, now: Timestamp) -> Option<f64> {
        self.share_of(pool.active_ranges(now))
    }

    fn share_of(&self, ranges: Vec<IpNet>) -> Option<f64> {
        let (v4, v6): (Vec<_>, Vec<_>) = ranges.into_iter().partition(|range| matches!(range, IpNet::V4(_)));
        let families = [v4, v6].into_iter().filter(|ranges| !ranges.is_empty());
        let shares: Vec<f64> =
            families.map(|ranges| self.count_usable(&ranges) as f64 / total(&ranges) as f64).collect();
        (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
    }

    fn count_usable(&self, ranges: &[IpNet]) -> u128 {
        let count: u128 = match &self.local {
            None => total(ranges),
            Some(local) => ranges.iter().flat_map(|range| overlap(range, local.prefixes())).map(size).sum(),
        };
        let refused = self.refused.iter().filter(|source| ranges.iter().any(|range| range.contains(*source)));
        count.saturating_sub(
            refused.filter(|source| self.local.as_ref().is_none_or(|local| local.contains(**source))).count() as u128,
        )
    }
}

/// The addresses that a pool has, and those of them that this host can send from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressCount {
    pub configured: u128,
    pub usable: u128,
}

/// Returns the parts of `ranges` that lie in `prefixes`. `None`: all do.
fn parts(ranges: &[IpNet], prefixes: Option<&LocalPrefixes>) -> Vec<IpNet> {
    match prefixes {
        None => ranges.to_vec(),
        Some(local) => ranges.iter().flat_map(|range| overlap(range, local.prefixes())).copied().collect(),
    }
}

fn total(ranges: &[IpNet]) -> u128 {
    ranges.iter().map(size).fold(0, u128::saturating_add)
}

fn size(range: &IpNet) -> u128 {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len());
    1u128.checked_shl(bits).unwrap_or(u128::MAX)
}

/// Returns the parts of `range` that lie in `prefixes`, which must not overlap each other.
fn overlap<'a>(range: &'a IpNet, prefixes: &'a [IpNet]) -> impl Iterator<Item = &'a IpNet> {
    let whole = prefixes.iter().any(|prefix| prefix.contains(range)).then_some(range);
    let parts = prefixes.iter().filter(move |prefix| whole.is_none() && range.contains(*prefix));
    whole.into_iter().chain(parts)
}

impl Sources {
    #[expect(clippy::new_without_default, reason = "made once, by Runtime")]
    pub fn new() -> Self {
        Self {
            snapshot: ArcSwap::default(),
            local_addresses: ArcSwap::from_pointee(LocalAddresses { prefixes: Vec::new(), listeners: Vec::new() }),
            listeners: Mutex::default(),
            stale: AtomicBool::new(false),
        }
    }

    pub fn snapshot(&self) -> Arc<SourcesSnapshot> {
        self.snapshot.load_full()
    }

    /// Returns the addresses of this host and its listeners, which the guard denies as targets.
    pub fn local_addresses(&self) -> Arc<LocalAddresses> {
        self.local_addresses.load_full()
    }

    /// Sets the addresses of the listeners, which the guard denies as targets.
    pub fn set_listeners(&self, listeners: Vec<SocketAddr>) {
        *self.listeners.lock() = listeners;
        self.refresh();
    }

    /// Reads the addresses of this host again, and clears the refusals: an address may be usable again.
    pub fn refresh(&self) {
        let listeners = self.listeners.lock();
        // On an error the last list stays: without it, the guard would allow the addresses of this host as targets.
        let read = local::read().ok();
        self.stale.store(read.is_none(), Ordering::Relaxed);
        let former = self.snapshot.load();
        let present = read.or_else(|| former.present.clone());
        let prefixes = present.as_ref().map(|local| local.prefixes().to_vec()).unwrap_or_default();
        self.local_addresses.store(Arc::new(LocalAddresses { prefixes, listeners: listeners.clone() }));
        self.snapshot.store(Arc::new(SourcesSnapshot::new(present, Arc::clone(&former.withheld))));
    }

    /// Sets the addresses that belong to other instances of the fleet: no new connection leaves from them.
    pub fn set_withheld(&self, withheld: Vec<IpNet>) {
        let _writer = self.listeners.lock();
        let present = self.snapshot.load().present.clone();
        self.snapshot.store(Arc::new(SourcesSnapshot::new(present, withheld.into())));
    }

    /// Returns whether the list of addresses may be out of date.
    pub fn are_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }

    /// Notes that the kernel refused to bind `source`, which is then unusable until the next refresh.
    pub fn refused(&self, source: IpAddr) {
        let _writer = self.listeners.lock();
        let mut snapshot = SourcesSnapshot::clone(&self.snapshot.load());
        if snapshot.refused.len() < REFUSED_MAX && snapshot.refused.insert(source) {
            self.snapshot.store(Arc::new(snapshot));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usable_source_addresses_are_counted_by_prefix() {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
        let local = nets(&["127.0.0.0/8", "198.51.100.16/30", "198.51.100.31/32", "2001:db8:5::/64"]);
        for (range, expected) in
            [("127.0.7.0/28", 16), ("198.51.100.16/28", 5), ("2001:db8:5::/64", 1 << 64), ("2001:db8:6::/64", 0)]
        {
            let counted: u128 = overlap(&range.parse().unwrap(), &local).map(size).sum();
            assert_eq!(counted, expected, "{range}");
        }
    }

    #[test]
    fn addresses_of_other_instances_are_present_and_not_usable() {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
        let address = |text: &str| text.parse().unwrap();
        let withheld: Arc<[IpNet]> = nets(&["127.0.7.2/31", "198.51.100.16/28"]).into();
        for present in [Some(nets(&["127.0.0.0/8"]).into_iter().collect()), None] {
            let snapshot = SourcesSnapshot::new(present, Arc::clone(&withheld));
            assert!(snapshot.has(address("127.0.7.1")) && snapshot.has(address("127.0.7.4")));
            assert!(!snapshot.has(address("127.0.7.2")) && !snapshot.has(address("198.51.100.16")));
            let range = nets(&["127.0.7.0/29"]);
            assert_eq!(snapshot.usable_ranges(&range), nets(&["127.0.7.0/31", "127.0.7.4/30"]));
            assert_eq!((snapshot.count_present(&range), snapshot.count_ranges(&range).usable), (8, 6));
        }
        let released = SourcesSnapshot::new(None, Arc::default());
        assert!(released.has(address("127.0.7.2")));
    }

    #[test]
    fn range_with_too_many_parts_is_stated_as_a_whole_without_what_is_withheld() {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
        let every_second = (0..128).map(|i| format!("198.51.100.{}/32", 2 * i).parse().unwrap());
        let present: Option<LocalPrefixes> = Some(every_second.collect());
        let whole = nets(&["198.51.100.0/24"]);
        let snapshot = SourcesSnapshot::new(present.clone(), Arc::default());
        assert_eq!(snapshot.parts_or_more(whole[0], 127), (whole.clone(), true));
        let (parts, is_truncated) = snapshot.parts_or_more(whole[0], 128);
        assert_eq!((parts.len(), is_truncated), (128, false));
        let snapshot = SourcesSnapshot::new(present, nets(&["198.51.100.128/26"]).into());
        let rest = nets(&["198.51.100.0/25", "198.51.100.192/26"]);
        assert_eq!(snapshot.parts_or_more(whole[0], 8), (rest, true));
        assert_eq!(snapshot.parts_or_more(whole[0], 1), (whole, true));
    }

    #[test]
    fn usable_share_of_a_pool_counts_both_families_alike() {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
        let present = Some(nets(&["198.51.100.16/29", "2001:db8:5::/64"]).into_iter().collect());
        let snapshot = SourcesSnapshot::new(present, Arc::default());
        for (ranges, expected) in [
            (&["198.51.100.16/28"][..], Some(0.5)),
            (&["198.51.100.16/29", "198.51.100.32/29"], Some(0.5)),
            (&["2001:db8:5::/64"], Some(1.0)),
            (&["198.51.100.16/28", "2001:db8:5::/64"], Some(0.75)),
            (&["198.51.100.16/29", "2001:db8:6::/64"], Some(0.5)),
            (&["198.51.100.64/28", "2001:db8:6::/64"], Some(0.0)),
            (&[], None),
        ] {
            assert_eq!(snapshot.share_of(nets(ranges)), expected, "{ranges:?}");
        }
    }
}
