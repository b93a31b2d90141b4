//! The deliveries that wait for their limits, bounded in number.
//! Is there room for one more to wait, and for the clients that come after it?

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::names::ClientName;

/// Deliveries that wait for a limit. Each holds a connection or a stream, the head of its request, and what was read ahead
/// to notice a hang-up: over HTTP/1 about 8 KiB of the body.
pub(in crate::state) const WAITING_MAX: usize = 20_000;

/// Counts the deliveries that wait. A client may have as many of them as there are free places left. So one client takes
/// half of all, a second one a quarter, and no client finds all of them taken.
pub(in crate::state) struct WaitSlots {
    counts: Arc<Mutex<WaitCounts>>,
    max: usize,
}

#[derive(Default)]
struct WaitCounts {
    all: usize,
    by_client: HashMap<ClientName, usize>,
}

/// One delivery that waits, until it is dropped.
pub(in crate::state) struct WaitSlotGuard {
    counts: Arc<Mutex<WaitCounts>>,
    client: ClientName,
}

/// The wait of one delivery for its limits: its beginning, and its place among all that wait.
pub(in crate::state) struct LimitWait<'a> {
    waiting: &'a WaitSlots,
    client: &'a ClientName,
    begun: Option<(Instant, WaitSlotGuard)>,
}

impl<'a> LimitWait<'a> {
    pub(in crate::state) fn new(waiting: &'a WaitSlots, client: &'a ClientName) -> Self {
        Self { waiting, client, begun: None }
    }

    /// Until when it may last. `None`: not at all, for too many deliveries wait.
    pub(in crate::state) fn deadline(&mut self, longest: Duration) -> Option<Instant> {
        if longest.is_zero() {
            return None;
        }
        if self.begun.is_none() {
            self.begun = Some((Instant::now(), self.waiting.acquire(self.client)?));
        }
        self.begun.as_ref().map(|(begun, _)| *begun + longest)
    }
}

impl WaitSlots {
    pub(in crate::state) fn new(max: usize) -> Self {
        Self { counts: Arc::default(), max }
    }

    /// `None`: there is no room.
    pub(in crate::state) fn acquire(&self, client: &ClientName) -> Option<WaitSlotGuard> {
        let mut counts = self.counts.lock();
        let own = counts.by_client.get(client).copied().unwrap_or_default();
        if own >= self.max.saturating_sub(counts.all) {
            return None;
        }
        counts.all += 1;
        counts.by_client.insert(client.clone(), own + 1);
        Some(WaitSlotGuard { counts: Arc::clone(&self.counts), client: client.clone() })
    }
}

impl Drop for WaitSlotGuard {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        counts.all -= 1;
        if let Some(own) = counts.by_client.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                counts.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_waiters_of_one_client_leave_room_for_the_others() {
        let waiting = WaitSlots::new(100);
        let all_of = |client: &str| -> Vec<WaitSlotGuard> {
            std::iter::from_fn(|| waiting.acquire(&ClientName::new(client))).collect()
        };
        let (first, second, third) = (all_of("first"), all_of("second"), all_of("third"));
        assert_eq!((first.len(), second.len(), third.len()), (50, 25, 13));
        drop(first);
        assert_eq!(all_of("first").len(), 31, "of the 62 that are free");
        drop((second, third));
        let counts = waiting.counts.lock();
        assert_eq!((counts.all, counts.by_client.len()), (0, 0));
    }
}
