//! The connection that a tunnel takes, dialled after the target has proven its name on a connection before it.
//! Is this the target that was verified, and does it take two connections so soon after each other?
//!
//! Receivers that accept one connection at a time (gunicorn's sync worker, Flask, a wrapped `http.server`) finish one
//! handshake before they accept the next. So the verification ends, and its connection is closed, before the tunnel's
//! own connection is dialled to the same hop.

use std::io;
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

use super::Tunnel;
use crate::config::PlaintextPolicy;
use crate::delivery::connector::{self, UpstreamConnector};
use crate::delivery::record::Record;
use crate::delivery::refusal::Refusal;
use crate::names::{Host, Scheme};
use crate::net::connection::OutboundSocket;
use crate::net::dial::{DialError, DialledSocket};
use crate::net::tls::TlsError;
use crate::policy::egress::Hop;
use crate::state::upstreams::verified::VerifiedTargetKey;

/// Wait before the second attempt at the tunnel's connection, for a target that refused the first as too soon.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// Time after the ClientHello in which a close without a byte counts as "too soon". A server that limits connections
/// closes at once.
const EARLY_CLOSE: Duration = Duration::from_millis(250);

/// A connection for a tunnel.
pub(super) struct TunnelConnection {
    pub(super) socket: OutboundSocket,
    pub(super) hop: Hop,
    /// Whom the client must mean, where the tunnel is for TLS.
    pub(super) host: Option<Host>,
}

impl UpstreamConnector<'_> {
    /// Dials a hop, verifies the target on that connection unless it was verified lately, and dials the tunnel's own.
    pub(super) async fn open_tunnel(&self, record: &mut Record) -> Result<TunnelConnection, Refusal> {
        let DialledSocket { socket, hop } = self.connect(&self.hops, record).await?;
        if self.target.scheme == Scheme::Http {
            return Ok(TunnelConnection { socket, hop, host: None });
        }
        let key = VerifiedTargetKey::of(hop, &self.target.host, &self.route.trust);
        let host = Some(self.target.host.clone());
        if let Some(proof) = self.runtime.verified_targets.get(&key) {
            record.proven(&proof);
            return Ok(TunnelConnection { socket, hop, host });
        }
        let host = match self.verify(socket, record).await {
            Ok(proof) => {
                record.proven(&proof);
                self.runtime.verified_targets.put(key, proof);
                host
            }
            // A port of which nobody knows whether it speaks TLS, on a route that takes both: the target answered
            // something else, or closed the connection on the ClientHello.
            Err(TlsError::Plaintext | TlsError::Lost(_))
                if self.route.plaintext == PlaintextPolicy::Allow && self.target.port != 443 =>
            {
                None
            }
            Err(fault) => return Err(fault.into()),
        };
        Ok(TunnelConnection { socket: self.dial_again(hop, record).await?, hop, host })
    }

    /// Dials the hop that has just been verified. A target that refuses the connection is asked once more.
    async fn dial_again(&self, hop: Hop, record: &mut Record) -> Result<OutboundSocket, DialError> {
        match self.connect(&[hop], record).await {
            Err(DialError::Refused) => {
                sleep(RETRY_DELAY).await;
                Ok(self.connect(&[hop], record).await?.socket)
            }
            dialled => Ok(dialled?.socket),
        }
    }
}

impl Tunnel {
    /// Sends the client's ClientHello. If the target closes the connection before its first byte, the hop is dialled
    /// once more and the ClientHello sent again: it holds no data of the client's, and no handshake has begun.
    pub(super) async fn send_hello(&mut self, hello: &[u8]) -> io::Result<()> {
        if is_answered(&mut self.socket, hello).await {
            return Ok(());
        }
        sleep(RETRY_DELAY).await;
        // A reload may have taken the source out of the pool since the tunnel opened.
        let active = self.runtime.active_config();
        let pool = active.plan.pools.get(self.route.pool.name());
        if !pool.is_some_and(|pool| pool.contains(self.hop.from(), Timestamp::now())) {
            return Ok(());
        }
        let Some(host) = &self.host else { return Ok(()) };
        let (tenant, connect) = (self.record.tenant().cloned(), self.route.timeouts.connect);
        let (hops, record) = ([self.hop], &mut self.record);
        if let Ok(dialled) = connector::dial(&self.runtime, host, tenant.as_ref(), &hops, connect, record).await {
            self.socket = dialled.socket;
            self.socket.write_all(hello).await?;
        }
        Ok(())
    }
}

/// Sends `hello`; false if the target closed the connection instead of answering.
async fn is_answered(socket: &mut OutboundSocket, hello: &[u8]) -> bool {
    if socket.liveness().is_closed_by_peer() || socket.write_all(hello).await.is_err() {
        return false;
    }
    // A slower target is not waited for: what it answers goes to the client.
    let _ = timeout(EARLY_CLOSE, socket.readable()).await;
    !socket.liveness().is_closed_by_peer()
}
