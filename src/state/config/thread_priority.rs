//! The scheduling of background threads, so that threads with traffic run first.
//! How does the kernel prefer the traffic to background work?

#![expect(unsafe_code, reason = "sched_setattr, which no library offers")]

use std::io;

/// The nice value, of at most 19 (nice(2)).
const NICENESS: i32 = 5;
/// The time slice in nanoseconds, which is the minimum. A thread that wakes waits for the end of the running thread's slice,
/// whatever the nice value. The usual slice of milliseconds would delay webhooks (sched_setattr(2), sched-eevdf, Linux 6.12).
const SLICE_NANOS: u64 = 100_000;

/// Lowers the priority of the calling thread, and shortens its time slices.
pub(in crate::state) fn lower_thread_priority() -> io::Result<()> {
    let attributes = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: 0,
        sched_nice: NICENESS,
        sched_priority: 0,
        sched_runtime: SLICE_NANOS,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel reads `size` bytes of a structure that outlives the call; 0 is the calling thread.
    let outcome = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    if outcome == 0 {
        return Ok(());
    }
    // A sandbox may allow setpriority only. It also affects this thread alone (nice(2), C library/kernel differences).
    rustix::process::nice(NICENESS).map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_priority_sets_the_nice_value_and_the_time_slice() {
        let thread = std::thread::spawn(|| {
            lower_thread_priority().unwrap();
            let mut attributes = std::mem::MaybeUninit::<libc::sched_attr>::zeroed();
            let size = size_of::<libc::sched_attr>() as u32;
            // SAFETY: the kernel writes at most `size` bytes into a structure of that size; all zeros are a valid value.
            let (outcome, attributes) = unsafe {
                let outcome = libc::syscall(libc::SYS_sched_getattr, 0, attributes.as_mut_ptr(), size, 0);
                (outcome, attributes.assume_init())
            };
            assert_eq!(outcome, 0, "{}", io::Error::last_os_error());
            attributes
        });
        let attributes = thread.join().unwrap();
        assert_eq!(attributes.sched_nice, NICENESS);
        // Older kernels do not support slices.
        assert!([0, SLICE_NANOS].contains(&attributes.sched_runtime), "{}", attributes.sched_runtime);
    }
}
