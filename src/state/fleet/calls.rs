//! The calls about the keys of limits, of which an instance has few on their way at once.
//! When may the task that serves a key call the store?

use std::fmt::Display;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::Fleet;
use crate::net::store::{StoreError, script};
use crate::policy::fleet::{TokenGrant, TokenRequest};

/// The most calls at once for which no delivery waits. At a round trip of a millisecond, they are 64,000 a second, which one
/// server answers.
const IDLE_CALLS_MAX: usize = 64;
/// The most calls at once for which deliveries wait. One server answers them within a tenth of the usual `fleet.timeout`.
const AWAITED_CALLS_MAX: usize = 1024;

/// The turns of the calls. When the store returns, all keys have something to tell it: it must not be away again for that.
pub(super) struct CallTurns {
    idle: Semaphore,
    awaited: Semaphore,
}

impl Default for CallTurns {
    fn default() -> Self {
        Self { idle: Semaphore::new(IDLE_CALLS_MAX), awaited: Semaphore::new(AWAITED_CALLS_MAX) }
    }
}

impl Fleet {
    /// Waits for the turn of a call for which no delivery waits. `None` does not occur: the turns do not end.
    pub async fn idle_turn(&self) -> Option<SemaphorePermit<'_>> {
        self.turns.idle.acquire().await.ok()
    }

    /// Waits for the turn of a call for which deliveries wait: not behind the others.
    pub async fn awaited_turn(&self) -> Option<SemaphorePermit<'_>> {
        self.turns.awaited.acquire().await.ok()
    }

    /// Takes and returns tokens of a key. The store counts the report of a request once, also if the request is repeated.
    pub async fn take_tokens(&self, name: &str, request: &TokenRequest) -> Result<TokenGrant, StoreError> {
        let TokenRequest { quota, wanted, hold, returned, returned_until, returned_arrival, used, report } = request;
        let key = self.key_of(name, "rate");
        let reports = format!("{key}:{}", self.process);
        let (period, hold) = (quota.period.as_micros(), hold.as_micros());
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
        ];
        let [tokens, until, now, arrival, wait, is_spaced]: [i64; 6] =
            self.store.run(&script::TAKE_TOKENS, &[&key, &reports], arguments).await?;
        let tokens = u32::try_from(tokens).unwrap_or_default();
        Ok(TokenGrant { tokens, until, now, arrival, wait, is_spaced: is_spaced == 1 })
    }
}
