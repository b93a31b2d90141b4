//! Signatures that were used, until they expire by themselves.
//! Has this request been made before?

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use crate::names::ClientName;
use crate::policy::identify::Once;

/// Signatures of one client, and of all, remembered at a time: what does not fit is refused, since to forget one would
/// be to let it be used again. At 36 bytes each all take 150 MiB; a client may sign 3500 requests a second for the
/// 300 seconds that a signature is good for.
const CLIENT_MAX: usize = 1 << 20;
const ALL_MAX: usize = 1 << 22;

/// No two requests were ever signed alike, so half of a SHA-256 tells them apart.
type Key = [u8; 16];

pub struct Replay {
    used: Mutex<Used>,
    client_max: usize,
    all_max: usize,
}

#[derive(Default)]
struct Used {
    clients: HashMap<ClientName, Client>,
    count: usize,
}

#[derive(Default)]
struct Client {
    /// By the last second in which they could be accepted: what expires, expires together.
    by_second: BTreeMap<i64, HashSet<Key>>,
    count: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotFresh {
    /// The signature was used.
    Used,
    /// There is no room to remember it.
    Full,
}

impl fmt::Display for NotFresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Used => "the signature was used before",
            Self::Full => "no more signatures can be remembered",
        })
    }
}

impl std::error::Error for NotFresh {}

impl Replay {
    #[expect(clippy::new_without_default, reason = "made once, by Live")]
    pub fn new() -> Self {
        Self { used: Mutex::default(), client_max: CLIENT_MAX, all_max: ALL_MAX }
    }

    /// The first use of a signature, and no other.
    pub fn first_use(&self, client: &ClientName, once: &Once, now: Timestamp) -> Result<(), NotFresh> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let used = &mut *used;
        if !used.clients.contains_key(client) {
            used.clients.insert(client.clone(), Client::default());
        }
        let Some(of_client) = used.clients.get_mut(client) else { return Err(NotFresh::Full) };
        used.count -= of_client.expire(now.as_second());
        let mut key = Key::default();
        key.copy_from_slice(&once.key[..16]);
        if of_client.by_second.get(&once.until).is_some_and(|keys| keys.contains(&key)) {
            return Err(NotFresh::Used);
        }
        if of_client.count >= self.client_max || used.count >= self.all_max {
            return Err(NotFresh::Full);
        }
        of_client.by_second.entry(once.until).or_default().insert(key);
        of_client.count += 1;
        used.count += 1;
        Ok(())
    }

    /// Forgets what has expired. Call it from time to time: clients that do not call any more go this way.
    pub fn sweep(&self, now: Timestamp) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let used = &mut *used;
        used.clients.retain(|_, client| {
            used.count -= client.expire(now.as_second());
            client.count > 0
        });
    }
}

impl Client {
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

    fn once(key: u8, until: i64) -> Once {
        Once { key: [key; 32], until }
    }

    #[test]
    fn a_signature_is_good_for_one_request_until_it_expires() {
        let replay = Replay::new();
        let (a, b) = (ClientName::new("a"), ClientName::new("b"));
        assert_eq!(replay.first_use(&a, &once(1, 100), at(50)), Ok(()));
        assert_eq!(replay.first_use(&a, &once(1, 100), at(50)), Err(NotFresh::Used));
        assert_eq!(replay.first_use(&a, &once(1, 100), at(100)), Err(NotFresh::Used), "its last second");
        assert_eq!(replay.first_use(&a, &once(2, 100), at(100)), Ok(()));
        assert_eq!(replay.first_use(&b, &once(1, 100), at(50)), Ok(()));
        assert_eq!(replay.used.lock().unwrap().count, 3);
        replay.sweep(at(100));
        assert_eq!(replay.first_use(&a, &once(1, 100), at(100)), Err(NotFresh::Used));
        replay.sweep(at(101));
        let used = replay.used.lock().unwrap();
        assert_eq!((used.count, used.clients.len()), (0, 0));
    }

    #[test]
    fn what_cannot_be_remembered_is_refused_and_nobody_is_forgotten() {
        let replay = Replay { client_max: 2, all_max: 3, ..Replay::new() };
        let (a, b) = (ClientName::new("a"), ClientName::new("b"));
        assert_eq!(replay.first_use(&a, &once(1, 100), at(50)), Ok(()));
        assert_eq!(replay.first_use(&a, &once(2, 200), at(50)), Ok(()));
        assert_eq!(replay.first_use(&a, &once(3, 200), at(50)), Err(NotFresh::Full));
        assert_eq!(replay.first_use(&a, &once(1, 100), at(50)), Err(NotFresh::Used));
        assert_eq!(replay.first_use(&b, &once(1, 100), at(50)), Ok(()), "one client's flood leaves room for others");
        assert_eq!(replay.first_use(&b, &once(2, 100), at(50)), Err(NotFresh::Full));
        assert_eq!(replay.first_use(&a, &once(3, 200), at(101)), Ok(()), "what has expired makes room");
    }
}
