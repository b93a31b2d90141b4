//! The keys of one owner, of one tenant or of all that share them, in time.
//! Which of them sign now, and when will none of them?

use std::fmt::Display;

use jiff::{SignedDuration, Timestamp};

use super::scheme::SignerKey;
use crate::names::KeyId;

/// How long before the last key ends an operator is told.
const WARN_BEFORE: SignedDuration = SignedDuration::from_hours(30 * 24);

#[derive(Default)]
pub struct Keyring {
    /// The newest first.
    pub(super) keys: Vec<SignerKey>,
}

/// A time without a key.
pub(super) struct KeyGap {
    pub(super) is_now: bool,
    pub(super) message: String,
}

impl Keyring {
    /// A key without a beginning is the oldest; equals stay as they are.
    pub(super) fn new(mut keys: Vec<SignerKey>) -> Self {
        keys.sort_by_key(|key| std::cmp::Reverse(key.from));
        Self { keys }
    }

    pub(super) fn signing(&self, now: Timestamp, carries_one: bool) -> impl Iterator<Item = &SignerKey> {
        self.in_force(now).take(if carries_one { 1 } else { usize::MAX })
    }

    pub(super) fn in_force(&self, now: Timestamp) -> impl Iterator<Item = &SignerKey> {
        let in_force = move |key: &&SignerKey| key.from.is_none_or(|t| t <= now) && key.until.is_none_or(|t| now < t);
        self.keys.iter().filter(in_force)
    }

    /// That there is no key, or soon will be none.
    pub(super) fn gap(&self, owner: impl Display, now: Timestamp) -> Option<KeyGap> {
        let gap = self.next_gap(now)?;
        let next = self.keys.iter().filter_map(|key| key.from).filter(|&from| from > gap).min();
        let until = next.map_or(String::new(), |next| format!(" until {next}"));
        let is_now = gap == now;
        let from = if is_now { String::new() } else { format!(" from {gap}") };
        let message = format!("no key of {owner} is in force{from}{until}");
        (gap.duration_since(now) <= WARN_BEFORE).then_some(KeyGap { is_now, message })
    }

    /// The first moment from `now` on without a key; `None`: there is always one.
    fn next_gap(&self, now: Timestamp) -> Option<Timestamp> {
        let mut gap = now;
        loop {
            let ends: Vec<_> = self.in_force(gap).map(|key| key.until).collect();
            if ends.contains(&None) {
                return None;
            }
            match ends.into_iter().flatten().max() {
                Some(end) => gap = end,
                None => return Some(gap),
            }
        }
    }
}

/// A key, and when it begins.
pub(super) type KeyStart<'a> = (&'a KeyId, Option<Timestamp>);

/// Those that begin together with one before them.
pub(super) fn same_start<'a>(keys: &'a [KeyStart<'a>]) -> impl Iterator<Item = (usize, usize)> + 'a {
    keys.iter().enumerate().filter_map(|(i, (id, from))| {
        let first = keys[..i].iter().position(|(other, begins)| begins == from && other != id)?;
        Some((first, i))
    })
}
