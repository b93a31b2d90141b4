//! The signatures that were used, until they expire.
//! Is this request a replay?

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use jiff::Timestamp;

use crate::names::ClientName;
use crate::panics::Mutex;
use crate::policy::authn::ReplayToken;

/// The number of signatures of one client, and of all clients. A request that does not fit is refused: evicting a signature
/// would allow its replay. At 36 bytes each, all take 150 MiB. A client may sign 3500 requests a second during the 300
/// seconds for which a signature is valid.
const CLIENT_MAX: usize = 1 << 20;
const ALL_MAX: usize = 1 << 22;

/// The first half of the SHA-256 of a signature, which is enough to distinguish signatures.
type TokenHash = [u8; 16];

pub struct ReplayCache {
    used: Mutex<SeenTokens>,
    client_max: usize,
    all_max: usize,
}

#[derive(Default)]
struct SeenTokens {
    clients: HashMap<ClientName, ClientTokens>,
    count: usize,
}

#[derive(Default)]
struct ClientTokens {
    /// The tokens by the last second in which they are accepted, so that they expire together.
    by_second: BTreeMap<i64, HashSet<TokenHash>>,
    count: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayError {
    /// The signature was used.
    Replayed,
    /// The cache is full.
    CacheFull,
    /// The store of the fleet did not tell whether the signature was used.
    StoreAway,
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replayed => "the signature was used before",
            Self::CacheFull => "the cache of used signatures is full",
            Self::StoreAway => "the store of the fleet does not answer",
        })
    }
}

impl std::error::Error for ReplayError {}

impl ReplayCache {
    #[expect(clippy::new_without_default, reason = "made once, by Runtime")]
    pub fn new() -> Self {
        Self { used: Mutex::default(), client_max: CLIENT_MAX, all_max: ALL_MAX }
    }

    /// Records the first use of a signature. A second use is an error.
    pub fn check_and_record(
        &self,
        client: &ClientName,
        token: &ReplayToken,
        now: Timestamp,
    ) -> Result<(), ReplayError> {
        let mut used = self.used.lock();
        let used = &mut *used;
        if !used.clients.contains_key(client) {
            used.clients.insert(client.clone(), ClientTokens::default());
        }
        let Some(of_client) = used.clients.get_mut(client) else { return Err(ReplayError::CacheFull) };
        used.count -= of_client.expire(now.as_second());
        let mut key = TokenHash::default();
        key.copy_from_slice(&token.key()[..16]);
        if of_client.by_second.get(&token.valid_until()).is_some_and(|keys| keys.contains(&key)) {
            return Err(ReplayError::Replayed);
        }
        if of_client.count >= self.client_max || used.count >= self.all_max {
            return Err(ReplayError::CacheFull);
        }
        of_client.by_second.entry(token.valid_until()).or_default().insert(key);
        of_client.count += 1;
        used.count += 1;
        Ok(())
    }

    /// Removes expired signatures, and clients without any. Call it periodically.
    pub fn sweep(&self, now: Timestamp) {
        let mut used = self.used.lock();
        let used = &mut *used;
        used.clients.retain(|_, client| {
            used.count -= client.expire(now.as_second());
            client.count > 0
        });
    }
}

impl ClientTokens {
    /// Removes the tokens that are no longer accepted, and returns their number.
    fn expire(&mut self, now: i64) -> usize {
        let mut expired = 0;
        while let Some(second) = self.by_second.first_entry().filter(|second| *second.key() < now) {
            expired += second.remove().len();
        }
        self.count -= expired;
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn token(key: u8, valid_until: i64) -> ReplayToken {
        ReplayToken::for_test([key; 32], valid_until)
    }

    #[test]
    fn replay_cache_accepts_a_signature_once_until_it_expires() {
        let cache = ReplayCache::new();
        let (a, b) = (ClientName::new("a"), ClientName::new("b"));
        assert_eq!(cache.check_and_record(&a, &token(1, 100), at(50)), Ok(()));
        assert_eq!(cache.check_and_record(&a, &token(1, 100), at(50)), Err(ReplayError::Replayed));
        assert_eq!(cache.check_and_record(&a, &token(1, 100), at(100)), Err(ReplayError::Replayed), "its last second");
        assert_eq!(cache.check_and_record(&a, &token(2, 100), at(100)), Ok(()));
        assert_eq!(cache.check_and_record(&b, &token(1, 100), at(50)), Ok(()));
        assert_eq!(cache.used.lock().count, 3);
        cache.sweep(at(100));
        assert_eq!(cache.check_and_record(&a, &token(1, 100), at(100)), Err(ReplayError::Replayed));
        cache.sweep(at(101));
        let used = cache.used.lock();
        assert_eq!((used.count, used.clients.len()), (0, 0));
    }

    #[test]
    fn replay_cache_that_is_full_refuses_and_evicts_nothing() {
        let cache = ReplayCache { client_max: 2, all_max: 3, ..ReplayCache::new() };
        let (a, b) = (ClientName::new("a"), ClientName::new("b"));
        assert_eq!(cache.check_and_record(&a, &token(1, 100), at(50)), Ok(()));
        assert_eq!(cache.check_and_record(&a, &token(2, 200), at(50)), Ok(()));
        assert_eq!(cache.check_and_record(&a, &token(3, 200), at(50)), Err(ReplayError::CacheFull));
        assert_eq!(cache.check_and_record(&a, &token(1, 100), at(50)), Err(ReplayError::Replayed));
        assert_eq!(
            cache.check_and_record(&b, &token(1, 100), at(50)),
            Ok(()),
            "a full share of one client leaves room for others"
        );
        assert_eq!(cache.check_and_record(&b, &token(2, 100), at(50)), Err(ReplayError::CacheFull));
        assert_eq!(cache.check_and_record(&a, &token(3, 200), at(101)), Ok(()), "the expired signature made room");
    }
}
