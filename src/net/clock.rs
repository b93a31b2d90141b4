//! The kernel's estimate of the clock's error (adjtimex(2)), which a time daemon maintains.
//! Is the clock of this host synchronised?

#![expect(unsafe_code, reason = "adjtimex, which rustix does not wrap")]

use std::io;
use std::time::Duration;

/// The state of the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockState {
    /// A time daemon corrects the clock.
    pub is_synchronised: bool,
    /// The largest error that the kernel assumes. It grows while nothing corrects the clock.
    pub error_max: Duration,
}

/// Reads the state. It changes nothing, and needs no privilege.
pub fn state() -> io::Result<ClockState> {
    // SAFETY: all zeroes are a valid `timex`, whose fields are numbers; modes = 0 requests no change.
    let mut clock: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a `timex` that this function owns.
    if unsafe { libc::adjtimex(&raw mut clock) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let error_max = Duration::from_micros(u64::try_from(clock.maxerror).unwrap_or_default());
    Ok(ClockState { is_synchronised: clock.status & libc::STA_UNSYNC == 0, error_max })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_state_is_that_of_the_kernel() {
        let clock = state().unwrap();
        // The kernel sets STA_UNSYNC when the error reaches 16 s (NTP_PHASE_LIMIT).
        assert!(!clock.is_synchronised || clock.error_max < Duration::from_secs(16), "{clock:?}");
    }
}
