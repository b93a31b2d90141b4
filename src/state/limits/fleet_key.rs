//! The part of one key of a fleet's limit that this instance has, and its deliveries that wait for the store.
//! What may this instance use of a key, and what must it ask the store?

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::policy::fleet::TokenSlices;
use crate::policy::fleet::permits::{PermitLease, permit_grace, permit_share, permits_wanted};
use crate::policy::limits::Quota;
use crate::state::fleet::Fleet;
use crate::state::limits::wait_queue::WaitQueue;

/// The state of a key that the fleet counts. Its tokens and permits are leased from the store by one task, which runs while
/// the key is in use.
#[derive(Default)]
pub(in crate::state) struct FleetKey {
    /// The name of the key in the store.
    pub(super) name: Arc<str>,
    /// The rate and the concurrency of the newest arrival.
    pub(super) quota: Option<Quota>,
    pub(super) max_in_flight: u32,
    pub(super) tokens: TokenSlices,
    pub(super) permits: PermitLease,
    /// Whether the permits are those of the share, because the store is away or late.
    pub(super) gives_share: bool,
    /// The deliveries that wait for the answer of the store about a token.
    pub(super) asks: WaitQueue<TokenAnswer>,
    /// Wakes the task.
    pub(super) wake: Arc<Notify>,
    pub(super) is_served: bool,
}

/// The answer of the store to one delivery.
#[derive(Clone, Copy, Debug)]
pub(in crate::state) enum TokenAnswer {
    Taken,
    Exhausted(Duration),
    /// The store did not answer.
    Away,
}

impl FleetKey {
    /// Returns the permits that this instance may use: those of its lease, or its share if the store is away.
    pub(super) fn allowed_permits(&self, is_up: bool, live: u32, now: u64) -> u32 {
        let leased = self.permits.leased(now);
        if is_up { leased } else { leased.max(permit_share(self.max_in_flight, live)) }
    }

    /// Returns the permits to ask for, and the time after which it may be more. Soon after the store has returned, it may not know
    /// the permits of the others yet: then an instance asks for no more than its lease or its share.
    pub(super) fn permits_wanted(
        &self,
        [in_flight, waiting]: [u32; 2],
        fleet: &Fleet,
        now: u64,
    ) -> (u32, Option<Duration>) {
        let (max, live) = (self.max_in_flight, fleet.live());
        let wanted = permits_wanted(in_flight, waiting, max, live);
        let most = permit_share(max, live).max(self.permits.leased(now));
        match permit_grace(fleet.returned_at(), now) {
            Some(left) if wanted > most => (most, Some(left)),
            _ => (wanted, None),
        }
    }

    /// Wakes the task if permits have become unused, and it does not know.
    pub(super) fn permit_released(&self, in_flight: u32, now_allowed: u32) {
        if self.permits.has_unused(in_flight, now_allowed) {
            self.wake.notify_one();
        }
    }

    /// Answers the deliveries that wait, in order, with at most `tokens`. Returns the number of tokens taken.
    pub(super) fn hand_out(&mut self, tokens: u32) -> u32 {
        let mut taken = 0;
        while taken < tokens && !self.asks.is_empty() {
            taken += u32::from(self.asks.grant(TokenAnswer::Taken));
        }
        taken
    }

    /// Gives all deliveries that wait the same answer.
    pub(super) fn answer_all(&mut self, answer: TokenAnswer) {
        while !self.asks.is_empty() {
            self.asks.grant(answer);
        }
    }
}
