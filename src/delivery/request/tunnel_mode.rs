//! The mode of a tunnel: what the proxy does with the bytes inside.
//! Does the tunnel end at outgate, and which bytes are inside?

use super::target::RequestTarget;
use crate::config::{ConnectPolicy, PlaintextPolicy};
use crate::delivery::refusal::{Code, Refusal};
use crate::names::{Scheme, Target};
use crate::policy::route::Route;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::delivery) enum TunnelMode {
    /// outgate connects to the target, and passes the bytes on unread.
    Passthrough,
    /// outgate speaks TLS in the target's place, and serves the requests inside.
    Inspect,
    /// outgate serves the plaintext requests inside, and forwards each over TLS. Some clients open such a tunnel for
    /// every `http://` URL (undici, hpagent, `curl -p`).
    Plaintext,
}

impl RequestTarget {
    /// Returns the mode of the tunnel. A route that upgrades plaintext serves port 80 whatever `connect` says: a request
    /// inside equals one in the upgrade form, and no byte passes unread.
    pub(in crate::delivery) fn tunnel_mode(&self, route: &Route) -> Result<TunnelMode, Refusal> {
        match route.connect {
            _ if self.is_port_80() && route.plaintext == PlaintextPolicy::Upgrade => Ok(TunnelMode::Plaintext),
            ConnectPolicy::Refuse => {
                let detail = "the route allows no tunnels to this host: send the request itself, in absolute-form";
                Err(Refusal::new(Code::TunnelForbidden, detail))
            }
            ConnectPolicy::Tunnel => Ok(TunnelMode::Passthrough),
            ConnectPolicy::Inspect => Ok(TunnelMode::Inspect),
        }
    }

    /// Returns the target of the upstream connection. Port 80 is plaintext where the route allows it, and becomes port
    /// 443 where the route upgrades plaintext. Every other port is assumed to speak TLS.
    pub(in crate::delivery) fn tunnel_target(&self, route: &Route) -> Target {
        match route.plaintext {
            PlaintextPolicy::Allow if self.is_port_80() => self.plaintext_target(),
            PlaintextPolicy::Upgrade if self.is_port_80() => {
                Target { scheme: Scheme::Https, host: self.host.clone(), port: Scheme::Https.default_port() }
            }
            _ => {
                let (host, port) = self.authority();
                Target { scheme: Scheme::Https, host: host.clone(), port }
            }
        }
    }

    /// Returns the target that every request inside a plaintext tunnel must name.
    pub(in crate::delivery) fn plaintext_target(&self) -> Target {
        Target { scheme: Scheme::Http, host: self.host.clone(), port: Scheme::Http.default_port() }
    }

    fn is_port_80(&self) -> bool {
        self.authority().1 == Scheme::Http.default_port()
    }
}
