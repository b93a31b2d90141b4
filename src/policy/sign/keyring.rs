//! The keys of one owner in time: of one tenant, or of all tenants that share them.
//! Which keys sign now, and when will there be none?

use std::fmt::Display;

use jiff::{SignedDuration, Timestamp};

use super::scheme::SignerKey;
use crate::names::KeyId;

/// The time before the end of the last key at which the warning begins.
const WARN_BEFORE: SignedDuration = SignedDuration::from_hours(30 * 24);

/// The keys of one owner.
#[derive(Default)]
pub struct Keyring {
    /// The keys, the newest first.
    pub(super) keys: Vec<SignerKey>,
}

/// A time without a key.
pub(super) struct KeyGap {
    pub(super) is_now: bool,
    pub(super) message: String,
}

impl Keyring {
    /// Sorts the keys. A key without a beginning is the oldest; keys that begin together keep their order.
    pub(super) fn new(mut keys: Vec<SignerKey>) -> Self {
        keys.sort_by_key(|key| std::cmp::Reverse(key.from));
        Self { keys }
    }

    pub(super) fn signing_keys(&self, now: Timestamp, is_single_signature: bool) -> impl Iterator<Item = &SignerKey> {
        self.active_keys(now).take(if is_single_signature { 1 } else { usize::MAX })
    }

    pub(super) fn active_keys(&self, now: Timestamp) -> impl Iterator<Item = &SignerKey> {
        let is_active = move |key: &&SignerKey| key.from.is_none_or(|t| t <= now) && key.until.is_none_or(|t| now < t);
        self.keys.iter().filter(is_active)
    }

    /// Returns the gap that is now or will be soon.
    pub(super) fn upcoming_gap(&self, owner: impl Display, now: Timestamp) -> Option<KeyGap> {
        let gap = self.next_gap(now)?;
        let next = self.keys.iter().filter_map(|key| key.from).filter(|&from| from > gap).min();
        let until = next.map_or(String::new(), |next| format!(" until {next}"));
        let is_now = gap == now;
        let from = if is_now { String::new() } else { format!(" from {gap}") };
        let message = format!("no key of {owner} is in force{from}{until}");
        (gap.duration_since(now) <= WARN_BEFORE).then_some(KeyGap { is_now, message })
    }

    /// Returns the first moment without a key; `None` if there is always one.
    pub(super) fn next_gap(&self, now: Timestamp) -> Option<Timestamp> {
        let mut gap = now;
        loop {
            let mut last_end = None;
            for key in self.active_keys(gap) {
                last_end = last_end.max(Some(key.until?));
            }
            match last_end {
                Some(end) => gap = end,
                None => return Some(gap),
            }
        }
    }
}

/// The id of a key, and the time at which the key begins.
pub(super) type KeyStart<'a> = (&'a KeyId, Option<Timestamp>);

/// Returns the pairs of keys that begin at the same time, by their positions.
pub(super) fn same_start<'a>(keys: &'a [KeyStart<'a>]) -> impl Iterator<Item = (usize, usize)> + 'a {
    keys.iter().enumerate().filter_map(|(i, (id, from))| {
        let first = keys[..i].iter().position(|(other, begins)| begins == from && other != id)?;
        Some((first, i))
    })
}
