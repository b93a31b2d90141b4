//! A model of the store: the arithmetic of its script, with a clock of the test.
//! What does the store answer to a request for tokens?

use outgate::policy::fleet::{TokenGrant, TokenRequest};
use outgate::policy::limits::Quota;

/// The arithmetic of `take_tokens.lua`.
#[derive(Clone, Copy, Debug, Default)]
pub struct StoreModel {
    arrival: i64,
    spare: i64,
    spare_until: i64,
}

impl StoreModel {
    /// Answers a request at this time of the store's clock (µs).
    pub fn take(&mut self, request: &TokenRequest, now: i64) -> TokenGrant {
        let Quota { count, period, burst } = request.quota;
        let (count, period) = (i64::from(count.get()), i64::try_from(period.as_micros()).unwrap());
        let time_of = |tokens: i64| (tokens * period + count - 1) / count;
        let (hold, wanted) = (i64::try_from(request.hold.as_micros()).unwrap(), i64::from(request.wanted));
        let latest = now + 2 * time_of(burst.get().into());
        self.arrival = self.arrival.clamp(now, latest);
        self.spare = self.spare.min(burst.get().into());
        self.spare_until = self.spare_until.min(latest);
        if self.spare_until <= now {
            self.spare = 0;
        }
        if request.returned > 0 && request.returned_arrival == self.arrival {
            self.arrival -= i64::from(request.returned) * period / count;
        } else if request.returned > 0 && request.returned_until > now {
            let until = request.returned_until;
            self.spare_until = if self.spare > 0 { self.spare_until.min(until) } else { until };
            self.spare += i64::from(request.returned);
        }
        if request.used > 0 {
            self.arrival = self.arrival.max(now) + time_of(i64::from(request.used));
        }
        let (mut granted, mut until, mut wait, mut is_spaced) = (0, 0, 0, true);
        if self.spare > 0 && wanted > 0 {
            granted = self.spare.min(wanted);
            (until, is_spaced) = (self.spare_until, false);
            self.spare -= granted;
        }
        let tolerance = (i64::from(burst.get()) - 1) * period / count;
        let first = self.arrival.max(now + hold);
        let room = now + tolerance - first;
        if granted < wanted && room >= 0 {
            let fresh = (wanted - granted).min(room * count / period + 1);
            until = if granted > 0 { until.min(first) } else { first };
            granted += fresh;
            self.arrival = first + time_of(fresh);
        } else if granted == 0 && wanted > 0 {
            wait = -room;
        }
        TokenGrant { tokens: u32::try_from(granted).unwrap(), until, now, arrival: self.arrival, wait, is_spaced }
    }

    /// Returns whether the store must still know the key at this time (µs).
    pub fn is_in_use(&self, now: i64) -> bool {
        self.arrival > now || self.spare > 0 && self.spare_until > now
    }
}
