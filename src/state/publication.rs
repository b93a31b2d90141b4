//! The publication that the listener serves, until the configuration or the time makes another.
//! Is the publication in memory still the current one?

use std::sync::{Arc, Weak};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;

use super::config::ActiveConfig;
use crate::policy::publication::Publication;

/// A publication, and what it was made from.
pub struct Rendered {
    pub config: Weak<ActiveConfig>,
    /// The time since which the ranges are configured.
    pub since: Timestamp,
    pub valid_until: Timestamp,
    pub publication: Publication,
}

/// The last publication, if any customer has asked for one.
#[derive(Default)]
pub struct LastPublication(ArcSwapOption<Rendered>);

impl LastPublication {
    pub fn load(&self) -> Option<Arc<Rendered>> {
        self.0.load_full()
    }

    pub fn store(&self, rendered: Rendered) -> Arc<Rendered> {
        let rendered = Arc::new(rendered);
        self.0.store(Some(Arc::clone(&rendered)));
        rendered
    }
}
