//! The agent listener: one line for each connection, as the agent-check of HAProxy reads it.
//! Which share of its usual traffic does this instance ask for?
//!
//! The line is a percentage only. HAProxy keeps an administrative state that an agent has set until the agent sets another
//! one, and `ready` would also end a maintenance that an operator began. `0%` has the effect of `drain` without a state
//! (HAProxy Configuration Manual, section 5.2, `agent-check`).

use std::sync::Arc;

use jiff::Timestamp;

use super::auxiliary::{self, Protocol, Service};
use super::listener_shutdown::ListenerShutdown;
use crate::config::Listen;
use crate::net::listen::Listener;
use crate::state::Runtime;

/// Each worker of a load balancer may have a connection.
const SERVICE: Service = Service {
    name: "agent",
    connections_max: 256,
    connections_per_ip_max: 64,
    protocol: Protocol::Line(|runtime| format!("{}%\n", runtime.load(Timestamp::now()).weight().percent)),
};

/// Accepts connections until the listener closes, and returns when all of them are closed.
pub async fn accept(runtime: Arc<Runtime>, listener: Listener, listen: Listen, shutdown: ListenerShutdown) {
    auxiliary::accept(runtime, listener, listen, shutdown, SERVICE).await;
}
