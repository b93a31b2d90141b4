//! The tokens of credentials that the instances of a fleet share through the store.
//! Has another instance fetched this token, or does it fetch it now?
//!
//! The store is a help and no authority: whatever it answers, an instance can fetch a token by itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::time::sleep;

use super::Fleet;
use crate::digest::Sha256;
use crate::net::store::StoreError;
use crate::policy::credential::{Grant, SEALED_MAX};
use crate::state::upstreams::tokens::FetchGuard;

/// The time for which one instance has the duty to fetch a token. Then another one may fetch it.
const FETCH_LEASE: Duration = Duration::from_secs(2);
/// How often an instance looks for the token that another one fetches.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

impl Fleet {
    /// Returns the fleet's token, and when it was granted. `None`: this instance must fetch one.
    ///
    /// It waits at most `wait_max` while another instance fetches the token.
    pub async fn await_token(&self, fetch: &FetchGuard, wait_max: Duration) -> Option<(Grant, Instant)> {
        let seal = self.seal.as_ref()?;
        let token = fetch.key().fingerprint();
        let name = seal.name(&token);
        let [key, lease] = ["token", "fetch"].map(|kind| self.key_of(&name, kind));
        let deadline = Instant::now() + wait_max.min(FETCH_LEASE);
        loop {
            let sealed = self.within_wait(self.store.get(&key, SEALED_MAX)).await?;
            if let Some((grant, age)) = seal.open(&token, &sealed, Timestamp::now())
                && !fetch.is_refused(&grant)
            {
                return Some((grant, Instant::now().checked_sub(age)?));
            }
            let has_lease = self.within_wait(self.store.claim(&lease, &self.process, FETCH_LEASE)).await?;
            if has_lease || deadline <= Instant::now() {
                return None;
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Seals a token that this instance has fetched. The result stores it, and ends the lease of the fetch. `None`: the fetch
    /// failed, and another instance may try.
    pub fn share_token(
        self: &Arc<Self>,
        fetch: &FetchGuard,
        grant: Option<&Grant>,
    ) -> impl Future<Output = Result<(), StoreError>> + Send + use<> {
        let token: Sha256 = fetch.key().fingerprint();
        let sealed = self.seal.as_ref().map(|seal| {
            let sealed =
                grant.and_then(|grant| Some((seal.seal(&token, grant, Timestamp::now())?, grant.usable_for())));
            (seal.name(&token), sealed)
        });
        let fleet = Arc::clone(self);
        async move {
            let Some((name, sealed)) = sealed.filter(|_| fleet.is_up()) else { return Ok(()) };
            if let Some((sealed, lifetime)) = sealed {
                fleet.store.set(&fleet.key_of(&name, "token"), &sealed, lifetime).await?;
            }
            fleet.store.set(&fleet.key_of(&name, "fetch"), b"", Duration::ZERO).await
        }
    }
}
