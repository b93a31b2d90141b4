//! The arithmetic of a concurrency that a fleet shares: leases of permits, and shares without the store.
//! How many deliveries may this instance have in flight, and how many permits should it ask for?

use std::time::Duration;

use super::end_of;
use crate::policy::limits::saturating_nanos;

/// The least time between two requests for permits of which there are too few.
pub const PERMIT_PAUSE: Duration = Duration::from_millis(50);
/// The length of a lease of permits, and the time after which an instance renews it.
pub const PERMIT_LEASE: Duration = Duration::from_secs(5);
pub const PERMIT_RENEWAL: Duration = Duration::from_secs(2);
/// The time for which the others leave an instance its part, after it asked for permits and got too few.
pub const PERMIT_PATIENCE: Duration = Duration::from_secs(1);
/// The length of a term with one of the permits that are left over from equal parts. An instance that others may wait for
/// renews its lease as often.
pub const PERMIT_TERM: Duration = Duration::from_millis(250);

/// The time after a return of the store in which the other instances notice it, too, and lease their permits again: an instance
/// calls the store every second at least.
pub const PERMIT_GRACE: Duration = Duration::from_secs(2);

/// Returns the permits of one of `live` instances while the store is away. None is left without any.
pub fn permit_share(max: u32, live: u32) -> u32 {
    (max / live.max(1)).max(1)
}

/// Returns the permits that an instance should lease: those in use, and a few more if it is busy.
pub fn permits_wanted(in_use: u32, waiting: u32, max: u32, live: u32) -> u32 {
    match in_use.saturating_add(waiting) {
        0 => 0,
        needed => needed.saturating_add(max / (8 * live.max(1))).min(max),
    }
}

/// Returns what is left of the time in which the store may not know the permits of the others yet. A return at 0 is none.
pub fn permit_grace(returned_at: u64, now: u64) -> Option<Duration> {
    let end = returned_at.saturating_add(saturating_nanos(PERMIT_GRACE));
    (returned_at > 0 && now < end).then(|| Duration::from_nanos(end - now))
}

/// A request for permits of one key, in the place of those that the instance has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PermitRequest {
    pub wanted: u32,
    /// The permits that the lease must have until the answer: deliveries may take them meanwhile.
    pub used: u32,
    /// The concurrency of the whole fleet.
    pub max: u32,
}

/// The answer of the store: the permits that this instance may use, and those of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PermitGrant {
    pub permits: u32,
    pub others: u32,
}

/// The permits of one key that this instance may use.
#[derive(Debug, Default)]
pub struct PermitLease {
    permits: u32,
    /// The permits that the store counts for this instance: at least those in flight when it was asked.
    held: u32,
    /// The permits of the other instances when the store last answered.
    others: u32,
    until: u64,
    /// The time of the request that the store has answered.
    asked_at: u64,
    renew_at: u64,
    /// The store has no more permits before this time. 0: it had as many as the instance wanted.
    none_until: u64,
    /// The time at which unused permits go back to the store. `None`: all are in use.
    return_at: Option<u64>,
}

impl PermitLease {
    /// Returns the permits that this instance may use, in flight or not.
    pub fn leased(&self, now: u64) -> u32 {
        if now < self.until { self.permits } else { 0 }
    }

    /// Returns the permits of the fleet that are not in use, as far as this instance knows.
    pub fn left(&self, max: u32, in_flight: u32) -> u32 {
        max.saturating_sub(self.others).saturating_sub(in_flight)
    }

    /// Returns whether the store has refused more permits, after this time or just before it.
    pub fn has_refused_since(&self, since: u64) -> bool {
        since < self.none_until
    }

    /// Returns the permits that the store counts for this instance until the lease ends.
    fn held(&self, now: u64) -> u32 {
        if now < self.until { self.held } else { 0 }
    }

    /// Returns whether the store counts permits for this instance.
    pub fn is_held(&self, now: u64) -> bool {
        self.held(now) > 0
    }

    /// Returns whether an instance that may use `allowed` permits has unused ones, for whose return no time is set, or those
    /// that the others wait for.
    pub fn has_unused(&self, in_flight: u32, allowed: u32) -> bool {
        in_flight < allowed.max(self.held) && self.return_at.is_none() || in_flight == allowed && allowed < self.held
    }

