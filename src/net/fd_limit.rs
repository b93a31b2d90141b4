//! The process's limit of file descriptors (RLIMIT_NOFILE), and the share of it for connections.
//! How many connections can this process hold?

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::WarningCode;
use crate::config::{Config, Problem};
use crate::policy::Plan;

/// Descriptors that are reserved for the admin listener, log files, DNS, and files that are read. Connections of
/// clients and to targets do not use them. The admin listener holds up to 64 on each unix socket and 32 on each TCP
/// socket.
const RESERVE: u64 = 256;
/// Kinds of connections among which the rest is divided; see [`connections_max`].
const CONNECTION_KINDS: u64 = 4;

/// Raises the soft limit to the hard limit, and returns the former soft limit. The soft limit of a login shell is far
/// below `max_connections`.
pub fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    // The call fails only for a value above the hard limit.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    limit.current
}

/// Returns the hard limit; `None`: there is no limit.
pub fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// Returns a quarter of the descriptors outside the reserve: the bound of each kind of connection. The kinds are
/// connections of clients, connections to targets in use, idle connections to targets, and tunnels. Each has its own
/// bound, because one HTTP/2 connection of a client carries many deliveries and tunnels.
pub fn connections_max() -> usize {
    limit().map_or(usize::MAX, connection_share)
}

fn connection_share(limit: u64) -> usize {
    usize::try_from(limit.saturating_sub(RESERVE) / CONNECTION_KINDS).unwrap_or(usize::MAX).max(1)
}

/// Returns the descriptors that a process needs to hold this number of connections of clients.
pub fn needed(connections: u64) -> u64 {
    connections * CONNECTION_KINDS + RESERVE
}

/// Caps the plan's limits by what the process can hold.
pub fn cap_plan(plan: &mut Plan) {
    let max_connections = connections_max();
    plan.max_connections = plan.max_connections.min(max_connections);
    plan.max_deliveries = plan.max_deliveries.min(max_connections);
}

/// Returns a warning if this process cannot hold the configured `max_connections`. The default follows the limit and
/// needs no warning.
pub fn warning(config: &Config) -> Option<Problem> {
    let (written, limit) = (config.server.max_connections.as_ref()?, limit()?);
    let max_connections = connection_share(limit);
    (written.value > max_connections).then(|| {
        let message = format!(
            "max_connections is {}, but this process may open {limit} files (RLIMIT_NOFILE): it would accept {max_connections} \
             connections",
            written.value
        );
        let needed = needed(written.value as u64);
        let help = format!("raise the limit to {needed} (LimitNOFILE= of the systemd unit), or write {max_connections}");
        Problem::warning(WarningCode::FileDescriptors, Some(written.span), message).help(help)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_limit_leaves_a_reserve_for_admin() {
        for (limit, connections) in [(65_536, 16_320), (4096, 960), (1024, 192), (256, 1), (16, 1)] {
            assert_eq!(connection_share(limit), connections, "{limit}");
        }
    }
}
