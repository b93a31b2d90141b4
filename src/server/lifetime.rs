//! How long a connection is served.
//! May it ask for more, and when has it to go though nobody asks it to?

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout_at};

use super::connections::Evictable;
use super::listener_shutdown::{ConnContext, LATECOMER_PATIENCE, ListenerShutdown};
use crate::policy::authn::Caller;
use crate::state::Runtime;

pub(super) struct ConnectionLifetime {
    runtime: Arc<Runtime>,
    caller: Arc<Caller>,
    is_latecomer: bool,
    has_requested: AtomicBool,
    /// `None`: as long as it likes.
    until: Option<Instant>,
    /// `None`: it is in a tunnel, in a connection that is counted and ends when its door closes.
    way: Option<ConnContext>,
    /// While no client was identified and no request is under way.
    unidentified: Mutex<Option<Arc<Evictable>>>,
}

impl ConnectionLifetime {
    pub(super) fn new(
        runtime: &Arc<Runtime>,
        caller: &Arc<Caller>,
        until: Option<Instant>,
        way: Option<(ConnContext, Evictable)>,
    ) -> Self {
        let (runtime, caller) = (Arc::clone(runtime), Arc::clone(caller));
        let (way, evictable) = way.unzip();
        let unidentified = Mutex::new(evictable.map(Arc::new));
        let (is_latecomer, has_requested) = (runtime.is_draining(), AtomicBool::new(false));
        Self { is_latecomer, has_requested, runtime, caller, until, way, unidentified }
    }

    /// Whether no request is taken after this one.
    pub(super) fn should_close(&self) -> bool {
        let is_closing = self.way.as_ref().is_some_and(|way| way.door.is_closing());
        is_closing || self.runtime.is_draining() || self.until.is_some_and(|until| until <= Instant::now())
    }

    /// A connection that has nothing to do, as long as this is waited for. Resolves when it should end.
    pub(super) async fn closed(&self) {
        let idle = self.idle();
        tokio::select! {
            () = self.drained() => {}
            () = evicted(idle.as_ref()) => {}
        }
    }

    /// Lets an identified connection be evicted to make room for others, until this is dropped.
    pub(super) fn idle(&self) -> Option<Evictable> {
        self.way.as_ref().filter(|_| self.is_identified()).map(|way| way.connections.idle())
    }

    /// Resolves when a connection should close on which no client was identified, whether or not part of a head has
    /// arrived. It stays evictable until [`ConnectionLifetime::begin_request`].
    pub(super) async fn evicted_unidentified(&self) {
        let Some(way) = self.way.as_ref().filter(|_| !self.is_identified()) else { return pending().await };
        let begin = || Arc::new(way.connections.unidentified(way.number));
        let evictable = Arc::clone(self.unidentified.lock().get_or_insert_with(begin));
        evictable.evicted().await;
    }

    /// A request has arrived: the connection is not evicted before it has its response.
    pub(super) fn begin_request(&self) {
        self.has_requested.store(true, Ordering::Relaxed);
        *self.unidentified.lock() = None;
    }

    pub(super) fn is_identified(&self) -> bool {
        self.caller.is_identified()
    }

    /// A client that connected before its listener was handed over has nowhere else to send its first request.
    fn owes_first_response(&self) -> bool {
        let is_handed_over = self.way.as_ref().is_some_and(|way| way.door.is_closing());
        is_handed_over && !self.has_requested.load(Ordering::Relaxed)
    }

    /// Resolves when its time is over, a drain has begun, or its door is closing.
    pub(super) async fn drained(&self) {
        let drain = async {
            match self.is_latecomer {
                true => sleep(LATECOMER_PATIENCE).await,
                false => {
                    let _ = self.runtime.drained().wait_for(|draining| *draining).await;
                    if self.owes_first_response() {
                        sleep(LATECOMER_PATIENCE).await;
                    }
                }
            }
        };
        let over = async {
            match &self.way {
                Some(way) => tokio::select! { () = drain => {}, () = closed(&way.door) => {} },
                None => drain.await,
            }
        };
        match self.until {
            Some(until) => drop(timeout_at(until, over).await),
            None => over.await,
        }
    }
}

async fn closed(door: &ListenerShutdown) {
    door.closing().await;
    sleep(LATECOMER_PATIENCE).await;
}

pub(super) async fn evicted(evictable: Option<&Evictable>) {
    match evictable {
        Some(evictable) => evictable.evicted().await,
        None => pending().await,
    }
}
