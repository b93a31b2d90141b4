//! The clock of the benchmarks: the CPU time of the current thread.
//! How much CPU time does a piece of work take?

use rustix::time::{ClockId, clock_gettime};

/// The number of rounds. The fastest one has the least noise from other processes.
const ROUNDS: u32 = 15;

/// Returns the microseconds per call of `work`, from `times` consecutive calls.
pub(crate) fn microseconds(times: u32, mut work: impl FnMut()) -> f64 {
    let round = |_| {
        let start = cpu_time();
        (0..times).for_each(|_| work());
        (cpu_time() - start) / f64::from(times)
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}

fn cpu_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}
