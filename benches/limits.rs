//! Measures a limit with a million keys in use: memory per key, and time per decision from one thread and from two.
//! What does a limit cost?
//!
//! `cargo bench --bench limits`

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on ends"
)]

use std::hint::black_box;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use outgate::config::LimitDimension;
use outgate::names::{ClientName, Host, LimitName, PoolName, RouteName, TenantName};
use outgate::policy::limits::{Limit, LimitDescriptor, Quota};
use outgate::state::limits::Limits;

/// The allocator of the proxy.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TENANTS: usize = 1000;
const HOSTS: usize = 1000;
const KEYS_MAX: usize = TENANTS * HOSTS;

/// Decisions in a round, and rounds. The fastest round has the least noise from other processes.
const DECISIONS: usize = 500_000;
const ROUNDS: usize = 9;

struct Names {
    client: ClientName,
    route: RouteName,
    egress: PoolName,
    tenants: Vec<TenantName>,
    hosts: Vec<Host>,
}

impl Names {
    fn new() -> Self {
        Self {
            client: ClientName::new("billing"),
            route: RouteName::new("customers"),
            egress: PoolName::new("default"),
            tenants: (0..TENANTS).map(|i| TenantName::new(format!("tenant-{i:06}"))).collect(),
            hosts: (0..HOSTS).map(|i| Host::Name(format!("hooks.customer-{i:06}.example").into())).collect(),
        }
    }

    fn descriptor(&self, key: usize) -> LimitDescriptor<'_> {
        let (tenant, host) = (Some(&self.tenants[key % TENANTS]), &self.hosts[key / TENANTS % HOSTS]);
        LimitDescriptor { client: &self.client, tenant, route: &self.route, host, egress: &self.egress }
    }
}

fn limit(name: &str, rate: bool, concurrency: bool) -> Arc<Limit> {
    let [count, burst] = [1, 1_000_000].map(|n| NonZeroU32::new(n).unwrap());
    let quota = Quota { count, period: Duration::from_secs(1), burst };
    Arc::new(Limit {
        name: LimitName::new(name),
        quota: rate.then_some(quota),
        concurrency: concurrency.then_some(100),
        per: vec![LimitDimension::Tenant, LimitDimension::Host],
        wait: Duration::ZERO,
        bandwidth: None,
        is_fleet_wide: false,
        report_only: false,
    })
}

/// Acquires and releases the permit of one delivery.
fn acquire_and_release(limits: &Limits, route_limits: &[Arc<Limit>], descriptor: &LimitDescriptor<'_>) {
    let polled = pin!(limits.acquire(route_limits, descriptor)).poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(Ok(permit)) = polled else { panic!("no room") };
    drop(black_box(permit));
}

/// Returns the resident memory of this process in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// Returns the nanoseconds per decision, over keys in an order that defeats the caches.
fn decide(limits: &Limits, route_limits: &[Arc<Limit>], names: &Names, keys: usize, seed: usize) -> f64 {
    let start = Instant::now();
    let mut key = seed;
    for _ in 0..DECISIONS {
        key = key.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        acquire_and_release(limits, route_limits, &names.descriptor((key >> 33) % keys));
    }
    start.elapsed().as_nanos() as f64 / DECISIONS as f64
}

/// Measures each case in a process of its own, because a process reuses memory that an earlier case has freed.
fn main() {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--one").skip(1);
    if let (Some(name), Some(keys)) = (arguments.next(), arguments.next()) {
        return measure(&name, keys.parse().unwrap());
    }
    println!("{:<12} {:>9} {:>12} {:>13} {:>14}", "limit", "keys", "bytes a key", "ns, 1 thread", "ns, 2 threads");
    for (name, keys) in [("rate", 1000), ("rate", KEYS_MAX), ("concurrency", KEYS_MAX), ("both", KEYS_MAX)] {
        let program = std::env::current_exe().unwrap();
        let status = std::process::Command::new(program).args(["--one", name, &keys.to_string()]).status().unwrap();
        assert!(status.success());
    }
}

fn measure(name: &str, keys: usize) {
    let (names, limits) = (Names::new(), Limits::default());
    let route_limits = [limit(name, name != "concurrency", name != "rate")];
    let before = resident();
    (0..keys).for_each(|key| acquire_and_release(&limits, &route_limits, &names.descriptor(key)));
    let bytes = (resident() - before) / keys;
    let best = |times: &mut dyn FnMut() -> f64| (0..ROUNDS).map(|_| times()).fold(f64::INFINITY, f64::min);
    let one_thread = best(&mut || decide(&limits, &route_limits, &names, keys, 1));
    let two_threads = best(&mut || {
        std::thread::scope(|scope| {
            let decide = |seed| decide(&limits, &route_limits, &names, keys, seed);
            let threads = [1, 2].map(|seed| scope.spawn(move || decide(seed)));
            threads.map(|thread| thread.join().unwrap()).into_iter().fold(0.0, f64::max)
        })
    });
    println!("{name:<12} {:>9} {bytes:>12} {one_thread:>13.0} {two_threads:>14.0}", limits.key_count());
}
