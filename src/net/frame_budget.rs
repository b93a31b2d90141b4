//! The frames of one HTTP/2 connection that outgate handles before it serves other connections.
//! How does a peer that floods one connection not delay the others?
//!
//! h2 reads frames until the socket has none. tokio interrupts it after 128 reads, which may hold more than 100,000 small
//! frames: tens of milliseconds. So a read counts its frames, and reports to h2 that there is nothing to read once they
//! are many. The task is scheduled again behind the others. Reads of a connection with many small frames are short.

use std::task::{Context, Poll};

/// The frames after which the task yields. One read may exceed it. An honest client opens its 128 streams with two frames
/// each.
const FRAMES_MAX: usize = 256;
/// The average length of a frame, in bytes with its header, below which a connection has many small frames.
const SMALL_FRAME_LEN: usize = 32;
/// The longest read while a connection has many small frames, in bytes: about [`FRAMES_MAX`] empty frames.
const SHORT_READ_LEN: usize = 2 * 1024;

/// The frames that the connection may still handle before its task yields.
pub struct FrameBudget {
    left: usize,
    has_many_small_frames: bool,
}

impl Default for FrameBudget {
    fn default() -> Self {
        Self { left: FRAMES_MAX, has_many_small_frames: false }
    }
}

impl FrameBudget {
    /// Returns the longest read that is permitted, in bytes. If the budget is used up, it returns `Pending` and schedules the
    /// task again.
    pub fn poll_read_max(&self, cx: &Context<'_>) -> Poll<usize> {
        if self.left > 0 {
            return Poll::Ready(if self.has_many_small_frames { SHORT_READ_LEN } else { usize::MAX });
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Counts the frames that began in a read of this many bytes.
    pub fn consume(&mut self, frames: usize, read_len: usize) {
        self.left = self.left.saturating_sub(frames);
        let are_small = frames.saturating_mul(SMALL_FRAME_LEN) > read_len;
        self.has_many_small_frames = are_small && (frames > FRAMES_MAX || self.has_many_small_frames);
    }

    /// Begins a new budget when h2 stops reading.
    pub fn renew_if(&mut self, stops_reading: bool) {
        if stops_reading {
            self.left = FRAMES_MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn frame_budget_schedules_the_task_again_when_it_is_used_up() {
        let wakes = Arc::new(Wakes::default());
        let waker = Arc::clone(&wakes).into();
        let cx = Context::from_waker(&waker);
        let mut budget = FrameBudget::default();
        budget.consume(FRAMES_MAX - 1, 16 * 1024);
        budget.renew_if(false);
        assert_eq!(budget.poll_read_max(&cx), Poll::Ready(usize::MAX));
        budget.consume(1000, 64 * 1024);
        assert!(budget.poll_read_max(&cx).is_pending());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        budget.renew_if(true);
        assert_eq!(budget.poll_read_max(&cx), Poll::Ready(usize::MAX));
    }

    #[test]
    fn frame_budget_shortens_reads_while_frames_are_many_and_small() {
        let cx = Context::from_waker(Waker::noop());
        let mut budget = FrameBudget::default();
        for (frames, read_len, max) in [
            (200, 2000, usize::MAX),
            (1800, 16 * 1024, SHORT_READ_LEN),
            (100, 1700, SHORT_READ_LEN),
            (10, 2048, usize::MAX),
        ] {
            budget.consume(frames, read_len);
            budget.renew_if(true);
            assert_eq!(budget.poll_read_max(&cx), Poll::Ready(max), "{frames} frames in {read_len} bytes");
        }
    }
}
