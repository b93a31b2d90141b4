//! Tests of the shares of a fleet, of its slices, and of what the store learns of them.
//! Does the store learn of each token once, and is each used in its time?

use super::*;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
/// An answer without tokens. Those that tests make of it have their first slot after 128 ms, and the others 128 ms apart.
const NO_TOKEN: TokenGrant = TokenGrant { tokens: 0, until: 128_000, now: 0, arrival: 0, wait: 0, is_spaced: true };

fn quota(count: u32, burst: u32) -> Quota {
    let [count, burst] = [count, burst].map(|number| NonZeroU32::new(number).unwrap());
    Quota { count, period: Duration::from_secs(1), burst }
}

/// Returns a quota with a token every 128 ms. A 128th of a slot's time is left for the clocks: one millisecond.
fn slow() -> Quota {
    Quota { period: Duration::from_millis(1280), ..quota(10, 20) }
}

/// Lets the store answer at once: deliveries that waited get `handed_out` of the tokens.
fn answer(slices: &mut TokenSlices, wanted: u32, grant: TokenGrant, handed_out: u32, now: u64) {
    let request = TokenRequest { wanted, ..TokenSlices::default().settlement(slow(), now) };
    slices.granted(&request, &grant, handed_out, 1, [now, now]);
}

/// Returns slices with the answer to the first request, at 0.
fn answered(wanted: u32, grant: TokenGrant, handed_out: u32) -> TokenSlices {
    let mut slices = TokenSlices::default();
    answer(&mut slices, wanted, grant, handed_out, 0);
    slices
}

fn tokens(tokens: u32) -> TokenGrant {
    TokenGrant { tokens, ..NO_TOKEN }
}

#[test]
fn fleet_shares_are_parts_of_the_limit_and_never_nothing() {
    let share = quota(100, 50).share(4);
    assert_eq!((share.interval(), share.burst.get()), (Duration::from_millis(40), 12));
    assert_eq!(quota(100, 3).share(4).burst.get(), 1);
}

#[test]
fn fleet_store_learns_of_each_token_of_the_share_once_and_while_the_share_lacks_it() {
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
    let (quota, mut slices) = (quota(1, 10), TokenSlices::default());
    assert_eq!(slices.take(MS), SliceDecision::Ask);
    let first = slices.request(quota, 1, [1, 0], MS);
    assert_eq!((first.wanted, first.hold), (1, Duration::ZERO));
    for _ in 0..8 {
        assert_eq!(slices.take(2 * MS), SliceDecision::Ask);
    }
    let second = slices.request(quota, 1, [1, 0], 2 * MS);
    assert!(second.wanted > 1 && second.hold == quota.hold(), "{second:?}: eight in a millisecond are a high rate");
}

#[test]
fn fleet_hold_is_a_quarter_of_the_time_of_the_burst_after_its_first_token() {
    for (burst, hold) in [(1, 0), (21, 50_000), (100, 247_500), (101, 250_000), (102, 250_000)] {
        let (quota, hold) = (quota(100, burst), Duration::from_micros(hold));
        assert_eq!((quota.hold(), quota.horizon()), (hold, hold / 2), "{burst}");
    }
}

/// An instance holds tokens for 50 ms here, and half a millisecond gives one.
#[test]
fn fleet_pause_gives_each_instance_several_tokens_within_the_hold() {
    let (quota, one) = (quota(2000, 401), quota(1, 1));
    for (live, pause, tokens) in [(1, 25_000, 50), (2, 25_000, 25), (3, 37_500, 25), (4, 50_000, 25), (5, 50_000, 20)] {
        assert_eq!((quota.pause(live), quota.fair_part(live)), (Duration::from_micros(pause), tokens), "{live}");
    }
    assert_eq!(one.fair_part(4), 1, "never nothing");
}

#[test]
fn fleet_burst_has_the_tokens_whose_time_is_not_ahead() {
    for (micros, left) in [
        (-5, 20),
        (0, 20),
        (1, 19),
        (100_000, 19),
        (100_001, 18),
        (1_900_000, 1),
        (1_900_001, 0),
        (2_000_000, 0),
        (i64::MAX, 0),
    ] {
        assert_eq!(quota(10, 20).left(micros), left, "{micros}");
    }
    for (arrival, after) in [(5_000, 3 * MS), (2_001, 1000), (2_000, 0), (1_999, 0), (i64::MIN, 0)] {
        let grant = TokenGrant { now: 2_000, arrival, ..NO_TOKEN };
        assert_eq!(grant.arrival_after(7), 7 + after, "{arrival}");
    }
}

