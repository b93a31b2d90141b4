//! The promise of a fleet's rate, with instances whose clocks disagree and a model of the store's script.
//! Can the instances together exceed the rate and its burst?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::num::NonZeroU32;
use std::time::Duration;

use outgate::policy::fleet::{SliceDecision, TokenGrant, TokenRequest, TokenSlices};
use outgate::policy::limits::Quota;
use proptest::prelude::*;

use crate::support::store::{self, StoreServer};
use crate::support::store_model::StoreModel;

/// One instance, whose clock has an offset and a speed of its own.
struct Instance {
    slices: TokenSlices,
    offset: u64,
    /// The parts in a thousand by which its clock is fast.
    speed: i64,
}

impl Instance {
    fn clock(&self, micros: i64) -> u64 {
        self.offset + u64::try_from(micros * (1000 + self.speed)).unwrap()
    }
}

fn quota(count: u32, burst: u32) -> Quota {
    let [count, burst] = [count, burst].map(|number| NonZeroU32::new(number).unwrap());
    Quota { count, period: Duration::from_secs(1), burst }
}

/// Asserts that deliveries at these times (µs) exceed the quota in no window of time.
fn assert_within(quota: Quota, admitted: &mut [i64]) {
    admitted.sort_unstable();
    let interval = 1e6 / f64::from(quota.count.get());
    let mut arrival = 0.0_f64;
    for time in admitted.iter().map(|time| *time as f64) {
        arrival = arrival.max(time) + interval;
        let used = (arrival - time) / interval;
        assert!(used <= f64::from(quota.burst.get()) + 1e-3, "{used} tokens at once at {time}: {quota:?}");
    }
}

#[derive(Clone, Debug)]
struct Turn {
    instance: usize,
    /// The time since the turn before, and the delays of a request and of its answer (µs).
    pause: i64,
    delays: [i64; 2],
    deliveries: u32,
    is_idle: bool,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    // Some turns follow at once and have many deliveries, so that held tokens and the burst are used together.
    let pause = prop_oneof![0..2_000_i64, 0..400_000_i64];
    let deliveries = prop_oneof![0..4_u32, 0..400_u32];
    let turn = (0..4_usize, pause, [0..5_000_i64, 0..5_000_i64], deliveries, proptest::bool::weighted(0.1));
    let turn = turn.prop_map(|(instance, pause, delays, deliveries, is_idle)| Turn {
        instance,
        pause,
        delays,
        deliveries,
        is_idle,
    });
    prop::collection::vec(turn, 1..200)
}

proptest! {
    /// A delivery that the store has answered counts at the store's time: until then it waited. A delivery that takes a
    /// token of a slice counts when it comes.
    #[test]
    fn fleet_rate_is_never_exceeded_by_instances_whose_clocks_disagree(
        turns in turns(),
        offsets in [0..u64::MAX / 4, 0..u64::MAX / 4, 0..u64::MAX / 4, 0..u64::MAX / 4],
        speeds in [-7..8_i64, -7..8_i64, -7..8_i64, -7..8_i64],
        count in 1..400_u32,
        burst in 1..400_u32,
    ) {
        let (quota, mut store) = (quota(count, burst), StoreModel::default());
        let mut instances = [0, 1, 2, 3].map(|i| Instance {
            slices: TokenSlices::default(), offset: offsets[i], speed: speeds[i],
        });
        let (mut now, mut admitted) = (1_000_000_i64, Vec::new());
        for Turn { instance, pause, delays: [there, back], deliveries, is_idle } in turns {
            now += pause;
            let instance = &mut instances[instance];
            let mut waiting = 0;
            for _ in 0..deliveries {
                match instance.slices.take(instance.clock(now)) {
                    SliceDecision::Taken => admitted.push(now),
                    SliceDecision::Ask => waiting += 1,
                    SliceDecision::Exhausted(_) => {}
                }
            }
            let asked_at = instance.clock(now);
            let request = match is_idle {
                true => instance.slices.return_if_idle(quota, asked_at),
                false if waiting > 0 || instance.slices.needs_refill(asked_at) => {
                    Some(instance.slices.request(quota, 4, [waiting, 0], asked_at))
                }
                false => None,
            };
            let Some(request) = request else { continue };
            let grant = store.take(&request, now + there);
            let handed_out = grant.tokens.min(waiting);
            admitted.extend((0..handed_out).map(|_| now + there));
            now += there + back;
            let answered = instance.clock(now);
            instance.slices.granted(&request, &grant, handed_out, 4, [asked_at, answered]);
        }
        assert_within(quota, &mut admitted);
    }
}

/// Four busy instances get the whole rate, and a delivery costs a small part of a call.
#[test]
fn fleet_rate_of_a_busy_key_is_used_up_with_few_calls() {
    let (quota, mut store) = (quota(1000, 1000), StoreModel::default());
    let mut instances = [0, 1, 2, 3].map(|i| Instance { slices: TokenSlices::default(), offset: i << 40, speed: 0 });
    let (mut admitted, mut calls, mut counts) = (Vec::new(), 0, [0_u32; 4]);
    // A delivery to each instance every 2.5 ms: 1,600 a second for a rate of 1,000.
    for now in (1_000_000..61_000_000_i64).step_by(2_500) {
        for (number, instance) in instances.iter_mut().enumerate() {
            let clock = instance.clock(now);
            let waiting = match instance.slices.take(clock) {
                SliceDecision::Taken => {
                    admitted.push(now);
                    counts[number] += 1;
                    0
                }
                SliceDecision::Ask => 1,
                SliceDecision::Exhausted(_) => 0,
            };
            if waiting > 0 || instance.slices.needs_refill(clock) {
                let request = instance.slices.request(quota, 4, [waiting, 0], clock);
                let grant = store.take(&request, now + 200);
                calls += 1;
                let handed_out = grant.tokens.min(waiting);
                admitted.extend((0..handed_out).map(|_| now + 200));
                let answered = instance.clock(now + 400);
                instance.slices.granted(&request, &grant, handed_out, 4, [clock, answered]);
                counts[number] += handed_out;
            }
        }
    }
    let count = admitted.len();
    assert_within(quota, &mut admitted);
    // A minute of the rate, and the burst at its beginning.
    assert!((60_400..=61_000).contains(&count), "{count}");
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(least * 5 > most * 4, "equal demand gets equal parts: {counts:?}");
    assert!(f64::from(calls) / count as f64 <= 0.05, "{calls} calls for {count} deliveries");
}

