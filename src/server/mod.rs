//! Accepts client connections and serves them until the drain is over.
//! Which connections are accepted, and when is the last one closed?

mod accept_queue;
pub mod admin;
pub mod agent;
mod auxiliary;
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
pub mod publish;
mod request_error;
mod serve;
#[cfg(test)]
pub(crate) mod simulated;
mod throttled_log;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::config::Listen;
use crate::net::listen::Listener;
use crate::panics::contain;
use crate::policy::authn::Caller;
use crate::state::Runtime;
use accept_queue::AcceptQueue;
pub use connections::Connections;
use entrance::RejectedConnection;
pub use listener_shutdown::{ListenerShutdown, ShutdownHandle};
use throttled_log::{ThrottledLog, WarningKind};

/// The delay after an accept fails for want of descriptors or memory, so that open connections can close.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// Limits the connections beyond `max_connections` whose PROXY header is incomplete or which have waited for capacity
/// since.
const PENDING_PROXY_HEADERS_MAX: usize = 100;

/// Accepts connections until the listener closes, and returns when all of them are closed. Dropping the future closes
/// them. During a drain it keeps accepting where no other process can listen yet, so that a new request gets `draining`
/// instead of a refused connection.
pub async fn accept(
    runtime: Arc<Runtime>,
    listener: Listener,
    listen: Listen,
    connections: Connections,
    shutdown: ListenerShutdown,
) {
    let listen = Arc::new(listen);
    let mut serving = JoinSet::new();
    let throttled_log = Arc::new(ThrottledLog::new());
    let mut queue = AcceptQueue::new(listener, shutdown.clone());
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
                let (max_connections, mut conn) = (active.plan.max_connections, connections.open(&runtime));
                // An address at its limit takes no capacity from others. Behind a load balancer, only the PROXY header
                // names the client's address.
                let expects_proxy_header = active.plan.listener.proxy_protocol.is_some();
                if !expects_proxy_header
                    && let Err(rejected) = entrance::enforce_per_ip_limit(&runtime, &active, &mut conn, peer)
                {
                    warn_rejected(&throttled_log, &rejected);
                    continue;
                }
                let capacity = async {
                    match expects_proxy_header {
                        true => {
                            conn.wait_for_capacity_before_proxy_header(max_connections + PENDING_PROXY_HEADERS_MAX)
                                .await
                        }
                        false => conn.wait_for_capacity(max_connections).await,
                    }
                };
                tokio::select! {
                    biased;
                    () = capacity => {}
                    () = shutdown.admission_closed() => continue,
                }
                let evictable = conn.mark_unidentified();
                let (runtime, throttled_log) = (Arc::clone(&runtime), Arc::clone(&throttled_log));
                let caller = Caller::on_listener(Arc::clone(&listen));
                let (connections, shutdown) = (connections.clone(), shutdown.clone());
                // Boxed, because a task holds the memory of its captures and of the largest future until its end.
                let establishing =
                    Box::pin(entrance::establish(Arc::clone(&runtime), stream, peer, conn, (caller, evictable)));
                serving.spawn(contain(async move {
                    match establishing.await {
                        Ok(established) => serve::serve(runtime, established, connections, shutdown).await,
                        Err(rejected) => warn_rejected(&throttled_log, &rejected),
                    }
                }));
            }
            Err(error) => {
                throttled_log.warn(WarningKind::Accept(error.raw_os_error()), || {
                    format!(
                        "cannot accept connections on {}: {error}; outgate tries again after {ACCEPT_RETRY_DELAY:?}",
                        queue.name()
                    )
                });
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
    drop(queue);
    while serving.join_next().await.is_some() {}
}

fn warn_rejected(throttled_log: &ThrottledLog, rejected: &RejectedConnection) {
    if let Some(kind) = rejected.warning_kind() {
        throttled_log.warn(kind, || rejected.to_string());
    }
}
