//! Accepts connections and lets each be served, until the drain is over.
//! Who gets in, and when has the last one left?

pub mod admin;
mod door;
mod entrance;
pub(crate) mod http1;
mod http2;
mod inspect;
mod malformed;
pub(crate) mod proxy_protocol;
mod rarely;
mod serve;
mod stay;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::live::Live;
use crate::net::listen::Listener;
pub use door::{Door, Doorkeeper};
use rarely::{Kind, Rarely};

/// After an accept that failed for want of descriptors or memory: others must get a chance to close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The connections that are open now.
#[derive(Clone)]
pub struct Connections(watch::Sender<usize>);

/// One of them; dropped with it.
struct Open(Connections, Arc<Live>);

impl Connections {
    #[expect(clippy::new_without_default, reason = "made once, by the app")]
    pub fn new() -> Self {
        Self(watch::Sender::new(0))
    }

    fn open(&self, live: &Arc<Live>) -> Open {
        self.0.send_modify(|count| *count += 1);
        live.meters.client_connections.inc();
        Open(self.clone(), Arc::clone(live))
    }

    async fn until(&self, enough: impl FnMut(&usize) -> bool) {
        let _ = self.0.subscribe().wait_for(enough).await;
    }

    /// Resolves when the last one has closed.
    pub async fn all_closed(&self) {
        self.until(|count| *count == 0).await;
    }

    pub fn count(&self) -> usize {
        *self.0.borrow()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
        self.1.meters.client_connections.dec();
    }
}

/// Accepts until the door closes, and ends when all have left who came in; dropped, it takes them along. During a drain it
/// goes on, so that a new request is told `draining` instead of finding nobody.
pub async fn accept(live: Arc<Live>, listener: Listener, connections: Connections, door: Door) {
    let mut serving = JoinSet::new();
    let rarely = Arc::new(Rarely::new());
    loop {
        let most = live.in_force().plan.max_connections;
        let next = async {
            connections.until(|count| *count < most).await;
            listener.accept().await
        };
        let accepted = tokio::select! {
            biased;
            Some(_) = serving.join_next() => continue,
            accepted = next => accepted,
            // Last: who is in the kernel's queue already has come in.
            () = door.closing() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (live, open, rarely) = (Arc::clone(&live), connections.open(&live), Arc::clone(&rarely));
                let door = door.clone();
                serving.spawn(async move {
                    match entrance::enter(&live, stream, peer.map(|peer| peer.ip())).await {
                        Ok((stream, caller)) => serve::serve(live, stream, Arc::new(caller), door).await,
                        Err(turned) => {
                            if let Some(kind) = turned.kind() {
                                rarely.warn(kind, || turned.to_string());
                            }
                        }
                    }
                    drop(open);
                });
            }
            Err(fault) => {
                rarely.warn(Kind::Accept(fault.raw_os_error()), || {
                    format!("cannot accept connections on {}: {fault}", listener.name())
                });
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while serving.join_next().await.is_some() {}
}
