//! The process's limit of file descriptors (RLIMIT_NOFILE), and what it leaves for connections.
//! How many connections can this process hold?

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::WarningCode;
use crate::config::{Config, Problem};
use crate::policy::Plan;

/// Descriptors that no connection of a client or to a target may take: for the admin listener, log files, DNS, and files
/// that are read. The admin listener holds up to 64 on each unix socket and 32 on each TCP socket.
const RESERVE: u64 = 256;
/// Uses of connections among which the rest is divided; see [`connections_max`].
const SHARES: u64 = 4;

/// Raises the soft limit to the hard one, and returns the soft limit before. A login shell's is far below
/// `max_connections`.
pub fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    // It fails only above the hard limit.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    limit.current
}

/// The hard limit; `None`: there is none.
pub fn limit() -> Option<u64> {
    getrlimit(Resource::Nofile).maximum
}

/// A quarter of what the reserve leaves: for connections of clients, for connections to targets in use, for idle
/// connections to targets, and for tunnels. One HTTP/2 connection of a client carries many deliveries and tunnels, so each
/// of the four has a bound of its own.
pub fn connections_max() -> usize {
    limit().map_or(usize::MAX, quarter)
}

fn quarter(limit: u64) -> usize {
    usize::try_from(limit.saturating_sub(RESERVE) / SHARES).unwrap_or(usize::MAX).max(1)
}

/// Caps what the plan allows by what the process can hold.
pub fn cap(plan: &mut Plan) {
    let most = connections_max();
    plan.max_connections = plan.max_connections.min(most);
    plan.max_deliveries = plan.max_deliveries.min(most);
}

/// Warns of a `max_connections` that this process could not hold. The default follows the limit and needs no warning.
pub fn warning(config: &Config) -> Option<Problem> {
    let (written, limit) = (config.server.max_connections.as_ref()?, limit()?);
    let most = quarter(limit);
    (written.value > most).then(|| {
        let message = format!(
            "max_connections is {}, but this process may open {limit} files (RLIMIT_NOFILE): it would accept {most} \
             connections",
            written.value
        );
        let needed = written.value as u64 * SHARES + RESERVE;
        let help = format!("raise the limit to {needed} (LimitNOFILE= of the systemd unit), or write {most}");
        Problem::warning(WarningCode::FileDescriptors, Some(written.span), message).help(help)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_limit_leaves_a_reserve_for_admin() {
        for (limit, connections) in [(65_536, 16_320), (4096, 960), (1024, 192), (256, 1), (16, 1)] {
            assert_eq!(quarter(limit), connections, "{limit}");
        }
    }
}
