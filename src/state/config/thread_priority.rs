//! How the kernel shares the processors between a thread of ours and the others.
//! Who runs first, and for how long at once?

#![expect(unsafe_code, reason = "sched_setattr, which no library offers")]

use std::io;

/// Steps by which others go before this thread, of 19 (nice(2)).
const NICENESS: i32 = 5;
/// Nanoseconds, the least there is. A thread that wakes waits for the end of the slice of the one that runs, nice or
/// not; of the usual milliseconds a webhook would notice (sched_setattr(2) and the kernel's sched-eevdf: Linux 6.12).
const SLICE: u64 = 100_000;

/// This thread gives way to all others, often.
pub(in crate::state) fn lower_thread_priority() -> io::Result<()> {
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: 0,
        sched_nice: NICENESS,
        sched_priority: 0,
        sched_runtime: SLICE,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel reads as much as `size` says of a structure that outlives the call; 0 is this thread.
    let outcome = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if outcome == 0 {
        return Ok(());
    }
    // A sandbox may know setpriority only; it is of this thread alone, too (nice(2), C library/kernel differences).
    rustix::process::nice(NICENESS).map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_both() {
        let told = std::thread::spawn(|| {
            lower_thread_priority().unwrap();
            let mut told = std::mem::MaybeUninit::<libc::sched_attr>::zeroed();
            let size = size_of::<libc::sched_attr>() as u32;
            // SAFETY: the kernel writes at most `size` into a structure of that size; all zero is a value of it.
            let (outcome, told) = unsafe {
                let outcome = libc::syscall(libc::SYS_sched_getattr, 0, told.as_mut_ptr(), size, 0);
                (outcome, told.assume_init())
            };
            assert_eq!(outcome, 0, "{}", io::Error::last_os_error());
            told
        });
        let told = told.join().unwrap();
        assert_eq!(told.sched_nice, NICENESS);
        // Older kernels have no slices to choose.
        assert!([0, SLICE].contains(&told.sched_runtime), "{}", told.sched_runtime);
    }
}
