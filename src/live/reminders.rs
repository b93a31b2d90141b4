//! What runs out, said again once a day until somebody sees to it.
//! What has to be said now?

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};

use crate::policy::expiry::Expiry;

const AGAIN: SignedDuration = SignedDuration::from_hours(24);

/// When each was last spoken of.
#[derive(Default)]
pub struct Reminders(Mutex<HashMap<Expiry, Option<Timestamp>>>);

impl Reminders {
    /// The warnings that are due. What is met for the first time was warned about where its configuration was read.
    pub fn due(&self, expiries: &[Expiry], now: Timestamp) -> Vec<String> {
        let mut spoken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spoken.retain(|expiry, _| expiries.contains(expiry));
        let mut due = Vec::new();
        for expiry in expiries {
            let warning = expiry.warning(now);
            let Some(last) = spoken.get_mut(expiry) else {
                spoken.insert(expiry.clone(), warning.map(|_| now));
                continue;
            };
            if let Some(warning) = warning.filter(|_| last.is_none_or(|last| now.duration_since(last) >= AGAIN)) {
                *last = Some(now);
                due.push(warning);
            }
        }
        due
    }
}