#[test]
fn token_slices_are_kept_until_their_slots_are_over() {
    for (is_spaced, expected) in [(true, [3, 2, 2, 1, 1, 0]), (false, [3, 0, 0, 0, 0, 0])] {
        let mut slices = TokenSlices::default();
        answer(&mut slices, 3, TokenGrant { is_spaced, ..tokens(3) }, 0, SECOND);
        let left = [127 * MS - 1, 127 * MS, 254 * MS - 1, 254 * MS, 381 * MS - 1, 381 * MS].map(|after| {
            slices.expire(SECOND + after);
            slices.left()
        });
        assert_eq!(left, expected, "{is_spaced}");
    }
}

#[test]
fn token_slices_give_each_token_of_two_answers_once() {
    let mut slices = answered(2, tokens(2), 0);
    answer(&mut slices, 5, tokens(5), 2, MS);
    answer(&mut slices, 2, tokens(2), 2, MS);
    assert_eq!(slices.left(), 5, "deliveries that waited took the others");
    for left in [4, 3, 2, 1, 0] {
        assert_eq!((slices.take(2 * MS), slices.left()), (SliceDecision::Taken, left));
    }
    assert_eq!(slices.take(2 * MS), SliceDecision::Ask);
}

#[test]
fn token_slices_know_for_how_long_the_store_has_no_token() {
    let mut slices = answered(2, TokenGrant { wait: 700_000, ..tokens(1) }, 0);
    assert_eq!(slices.time_without(0), None, "this instance has one");
    assert_eq!(slices.take(0), SliceDecision::Taken);
    let end = 700 * MS;
    for (now, wait) in [(0, Some(end)), (end - 1, Some(1)), (end, None), (end + 1, None)] {
        let wait = wait.map(Duration::from_nanos);
        assert_eq!(slices.time_without(now), wait, "{now}");
        assert_eq!(slices.take(now), wait.map_or(SliceDecision::Ask, SliceDecision::Exhausted), "{now}");
    }
    slices.quota_changed();
    assert_eq!(slices.take(0), SliceDecision::Ask, "there may be a token of another quota");
}

/// A pause is 250 ms here.
#[test]
fn token_slices_pause_after_each_answer_within_a_second_of_one_with_too_few_tokens() {
    let exhausted = |ms| SliceDecision::Exhausted(Duration::from_millis(ms));
    for (granted, decision) in [(1, exhausted(250)), (2, SliceDecision::Ask), (3, SliceDecision::Ask)] {
        assert_eq!(answered(2, tokens(granted), granted).take(0), decision, "{granted} of 2");
    }
    for (now, decision) in [(SECOND - 1, exhausted(250)), (SECOND, SliceDecision::Ask)] {
        let mut slices = answered(2, tokens(1), 1);
        answer(&mut slices, 2, tokens(2), 2, now);
        assert_eq!(slices.take(now), decision, "{now}");
    }
    let mut slices = answered(2, tokens(1), 1);
    answer(&mut slices, 0, NO_TOKEN, 0, 100 * MS);
    assert_eq!(slices.take(100 * MS), exhausted(150), "the answer to a report tells nothing of tokens");
}

#[test]
fn token_slices_need_a_refill_when_half_of_the_only_one_is_left() {
    for (granted, taken, needs_refill) in [
        (0, 0, false),
        (1, 0, false),
        (1, 1, false),
        (2, 1, true),
        (4, 0, false),
        (4, 1, false),
        (4, 2, true),
        (4, 3, true),
        (4, 4, true),
        (5, 2, false),
        (5, 3, true),
    ] {
        let mut slices = answered(granted, tokens(granted), 0);
        (0..taken).for_each(|_| assert_eq!(slices.take(MS), SliceDecision::Taken));
        assert_eq!(slices.needs_refill(MS), needs_refill, "{taken} of {granted}");
    }
    assert!(answered(4, tokens(4), 2).needs_refill(MS), "deliveries that waited took half");
    assert!(!answered(4, tokens(4), 4).needs_refill(MS), "they took all, so that there is no slice");
    let mut slices = answered(4, tokens(4), 3);
    answer(&mut slices, 1, tokens(1), 0, MS);
    assert!(!slices.needs_refill(MS), "another one follows");
    let slices = answered(5, tokens(4), 3);
    assert!(!slices.needs_refill(250 * MS - 1) && slices.needs_refill(250 * MS), "the store had too few");
}

