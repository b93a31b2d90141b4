//! Limits of the frames that carry no message.
//! When does a peer flood its connection?

use tokio::time::Instant;

use super::super::frame::{DATA, PING, SETTINGS};
use super::super::leaky_bucket::LeakyBucket;

/// The PING and SETTINGS frames that a peer may send in a burst. An honest peer sends a few in a second at most, to measure the
/// connection.
pub(super) const CONTROL_FRAMES_MAX: u64 = 1000;
const CONTROL_FRAMES_LEAK_PER_SECOND: u64 = 100;
/// The bytes that a peer must have received for each other frame, such as WINDOW_UPDATE. An honest receiver sends two
/// WINDOW_UPDATE frames for some KiB.
pub(super) const BYTES_PER_FRAME: u64 = 512;
/// The other frames that a peer may send in a burst, and in each second, whatever it has received; both in bytes.
pub(super) const UNEARNED_MAX: u64 = 10_000 * BYTES_PER_FRAME;
const UNEARNED_LEAK_PER_SECOND: u64 = 5_000 * BYTES_PER_FRAME;

/// The frames of late of one connection.
pub(super) struct FrameLimits {
    /// PING and SETTINGS, each of which h2 acknowledges.
    control: LeakyBucket,
    /// The bytes that the peer has not received for its other frames.
    unearned: LeakyBucket,
}

impl Default for FrameLimits {
    fn default() -> Self {
        let control = LeakyBucket::new(CONTROL_FRAMES_LEAK_PER_SECOND);
        Self { control, unearned: LeakyBucket::new(UNEARNED_LEAK_PER_SECOND) }
    }
}

impl FrameLimits {
    /// Counts a frame that carries no field block, and returns whether it is one too many.
    pub(super) fn exceed_max_with(&mut self, kind: u8) -> bool {
        match kind {
            DATA => false,
            PING | SETTINGS => self.control.add(1, Instant::now()) > CONTROL_FRAMES_MAX,
            _ => self.unearned.add(BYTES_PER_FRAME, Instant::now()) > UNEARNED_MAX,
        }
    }

    /// Records bytes that were written to the peer.
    pub(super) fn record_written(&mut self, length: usize) {
        self.unearned.subtract(length as u64);
    }
}
