//! The promise of a fleet's concurrency, with instances whose clocks disagree and a model of the store's script.
//! Does each busy instance get its part, and never more than there is?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use outgate::policy::fleet::permits::{
    PERMIT_LEASE, PERMIT_PATIENCE, PERMIT_RENEWAL, PERMIT_TERM, PermitGrant, PermitLease, PermitRequest, permits_wanted,
};
use proptest::prelude::*;

use crate::support::configuration::Replace;
use crate::support::permit_model::{PermitModel, milliseconds};
use crate::support::store::{self, StoreServer};

/// An instance, and its deliveries. Times are milliseconds of the store's clock.
#[derive(Default)]
struct Instance {
    lease: PermitLease,
    /// The start of its clock (ns), and the parts in a thousand by which the clock is fast.
    offset: u64,
    speed: i64,
    /// The ends of the deliveries in flight.
    in_flight: Vec<i64>,
    /// The length of a delivery.
    length: i64,
    /// The deliveries that want to be in flight. 0: the instance is idle.
    clients: u32,
    /// A delivery without a permit waits for one. Otherwise it is refused, and the next one comes at once.
    is_queueing: bool,
    call: Option<Call>,
    delivered: u32,
    calls: u32,
    /// The last time at which the instance was idle or had a delivery in flight.
    served: i64,
}

struct Call {
    request: PermitRequest,
    grant: Option<PermitGrant>,
    /// The time at which the instance asked, on its own clock (ns).
    asked_at: u64,
    /// The times at which the store executes the call, and at which the answer arrives.
    executed: i64,
    answered: i64,
}

impl Instance {
    fn clock(&self, now: i64) -> u64 {
        self.offset + u64::try_from(now * (1000 + self.speed)).unwrap() * 1000
    }

    fn advance(&mut self, number: usize, store: &mut PermitModel, [max, live]: [u32; 2], delay: i64, now: i64) {
        let clock = self.clock(now);
        self.in_flight.retain(|end| *end > now);
        if let Some(call) = &mut self.call {
            if call.grant.is_none() && call.executed <= now {
                call.grant = Some(store.lease(number, &call.request, now));
            }
            if call.answered <= now {
                let Call { request, grant, asked_at, .. } = self.call.take().unwrap();
                self.lease.granted(&request, grant.unwrap(), live, asked_at, clock);
            }
        }
        while self.count() < self.clients.min(self.lease.leased(clock)) {
            self.in_flight.push(now + self.length);
            self.delivered += 1;
        }
        if self.clients == 0 || self.count() > 0 {
            self.served = now;
        }
        let without = match self.clients.saturating_sub(self.count()) {
            without if self.is_queueing => without,
            without => without.min(u32::from(!self.lease.has_refused_since(clock))),
        };
        let wanted = permits_wanted(self.count(), without, max, live);
        if self.call.is_none() && self.lease.next_request(wanted, self.count(), 0, clock) == Some(Duration::ZERO) {
            let request = self.lease.request([wanted, max], self.count(), clock);
            let (executed, answered) = (now + delay, now + 2 * delay);
            self.call = Some(Call { request, grant: None, asked_at: clock, executed, answered });
            self.calls += 1;
        }
    }

    fn count(&self) -> u32 {
        u32::try_from(self.in_flight.len()).unwrap()
    }
}

struct Fleet {
    instances: Vec<Instance>,
    store: PermitModel,
    max: u32,
    now: i64,
    /// The times that calls take, one after another.
    delays: Vec<i64>,
    /// Each has as much as it wants, or waits for at most this time.
    longest_wait: i64,
}

impl Fleet {
    fn new(instances: Vec<Instance>, max: u32, delays: Vec<i64>) -> Self {
        Self { instances, store: PermitModel::default(), max, now: 1_000_000, delays, longest_wait: 0 }
    }