/// The time between two looks is 125 ms here.
#[test]
fn token_slices_return_the_tokens_that_were_idle_between_two_looks() {
    let mut slices = TokenSlices::default();
    assert_eq!((slices.next_look(SECOND), slices.return_if_idle(slow(), SECOND)), (None, None), "there is no token");
    let grant = TokenGrant { tokens: 4, until: 5_128_000, now: 5_000_000, arrival: 5_400_000, ..NO_TOKEN };
    answer(&mut slices, 4, grant, 0, SECOND);
    assert_eq!(slices.take(SECOND), SliceDecision::Taken);
    assert_eq!(
        (slices.next_look(SECOND), slices.return_if_idle(slow(), SECOND)),
        (Some(Duration::ZERO), None),
        "it is in use"
    );
    assert_eq!(slices.next_look(SECOND), Some(Duration::from_millis(125)));
    assert_eq!(slices.return_if_idle(slow(), SECOND + 125 * MS - 1), None);
    let returned = TokenRequest {
        quota: slow(),
        wanted: 0,
        hold: Duration::ZERO,
        returned: 3,
        returned_until: 5_256_000,
        returned_arrival: 5_400_000,
        used: 0,
        report: 1_125_000,
    };
    assert_eq!(slices.return_if_idle(slow(), SECOND + 125 * MS), Some(returned));
    assert_eq!((slices.left(), slices.next_look(SECOND + 125 * MS)), (0, None));
    // Two of four tokens are handed out, so that the next slot of the first slice is at 384 ms.
    for (until, first) in [(383_000, 383_000), (385_000, 384_000)] {
        let mut slices = answered(4, TokenGrant { arrival: 400_000, ..tokens(4) }, 2);
        answer(&mut slices, 3, TokenGrant { until, ..tokens(3) }, 0, 0);
        let of_both = slices.return_if_idle(slow(), MS).unwrap();
        assert_eq!((of_both.returned, of_both.returned_until, of_both.returned_arrival), (5, first, 0));
    }
    // The store learns of the tokens of the share first.
    let mut slices = answered(4, tokens(4), 0);
    slices.use_share(&slow().share(2), MS);
    assert_eq!(slices.return_if_idle(slow(), MS), None);
    let settlement = slices.settlement(slow(), MS);
    slices.granted(&settlement, &NO_TOKEN, 0, 2, [MS, MS]);
    assert_eq!(slices.return_if_idle(slow(), MS).unwrap().returned, 4);
}

/// A share has its burst again after two seconds here.
#[test]
fn token_report_has_its_time_as_its_number_and_is_told_until_its_own_answer() {
    let (quota, mut slices) = (quota(10, 20), TokenSlices::default());
    let share = quota.share(2);
    let before = slices.request(quota, 2, [1, 0], 5 * MS);
    assert_eq!((before.used, before.report), (0, 0));
    slices.use_share(&share, 5 * MS);
    assert!(slices.owes(2 * SECOND + 5 * MS - 1) && !slices.owes(2 * SECOND + 5 * MS));
    let report = slices.settlement(quota, 5 * MS);
    assert_eq!((report.used, report.report), (1, 5000), "a request without a report has taken no number");
    slices.granted(&before, &NO_TOKEN, 0, 2, [5 * MS, 6 * MS]);
    assert_eq!(slices.settlement(quota, 6 * MS), report, "the answer to another request");
    slices.granted(&report, &NO_TOKEN, 0, 2, [5 * MS, 6 * MS]);
    slices.use_share(&share, 5 * MS);
    assert_eq!(slices.settlement(quota, 5 * MS).report, 5001, "two in a microsecond");
}

/// A request is for the deliveries of 125 ms here. The expected number is the mean with the number before, which is 0.
#[test]
fn token_request_expects_the_rate_of_the_deliveries_since_the_last_one() {
    let quota = quota(1000, 1001);
    for (deliveries, after, wanted) in [(0, 100, 1), (16, 100, 11), (32, 100, 21), (16, 200, 6)] {
        let mut slices = TokenSlices::default();
        assert_eq!(slices.request(quota, 1, [1, 0], SECOND).wanted, 1);
        (0..deliveries).for_each(|_| assert_eq!(slices.take(SECOND), SliceDecision::Ask));
        assert_eq!(slices.request(quota, 1, [1, 0], SECOND + after * MS).wanted, wanted, "{deliveries} in {after} ms");
    }
}

/// The part of each of four instances is 25 tokens while they compete. The estimate is half of what a request may expect.
#[test]
fn token_request_leaves_the_other_instances_their_part_for_a_second_after_too_few_tokens() {
    let quota = quota(2000, 401);
    for (arrival, left, competing, alone) in
        [(200_500, 0, 25, 50), (150_500, 100, 25 + 50, 50), (500, 400, 25 + 200, 100)]
    {
        assert_eq!(quota.left(arrival), left);
        for (now, most) in [(SECOND - 1, competing), (SECOND, alone)] {
            let mut slices = TokenSlices::default();
            let first = slices.request(quota, 4, [1, 0], 0);
            slices.granted(&first, &TokenGrant { arrival, ..NO_TOKEN }, 0, 4, [0, 0]);
            assert_eq!(slices.request(quota, 4, [0, 1000], now).wanted, most / 2, "{left} left, at {now}");
        }
    }
}
