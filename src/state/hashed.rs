//! Keys that carry their hash: a delivery looks its target up in several tables, and hashes it once.
//! Which hash does a key have in every table?

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::ops::Deref;
use std::sync::LazyLock;

use smallvec::SmallVec;

/// A map that takes the hash of its keys as it is.
pub(super) type HashedMap<K, V> = HashMap<K, V, BuildHasherDefault<IdentityHasher>>;

/// A key and its hash under a secret seed of the process, since clients choose keys.
#[derive(Clone, Debug)]
pub struct Hashed<K> {
    hash: u64,
    key: K,
}

impl<K: Hash> Hashed<K> {
    pub fn new(key: K) -> Self {
        static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self { hash: GatheredKey::of(&key).hash(&SEED), key }
    }

    /// Returns the number of the part of a table that has the key. A map uses other bits of the hash.
    pub(super) fn shard(&self, shards: usize) -> usize {
        (self.hash >> 32) as usize % shards
    }
}

impl<K> Deref for Hashed<K> {
    type Target = K;
    fn deref(&self) -> &K {
        &self.key
    }
}

impl<K: PartialEq> PartialEq for Hashed<K> {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.key == other.key
    }
}

impl<K: Eq> Eq for Hashed<K> {}

impl<K> Hash for Hashed<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// The hasher of a map whose keys are hashes.
#[derive(Default)]
pub(super) struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0 << 8 | u64::from(*byte));
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// The bytes that a key gives to its hasher, one part after another. SipHash takes one long write in a fraction of the time
/// of many short ones. The key of a connection has about 110 bytes and its names.
#[derive(Default)]
pub(super) struct GatheredKey(SmallVec<[u8; 320]>);

impl GatheredKey {
    pub(super) fn of(key: &impl Hash) -> Self {
        let mut gathered = Self::default();
        key.hash(&mut gathered);
        gathered
    }

    pub(super) fn hash(&self, seed: &RandomState) -> u64 {
        let mut hasher = seed.build_hasher();
        hasher.write(&self.0);
        hasher.finish()
    }
}

impl Hasher for GatheredKey {
    /// Required by the trait, and never called: [`GatheredKey::hash`] needs a seed.
    fn finish(&self) -> u64 {
        0
    }
    /// Inlined, so that the compiler knows the length of a number and calls no memcpy.
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashed_keys_are_equal_if_the_keys_are() {
        let mut map: HashedMap<Hashed<String>, u32> = HashedMap::default();
        for number in 0..1000 {
            map.insert(Hashed::new(number.to_string()), number);
        }
        map.insert(Hashed::new("7".to_owned()), 70);
        assert_eq!(map.len(), 1000);
        assert_eq!(map.get(&Hashed::new("7".to_owned())), Some(&70));
        assert_eq!(map.get(&Hashed::new("1000".to_owned())), None);
    }

    #[test]
    fn hashed_keys_spread_over_the_shards() {
        let mut shards = [0; 16];
        (0..16_000).for_each(|number: u32| shards[Hashed::new(number).shard(16)] += 1);
        assert!(shards.iter().all(|count| (800..1200).contains(count)), "{shards:?}");
    }
}
