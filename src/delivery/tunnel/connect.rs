//! The connection of a tunnel, dialled after a handshake on an earlier connection has verified the target.
//! Is this the target that was verified, and does it accept two connections in short succession?
//!
//! Receivers that accept one connection at a time (gunicorn's sync worker, Flask, a wrapped `http.server`) finish one
//! handshake before they accept the next. So the verification ends, and its connection is closed, before the tunnel's
//! own connection is dialled to the same hop.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;

use crate::config::PlaintextPolicy;
use crate::delivery::connector::UpstreamConnector;
use crate::delivery::context::Delivery;
use crate::delivery::record::Record;
use crate::delivery::refusal::Refusal;
use crate::names::{Host, Scheme};
use crate::net::connection::OutboundSocket;
use crate::net::dial::{DialError, DialledSocket};
use crate::net::tls::TlsError;
use crate::policy::egress::Hop;
use crate::state::upstreams::verified::{TargetProof, VerifiedTargetKey};

/// Wait before the second attempt at the tunnel's connection, for a target that refused the first as too soon.
pub(super) const RETRY_DELAY: Duration = Duration::from_millis(100);

/// A connection for a tunnel.
pub(super) struct TunnelConnection {
    pub(super) socket: OutboundSocket,
    pub(super) hop: Hop,
    /// The host that the client's ClientHello must name. `None`: the tunnel is not for TLS.
    pub(super) host: Option<Host>,
}

impl UpstreamConnector<'_> {
    /// Dials a hop, verifies the target on that connection unless it was verified lately, and dials the tunnel's own.
    pub(super) async fn open_tunnel(&self, record: &mut Record) -> Result<TunnelConnection, Refusal> {
        let &Delivery { runtime, route, target, .. } = self.delivery();
        let DialledSocket { socket, hop } = self.connect(self.hops(), record).await?;
        if target.scheme == Scheme::Http {
            return Ok(TunnelConnection { socket, hop, host: None });
        }
        let key = VerifiedTargetKey::of(hop, &target.host, &route.trust);
        let now = std::time::Instant::now();
        // The route allows plaintext, and the port is not known to speak TLS.
        let may_be_plaintext = route.plaintext == PlaintextPolicy::Allow && target.port != 443;
        match runtime.verified_targets.get(&key, now, Timestamp::now()) {
            Some(TargetProof::Verified(handshake)) => {
                record.set_handshake(&handshake);
                return Ok(TunnelConnection { socket, hop, host: Some(target.host.clone()) });
            }
            Some(TargetProof::Plaintext) if may_be_plaintext => {
                return Ok(TunnelConnection { socket, hop, host: None });
            }
            _ => {}
        }
        // Boxed: few tunnels verify their target.
        let host = match Box::pin(self.verify(socket, record)).await {
            Ok(handshake) => {
                record.set_handshake(&handshake);
                runtime.verified_targets.insert(key, TargetProof::Verified(handshake), now);
                Some(target.host.clone())
            }
            Err(TlsError::Plaintext) if may_be_plaintext => {
                runtime.verified_targets.insert(key, TargetProof::Plaintext, now);
                None
            }
            // The target closed the connection after the ClientHello. It may do so for another reason than TLS, so the
            // next tunnel asks again.
            Err(TlsError::Lost(_)) if may_be_plaintext => None,
            Err(error) => return Err(error.into()),
        };
        Ok(TunnelConnection { socket: Box::pin(self.dial_again(hop, record)).await?, hop, host })
    }

    /// Dials the hop on which the target was verified. If the target refuses the connection, dials it once more.
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
