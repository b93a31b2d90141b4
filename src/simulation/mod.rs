//! The simulation: the real path of a delivery, from the client's connection to the target's, in a world that a seed
//! determines. Which faults and cancellations break an invariant?
//!
//! A seed draws clients, targets, name servers, limits, reloads, faults and cancellations. It runs in a process of its own,
//! on one thread with tokio's paused time, over connections in memory. The same seed gives the same events. Decision 0080
//! has the reasons. The first command runs more seeds. The second one replays a seed with all of its events:
//!
//! ```sh
//! OUTGATE_SIMULATION_SEEDS=10000 cargo test --locked --lib simulation::
//! OUTGATE_SIMULATION=17 cargo test --locked --lib simulation::replay -- --include-ignored --nocapture
//! ```

mod case;
mod client;
mod dns;
mod host;
mod invariants;
mod ledger;
mod random;
mod run;
mod scenario;
mod target;
mod wire;
mod world;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use parking_lot::Mutex;

use case::{Case, Report};

/// The seeds of a usual test run. CI runs more.
const SEEDS: u64 = 300;
/// One in this many seeds is swept: it runs again with a cancellation at each poll, and with a reset at each operation.
const SEEDS_PER_SWEEP: u64 = 150;

fn seeds() -> u64 {
    let count = std::env::var("OUTGATE_SIMULATION_SEEDS").ok();
    count.map_or(SEEDS, |count| count.parse().expect("OUTGATE_SIMULATION_SEEDS is a number"))
}

/// Runs the cases, each in a process, and returns their reports in the same order.
fn run_all(cases: &[Case]) -> Vec<Report> {
    let (next, reports) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = thread::available_parallelism().map_or(1, Into::into);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let report = case.run_in_process();
                    reports.lock().push((*case, report));
                }
            });
        }
    });
    let mut reports = reports.into_inner();
    reports.sort_by_key(|(case, _)| *case);
    reports.into_iter().map(|(_, report)| report).collect()
}

/// Runs the cases, and panics with the first that breaks an invariant and the command that replays it.
fn assert_kept(cases: &[Case]) {
    let reports = run_all(cases);
    let delivered: usize = reports.iter().map(|report| report.delivered).sum();
    println!("{} cases, {delivered} webhooks delivered", cases.len());
    let failed: Vec<_> = cases.iter().zip(&reports).filter(|(_, report)| !report.violations.is_empty()).collect();
    for (case, report) in failed.iter().take(10) {
        println!("{case}: {:#?}", report.violations);
    }
    let replay = failed.first().map(|(case, _)| case.command());
    assert_eq!(replay, None, "{} of {} cases failed; the command replays the first", failed.len(), cases.len());
    assert!(delivered > cases.len() / 2, "the scenarios deliver something: {delivered} webhooks");
}

#[test]
fn simulation_keeps_every_invariant_in_every_seed() {
    assert_kept(&(0..seeds()).map(Case::seed).collect::<Vec<_>>());
}

#[test]
fn simulation_keeps_every_invariant_at_every_cancellation_and_reset() {
    let seeds: Vec<Case> = (0..seeds().div_ceil(SEEDS_PER_SWEEP)).map(Case::sweep).collect();
    let reports = run_all(&seeds);
    for (case, Report { violations, operations, .. }) in seeds.iter().zip(&reports) {
        assert!(violations.is_empty() && *operations > 0, "{}: {violations:#?}", case.command());
    }
    let cases = seeds.iter().zip(reports).flat_map(|(case, report)| {
        let cancellations = report.polls.iter().enumerate().flat_map(|(client, polls)| {
            (1..=*polls).map(move |poll| Case { cancel_at: Some((client, poll)), ..*case })
        });
        let resets = (1..=report.operations).map(|operation| Case { reset_at: Some(operation), ..*case });
        cancellations.chain(resets).collect::<Vec<_>>()
    });
    assert_kept(&cases.collect::<Vec<_>>());
}

#[test]
fn simulation_of_the_same_seed_has_the_same_events() {
    let cases: Vec<Case> = (0..20).map(Case::seed).collect();
    for (first, second) in run_all(&cases).iter().zip(run_all(&cases)) {
        assert!(!first.trace.is_empty(), "{first:?}");
        assert_eq!(first.trace, second.trace);
    }
}

#[test]
#[ignore = "runs the case that OUTGATE_SIMULATION names"]
fn replay() {
    case::run_named();
}