    /// Returns the time until the next request of an instance that wants so many permits; zero if it is due. `None`: there
    /// is nothing to ask. A store that has returned since the last request may not know the lease.
    ///
    /// Permits go back only after they were unused for a while: the next delivery of a busy key needs them. Those that the store
    /// wants back, because others wait for them, go back when the last one is no longer in use.
    pub fn next_request(&mut self, wanted: u32, in_flight: u32, returned_at: u64, now: u64) -> Option<Duration> {
        let (leased, held) = (self.leased(now), self.held(now));
        if held > 0 && self.asked_at < returned_at || in_flight <= leased && leased < held {
            return Some(Duration::ZERO);
        }
        self.return_at = match wanted < held {
            true => Some(self.return_at.unwrap_or_else(|| now.saturating_add(saturating_nanos(PERMIT_PAUSE)))),
            false => None,
        };
        let grown = (wanted > leased).then_some(self.none_until);
        let renewed = (held > 0).then_some(self.renew_at);
        let due = grown.into_iter().chain(self.return_at).chain(renewed).min();
        due.map(|at| Duration::from_nanos(at.saturating_sub(now)))
    }

    /// Begins a request for `wanted` permits of `max`. Deliveries may use the permits of the lease until the answer, but no
    /// longer those that go back.
    pub fn request(&mut self, [wanted, max]: [u32; 2], in_flight: u32, now: u64) -> PermitRequest {
        self.permits = self.permits.min(wanted.max(in_flight));
        PermitRequest { wanted, used: self.leased(now).max(in_flight), max }
    }

