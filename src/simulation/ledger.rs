//! The observations of clients and targets for each request.
//! Which requests were sent, which arrived, and which responses came back?

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::dns;
use crate::net::simulated::LinkProbe;

/// The observations of both sides. The key is the number in the path of the request.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) requests: BTreeMap<u32, Facts>,
    /// The exchanges of which a target has got a byte.
    pub(super) exchanges: u32,
    /// Stray bytes of a target came when the next request was on its way.
    pub(super) has_late_stray: bool,
    /// The contradictions that a peer has seen.
    pub(super) violations: Vec<String>,
}

/// The facts about one request.
#[derive(Default)]
pub(super) struct Facts {
    /// The request as its client would send it.
    pub(super) body: Vec<u8>,
    /// The client has written all of it.
    pub(super) is_sent: bool,
    /// The connection, and the offset in it at which the head ends.
    pub(super) head_end: Option<(LinkProbe, u64)>,
    /// The request before it on the connection was complete when this one began.
    pub(super) follows_complete: bool,
    pub(super) seen: Option<Seen>,
    /// The heads that targets have got.
    pub(super) arrivals: u32,
    /// The body that a target has got to its end.
    pub(super) arrived: Option<Vec<u8>>,
    pub(super) answer: Option<Answer>,
}

/// The response as its client has seen it.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) status: u16,
    /// The number in the response; `None`: it is outgate's own.
    pub(super) target: Option<u32>,
    /// The code of a refusal.
    pub(super) code: Option<String>,
    pub(super) body: Vec<u8>,
    pub(super) is_complete: bool,
}

/// The response as its target has sent it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
    /// Every byte was sent, and the response follows the protocol.
    pub(super) is_complete: bool,
}

impl Ledger {
    pub(super) fn facts(&mut self, request: u32) -> &mut Facts {
        self.requests.entry(request).or_default()
    }

    pub(super) fn violated(&mut self, violation: impl Into<String>) {
        self.violations.push(violation.into());
    }

    pub(super) fn connected(&mut self, from: IpAddr, to: SocketAddr) {
        if !dns::is_public_target(to.ip()) {
            self.violated(format!("outgate connected to {to}, which is no public address of a target"));
        }
        if !matches!(from, IpAddr::V4(from) if from.octets()[..3] == [127, 0, 7]) {
            self.violated(format!("outgate connected from {from}, which is not in the pool"));
        }
    }
}
