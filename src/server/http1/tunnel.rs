//! Serves an open tunnel over HTTP/1.
//! Does the client speak TLS where the tunnel is for TLS?

use std::sync::Arc;

use crate::delivery::tunnel::Tunnel;
use crate::policy::authn::Caller;
use crate::server::client_io::{ClientIo, detect_http};
use crate::server::lifetime::ConnectionLifetime;
use crate::state::Runtime;

/// Serves a tunnel until it closes. A client that sends plain HTTP where the tunnel is for TLS gets a response that
/// explains the refusal.
pub(in crate::server) async fn serve_tunnel(
    runtime: &Arc<Runtime>,
    stream: Box<dyn ClientIo>,
    mut tunnel: Box<Tunnel>,
    caller: &Arc<Caller>,
) {
    let Some(deadline) = tunnel.hello_deadline() else { return tunnel.carry(stream).await };
    match detect_http(stream, deadline).await {
        Ok((false, stream)) => tunnel.carry(stream).await,
        Ok((true, stream)) => {
            let response = tunnel.refuse_plaintext();
            drop(tunnel); // closes the target's connection before the client has read the response
            let lifetime = ConnectionLifetime::new(runtime, caller, None, None);
            Box::pin(super::refuse(runtime, Box::new(stream), response, &lifetime)).await;
        }
        Err(error) => tunnel.cut(error.into()),
    }
}