/// Deliveries that wait for their turn ask one after another: the first asks for those behind it.
#[test]
fn fleet_rate_is_used_up_by_deliveries_that_wait_on_one_instance() {
    for (count, burst, live) in [(100, 100, 4), (100, 50, 1), (100, 25, 4), (1000, 100, 1)] {
        let (quota, mut store) = (quota(count, burst), StoreModel::default());
        let (mut slices, mut admitted) = (TokenSlices::default(), Vec::new());
        // A queue that never ends, for a minute. Each round trip takes half a millisecond.
        let (mut now, end) = (1_000_000_i64, 61_000_000);
        while now < end {
            let clock = u64::try_from(now).unwrap() * 1000;
            let decision = slices.take(clock);
            match decision {
                SliceDecision::Taken => admitted.push(now),
                SliceDecision::Exhausted(wait) => now += i64::try_from(wait.as_micros()).unwrap().max(1),
                SliceDecision::Ask => {}
            }
            let waiting = u32::from(decision == SliceDecision::Ask);
            if waiting > 0 || slices.needs_refill(clock) {
                let request = slices.request(quota, live, [waiting, 200], clock);
                let grant = store.take(&request, now + 250);
                let handed_out = grant.tokens.min(waiting);
                admitted.extend((0..handed_out).map(|_| now + 250));
                slices.granted(&request, &grant, handed_out, live, [clock, clock + 500_000]);
                now += 500;
            }
        }
        let most = 60 * count + burst;
        assert_within(quota, &mut admitted);
        let count = u32::try_from(admitted.len()).unwrap();
        assert!(count * 100 >= most * 95, "{count} of {most} for {quota:?}");
    }
}

/// The script of the store and the model give the same answers, at the time that the server states.
#[test]
fn fleet_script_of_a_real_server_computes_what_the_model_computes() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/net/store/take_tokens.lua");
    let take = |key: &str, request: &TokenRequest| {
        let TokenRequest { quota, wanted, hold, returned, returned_until, returned_arrival, used, report } = *request;
        let Quota { count, period, burst } = quota;
        let numbers = [i64::from(count.get()), i64::try_from(period.as_micros()).unwrap(), burst.get().into()];
        let hold = i64::try_from(hold.as_micros()).unwrap();
        let more = [hold, wanted.into(), returned.into(), returned_until, returned_arrival, used.into()];
        let report = i64::try_from(report).unwrap();
        let arguments: Vec<String> =
            numbers.iter().chain(&more).chain([&report, &3_600_000]).map(i64::to_string).collect();
        let reports = format!("{key}:process");
        let mut command = vec!["--raw", "--eval", script, key, &reports, ","];
        command.extend(arguments.iter().map(String::as_str));
        let printed = server.cli(&command);
        let answer: Vec<i64> =
            printed.lines().map(|line| line.parse().unwrap_or_else(|_| panic!("{printed}"))).collect();
        let [tokens, until, now, arrival, wait, is_spaced] = answer[..] else { panic!("{printed}") };
        TokenGrant { tokens: u32::try_from(tokens).unwrap(), until, now, arrival, wait, is_spaced: is_spaced == 1 }
    };
    for (count, burst) in [(7, 1), (5, 50), (3000, 100), (1, 1_000_000)] {
        let (quota, key) = (quota(count, burst), format!("key-{count}-{burst}"));
        let (mut model, mut last) =
            (StoreModel::default(), TokenGrant { tokens: 0, until: 0, now: 0, arrival: 0, wait: 0, is_spaced: true });
        let mut seen = [false; 3];
        for turn in 0..60_u32 {
            let wanted = if turn % 5 == 4 { 0 } else { turn % 17 };
            let returned = if turn % 4 == 3 { last.tokens / 2 } else { 0 };
            let returned_arrival = if turn % 8 == 3 { last.arrival } else { 0 };
            let used = u32::from(turn % 11 == 10);
            let hold = if turn % 3 == 0 { Duration::ZERO } else { quota.hold() };
            let returned_until = last.until;
            let report = u64::from(turn) + 1;
            let request =
                TokenRequest { quota, wanted, hold, returned, returned_until, returned_arrival, used, report };
            let grant = take(&key, &request);
            // Of a key that nothing holds back, the server keeps nothing.
            assert_eq!(grant, model.take(&request, grant.now), "{request:?}");
            // A report that is told again, or that an earlier connection delivers late, counts once.
            let again = TokenRequest { wanted: 0, report: report.saturating_sub(u64::from(turn % 2)), ..request };
            let repeated = take(&key, &again);
            let unreported = TokenRequest { returned: 0, used: 0, ..again };
            assert_eq!(repeated, model.take(&unreported, repeated.now), "{again:?}");
            seen[0] |= grant.tokens > 0;
            seen[1] |= grant.wait > 0;
            seen[2] |= !grant.is_spaced;
            last = grant;
        }
        assert!(seen[0], "{quota:?}: {seen:?}");
        assert!(burst != 50 || seen == [true; 3], "tokens, none, and returned ones: {seen:?}");
    }
}
