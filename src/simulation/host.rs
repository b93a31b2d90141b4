//! The clock and the random numbers of a thread that runs a seed.
//! What do `Instant::now`, `SystemTime::now` and `RandomState::new` return in the simulation?
//!
//! The test binary defines `clock_gettime` and `getrandom`, as madsim does. The standard library calls them for every clock
//! and for the keys of its hash tables, so neither production code nor a dependency needs another clock. On every other
//! thread they make the system call. Only tests compile this module.

#![expect(unsafe_code, reason = "defines two functions of the C library")]

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::random::Random;

/// The monotonic clock at the start of a seed. It is less than the uptime of any host, so a wait of the kernel until a
/// simulated time returns at once.
const STARTED: Duration = Duration::from_secs(1);
/// The wall clock at the start of a seed: 2026-11-27T00:00:00Z.
const STARTED_AT: Duration = Duration::from_secs(1_795_737_600);

thread_local! {
    /// The start of the seed; `None`: the thread runs none.
    static START: Cell<Option<Instant>> = const { Cell::new(None) };
    /// The simulated time since the start, as it was read last.
    static ELAPSED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    static IS_SIMULATED: Cell<bool> = const { Cell::new(false) };
    /// The clock of tokio is being read, which may itself read this one.
    static IS_READING: Cell<bool> = const { Cell::new(false) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
}

/// A thread that runs a seed. Dropping it returns the thread to the real clock.
pub(super) struct SimulatedHost(());

impl SimulatedHost {
    /// Takes the thread out of real time. The thread must be new: a thread keeps the keys of its hash tables.
    pub(super) fn enter(seed: u64) -> Self {
        RANDOM.set(seed);
        ELAPSED.set(Duration::ZERO);
        IS_SIMULATED.set(true);
        START.set(Some(Instant::now()));
        Self(())
    }
}

impl Drop for SimulatedHost {
    fn drop(&mut self) {
        IS_SIMULATED.set(false);
        START.set(None);
    }
}

/// Returns the simulated time since the start of the seed. It is tokio's time, which is paused and advances when no task
/// can run.
pub(super) fn elapsed() -> Duration {
    if let Some(start) = START.get()
        && !IS_READING.replace(true)
    {
        let now = tokio::time::Instant::now().into_std();
        IS_READING.set(false);
        ELAPSED.set(now.saturating_duration_since(start));
    }
    ELAPSED.get()
}

/// Replaces the function of the C library for the whole test binary.
///
/// # Safety
///
/// `time` points to a `timespec`.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    let is_wall_clock = matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE | libc::CLOCK_TAI);
    let is_cpu_time = matches!(clock, libc::CLOCK_PROCESS_CPUTIME_ID | libc::CLOCK_THREAD_CPUTIME_ID);
    if !IS_SIMULATED.get() || is_cpu_time {
        // SAFETY: the arguments are those of the caller.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) } as libc::c_int;
    }
    let now = if is_wall_clock { STARTED_AT } else { STARTED } + elapsed();
    let now = libc::timespec { tv_sec: now.as_secs() as libc::time_t, tv_nsec: now.subsec_nanos().into() };
    // SAFETY: the caller passes a pointer to a `timespec`.
    unsafe { time.write(now) };
    0
}

/// Replaces the function of the C library for the whole test binary.
///
/// # Safety
///
/// `buffer` points to `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut libc::c_void, length: libc::size_t, flags: libc::c_uint) -> libc::ssize_t {
    if !IS_SIMULATED.get() {
        // SAFETY: the arguments are those of the caller.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) } as libc::ssize_t;
    }
    let mut random = Random::new(RANDOM.get());
    for index in 0..length {
        // SAFETY: the caller passes a pointer to `length` bytes.
        unsafe { buffer.cast::<u8>().add(index).write(random.next() as u8) };
    }
    RANDOM.set(random.next());
    length as libc::ssize_t
}

#[cfg(test)]
mod tests {
    use std::collections::hash_map::RandomState;
    use std::hash::BuildHasher;
    use std::thread;
    use std::time::SystemTime;

    use super::*;

    fn readings(seed: u64) -> (u64, Duration, SystemTime) {
        let run = move || {
            let _host = SimulatedHost::enter(seed);
            let start = Instant::now();
            let tokio = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            tokio.block_on(async { tokio::time::sleep(Duration::from_secs(3600)).await });
            let elapsed = tokio.block_on(async { start.elapsed() });
            (RandomState::new().hash_one("a"), elapsed, tokio.block_on(async { SystemTime::now() }))
        };
        thread::spawn(run).join().unwrap()
    }

    #[test]
    fn simulated_threads_have_the_time_and_the_random_numbers_of_their_seed() {
        let before = Instant::now();
        let (hash, elapsed, now) = readings(1);
        let hour = Duration::from_secs(3600);
        assert!(elapsed >= hour && elapsed < hour + Duration::from_millis(10), "{elapsed:?}");
        assert_eq!(now, SystemTime::UNIX_EPOCH + STARTED_AT + elapsed);
        assert_eq!(readings(1), (hash, elapsed, now));
        assert_ne!(readings(2).0, hash);
        assert!(before.elapsed() < hour, "other threads have the time of the host");
        assert_ne!(RandomState::new().hash_one("a"), hash);
    }
}
