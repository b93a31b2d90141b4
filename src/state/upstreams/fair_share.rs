//! The order of use of the entries of a bounded table, by client. A full table evicts the least recently used entry of the
//! client that has most. Idle connections and circuits are such entries.
//! Which entry does a full table evict, and which client owns it?

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// The number of clients up to which one that has no more entries keeps its memory for the next. The only connection of a
/// client leaves the pool for each delivery.
const EMPTY_CLIENTS: usize = 16;

/// The entries of all clients, each identified by the number of its last use. There are never more than `capacity`.
///
/// One client may use the whole capacity while others need none. No client evicts entries of another below its even share.
pub(in crate::state) struct FairShareLru<C, K> {
    /// A client without entries may stay for its next one: see [`EMPTY_CLIENTS`].
    clients: HashMap<C, BTreeMap<u64, K>>,
    total: usize,
    uses: u64,
    capacity: usize,
}

impl<C: Hash + Eq + Clone, K> FairShareLru<C, K> {
    pub(in crate::state) fn new(capacity: usize) -> Self {
        Self { clients: HashMap::new(), total: 0, uses: 0, capacity }
    }

    /// Adds an entry. Returns its number, and the key and number of the entry that is evicted for it.
    pub(in crate::state) fn add(&mut self, client: &C, key: K) -> (u64, Option<(K, u64)>) {
        let evicted = if self.total >= self.capacity { self.evict(client) } else { None };
        self.uses += 1;
        self.clients.entry(client.clone()).or_default().insert(self.uses, key);
        self.total += 1;
        (self.uses, evicted)
    }

    /// Removes an entry; one that was evicted meanwhile is gone already.
    pub(in crate::state) fn remove(&mut self, client: &C, number: u64) {
        let Some(entries) = self.clients.get_mut(client) else { return };
        if entries.remove(&number).is_some() {
            self.total -= 1;
        }
        if entries.is_empty() && self.clients.len() > EMPTY_CLIENTS {
            self.clients.remove(client);
        }
    }

    /// Makes an entry the most recently used one. Returns its new number.
    pub(in crate::state) fn touch(&mut self, client: &C, number: u64) -> u64 {
        let Some(entries) = self.clients.get_mut(client) else { return number };
        let Some(key) = entries.remove(&number) else { return number };
        self.uses += 1;
        entries.insert(self.uses, key);
        self.uses
    }

    pub(in crate::state) fn total(&self) -> usize {
        self.total
    }

    /// Evicts one entry for a new entry of `newcomer`, which counts as if it were present.
    fn evict(&mut self, newcomer: &C) -> Option<(K, u64)> {
        let weight = |(client, entries): &(&C, &BTreeMap<u64, K>)| {
            let count = entries.len() + usize::from(*client == newcomer);
            (count, Reverse(entries.first_key_value().map(|(number, _)| *number)))
        };
        let with_entries = self.clients.iter().filter(|(_, entries)| !entries.is_empty());
        let client = with_entries.max_by_key(weight)?.0.clone();
        let (number, key) = self.clients.get_mut(&client)?.pop_first()?;
        self.total -= 1;
        if self.clients.get(&client).is_some_and(BTreeMap::is_empty) {
            self.clients.remove(&client);
        }
        Some((key, number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fair_share_evicts_the_least_recently_used_entry() {
        let mut shares = FairShareLru::new(3);
        let numbers = ["a", "b", "c"].map(|key| shares.add(&"client", key).0);
        shares.touch(&"client", numbers[0]);
        assert_eq!(shares.add(&"client", "d").1, Some(("b", numbers[1])));
        assert_eq!(shares.add(&"client", "e").1, Some(("c", numbers[2])));
        assert_eq!(shares.add(&"client", "f").1.unwrap().0, "a");
        assert_eq!(shares.total(), 3);
    }

    #[test]
    fn fair_share_of_a_quiet_client_survives_a_busy_one() {
        let mut shares = FairShareLru::new(4);
        shares.add(&"quiet", "kept");
        let evicted: Vec<_> = (0..10).filter_map(|_| shares.add(&"busy", "own").1).map(|(key, _)| key).collect();
        assert_eq!(evicted, ["own"; 7], "the busy client evicts its own");
        // Another client evicts entries of the client that has most, up to an even share.
        let evicted: Vec<_> = (0..3).filter_map(|_| shares.add(&"late", "late").1).map(|(key, _)| key).collect();
        assert_eq!(evicted, ["own", "own", "late"]);
    }

    #[test]
    fn fair_share_has_room_again_after_a_removal() {
        let mut shares = FairShareLru::new(1);
        let (number, _) = shares.add(&"client", "a");
        shares.remove(&"client", number);
        shares.remove(&"client", number);
        assert_eq!(shares.total(), 0);
        assert_eq!(shares.add(&"client", "b").1, None);
    }

    #[test]
    fn fair_share_evicts_from_clients_that_have_entries() {
        let mut shares = FairShareLru::new(1);
        let (number, _) = shares.add(&"empty", "a");
        shares.remove(&"empty", number);
        assert_eq!(shares.add(&"client", "b").1, None);
        assert_eq!(shares.add(&"empty", "c").1.unwrap().0, "b");
    }

    #[test]
    fn fair_share_forgets_clients_without_entries() {
        let mut shares = FairShareLru::new(1);
        for client in 0..10 * EMPTY_CLIENTS {
            let (number, _) = shares.add(&client, ());
            shares.remove(&client, number);
        }
        assert!(shares.clients.len() <= EMPTY_CLIENTS, "{}", shares.clients.len());
    }
}
