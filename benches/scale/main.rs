//! Simulates a fleet of 1,000 instances with 10 million tenants and a million deliveries a second.
//! How many calls does its store answer, what do instances remember, and what happens after a partition?
//!
//! `cargo bench --bench scale`. The instances run the arithmetic of the product, the store is a model that a test compares
//! with the script on a real server, and the clock is simulated. `docs/scale.md` has the results.

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

mod fleet;
#[allow(unreachable_pub, reason = "the tests share it")]
#[path = "../../tests/it/support/store_model.rs"]
mod store_model;

use std::num::NonZeroU32;
use std::time::Duration;

use fastrand::Rng;
use outgate::policy::limits::Quota;

use fleet::{Counts, Fleet, KEY_BYTES};

const TENANTS: u32 = 10_000_000;
const SECOND: i64 = 1_000_000;
const SEED: u64 = 18;

/// The instances that a load balancer chooses for a tenant.
#[derive(Clone, Copy)]
enum Balancing {
    Any,
    /// A hash of the tenant selects so many.
    Affinity(u32),
}

struct Case {
    name: &'static str,
    instances: u32,
    /// Deliveries of the fleet in a second, and the seconds.
    rate: u32,
    seconds: u32,
    balancing: Balancing,
    /// The part of a tenant's mean demand, in percent, that its limit allows; at least 100 a second.
    allowed: u32,
}

fn quota(rate: u32) -> Quota {
    let [count, burst] = [rate, rate.saturating_mul(2)].map(|number| NonZeroU32::new(number.max(1)).unwrap());
    Quota { count, period: Duration::from_secs(1), burst }
}

/// Returns a tenant by Zipf's law: the k-th is chosen in proportion to 1/k.
fn tenant(random: &mut Rng) -> u32 {
    let number = f64::from(TENANTS + 1).powf(random.f64());
    (number as u32).clamp(1, TENANTS)
}

/// Returns the mean demand of the k-th tenant, of all deliveries of a second.
fn demand(tenant: u32, rate: u32) -> f64 {
    let (k, all) = (f64::from(tenant), f64::from(TENANTS + 1));
    f64::from(rate) * ((k + 1.0) / k).ln() / all.ln()
}

fn run(case: &Case) {
    let &Case { name, instances, rate, seconds, balancing, allowed } = case;
    let quota_of = move |tenant: u32| {
        let limit = demand(tenant, rate) * f64::from(allowed) / 100.0;
        quota((limit as u32).max(100))
    };
    let mut fleet = Fleet::new(instances as usize, quota_of);
    let mut random = Rng::with_seed(SEED);
    // The first seconds fill the memory, and do not count.
    let (warm_up, step) = (2, f64::from(u32::try_from(SECOND).unwrap()) / f64::from(rate));
    let mut before = Counts::default();
    for number in 0..u64::from(rate) * u64::from(seconds + warm_up) {
        fleet.now = SECOND + (number as f64 * step) as i64;
        if number == u64::from(rate) * u64::from(warm_up) {
            before = fleet.counts;
        }
        let tenant = tenant(&mut random);
        let instance = match balancing {
            Balancing::Any => random.u32(0..instances),
            Balancing::Affinity(count) => {
                let first = u64::from(tenant).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
                (u32::try_from(first).unwrap() % instances + random.u32(0..count)) % instances
            }
        };
        fleet.deliver(instance, tenant);
    }
    let of = |now: u64, before: u64| (now - before) as f64;
    let deliveries = of(fleet.counts.deliveries, before.deliveries);
    let admitted = of(fleet.counts.admitted, before.admitted) / deliveries * 100.0;
    let calls = of(fleet.counts.calls, before.calls);
    let [keys, store_keys] = fleet.most_keys;
    println!(
        "| {name} | {admitted:.1} % | {:.3} | {:.0} | {} | {:.1} MB | {} |",
        calls / deliveries,
        calls / f64::from(seconds) / 1000.0,
        keys / instances as usize,
        (keys / instances as usize * KEY_BYTES) as f64 / 1e6,
        store_keys,
    );
}

/// One busy tenant, twice its limit, while half of the instances do not reach the store for half a minute.
fn run_partition(instances: u32, limit: u32) {
    println!("\n| second | state | admitted, of the limit | calls a delivery |\n| --- | --- | --- | --- |");
    let mut fleet = Fleet::new(instances as usize, move |_| quota(limit));
    let mut random = Rng::with_seed(SEED);
    let step = f64::from(u32::try_from(SECOND).unwrap()) / f64::from(limit * 2);
    let mut before = Counts::default();
    for second in 0..90_u32 {
        match second {
            20 => fleet.partition(instances / 2),
            50 => fleet.partition(0),
            _ => {}
        }
        for number in 0..limit * 2 {
            fleet.now = SECOND * i64::from(second + 1) + (f64::from(number) * step) as i64;
            fleet.deliver(random.u32(0..instances), 0);
        }
        let admitted = (fleet.counts.admitted - before.admitted) as f64 / f64::from(limit);
        let calls = (fleet.counts.calls - before.calls) as f64 / f64::from(limit * 2);
        before = fleet.counts;
        if [0, 1, 2, 5, 10, 19, 20, 21, 24, 25, 26, 30, 49, 50, 51, 52, 53, 55, 60, 70, 89].contains(&second) {
            let state = match second {
                0..20 => "whole",
                20..50 => "half of the instances do not reach the store",
                _ => "whole again",
            };
            println!("| {second} | {state} | {:.1} % | {calls:.3} |", admitted * 100.0);
        }
    }
}

fn main() {
    println!(
        "| case | admitted | calls a delivery | calls a second, thousands | keys an instance | their memory | keys in the store |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let whole = Case {
        name: "any instance; limits of twice the demand",
        instances: 1000,
        rate: 1_000_000,
        seconds: 10,
        balancing: Balancing::Any,
        allowed: 200,
    };
    run(&whole);
    run(&Case { name: "any instance; limits of half the demand", allowed: 50, ..whole });
    run(&Case { name: "each tenant on 4 instances; twice the demand", balancing: Balancing::Affinity(4), ..whole });
    run(&Case { name: "each tenant on 1 instance; twice the demand", balancing: Balancing::Affinity(1), ..whole });
    run(&Case {
        name: "10 instances, 10,000 deliveries a second; any instance",
        instances: 10,
        rate: 10_000,
        seconds: 60,
        ..whole
    });
    run_partition(1000, 10_000);
}
