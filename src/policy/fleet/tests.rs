//! Tests of shares and of leases of permits, with time passed in.
//! How much of a limit does one instance use?

use super::*;

fn quota(count: u32, burst: u32) -> Quota {
    let [count, burst] = [count, burst].map(|number| NonZeroU32::new(number).unwrap());
    Quota { count, period: Duration::from_secs(1), burst }
}

#[test]
fn fleet_shares_are_parts_of_the_limit_and_never_nothing() {
    let share = quota(100, 50).share(4);
    assert_eq!((share.interval(), share.burst.get()), (Duration::from_millis(40), 12));
    assert_eq!(quota(100, 3).share(4).burst.get(), 1);
    assert_eq!([permit_share(20, 4), permit_share(3, 4), permit_share(20, 0)], [5, 1, 20]);
}

#[test]
fn fleet_permits_are_leased_as_needed_and_returned_after_a_pause() {
    const MS: u64 = 1_000_000;
    let mut lease = PermitLease::default();
    assert_eq!(permits_wanted(0, 1, 64, 4), 3, "one, and a few for the next deliveries");
    assert_eq!(lease.next_request(3, 0), Some(Duration::ZERO));
    lease.granted(3, 10, 3, 0, MS);
    assert_eq!((lease.leased(MS), lease.left(64, 1)), (3, 53));
    assert_eq!(lease.next_request(3, MS), Some(PERMIT_RENEWAL - Duration::from_millis(1)), "renewed in time");
    assert_eq!(lease.next_request(0, MS), Some(PERMIT_PAUSE));
    assert_eq!(lease.next_request(3, 20 * MS), Some(PERMIT_RENEWAL - Duration::from_millis(20)), "in use again");
    assert_eq!(lease.next_request(0, 20 * MS), Some(PERMIT_PAUSE), "the pause begins anew");
    assert_eq!(lease.next_request(0, 70 * MS), Some(Duration::ZERO));
    // The store has fewer than are wanted.
    lease.granted(3, 61, 4, 70 * MS, 71 * MS);
    assert!(lease.is_exhausted(72 * MS));
    assert_eq!(lease.next_request(4, 71 * MS), Some(PERMIT_PAUSE));
    // An instance stops to use a lease before the store ends it.
    assert_eq!(lease.leased(70 * MS + 4_970 * MS), 0);
}
