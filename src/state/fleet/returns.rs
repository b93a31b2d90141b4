//! The last return of the store, after a call had failed. The store may have lost its data meanwhile.
//! Since when does the store know what this instance has told it?

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::Fleet;
use crate::policy::fleet::permits::permit_grace;

/// The time of the last return, in nanoseconds of [`Fleet::now`]. 0: the store has always been up.
#[derive(Default)]
pub(super) struct StoreReturns {
    at: AtomicU64,
    happened: Notify,
}

impl Fleet {
    /// States that the store is up and counts so many live instances, and whether it has returned. An instance that has not
    /// announced itself again since then is live all the same.
    pub(super) fn set_up(&self, live: u32, has_returned: bool) {
        if has_returned {
            self.returns.at.store(self.now(), Ordering::Relaxed);
        }
        let least = permit_grace(self.returned_at(), self.now()).map_or(1, |_| self.live());
        self.live.store(live.max(least), Ordering::Relaxed);
        self.store.set_up();
        if has_returned {
            self.returns.happened.notify_waiters();
        }
    }

    /// Returns the time of the last return of the store. 0: the store has always been up.
    pub fn returned_at(&self) -> u64 {
        self.returns.at.load(Ordering::Relaxed)
    }

    /// Resolves when the store returns after this call.
    pub fn next_return(&self) -> Notified<'_> {
        self.returns.happened.notified()
    }
}