    /// Takes the answer to a request that one of `live` instances made at `asked_at`.
    ///
    /// The others may want permits of an instance that has more than its part. As long as half of all are free, they take those.
    pub fn granted(&mut self, request: &PermitRequest, grant: PermitGrant, live: u32, asked_at: u64, now: u64) {
        let PermitGrant { permits, others } = grant;
        (self.permits, self.held, self.others, self.return_at) = (permits, permits.max(request.used), others, None);
        (self.asked_at, self.until) = (asked_at, end_of(asked_at, saturating_nanos(PERMIT_LEASE)));
        let has_more = permits > request.max / live.max(1) && permits.saturating_add(others) > request.max / 2;
        // A term is then over at the store, which began it before the answer.
        let renewal = if has_more { now.saturating_add(saturating_nanos(PERMIT_TERM)) } else { u64::MAX };
        self.renew_at = renewal.min(asked_at.saturating_add(saturating_nanos(PERMIT_RENEWAL)));
        let is_short = permits < request.wanted;
        self.none_until = if is_short { now.saturating_add(saturating_nanos(PERMIT_PAUSE)) } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn granted(lease: &mut PermitLease, [permits, others]: [u32; 2], [wanted, used]: [u32; 2], asked_at: u64) {
        let request = PermitRequest { wanted, used, max: 64 };
        lease.granted(&request, PermitGrant { permits, others }, 4, asked_at, asked_at + MS);
    }

    #[test]
    fn fleet_permits_of_a_share_are_a_part_of_the_limit_and_never_nothing() {
        assert_eq!([permit_share(20, 4), permit_share(3, 4), permit_share(20, 0)], [5, 1, 20]);
    }

    #[test]
    fn fleet_permits_are_leased_as_needed_and_returned_after_a_pause() {
        let mut lease = PermitLease::default();
        assert_eq!(permits_wanted(0, 1, 64, 4), 3, "one, and a few for the next deliveries");
        assert_eq!(lease.next_request(3, 1, 0, 0), Some(Duration::ZERO));
        granted(&mut lease, [3, 10], [3, 0], 0);
        assert_eq!((lease.leased(MS), lease.left(64, 1)), (3, 53));
        assert_eq!(lease.next_request(3, 1, 0, MS), Some(PERMIT_RENEWAL - Duration::from_millis(1)), "renewed in time");
        assert_eq!(lease.next_request(0, 0, 0, MS), Some(PERMIT_PAUSE));
        assert_eq!(
            lease.next_request(3, 1, 0, 20 * MS),
            Some(PERMIT_RENEWAL - Duration::from_millis(20)),
            "in use again"
        );
        assert_eq!(lease.next_request(0, 0, 0, 20 * MS), Some(PERMIT_PAUSE), "the pause begins anew");
        assert_eq!(lease.next_request(0, 0, 0, 70 * MS), Some(Duration::ZERO));
        // The store has fewer than are wanted.
        granted(&mut lease, [3, 61], [4, 3], 70 * MS);
        assert!(lease.has_refused_since(72 * MS));
        assert_eq!(lease.next_request(4, 3, 0, 71 * MS), Some(PERMIT_PAUSE));
        // A delivery may take a permit of the lease until the answer, and none that goes back.
        assert_eq!(lease.request([4, 64], 2, 80 * MS), PermitRequest { wanted: 4, used: 3, max: 64 });
        assert_eq!(lease.request([1, 64], 1, 80 * MS).used, 1);
        assert_eq!(lease.leased(80 * MS), 1);
        assert_eq!(lease.request([4, 64], 2, 80 * MS).used, 2, "those in flight");
        // The store has left the instance less than it has in flight, and learns when a delivery ends.
        granted(&mut lease, [1, 63], [4, 2], 70 * MS);
        assert_eq!((lease.leased(71 * MS), lease.held(71 * MS)), (1, 2));
        assert_eq!(lease.next_request(2, 2, 0, 71 * MS), Some(PERMIT_PAUSE));
        assert!(lease.has_unused(1, 1), "others wait for it");
        assert_eq!(lease.next_request(1, 1, 0, 72 * MS), Some(Duration::ZERO), "at once");
        // An instance stops to use a lease before the store ends it.
        assert_eq!(lease.leased(70 * MS + 4_970 * MS), 0);
    }

    /// The part of each of four instances is 16 of 64.
    #[test]
    fn fleet_permits_that_others_may_want_are_renewed_often() {
        let renewal = |permits, others| {
            let mut lease = PermitLease::default();
            granted(&mut lease, [permits, others], [permits, permits], 0);
            lease.next_request(permits, permits, 0, MS).expect("a renewal")
        };
        let rarely = PERMIT_RENEWAL - Duration::from_millis(1);
        assert_eq!([renewal(16, 48), renewal(32, 0)], [rarely; 2], "its part, and more while half is free");
        assert_eq!([renewal(33, 0), renewal(17, 16)], [PERMIT_TERM; 2]);
        let mut lease = PermitLease::default();
        let request = PermitRequest { wanted: 1, used: 1, max: 1 };
        lease.granted(&request, PermitGrant { permits: 1, others: 0 }, 1, 0, MS);
        assert_eq!(lease.next_request(1, 1, 0, MS), Some(rarely), "there is no other instance");
    }

    #[test]
    fn fleet_permits_are_leased_again_when_the_store_has_returned() {
        let mut lease = PermitLease::default();
        granted(&mut lease, [3, 10], [3, 3], 10 * MS);
        assert_eq!(lease.next_request(3, 3, 9 * MS, 20 * MS), Some(PERMIT_RENEWAL - Duration::from_millis(10)));
        assert_eq!(lease.next_request(3, 3, 15 * MS, 20 * MS), Some(Duration::ZERO), "a return after the request");
        granted(&mut lease, [0, 10], [0, 0], 20 * MS);
        assert_eq!(lease.next_request(0, 0, 25 * MS, 30 * MS), None, "there is nothing to lease again");
        assert_eq!([permit_grace(0, 30 * MS), permit_grace(MS, 2_001 * MS)], [None; 2]);
        assert_eq!(permit_grace(25 * MS, 30 * MS), Some(PERMIT_GRACE - Duration::from_millis(5)));
    }

    /// The store ends a lease after five seconds. A 128th of that time is left for the clocks.
    #[test]
    fn fleet_permits_are_leased_and_held_until_the_lease_ends() {
        let end = 4_960_937_500;
        for (permits, used, is_held) in [(3, 0, true), (1, 0, true), (0, 1, true), (0, 0, false)] {
            let mut lease = PermitLease::default();
            granted(&mut lease, [permits, 10], [3, used], 0);
            assert_eq!((lease.leased(end - 1), lease.is_held(end - 1)), (permits, is_held), "{permits} {used}");
            assert_eq!((lease.leased(end), lease.is_held(end)), (0, false), "{permits} {used}");
        }
    }

    #[test]
    fn fleet_permits_are_refused_until_the_pause_is_over() {
        for (permits, since, has_refused) in
            [(2, 0, true), (2, 51 * MS - 1, true), (2, 51 * MS, false), (3, 0, false), (4, 0, false)]
        {
            let mut lease = PermitLease::default();
            granted(&mut lease, [permits, 10], [3, 0], 0);
            assert_eq!(lease.has_refused_since(since), has_refused, "{permits} of 3, {since}");
        }
    }

    #[test]
    fn fleet_permits_are_unused_until_their_return_is_timed_or_while_others_wait_for_them() {
        for (will_return, in_flight, allowed, expected) in [
            (false, 2, 3, true),
            (false, 3, 3, false),
            (false, 2, 2, true),
            (false, 3, 2, false),
            (false, 4, 5, true),
            (false, 5, 5, false),
            (true, 2, 3, false),
            (true, 3, 3, false),
            (true, 4, 4, false),
            (true, 1, 2, false),
            (true, 2, 2, true),
        ] {
            let mut lease = PermitLease::default();
            granted(&mut lease, [3, 10], [3, 0], 0);
            if will_return {
                assert_eq!(lease.next_request(0, 0, 0, MS), Some(PERMIT_PAUSE));
            }
            assert_eq!(lease.has_unused(in_flight, allowed), expected, "{will_return} {in_flight} {allowed}");
        }
    }
}
