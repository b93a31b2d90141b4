//! Signatures that were used, until they expire by themselves.
//! Has this request been made before?

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::names::ClientName;
use crate::policy::authn::ReplayToken;

/// Signatures of one client, and of all, remembered at a time: what does not fit is refused, since to forget one would
/// be to let it be used again. At 36 bytes each all take 150 MiB; a client may sign 3500 requests a second for the
/// 300 seconds that a signature is good for.
const CLIENT_MAX: usize = 1 << 20;
const ALL_MAX: usize = 1 << 22;

/// No two requests were ever signed alike, so half of a SHA-256 tells them apart.
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
    /// By the last second in which they could be accepted: what expires, expires together.
    by_second: BTreeMap<i64, HashSet<TokenHash>>,
    count: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayError {
    /// The signature was used.
    Replayed,
    /// There is no room to remember it.
    CacheFull,
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Replayed => "the signature was used before",
            Self::CacheFull => "no more signatures can be remembered",
        })
    }
}

impl std::error::Error for ReplayError {}

impl ReplayCache {
    #[expect(clippy::new_without_default, reason = "made once, by Live")]
    pub fn new() -> Self {
        Self { used: Mutex::default(), client_max: CLIENT_MAX, all_max: ALL_MAX }
    }

    /// The first use of a signature, and no other.
    pub fn check_and_record(&self, client: &ClientName, once: &ReplayToken, now: Timestamp) -> Result<(), ReplayError> {
        let mut used = self.used.lock();
        let used = &mut *used;
        if !used.clients.contains_key(client) {
            used.clients.insert(client.clone(), ClientTokens::default());
        }
        let Some(of_client) = used.clients.get_mut(client) else { return Err(ReplayError::CacheFull) };
        used.count -= of_client.expire(now.as_second());
        let mut key = TokenHash::default();
        key.copy_from_slice(&once.key[..16]);
        if of_client.by_second.get(&once.valid_until).is_some_and(|keys| keys.contains(&key)) {
            return Err(ReplayError::Replayed);
        }
        if of_client.count >= self.client_max || used.count >= self.all_max {
            return Err(ReplayError::CacheFull);
        }
        of_client.by_second.entry(once.valid_until).or_default().insert(key);
        of_client.count += 1;
        used.count += 1;
        Ok(())
    }

    /// Forgets what has expired. Call it from time to time: clients that do not call any more go this way.
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
    /// How many have expired: all that could not be accepted now.
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

    fn once(key: u8, until: i64) -> ReplayToken {
        ReplayToken { key: [key; 32], valid_until: until }
    }

    #[test]
    fn a_signature_is_good_for_one_request_until_it_expires() {
        let replay = ReplayCache::new();
        let (a, b) = (ClientName::new("a"), ClientName::new("b"));
        assert_eq!(replay.check_and_record(&a, &once(1, 100), at(50)), Ok(()));
        assert_eq!(replay.check_and_record(&a, &once(1, 100), at(50)), Err(ReplayError::Replayed));
        assert_eq!(replay.check_and_record(&a, &once(1, 100), at(100)), Err(ReplayError::Replayed), "its last second");
        assert_eq!(replay.check_and_record(&a, &once(2, 100), at(100)), Ok(()));
        assert_eq!(replay.check_and_record(&b, &once(1, 100), at(50)), Ok(()));
        assert_eq!(replay.used.lock().count, 3);
        replay.sweep(at(100));
        assert_eq!(replay.check_and_record(&a, &once(1, 100), at(100)), Err(ReplayError::Replayed));
        replay.sweep(at(101));
        let used = replay.used.lock();
        assert_eq!((used.count, used.clients.len()), (0, 0));
    }

    #[test]
    fn what_cannot_be_remembered_is_refused_and_nobody_is_forgotten() {
        let replay = ReplayCache { client_max: 2, all_max: 3, ..ReplayCache::new() };
        let (a, b) = (ClientName::new("a"), ClientName::new("b"));
        assert_eq!(replay.check_and_record(&a, &once(1, 100), at(50)), Ok(()));
        assert_eq!(replay.check_and_record(&a, &once(2, 200), at(50)), Ok(()));
        assert_eq!(replay.check_and_record(&a, &once(3, 200), at(50)), Err(ReplayError::CacheFull));
        assert_eq!(replay.check_and_record(&a, &once(1, 100), at(50)), Err(ReplayError::Replayed));
        assert_eq!(
            replay.check_and_record(&b, &once(1, 100), at(50)),
            Ok(()),
            "one client's flood leaves room for others"
        );
        assert_eq!(replay.check_and_record(&b, &once(2, 100), at(50)), Err(ReplayError::CacheFull));
        assert_eq!(replay.check_and_record(&a, &once(3, 200), at(101)), Ok(()), "what has expired makes room");
    }
}