    fn run(&mut self, time: i64) {
        for _ in 0..time {
            self.now += 1;
            let live = u32::try_from(self.instances.len()).unwrap();
            for (number, instance) in self.instances.iter_mut().enumerate() {
                let delay = self.delays[usize::try_from(self.now).unwrap() % self.delays.len()];
                instance.advance(number, &mut self.store, [self.max, live], delay, self.now);
                self.longest_wait = self.longest_wait.max(self.now - instance.served);
            }
            let in_flight: u32 = self.instances.iter().map(Instance::count).sum();
            let held = self.store.held(self.now);
            assert!(i64::from(in_flight) <= held && held <= i64::from(self.max), "{in_flight} {held} of {}", self.max);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Some instances die, and then all but one stop to want permits.
    #[test]
    fn fleet_concurrency_is_never_exceeded_and_serves_each_busy_instance_in_bounded_time(
        clients in prop::collection::vec((1..5_u32, 1..500_i64, any::<bool>(), -7..8_i64, 0..u64::MAX / 4), 2..7),
        delays in prop::collection::vec(prop_oneof![0..2_i64, 0..30_i64], 1..50),
        max in 1..8_u32,
        dead in 0..3_usize,
    ) {
        let instance = |(clients, length, is_queueing, speed, offset)| Instance {
            clients, length, is_queueing, speed, offset, served: 1_000_000, ..Instance::default()
        };
        let longest = clients.iter().map(|(_, length, ..)| *length).max().unwrap();
        let mut fleet = Fleet::new(clients.into_iter().map(instance).collect(), max, delays);
        // A holder learns within a term that its term is over, or at its renewal if it knew of no other instance. Then its
        // delivery ends, and the next instance asks within 50 ms.
        let count = i64::try_from(fleet.instances.len()).unwrap();
        let [term, renewal, lease, patience] = [PERMIT_TERM, PERMIT_RENEWAL, PERMIT_LEASE, PERMIT_PATIENCE].map(milliseconds);
        let bound = renewal + (count + 1) * (2 * term + longest + 200);
        fleet.run(15_000);
        prop_assert!(fleet.longest_wait <= bound, "{} > {bound}", fleet.longest_wait);

        // The dead ones have no deliveries in flight. Their permits return.
        let dead = dead.min(fleet.instances.len() - 1);
        fleet.instances.truncate(fleet.instances.len() - dead);
        fleet.run(15_000);
        let bound = bound + lease + patience * i64::try_from(dead).unwrap();
        prop_assert!(fleet.longest_wait <= bound, "{} > {bound}", fleet.longest_wait);

        fleet.instances.iter_mut().skip(1).for_each(|instance| instance.clients = 0);
        fleet.instances[0].clients = max;
        fleet.run(lease + longest);
        prop_assert_eq!(fleet.instances[0].lease.leased(fleet.instances[0].clock(fleet.now)), max);
    }
}

/// Instances that are always busy get equal parts, and use what there is.
#[test]
fn fleet_concurrency_goes_round_between_busy_instances() {
    let cases = [(1, 2), (1, 5), (2, 3), (3, 2), (3, 5), (5, 2), (20, 3)];
    for ((max, count), is_queueing) in cases.into_iter().flat_map(|case| [(case, false), (case, true)]) {
        let instance = |_| Instance { clients: max, length: 10, is_queueing, served: 1_000_000, ..Instance::default() };
        let mut fleet = Fleet::new((0..count).map(instance).collect(), max, vec![1]);
        fleet.run(20_000);
        let delivered: Vec<u32> = fleet.instances.iter().map(|instance| instance.delivered).collect();
        let calls: Vec<u32> = fleet.instances.iter().map(|instance| instance.calls / 20).collect();
        eprintln!("{max} permits: {delivered:?} deliveries, {calls:?} calls a second");
        let (least, most) = (delivered.iter().min().unwrap(), delivered.iter().max().unwrap());
        assert!(least * 10 >= most * 8, "{max} permits, {count} instances: {delivered:?}");
        // A permit is unused from the end of a delivery until the next instance asks.
        let possible = max * 20_000 / 11;
        assert!(delivered.iter().sum::<u32>() * 10 >= possible * 7, "{max} permits: {delivered:?} of {possible}");
    }
}

/// An instance without a competitor asks as rarely as ever. One that has more than its part of a limit of which little is left
/// asks a few times a second.
#[test]
fn fleet_concurrency_of_a_busy_key_costs_few_calls() {
    for (live, clients, most) in [(1, 8, 1), (4, 2, 1), (4, 8, 5)] {
        let mut store = PermitModel::default();
        let mut busy = Instance { clients, length: 100, ..Instance::default() };
        for now in 1_000_000..1_020_000 {
            busy.advance(0, &mut store, [8, live], 1, now);
        }
        eprintln!("{clients} of 8 permits, {live} instances: {} calls in 20 s", busy.calls);
        assert!(busy.calls <= 20 * most, "{} calls in 20 s: {clients} of 8, {live} instances", busy.calls);
    }
}

/// The script of the store and the model give the same answers. The clock of the server is one of the test.
#[test]
fn fleet_script_of_permits_computes_what_the_model_computes() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/net/store/lease_permits.lua"));
    let text = text.replace_one("redis.call('TIME')", "{ math.floor(ARGV[9] / 1000), ARGV[9] % 1000 * 1000 }");
    // The server ends keys on its own clock.
    let text = text.replace_one("redis.call('PEXPIRE', KEYS[1], length)", "");
    let times = [PERMIT_LEASE, PERMIT_PATIENCE, PERMIT_TERM].map(milliseconds);
    for (max, processes) in [(1, 2), (3, 5), (8, 3), (7, 4)] {
        let (mut model, mut now, mut random) = (PermitModel::default(), 1_000_000_i64, 1_u64);
        let (key, mut granted) = (format!("key-{max}"), [0_u32; 5]);
        let mut seen = [false; 3];
        for _ in 0..150 {
            let mut next = |bound: u64| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (random >> 33) % bound
            };
            now += i64::try_from([next(30), next(400), next(3000)][usize::try_from(next(20) / 9).unwrap()]).unwrap();
            let process = usize::try_from(next(processes)).unwrap();
            let wanted = u32::try_from(next(u64::from(max) + 2)).unwrap().min(max);
            let used = granted[process].min(u32::try_from(next(u64::from(max) + 1)).unwrap());
            let request = PermitRequest { wanted, used, max };
            let arguments = [i64::from(wanted), used.into(), max.into(), times[0], times[1], times[2], now, now];
            let arguments = arguments.map(|number| number.to_string());
            let process_name = process.to_string();
            let mut command = vec!["--raw", "eval", &text, "1", &key, &process_name];
            command.extend(arguments.iter().map(String::as_str));
            let printed = server.cli(&command);
            let answer: Vec<u32> =
                printed.lines().map(|line| line.parse().unwrap_or_else(|_| panic!("{printed}"))).collect();
            let grant = model.lease(process, &request, now);
            assert_eq!(answer, [grant.permits, grant.others], "{request:?} of {process} at {now}");
            granted[process] = grant.permits.max(used);
            seen[0] |= grant.permits == wanted && wanted > 0;
            seen[1] |= grant.permits < wanted;
            seen[2] |= grant.permits < used;
        }
        assert_eq!(seen, [true; 3], "all, too few, and fewer than are in use");
    }
    // A request that a former connection delivers late takes no permit away, and a time that is ahead does not last.
    let lease = |key: &str, process: &str, wanted: u32, request: i64, now: i64| {
        let numbers =
            [wanted.into(), 0, 4, times[0], times[1], times[2], request, now].map(|number| number.to_string());
        let mut command = vec!["--raw", "eval", &text, "1", key, process];
        command.extend(numbers.iter().map(String::as_str));
        server.cli(&command).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(lease("late", "a", 3, 10, 1000), ["3", "0"]);
    assert_eq!(lease("late", "a", 0, 9, 1001)[0], "0");
    assert_eq!(lease("late", "b", 1, 1, 1002), ["1", "3"], "a still has three");
    assert_eq!(lease("late", "a", 3, 10, 1003), ["3", "1"], "the same request again");
    server.cli(&["hset", "ahead", "dead", "4 99999999 4 99999999 1"]);
    assert_eq!(lease("ahead", "a", 1, 1, 1000), ["0", "4"]);
    assert_eq!(lease("ahead", "a", 1, 2, 1001 + times[0]), ["1", "0"], "after the length of a lease");
}
