//! Former configurations, which are dropped away from the traffic: dropping a hundred thousand routes takes a while.
//! Which thread drops a former configuration, so that no webhook waits for it?

use std::sync::Arc;

use crate::panics::Mutex;
use crate::state::config::ActiveConfig;

#[derive(Default)]
pub struct DeferredDrop(Mutex<Vec<Arc<ActiveConfig>>>);

impl DeferredDrop {
    /// Adds a former configuration. While it is here, no delivery drops the last reference to it.
    pub fn push(&self, config: Arc<ActiveConfig>) {
        self.0.lock().push(config);
    }

    /// Drops the configurations that no delivery holds any more. It may take milliseconds for each: call it on a background
    /// thread.
    pub fn sweep(&self) {
        let mut pending = self.0.lock();
        // No other reference can appear once this one is the last.
        let (unused, in_use): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *pending).into_iter().partition(|config| Arc::strong_count(config) == 1);
        *pending = in_use;
        drop(pending);
        drop(unused);
    }

    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}
