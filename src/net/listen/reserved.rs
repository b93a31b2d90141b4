//! Sockets that are bound before the process drops the capability for ports below 1024.
//! How does outgate listen on port 443 without a capability?

use std::net::SocketAddr;

use socket2::Socket;

use super::{Successor, bound_socket};
use crate::config::{Config, Listen};

/// The first port that needs no capability, unless `net.ipv4.ip_unprivileged_port_start` differs.
const UNPRIVILEGED_PORT_START: u16 = 1024;

/// Bound sockets that do not listen yet.
#[derive(Default)]
pub struct ReservedPorts(Vec<(SocketAddr, Socket)>);

impl ReservedPorts {
    /// Binds the configured ports that need the capability. The listener reports those that cannot be bound.
    pub fn bind(config: &Config) -> Self {
        let sockets = config.binds().filter_map(|bind| match bind.address {
            Listen::Tcp(address) if (1..UNPRIVILEGED_PORT_START).contains(&address.port()) => {
                let successor = Successor::of(&bind.address, config.server.reuse_port);
                Some((address, bound_socket(address, successor).ok()?))
            }
            Listen::Tcp(_) | Listen::Unix(_) | Listen::Systemd => None,
        });
        Self(sockets.collect())
    }

    /// Returns the socket of an address, once.
    pub(super) fn take(&mut self, address: SocketAddr) -> Option<Socket> {
        let at = self.0.iter().position(|(reserved, _)| *reserved == address)?;
        Some(self.0.swap_remove(at).1)
    }
}
