//! The file of the fleet in the folder `server.state`: this process reads it when it joins, and keeps it up to date.
//! With which share, and without which addresses, does an instance start while the store is away?

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::{info, warn};

use super::Fleet;
use crate::history::known_fleet::{FILE, KnownFleet, LIVE_MAX};
use crate::names::pluralize;

/// Limits how long a start waits for the disk.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

impl Fleet {
    /// Continues with what the former process of this instance knew, and returns it.
    pub async fn recall(&self, state: &Path) -> Option<KnownFleet> {
        let (state, prefix) = (state.to_owned(), self.prefix.clone());
        let reading = spawn_blocking(move || KnownFleet::read(&state, &prefix, Timestamp::now()));
        let read = match timeout(READ_TIMEOUT, reading).await {
            Ok(read) => read.unwrap_or_else(|error| Err(io::Error::other(error))),
            Err(_) => Err(io::Error::other(format!("{FILE}: the disk did not respond within {READ_TIMEOUT:?}"))),
        };
        let reported = read.inspect_err(|error| {
            warn!(
                "{error}; until the store of the fleet answers, this instance takes the whole of each limit of the fleet, \
                 and uses every address that its host has"
            );
        });
        let known = reported.ok()??;
        let instances = pluralize(known.live as usize, "live instance");
        let ranges = pluralize(known.assignments.ranges().len(), "assigned range");
        info!(
            "the fleet had {instances} and {ranges} when its store last answered: that holds until the store answers"
        );
        self.live.store(known.live, Ordering::Relaxed);
        self.assignments.lock().recall(&known, &self.instance);
        Some(known)
    }

    /// Stores what this instance knows when it has changed. A disk that hangs delays this task alone.
    pub async fn keep_known(self: Arc<Self>, state: PathBuf, mut stored: Option<KnownFleet>) {
        let mut was_reported = false;
        loop {
            self.answered.notified().await;
            let known = self.known();
            if stored.as_ref() == Some(&known) {
                continue;
            }
            let (next, folder) = (known.clone(), state.clone());
            match spawn_blocking(move || next.write(&folder)).await.unwrap_or_else(|error| Err(io::Error::other(error)))
            {
                Ok(()) => (stored, was_reported) = (Some(known), false),
                Err(error) if !was_reported => {
                    warn!(
                        "{error}; if this instance starts again while the store of the fleet is away, it uses an older file, \
                         or none"
                    );
                    was_reported = true;
                }
                Err(_) => {}
            }
        }
    }

    fn known(&self) -> KnownFleet {
        let followed = self.assignments.lock();
        KnownFleet {
            prefix: self.prefix.clone(),
            live: self.live().min(LIVE_MAX),
            assignments: followed.known.clone(),
            awaited: followed.awaited.clone(),
        }
    }
}
