//! The fleet that this process belongs to: its store, and the number of live instances.
//! Is the store of the fleet up, and how many instances share its limits?

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::config;
use crate::names::pluralize;
use crate::net::store::{Store, StoreError, StoreScript};
use crate::panics::Mutex;

/// How often an instance announces itself, and for how long an announcement lasts.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);
const INSTANCE_LEASE_MS: u64 = 5_000;
/// The pause after an attempt to reach a store that is away.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// The membership of this process in a fleet; one for the process.
pub struct Fleet {
    store: Store,
    /// The start of each key in the store.
    prefix: String,
    instance: String,
    /// The number of live instances when the store last answered.
    live: AtomicU32,
    /// `None`: the store is up.
    away_since: Mutex<Option<Instant>>,
}

impl Fleet {
    /// Joins the fleet. It contacts no server: [`Fleet::run`] does.
    pub fn new(config: &config::Fleet, workers: usize) -> Result<Self, StoreError> {
        Ok(Self {
            store: Store::new(config, workers)?,
            prefix: config.prefix.clone(),
            instance: config.instance.clone(),
            live: AtomicU32::new(1),
            away_since: Mutex::new(Some(Instant::now())),
        })
    }

    /// Announces this instance, and reaches for a store that is away.
    pub async fn run(self: Arc<Self>) {
        let mut was_reported = false;
        loop {
            match self.announce().await {
                Ok(()) => {
                    self.report_up(was_reported);
                    was_reported = false;
                    let _ = timeout(ANNOUNCE_INTERVAL, self.store.lost()).await;
                }
                Err(error) => {
                    self.store.disconnect();
                    self.away_since.lock().get_or_insert_with(Instant::now);
                    if !was_reported {
                        let share = self.live();
                        warn!(
                            "the store of the fleet is away: {error}; this instance continues with its share, 1/{share}, \
                             of each limit of the fleet, until the store answers"
                        );
                    }
                    was_reported = true;
                    sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }

    async fn announce(&self) -> Result<(), StoreError> {
        self.store.connect().await?;
        let key = self.key("instances");
        let live = self.store.run(StoreScript::Announce, &key, &[&self.instance, &INSTANCE_LEASE_MS]).await?;
        let live = live.first().and_then(|live| u32::try_from(*live).ok()).unwrap_or(1);
        self.live.store(live.max(1), Ordering::Relaxed);
        self.store.set_up();
        Ok(())
    }

    fn report_up(&self, was_reported: bool) {
        let since = self.away_since.lock().take();
        if let (true, Some(since)) = (was_reported, since) {
            let instances = pluralize(self.live() as usize, "live instance");
            info!("the store of the fleet answers again after {:.1} s: {instances}", since.elapsed().as_secs_f64());
        }
    }

    /// Returns the key of a name in the store. The braces make it the only part that selects the slot of a cluster.
    fn key(&self, name: &str) -> String {
        format!("{}:{{{name}}}", self.prefix)
    }

    /// Returns the number of live instances, this one included, as the store last stated it.
    pub fn live(&self) -> u32 {
        self.live.load(Ordering::Relaxed)
    }

    pub fn is_up(&self) -> bool {
        self.store.is_up()
    }

    /// Returns what an operator should know of a store that is away.
    pub fn degraded_reason(&self) -> Option<String> {
        let since = (*self.away_since.lock())?;
        let error = self.store.last_error();
        let (seconds, share) = (since.elapsed().as_secs(), self.live());
        Some(format!(
            "the store of the fleet has been away for {seconds} s ({error}): this instance continues with its share, \
             1/{share}, of each limit of the fleet"
        ))
    }

    /// Returns the number of calls to the store, and of those that failed.
    pub fn call_counts(&self) -> [u64; 2] {
        self.store.counts()
    }
}
