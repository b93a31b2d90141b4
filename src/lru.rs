//! A map with a fixed capacity: a new entry evicts the least recently used one.
//! Which entry does a full cache evict?

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// A least-recently-used cache. It never holds more than `capacity` entries, and an insert evicts at most one.
///
/// `get` and `insert` cost O(log n). Keys are stored twice: in the map, and in the order of use.
pub struct LruCache<K, V> {
    entries: HashMap<K, Entry<V>>,
    /// Keys by their last use, oldest first.
    by_use: BTreeMap<u64, K>,
    uses: u64,
    capacity: usize,
}

struct Entry<V> {
    value: V,
    last_use: u64,
}

impl<K: Hash + Eq + Clone, V> LruCache<K, V> {
    pub fn new(capacity: usize) -> Self {
        Self { entries: HashMap::new(), by_use: BTreeMap::new(), uses: 0, capacity: capacity.max(1) }
    }

    /// Returns the value and makes it the most recently used.
    pub fn get(&mut self, key: &K) -> Option<&mut V> {
        let entry = self.entries.get_mut(key)?;
        self.uses += 1;
        if let Some(key) = self.by_use.remove(&entry.last_use) {
            self.by_use.insert(self.uses, key);
        }
        entry.last_use = self.uses;
        Some(&mut entry.value)
    }

    /// Returns the value without counting as a use.
    pub fn peek(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|entry| &mut entry.value)
    }

    /// Replaces the value of `key`, or adds it. A full cache evicts and returns its least recently used entry.
    pub fn insert(&mut self, key: K, value: V) -> Option<(K, V)> {
        if let Some(present) = self.get(&key) {
            *present = value;
            return None;
        }
        let evicted = if self.entries.len() >= self.capacity { self.pop_oldest() } else { None };
        self.uses += 1;
        self.by_use.insert(self.uses, key.clone());
        self.entries.insert(key, Entry { value, last_use: self.uses });
        evicted
    }

    /// Returns the value of `key`, which `make` supplies where it is missing.
    pub fn get_or_insert_with(&mut self, key: &K, make: impl FnOnce() -> V) -> &mut V {
        if !self.entries.contains_key(key) {
            self.insert(key.clone(), make());
        }
        self.get(key).expect("present, or inserted just now")
    }

    pub fn remove(&mut self, key: &K) {
        if let Some(entry) = self.entries.remove(key) {
            self.by_use.remove(&entry.last_use);
        }
    }

    /// Removes all entries that `keep` rejects.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        let by_use = &mut self.by_use;
        self.entries.retain(|key, entry| {
            let keeps = keep(key, &mut entry.value);
            if !keeps {
                by_use.remove(&entry.last_use);
            }
            keeps
        });
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Removes and returns the least recently used entry.
    pub fn pop_oldest(&mut self) -> Option<(K, V)> {
        let (_, key) = self.by_use.pop_first()?;
        let entry = self.entries.remove(&key)?;
        Some((key, entry.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lru_cache_evicts_one_entry_the_least_recently_used() {
        let mut cache = LruCache::new(3);
        for key in ["a", "b", "c"] {
            assert_eq!(cache.insert(key, key.len()), None);
        }
        assert!(cache.get(&"a").is_some());
        assert_eq!(cache.insert("d", 1), Some(("b", 1)));
        assert_eq!(cache.insert("e", 1), Some(("c", 1)));
        assert!(cache.peek(&"a").is_some() && cache.peek(&"d").is_some());
        assert_eq!(cache.len(), 3);
    }

    #[test]
    fn lru_cache_replaces_a_value_without_eviction() {
        let mut cache = LruCache::new(2);
        cache.insert("a", 1);
        cache.insert("b", 1);
        assert_eq!(cache.insert("a", 2), None);
        assert_eq!(cache.insert("c", 1), Some(("b", 1)));
        assert_eq!(cache.get(&"a").copied(), Some(2));
    }

    #[test]
    fn lru_cache_peek_is_not_a_use() {
        let mut cache = LruCache::new(2);
        cache.insert("a", 1);
        cache.insert("b", 1);
        assert!(cache.peek(&"a").is_some());
        assert_eq!(cache.insert("c", 1), Some(("a", 1)));
    }

    #[test]
    fn lru_cache_has_room_again_for_what_was_removed() {
        let mut cache = LruCache::new(3);
        cache.insert("a", 1);
        cache.insert("b", 2);
        cache.insert("z", 3);
        cache.retain(|_, value| *value > 1);
        cache.remove(&"z");
        cache.remove(&"z");
        assert_eq!((cache.len(), cache.by_use.len()), (1, 1));
        assert_eq!(cache.insert("c", 3), None);
        assert_eq!(*cache.get_or_insert_with(&"d", || 4), 4);
        assert_eq!(cache.insert("e", 5), Some(("b", 2)));
    }
}
