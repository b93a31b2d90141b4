//! A tunnel that is open, from its client's first byte on.
//! Does the client speak TLS where the tunnel is for TLS?

use std::sync::Arc;

use crate::delivery::tunnel::Tunnel;
use crate::policy::authn::Caller;
use crate::server::client_io::{ClientIo, speaks_http};
use crate::server::lifetime::ConnectionLifetime;
use crate::state::Runtime;

/// Carries a tunnel to its end. A request in plain HTTP inside a tunnel for TLS is refused in words that its client can
/// read.
pub(in crate::server) async fn carry(
    runtime: &Arc<Runtime>,
    stream: Box<dyn ClientIo>,
    mut tunnel: Box<Tunnel>,
    caller: &Arc<Caller>,
) {
    let Some(deadline) = tunnel.hello_deadline() else { return tunnel.carry(stream).await };
    match speaks_http(stream, deadline).await {
        Ok((false, stream)) => tunnel.carry(stream).await,
        Ok((true, stream)) => {
            let response = tunnel.refuse_plaintext(runtime);
            drop(tunnel); // the target is not kept while the client reads
            super::refuse(runtime, Box::new(stream), response, &ConnectionLifetime::new(runtime, caller, None, None))
                .await;
        }
        Err(fault) => tunnel.cut(fault.into()),
    }
}
