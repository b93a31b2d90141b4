//! What a CONNECT opens under the route that settles it.
//! Does the tunnel end at outgate, and which bytes are inside?

use super::errors;
use super::refusal::Refusal;
use super::request_target::RequestTarget;
use crate::config::{ConnectPolicy, PlaintextPolicy};
use crate::names::{Scheme, Target};
use crate::policy::route::Route;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TunnelMode {
    /// A connection to the target: bytes pass unread.
    Passthrough,
    /// Outgate speaks TLS in the target's place, and serves the requests inside.
    Inspect,
    /// Outgate serves the plaintext requests inside, each of which goes over TLS. Clients open such a tunnel for every
    /// `http://` URL (undici, hpagent, `curl -p`).
    Plaintext,
}

impl RequestTarget {
    /// Port 80 of a route that upgrades plaintext is served whatever `connect` says: a request inside is the same as one
    /// in the upgrade form, and nothing passes unread.
    pub(super) fn opens(&self, route: &Route) -> Result<TunnelMode, Refusal> {
        match route.connect {
            _ if self.is_for_http() && route.plaintext == PlaintextPolicy::Upgrade => Ok(TunnelMode::Plaintext),
            ConnectPolicy::Refuse => Err(errors::no_tunnel()),
            ConnectPolicy::Tunnel => Ok(TunnelMode::Passthrough),
            ConnectPolicy::Inspect => Ok(TunnelMode::Inspect),
        }
    }

    /// Where the onward hop goes. Port 80 is plain where that is allowed, and port 443 where plaintext is upgraded; every
    /// other port is taken for TLS.
    pub(super) fn tunnel_target(&self, route: &Route) -> Target {
        match route.plaintext {
            PlaintextPolicy::Allow if self.is_for_http() => self.plaintext_target(),
            PlaintextPolicy::Upgrade if self.is_for_http() => {
                Target { scheme: Scheme::Https, host: self.host.clone(), port: Scheme::Https.default_port() }
            }
            _ => {
                let (host, port) = self.authority();
                Target { scheme: Scheme::Https, host: host.clone(), port }
            }
        }
    }

    /// Which requests inside are for: those that name another target are refused.
    pub(super) fn plaintext_target(&self) -> Target {
        Target { scheme: Scheme::Http, host: self.host.clone(), port: Scheme::Http.default_port() }
    }

    fn is_for_http(&self) -> bool {
        self.authority().1 == Scheme::Http.default_port()
    }
}
