//! The lifetime of a client connection.
//! May the client send another request, and when does an idle connection close?

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::connections::Evictable;
use super::listener_shutdown::{ConnContext, FIRST_REQUEST_TIMEOUT};
use crate::panics::Mutex;
use crate::policy::authn::Caller;
use crate::state::Runtime;

/// The state that decides when one connection closes.
pub(super) struct ConnectionLifetime {
    runtime: Arc<Runtime>,
    caller: Arc<Caller>,
    accepted_during_drain: bool,
    has_requested: AtomicBool,
    /// `None`: the connection has no deadline.
    deadline: Option<Instant>,
    /// `None`: the connection is inside a tunnel. The outer connection is counted, and ends when its listener closes.
    context: Option<ConnContext>,
    /// Notified when the idle connection is evicted.
    idle_eviction: Arc<Notify>,
    /// Set while no client is identified and no request is in progress.
    unidentified: Mutex<Option<Arc<Evictable>>>,
}

impl ConnectionLifetime {
    pub(super) fn new(
        runtime: &Arc<Runtime>,
        caller: &Arc<Caller>,
        deadline: Option<Instant>,
        context: Option<(ConnContext, Evictable)>,
    ) -> Self {
        let (runtime, caller) = (Arc::clone(runtime), Arc::clone(caller));
        let (context, evictable) = context.unzip();
        let unidentified = Mutex::new(evictable.map(Arc::new));
        let (accepted_during_drain, has_requested) = (runtime.is_draining(), AtomicBool::new(false));
        let idle_eviction = Arc::default();
        Self { accepted_during_drain, has_requested, runtime, caller, deadline, context, idle_eviction, unidentified }
    }

    /// Returns whether the current request is the last one.
    pub(super) fn should_close(&self) -> bool {
        let is_closing = self.context.as_ref().is_some_and(|context| context.shutdown.is_closing());
        is_closing || self.runtime.is_draining() || self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Marks the connection as idle while the future is polled. Resolves when the connection should close.
    pub(super) async fn closed(&self) {
        let idle = self.mark_idle();
        tokio::select! {
            biased;
            () = self.expired() => {}
            () = wait_for_eviction(idle.as_ref()) => {}
        }
    }

    /// Allows an identified connection to be evicted until the value is dropped.
    pub(super) fn mark_idle(&self) -> Option<Evictable> {
        self.context
            .as_ref()
            .filter(|_| self.is_authenticated())
            .map(|context| context.connections.mark_idle(context.id, &self.idle_eviction))
    }

    /// Resolves when a connection without an identified client should close, whether or not part of a head has arrived.
    /// The connection stays evictable until [`ConnectionLifetime::begin_request`].
    pub(super) async fn evicted_unidentified(&self) {
        let Some(context) = self.context.as_ref().filter(|_| !self.is_authenticated()) else { return pending().await };
        let mark = || Arc::new(context.connections.mark_unidentified(context.id));
        let evictable = Arc::clone(self.unidentified.lock().get_or_insert_with(mark));
        evictable.evicted().await;
    }

    /// Records the arrival of a request: the connection is not evicted before its response is sent.
    pub(super) fn begin_request(&self) {
        self.has_requested.store(true, Ordering::Relaxed);
        *self.unidentified.lock() = None;
    }

    pub(super) fn is_authenticated(&self) -> bool {
        self.caller.is_authenticated()
    }

    /// Returns whether the client connected before its listener was handed over and has sent no request yet. Such a
    /// client cannot send its first request anywhere else.
    fn awaits_first_request(&self) -> bool {
        let is_handed_over = self.context.as_ref().is_some_and(|context| context.shutdown.is_closing());
        is_handed_over && !self.has_requested.load(Ordering::Relaxed)
    }

    /// Resolves when the deadline passes, a drain begins, or the listener closes.
    ///
    /// The timers are boxed, because few connections need one of them: an idle connection holds this future.
    pub(super) async fn expired(&self) {
        tokio::select! {
            biased;
            () = self.drained() => {}
            () = self.listener_closed() => {}
            () = self.deadline_passed() => {}
        }
    }

    async fn drained(&self) {
        if !self.accepted_during_drain {
            let _ = self.runtime.drain_signal().wait_for(|draining| *draining).await;
            if !self.awaits_first_request() {
                return;
            }
        }
        Box::pin(sleep(FIRST_REQUEST_TIMEOUT)).await;
    }

    async fn listener_closed(&self) {
        let Some(context) = &self.context else { return pending().await };
        context.shutdown.closing().await;
        Box::pin(sleep(FIRST_REQUEST_TIMEOUT)).await;
    }

    async fn deadline_passed(&self) {
        match self.deadline {
            Some(deadline) => Box::pin(sleep_until(deadline)).await,
            None => pending().await,
        }
    }
}

pub(super) async fn wait_for_eviction(evictable: Option<&Evictable>) {
    match evictable {
        Some(evictable) => evictable.evicted().await,
        None => pending().await,
    }
}
