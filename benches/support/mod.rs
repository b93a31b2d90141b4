//! The clock of the benchmarks: the time of this thread on the processor, whatever else the machine does.
//! What does this piece of work cost?

use rustix::time::{ClockId, clock_gettime};

/// The best round is what the work costs, the others what the machine does besides.
const ROUNDS: u32 = 15;

/// Microseconds that `work` takes when it is done `times` times in a row, each.
pub(crate) fn microseconds(times: u32, mut work: impl FnMut()) -> f64 {
    let round = |_| {
        let start = processor();
        (0..times).for_each(|_| work());
        (processor() - start) / f64::from(times)
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}

fn processor() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}
