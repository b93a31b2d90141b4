//! A client's connection in the simulation.
//! How is a connection served that no listener has accepted?

use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::client_io::ClientIo;
use super::connections::Connections;
use super::entrance::{self, Established, Transport};
use super::listener_shutdown::ListenerShutdown;
use super::serve;
use crate::config::Listen;
use crate::net::simulated::SimulatedSocket;
use crate::net::splice::MaybeSocket;
use crate::policy::authn::Caller;
use crate::state::Runtime;

impl MaybeSocket for SimulatedSocket {}

impl ClientIo for SimulatedSocket {
    fn set_abort_on_drop(&mut self, abort: bool) {
        self.set_linger_zero(abort);
    }

    fn poll_read_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        SimulatedSocket::poll_read_closed(self, cx)
    }
}

/// Serves a plaintext connection from its arrival to its end, as `server::accept` does.
pub(crate) async fn serve_client(
    runtime: Arc<Runtime>,
    connections: Connections,
    shutdown: ListenerShutdown,
    socket: SimulatedSocket,
    (listen, peer): (Arc<Listen>, IpAddr),
) {
    let (active, mut conn) = (runtime.active_config(), connections.open(&runtime));
    if entrance::enforce_per_ip_limit(&runtime, &active, &mut conn, Some(peer)).is_err() {
        return;
    }
    // As after a PROXY header, many connections may wait at once.
    conn.wait_for_capacity(active.plan.max_connections).await;
    let evictable = conn.mark_unidentified();
    let caller = Arc::new(Caller::on_listener(listen).with_address(Some(peer)));
    let (stream, transport) = (Box::new(socket), Transport::Plaintext);
    let established = Box::new(Established { conn, stream, caller, evictable, transport });
    serve::serve(runtime, established, connections, shutdown).await;
}
