//! Accepts connections and lets each be served, until the drain is over.
//! Who gets in, and when has the last one left?

mod accept_queue;
pub mod admin;
mod connections;
mod entrance;
mod hangup;
pub(crate) mod http1;
pub(crate) mod http2;
mod lingering;
mod listener_shutdown;

mod client_io;
mod inspect;
mod lifetime;
pub(crate) mod proxy_protocol;
mod request_error;
mod serve;
mod throttled_log;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::config::Listen;
use crate::net::listen::Listener;
use crate::policy::authn::Caller;
use crate::state::Runtime;
use accept_queue::AcceptQueue;
pub use connections::Connections;
use entrance::{Established, RejectedConnection, Transport};
use listener_shutdown::ConnContext;
pub use listener_shutdown::{ListenerShutdown, ShutdownHandle};
use throttled_log::{ThrottledLog, WarningKind};

/// After an accept that failed for want of descriptors or memory: others must get a chance to close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections beyond `max_connections` whose PROXY header is incomplete, or that wait for room since.
const INTRODUCING_MAX: usize = 100;

/// Accepts until the door closes, and ends when all have left who came in; dropped, it takes them along. During a drain it
/// goes on where no other process can listen yet, so that a new request gets `draining` instead of a refused connection.
pub async fn accept(
    runtime: Arc<Runtime>,
    listener: Listener,
    listen: Listen,
    connections: Connections,
    door: ListenerShutdown,
) {
    let listen = Arc::new(listen);
    let mut serving = JoinSet::new();
    let rarely = Arc::new(ThrottledLog::new());
    let mut queue = AcceptQueue::new(listener, door.clone());
    loop {
        let accepted = tokio::select! {
            biased;
            Some(_) = serving.join_next() => continue,
            accepted = queue.next() => accepted,
        };
        let Some(accepted) = accepted else { break };
        match accepted {
            Ok((stream, peer)) => {
                let (active, peer) = (runtime.active_config(), peer.map(|peer| peer.ip()));
                let (most, mut open) = (active.plan.max_connections, connections.open(&runtime));
                // Whoever has enough takes nobody's room. Behind a load balancer it is told later for whom this one is.
                let is_introduced = active.plan.listener.proxies.is_some();
                if !is_introduced && let Err(turned) = entrance::count(&runtime, &active, &mut open, peer) {
                    warn_of(&rarely, &turned);
                    continue;
                }
                let room = async {
                    match is_introduced {
                        true => open.makes_room_unidentified(most + INTRODUCING_MAX).await,
                        false => open.makes_room(most).await,
                    }
                };
                tokio::select! {
                    biased;
                    () = room => {}
                    () = door.waits_no_longer() => continue,
                }
                let evictable = open.unidentified();
                let (runtime, rarely) = (Arc::clone(&runtime), Arc::clone(&rarely));
                let caller = Caller { listen: Some(Arc::clone(&listen)), ..Caller::default() };
                let (connections, door) = (connections.clone(), door.clone());
                serving.spawn(async move {
                    match entrance::establish(&runtime, stream, peer, &mut open, (caller, evictable)).await {
                        Ok(Established { stream, caller, evictable, transport }) => {
                            let way = ConnContext { connections, door, number: open.number() };
                            let (caller, way) = (Arc::new(caller), (way, evictable));
                            match transport {
                                Transport::UnexpectedPlaintext => {
                                    serve::refuse_plaintext(runtime, stream, caller, way).await
                                }
                                _ => serve::serve(runtime, stream, transport, caller, way).await,
                            }
                        }
                        Err(turned) => warn_of(&rarely, &turned),
                    }
                    drop(open);
                });
            }
            Err(fault) => {
                rarely.warn(WarningKind::Accept(fault.raw_os_error()), || {
                    format!("cannot accept connections on {}: {fault}", queue.name())
                });
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(queue);
    while serving.join_next().await.is_some() {}
}

fn warn_of(rarely: &ThrottledLog, turned: &RejectedConnection) {
    if let Some(kind) = turned.kind() {
        rarely.warn(kind, || turned.to_string());
    }
}
