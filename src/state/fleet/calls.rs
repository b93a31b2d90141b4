//! The calls about the keys of limits, of which an instance has few on their way at once.
//! When may the task that serves a key call the store?

use std::fmt::Display;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::Fleet;
use crate::config;
use crate::net::store::{StoreError, script};
use crate::policy::fleet::{TokenGrant, TokenRequest};

/// The most calls at once for which no delivery waits. At a round trip of a millisecond, they are 64,000 a second, which one
/// server answers.
const IDLE_CALLS_MAX: usize = 64;
/// The most calls at once that keep a lease of permits, which others may get if it is not renewed in time.
const LEASE_CALLS_MAX: usize = 256;
/// The most calls at once for which deliveries wait. One server answers them within a tenth of the usual `fleet.timeout`.
const AWAITED_CALLS_MAX: usize = 1024;

/// The kind of a call. Calls of one kind wait for each other, and not for those of another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// No delivery waits for it.
    Idle,
    /// It keeps a lease of permits.
    Lease,
    /// Deliveries wait for it.
    Awaited,
}

/// The turns of the calls. When the store returns, all keys have something to tell it: it must not be away again for that.
pub(super) struct CallTurns {
    idle: Semaphore,
    lease: Semaphore,
    awaited: Semaphore,
}

impl Default for CallTurns {
    fn default() -> Self {
        let [idle, lease, awaited] = [IDLE_CALLS_MAX, LEASE_CALLS_MAX, AWAITED_CALLS_MAX].map(Semaphore::new);
        Self { idle, lease, awaited }
    }
}

impl CallTurns {
    async fn next(&self, kind: CallKind) -> Option<SemaphorePermit<'_>> {
        let turns = match kind {
            CallKind::Idle => &self.idle,
            CallKind::Lease => &self.lease,
            CallKind::Awaited => &self.awaited,
        };
        turns.acquire().await.ok()
    }
}

impl Fleet {
    /// Waits for the turn of a call. `None` does not occur: the turns do not end.
    pub async fn turn(&self, kind: CallKind) -> Option<SemaphorePermit<'_>> {
        self.turns.next(kind).await
    }

    /// Takes and returns tokens of a key. The store counts the report of a request once, also if the request is repeated.
    pub async fn take_tokens(&self, name: &str, request: &TokenRequest) -> Result<TokenGrant, StoreError> {
        let TokenRequest { quota, wanted, hold, returned, returned_until, returned_arrival, used, report } = request;
        let key = self.key_of(name, "rate");
        let reports = format!("{key}:{}", self.process);
        let (period, hold) = (quota.period.as_micros(), hold.as_micros());
        // An instance owes tokens for the time of the burst of its share, which is at least one token.
        let share = quota.share(self.live());
        let repeated_for =
            quota.burst_time().max(share.burst_time()).saturating_add(config::FLEET_TIMEOUT_MAX).as_millis();
        let arguments: &[&(dyn Display + Sync)] = &[
            &quota.count,
            &period,
            &quota.burst,
            &hold,
            wanted,
            returned,
            returned_until,
            returned_arrival,
            used,
            report,
            &repeated_for,
        ];
        let [tokens, until, now, arrival, wait, is_spaced]: [i64; 6] =
            self.store.run(&script::TAKE_TOKENS, &[&key, &reports], arguments).await?;
        let tokens = u32::try_from(tokens).unwrap_or_default();
        Ok(TokenGrant { tokens, until, now, arrival, wait, is_spaced: is_spaced == 1 })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// Thousands of keys tell a store that has returned of their tokens. Meanwhile others could get the permits of a lease.
    #[tokio::test(start_paused = true)]
    async fn fleet_call_for_a_lease_does_not_wait_for_reports() {
        let turns = CallTurns::default();
        let mut reports = Vec::new();
        for _ in 0..IDLE_CALLS_MAX {
            reports.push(turns.next(CallKind::Idle).await);
        }
        let waits = async |kind| timeout(Duration::from_secs(1), turns.next(kind)).await.is_err();
        assert!(waits(CallKind::Idle).await);
        assert!(!waits(CallKind::Lease).await && !waits(CallKind::Awaited).await);
        reports.pop();
        assert!(!waits(CallKind::Idle).await);
    }
}
