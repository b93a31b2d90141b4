//! The number of deliveries that wait for their limits, bounded for each client.
//! May one more delivery of this client wait?

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::names::ClientName;
use crate::panics::Mutex;

/// The number of deliveries that may wait for a limit. Each holds a connection or a stream, the head of its request, and
/// the bytes read ahead to notice a hang-up: over HTTP/1 about 8 KiB of the body.
const LIMIT_WAITING_MAX: usize = 20_000;

/// The slots of the deliveries that wait. A client may have as many as are free. So one client takes half of all, a second
/// one a quarter, and a new client always finds a free slot.
pub(in crate::state) struct WaitSlots {
    counts: Arc<Mutex<WaitCounts>>,
    max: usize,
}

#[derive(Default)]
struct WaitCounts {
    all: usize,
    by_client: HashMap<ClientName, usize>,
}

/// The slot of one delivery that waits; dropping it frees the slot.
pub(in crate::state) struct WaitSlotGuard {
    counts: Arc<Mutex<WaitCounts>>,
    client: ClientName,
}

/// The wait of one delivery for all of its limits. It takes a slot when it begins.
pub(in crate::state) struct LimitWait<'a> {
    slots: &'a WaitSlots,
    client: &'a ClientName,
    begun: Option<(Instant, WaitSlotGuard)>,
    store_deadline: Option<Instant>,
}

impl<'a> LimitWait<'a> {
    pub(in crate::state) fn new(slots: &'a WaitSlots, client: &'a ClientName) -> Self {
        Self { slots, client, begun: None, store_deadline: None }
    }

    /// Returns the time until which the delivery may wait for the store of the fleet, for all of its limits together. The
    /// time begins anew after a limit has delayed the delivery.
    pub(in crate::state) fn store_deadline(&mut self, max_wait: Duration) -> Instant {
        *self.store_deadline.get_or_insert_with(|| Instant::now() + max_wait)
    }

    /// Returns the end of a wait of `max_wait` from its beginning. `None`: the limit allows no wait, or no slot is free.
    pub(in crate::state) fn deadline(&mut self, max_wait: Duration) -> Option<Instant> {
        if max_wait.is_zero() {
            return None;
        }
        if self.begun.is_none() {
            self.begun = Some((Instant::now(), self.slots.acquire(self.client)?));
        }
        self.store_deadline = None;
        self.begun.as_ref().map(|(begun, _)| *begun + max_wait)
    }
}

impl Default for WaitSlots {
    fn default() -> Self {
        Self::new(LIMIT_WAITING_MAX)
    }
}

impl WaitSlots {
    fn new(max: usize) -> Self {
        Self { counts: Arc::default(), max }
    }

    #[cfg(test)]
    pub(in crate::state) fn count(&self) -> usize {
        self.counts.lock().all
    }

    /// Takes a slot. `None`: no slot is free for this client.
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
    fn wait_slots_of_one_client_leave_some_for_the_others() {
        let slots = WaitSlots::new(100);
        let all_of = |client: &str| -> Vec<WaitSlotGuard> {
            std::iter::from_fn(|| slots.acquire(&ClientName::new(client))).collect()
        };
        let (first, second, third) = (all_of("first"), all_of("second"), all_of("third"));
        assert_eq!((first.len(), second.len(), third.len()), (50, 25, 13));
        drop(first);
        assert_eq!(all_of("first").len(), 31, "half of the 62 that are free");
        drop((second, third));
        let counts = slots.counts.lock();
        assert_eq!((counts.all, counts.by_client.len()), (0, 0));
    }
}
