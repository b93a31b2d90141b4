//! Tests of the shares of a fleet, and of what the store learns of them.
//! Does the store learn of each token once?

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
}

#[test]
fn fleet_store_learns_of_each_token_of_the_share_once_and_while_the_share_lacks_it() {
    const SECOND: u64 = 1_000_000_000;
    let (quota, mut slices) = (quota(10, 20), TokenSlices::default());
    let share = quota.share(2);
    let grant = TokenGrant { tokens: 0, until: 0, now: 0, arrival: 0, wait: 0, is_spaced: true };
    (0..3).for_each(|_| slices.use_share(&share, 0));
    let request = slices.request(quota, 2, [1, 0], 1);
    assert_eq!(request.used, 3);
    // A delivery takes from the share while the request is on its way, and the answer is lost.
    slices.use_share(&share, 2);
    let again = slices.request(quota, 2, [1, 0], 3);
    assert_eq!((again.used, again.report), (3, request.report), "the same report");
    slices.granted(&again, &grant, 0, 2, [3, 4]);
    assert!(slices.owes(4));
    let settlement = slices.settlement(quota, 4);
    assert_eq!((settlement.used, settlement.wanted), (1, 0));
    assert!(settlement.report > request.report);
    slices.granted(&settlement, &grant, 0, 2, [4, 5]);
    assert!(!slices.owes(5));
    assert_eq!((slices.settlement(quota, 5).report, slices.settlement(quota, 5).used), (0, 0));
    // A share of five tokens a second has its burst of ten again after two seconds.
    (0..30).for_each(|_| slices.use_share(&share, SECOND));
    assert_eq!(slices.settlement(quota, SECOND).used, 10);
    // One burst is owed at most, with the report that has no answer.
    slices.use_share(&share, SECOND);
    assert!(slices.owes(3 * SECOND - 1) && !slices.owes(3 * SECOND));
    slices.use_share(&share, 4 * SECOND);
    assert_eq!(slices.settlement(quota, 4 * SECOND).used, 1);
}

/// Tokens that an instance holds are no part of the burst for a moment: the last one would be refused.
#[test]
fn first_delivery_of_a_process_that_has_just_started_takes_one_token() {
    const MILLISECOND: u64 = 1_000_000;
    let (quota, mut slices) = (quota(1, 10), TokenSlices::default());
    assert_eq!(slices.take(MILLISECOND), SliceDecision::Ask);
    let first = slices.request(quota, 1, [1, 0], MILLISECOND);
    assert_eq!((first.wanted, first.hold), (1, Duration::ZERO));
    for _ in 0..8 {
        assert_eq!(slices.take(2 * MILLISECOND), SliceDecision::Ask);
    }
    let second = slices.request(quota, 1, [1, 0], 2 * MILLISECOND);
    assert!(second.wanted > 1 && second.hold == quota.hold(), "{second:?}: eight in a millisecond are a high rate");
}
