//! The name servers of the simulation.
//! What does a name server respond, and when?

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType};

use super::random::Random;
use crate::net::simulated::DnsTransport;

/// The names of the targets: `t0`, `t1` and so on below this name.
pub(super) const DOMAIN: &str = "simulated.net";

/// How the name of a target resolves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Zone {
    Public,
    /// Every address is one that the guard denies.
    Private,
    /// One address is public, and one is not.
    Mixed,
    /// Each query has another outcome.
    Flapping,
    Silent,
    /// The first response is forged, and the real one follows.
    Forged,
    Truncated,
    Missing,
}

pub(super) const ZONES: &[Zone] =
    &[Zone::Private, Zone::Mixed, Zone::Flapping, Zone::Silent, Zone::Forged, Zone::Truncated, Zone::Missing];

/// Returns whether a delivery may connect to this address: it is that of a target, and public.
pub(super) fn is_public_target(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if address.octets()[..2] == [93, 184])
}

fn addresses(host: u8, zone: Zone) -> Vec<Ipv4Addr> {
    let public = [Ipv4Addr::new(93, 184, host, 1), Ipv4Addr::new(93, 184, host, 2)];
    match zone {
        Zone::Private => vec![Ipv4Addr::new(10, 0, host, 1)],
        Zone::Mixed => vec![public[0], Ipv4Addr::new(169, 254, 169, 254)],
        _ => public.to_vec(),
    }
}

/// Returns the responses to a query, each with the delay before it.
pub(super) fn respond(
    request: &[u8],
    transport: DnsTransport,
    zones: &[Zone],
    trouble: usize,
    random: &mut Random,
) -> Vec<(Duration, io::Result<Vec<u8>>)> {
    let request = Message::from_vec(request).expect("outgate sends well-formed queries");
    let query = request.queries[0].clone();
    let name = query.name().to_ascii();
    let host: Option<u8> = name.strip_prefix('t').and_then(|rest| rest.split('.').next()?.parse().ok());
    let mut zone = host.and_then(|host| zones.get(usize::from(host))).copied().unwrap_or(Zone::Public);
    if zone == Zone::Flapping {
        zone = random.one_of(&[Zone::Public, Zone::Private, Zone::Mixed, Zone::Silent, Zone::Missing]);
    }
    let mut response = Message::response(request.metadata.id, OpCode::Query);
    response.add_query(query.clone());
    match (zone, host) {
        (Zone::Missing, _) => response.metadata.response_code = ResponseCode::NXDomain,
        (Zone::Truncated, _) if transport == DnsTransport::Udp => response.metadata.truncation = true,
        (_, Some(host)) if query.query_type() == RecordType::A => {
            let ttl = random.between(0, 6) as u32;
            let record = |address: Ipv4Addr| Record::from_rdata(query.name().clone(), ttl, RData::A(address.into()));
            response.add_answers(addresses(host, zone).into_iter().map(record));
        }
        _ => {}
    }
    let delay = if random.permille(300) { random.millis(1, 900) } else { Duration::ZERO };
    if random.permille(trouble) {
        match random.below(4) {
            0 => return Vec::new(),
            1 => return vec![(delay, Err(io::ErrorKind::ConnectionRefused.into()))],
            2 => response.metadata.response_code = ResponseCode::ServFail,
            _ => return vec![(random.millis(900, 9000), Ok(response.to_vec().expect("a response")))],
        }
    }
    let bytes = response.to_vec().expect("a response");
    match zone {
        Zone::Silent => Vec::new(),
        Zone::Forged => {
            let mut forged = Message::response(request.metadata.id.wrapping_add(1), OpCode::Query);
            forged.add_query(query.clone());
            let private = RData::A(Ipv4Addr::new(10, 9, 9, 9).into());
            forged.add_answer(Record::from_rdata(query.name().clone(), 60, private));
            vec![(Duration::ZERO, Ok(forged.to_vec().expect("a response"))), (delay, Ok(bytes))]
        }
        _ => vec![(delay, Ok(bytes))],
    }
}
