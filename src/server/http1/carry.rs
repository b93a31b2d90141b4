//! A tunnel that is open, from its client's first byte on.
//! Does the client speak TLS where the tunnel is for TLS?

use std::sync::Arc;

use crate::delivery::tunnel::Tunnel;
use crate::live::Live;
use crate::policy::identify::Caller;
use crate::server::stay::Stay;
use crate::server::stream::{Stream, speaks_http};

/// Carries a tunnel to its end. A request in plain HTTP inside a tunnel for TLS is refused in words that its client can
/// read.
pub(in crate::server) async fn carry(
    live: &Arc<Live>,
    stream: Box<dyn Stream>,
    mut tunnel: Box<Tunnel>,
    caller: &Arc<Caller>,
) {
    let Some(deadline) = tunnel.hello_deadline() else { return tunnel.carry(stream).await };
    match speaks_http(stream, deadline).await {
        Ok((false, stream)) => tunnel.carry(stream).await,
        Ok((true, stream)) => {
            let response = tunnel.refuse_plaintext(live);
            drop(tunnel); // the target is not kept while the client reads
            super::refuse(live, Box::new(stream), response, &Stay::new(live, caller, None, None)).await;
        }
        Err(fault) => tunnel.cut(fault.into()),
    }
}
