//! The workloads: what the clients send, how often, and over which connections.
//! Which traffic does a measurement consist of?

use std::time::Duration;

use crate::Error;
use crate::receiver::{PLAIN, TLS, TLS_NEW, TLS_TICKETS};

/// How a client uses its connections.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    /// An absolute-form POST of 1 KiB over a connection that is kept.
    Deliver,
    /// A new tunnel for each POST.
    Tunnel,
    /// Downloads through one tunnel.
    Bulk,
    /// Connections that wait after one POST.
    IdleClients,
    /// Tunnels that wait after one POST.
    IdleTunnels,
}

pub(crate) struct Workload {
    pub(crate) name: &'static str,
    /// The column of the tables.
    pub(crate) title: &'static str,
    pub(crate) kind: Kind,
    pub(crate) port: u16,
    pub(crate) clients: usize,
    /// Deliveries per second that the clients offer. Without it a client sends when it has its response.
    pub(crate) rate: Option<f64>,
}

/// Bytes of one download.
pub(crate) const DOWNLOAD: u64 = 256 << 20;
/// Connections that wait.
pub(crate) const IDLE: usize = 2000;
/// The rate of the workload `rate`, per second.
const RATE: f64 = 2000.0;

pub(crate) const WORKLOADS: &[Workload] = &[
    Workload { name: "plain", title: "plain", kind: Kind::Deliver, port: PLAIN, clients: 64, rate: None },
    Workload { name: "tls", title: "TLS", kind: Kind::Deliver, port: TLS, clients: 64, rate: None },
    Workload { name: "tls-new", title: "new TLS", kind: Kind::Deliver, port: TLS_NEW, clients: 64, rate: None },
    Workload {
        name: "tls-tickets",
        title: "new TLS, tickets",
        kind: Kind::Deliver,
        port: TLS_TICKETS,
        clients: 64,
        rate: None,
    },
    Workload { name: "tunnel", title: "tunnel set-up", kind: Kind::Tunnel, port: PLAIN, clients: 16, rate: None },
    Workload { name: "bulk", title: "bulk", kind: Kind::Bulk, port: PLAIN, clients: 1, rate: None },
    Workload { name: "rate", title: "2,000/s", kind: Kind::Deliver, port: PLAIN, clients: 64, rate: Some(RATE) },
    Workload {
        name: "idle-clients",
        title: "idle client",
        kind: Kind::IdleClients,
        port: PLAIN,
        clients: IDLE,
        rate: None,
    },
    Workload {
        name: "idle-tunnels",
        title: "idle tunnel",
        kind: Kind::IdleTunnels,
        port: PLAIN,
        clients: IDLE,
        rate: None,
    },
];

pub(crate) fn find(name: &str) -> Result<&'static Workload, Error> {
    WORKLOADS.iter().find(|workload| workload.name == name).ok_or_else(|| format!("no workload {name}").into())
}

pub(crate) fn print_names() -> Result<(), Error> {
    WORKLOADS.iter().for_each(|workload| println!("{}", workload.name));
    Ok(())
}

/// How a measurement ends.
#[derive(Clone, Copy)]
pub(crate) enum End {
    After(Duration),
    /// After this number of deliveries, which the clients share.
    Deliveries(u64),
}
