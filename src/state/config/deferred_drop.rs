//! Plans that are no longer in force, until nobody holds them: to free a hundred thousand routes takes a while.
//! Who clears them away, so that no webhook waits for it?

use std::sync::Arc;

use parking_lot::Mutex;

use crate::state::config::ActiveConfig;

#[derive(Default)]
pub struct DeferredDrop(Mutex<Vec<Arc<ActiveConfig>>>);

impl DeferredDrop {
    /// While it is here, whoever lets go of it is never the last.
    pub fn push(&self, before: Arc<ActiveConfig>) {
        self.0.lock().push(before);
    }

    /// Frees those that no delivery holds any more. It may take milliseconds each: call it where nobody waits.
    pub fn sweep(&self) {
        let mut retired = self.0.lock();
        // Once nobody else has it, nobody can get it.
        let (free, held): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *retired).into_iter().partition(|plan| Arc::strong_count(plan) == 1);
        *retired = held;
        drop(retired);
        drop(free);
    }

    pub fn count(&self) -> usize {
        self.0.lock().len()
    }
}
