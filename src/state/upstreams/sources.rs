//! Which addresses this host has, as far as is known now.
//! Is a source address of a pool usable?

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use parking_lot::Mutex;

use crate::net::local::{self, LocalPrefixes};
use crate::policy::guard::LocalAddresses;

/// Kept fresh by [`Sources::refresh`] every few seconds, and by the kernel's refusals in between.
pub struct Sources {
    view: ArcSwap<SourcesSnapshot>,
    own: ArcSwap<LocalAddresses>,
    /// One writer at a time: a view is copied, changed and put in place of the old one.
    writing: Mutex<Vec<SocketAddr>>,
    /// The kernel did not answer the last time it was asked.
    stale: AtomicBool,
}

/// One state of the knowledge; a delivery looks at one.
#[derive(Default, Clone)]
pub struct SourcesSnapshot {
    /// `None` where the kernel does not tell: then only its refusals count.
    local: Option<LocalPrefixes>,
    refused: HashSet<IpAddr>,
}

/// More refusals than this between two refreshes are not remembered one by one.
const REFUSED_MAX: usize = 4096;

impl SourcesSnapshot {
    pub fn has(&self, source: IpAddr) -> bool {
        self.local.as_ref().is_none_or(|local| local.contains(source)) && !self.refused.contains(&source)
    }

    /// What this host has of `ranges`, whatever the kernel has refused of it lately.
    pub fn of(&self, ranges: &[IpNet]) -> Vec<IpNet> {
        match &self.local {
            None => ranges.to_vec(),
            Some(local) => ranges.iter().flat_map(|range| overlap(range, local.prefixes())).copied().collect(),
        }
    }

    /// How many addresses of `ranges` are usable.
    pub fn count(&self, ranges: &[IpNet]) -> u128 {
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

/// How many addresses `ranges` hold.
pub fn total(ranges: &[IpNet]) -> u128 {
    ranges.iter().map(size).fold(0, u128::saturating_add)
}

fn size(range: &IpNet) -> u128 {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len());
    1u128.checked_shl(bits).unwrap_or(u128::MAX)
}

/// What of `range` lies in `prefixes`, which do not overlap each other.
fn overlap<'a>(range: &'a IpNet, prefixes: &'a [IpNet]) -> impl Iterator<Item = &'a IpNet> {
    let whole = prefixes.iter().any(|prefix| prefix.contains(range)).then_some(range);
    let parts = prefixes.iter().filter(move |prefix| whole.is_none() && range.contains(*prefix));
    whole.into_iter().chain(parts)
}

impl Sources {
    #[expect(clippy::new_without_default, reason = "made once, by Live")]
    pub fn new() -> Self {
        Self {
            view: ArcSwap::default(),
            own: ArcSwap::from_pointee(LocalAddresses { prefixes: Vec::new(), listeners: Vec::new() }),
            writing: Mutex::default(),
            stale: AtomicBool::new(false),
        }
    }

    pub fn view(&self) -> Arc<SourcesSnapshot> {
        self.view.load_full()
    }

    /// What the guard must not let anyone reach: this host.
    pub fn own(&self) -> Arc<LocalAddresses> {
        self.own.load_full()
    }

    /// Says where we listen; the guard keeps deliveries away from there.
    pub fn listening(&self, listeners: Vec<SocketAddr>) {
        *self.writing.lock() = listeners;
        self.refresh();
    }

    /// Reads the host's addresses again, and forgets refusals: an address may have come back.
    pub fn refresh(&self) {
        let listeners = self.writing.lock();
        // What was known stays known while the kernel does not answer: to forget this host's addresses would open the
        // guard to them.
        let read = local::read().ok();
        self.stale.store(read.is_none(), Ordering::Relaxed);
        let local = read.or_else(|| self.view.load().local.clone());
        let prefixes = local.as_ref().map(|local| local.prefixes().to_vec()).unwrap_or_default();
        self.own.store(Arc::new(LocalAddresses { prefixes, listeners: listeners.clone() }));
        self.view.store(Arc::new(SourcesSnapshot { local, refused: HashSet::new() }));
    }

    /// Whether what is known of this host's addresses may be out of date.
    pub fn are_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }

    /// The kernel would not bind `source`: it is left out until the next refresh.
    pub fn refused(&self, source: IpAddr) {
        let _writing = self.writing.lock();
        let mut view = SourcesSnapshot::clone(&self.view.load());
        if view.refused.len() < REFUSED_MAX && view.refused.insert(source) {
            self.view.store(Arc::new(view));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usable_addresses_are_counted_without_being_listed() {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect::<Vec<IpNet>>();
        let local = nets(&["127.0.0.0/8", "198.51.100.16/30", "198.51.100.31/32", "2001:db8:5::/64"]);
        for (range, expected) in
            [("127.0.7.0/28", 16), ("198.51.100.16/28", 5), ("2001:db8:5::/64", 1 << 64), ("2001:db8:6::/64", 0)]
        {
            let counted: u128 = overlap(&range.parse().unwrap(), &local).map(size).sum();
            assert_eq!(counted, expected, "{range}");
        }
    }
}
