//! A model of the store: the arithmetic of its script for permits, with a clock of the test.
//! What does the store answer to a request for permits?

use std::collections::BTreeMap;

use outgate::policy::fleet::permits::{PERMIT_LEASE, PERMIT_PATIENCE, PERMIT_TERM, PermitGrant, PermitRequest};

/// The arithmetic of `lease_permits.lua`. Times are milliseconds of the store's clock.
#[derive(Clone, Debug, Default)]
pub struct PermitModel {
    leases: BTreeMap<usize, Lease>,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    held: i64,
    ends: i64,
    wish: i64,
    place: i64,
}

pub fn milliseconds(time: std::time::Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap()
}

impl PermitModel {
    /// Returns the permits that the store counts for all processes.
    pub fn held(&self, now: i64) -> i64 {
        self.leases.values().filter(|lease| lease.ends > now).map(|lease| lease.held).sum()
    }

    pub fn lease(&mut self, process: usize, request: &PermitRequest, now: i64) -> PermitGrant {
        let [length, patience, term] = [PERMIT_LEASE, PERMIT_PATIENCE, PERMIT_TERM].map(milliseconds);
        let [wanted, used, maximum] = [request.wanted, request.used, request.max].map(i64::from);
        self.leases.retain(|_, lease| lease.ends > now);
        // A term that is over counts as a wait that begins now.
        let place = |lease: &Lease| if lease.place < 0 && -lease.place <= now { now } else { lease.place };
        let mut own = self.leases.remove(&process).as_ref().map_or(now, place);
        let others: i64 = self.leases.values().map(|lease| lease.held).sum();
        let wish = |lease: &Lease| if lease.ends > now + length - patience { lease.wish } else { lease.held };
        let mut wishes: Vec<i64> = self.leases.values().map(wish).chain([wanted]).collect();
        wishes.sort_unstable();
        // The greatest level at which all get what they want, or the level.
        let cost = |level: i64| wishes.iter().map(|wish| *wish.min(&level)).sum::<i64>();
        let largest = *wishes.last().unwrap();
        let level = (0..=largest).rev().find(|level| cost(*level) <= maximum).unwrap();
        let rest = maximum - cost(level);
        let is_waited = self.leases.values().any(|lease| wish(lease) > lease.held);
        let is_ahead =
            |(other, lease): &(&usize, &Lease)| wish(lease) > level && (place(lease), **other) < (own, process);
        let ahead = i64::try_from(self.leases.iter().filter(is_ahead).count()).unwrap();
        let part = wanted.min(if ahead < rest { level + 1 } else { level });
        let permits = part.min(maximum - others).max(0);
        if permits >= wanted && !is_waited || permits > level && own >= 0 {
            own = -(now + term);
        } else if wanted <= level {
            own = now;
        }
        let held = permits.max(used);
        if held.max(wanted) > 0 {
            self.leases.insert(process, Lease { held, ends: now + length, wish: wanted, place: own });
        }
        let [permits, others] = [permits, others].map(|permits| u32::try_from(permits).unwrap());
        PermitGrant { permits, others }
    }
}
