//! The reading of a response: the addresses of a name in one family, after its aliases, without unrelated records.
//! Which addresses does the response give, and for how long are they valid?

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// The length of a chain of aliases in one response.
const ALIASES_MAX: usize = 16;
/// The number of addresses in one response. The cache holds them all, and the guard judges each.
const ADDRESSES_MAX: usize = 256;
/// The error of a server whose aliases form a loop, or a chain that is too long.
pub(super) const ENDLESS_CHAIN: &str = "an endless chain of aliases (CNAME)";

/// The bounds on the TTL of a response. The minimum prevents a flood of queries; the maximum limits the effect of a mistake in
/// a customer's zone.
const TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);
/// The bounds for a negative response (RFC 2308 §5): a customer who adds the name should not wait for long.
const NEGATIVE_TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30);

/// The answer for a name in one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FamilyAnswer {
    /// Never empty.
    Addresses(Arc<[IpAddr]>),
    NoData {
        no_such_name: bool,
    },
    /// Every server failed. The value is the error of one: its response code, or a description.
    Failed(&'static str),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct AnswerWithTtl {
    pub(super) answer: FamilyAnswer,
    pub(super) ttl: Duration,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum ParsedResponse {
    Answer(AnswerWithTtl),
    /// The name is an alias of another name, and the response has no records of that.
    Alias(Name, Duration),
}

impl AnswerWithTtl {
    pub(super) fn no_data(no_such_name: bool, ttl: Duration) -> Self {
        Self {
            answer: FamilyAnswer::NoData { no_such_name },
            ttl: ttl.clamp(*NEGATIVE_TTL.start(), *NEGATIVE_TTL.end()),
        }
    }
}

/// Returns the error of the server that a response shows. NXDOMAIN is no error: it answers the query.
fn server_error(response: &Message) -> Option<&'static str> {
    let is_lame = response.answers.is_empty()
        && negative_ttl(response).is_none()
        && !response.metadata.authoritative
        && !response.metadata.recursion_available;
    match response.metadata.response_code {
        // A referral: the server does not know the name and offers no recursion.
        ResponseCode::NoError if is_lame => Some("a referral"),
        ResponseCode::NoError | ResponseCode::NXDomain => None,
        ResponseCode::FormErr => Some("FORMERR"),
        ResponseCode::ServFail => Some("SERVFAIL"),
        ResponseCode::NotImp => Some("NOTIMP"),
        ResponseCode::Refused => Some("REFUSED"),
        ResponseCode::NotAuth => Some("NOTAUTH"),
        ResponseCode::BADVERS | ResponseCode::BADSIG => Some("BADVERS"),
        _ => Some("an unusual response code"),
    }
}

/// Reads a response. `chain` is the shortest TTL of the aliases that led to `name`. After an error the next server is queried.
pub(super) fn read(
    response: &Message,
    name: &Name,
    kind: RecordType,
    chain: Duration,
) -> Result<ParsedResponse, &'static str> {
    if let Some(error) = server_error(response) {
        return Err(error);
    }
    let (mut name, mut ttl, mut aliases) = (name, chain, 0);
    while let Some((to, seconds)) = alias(response, name) {
        aliases += 1;
        if aliases > ALIASES_MAX {
            return Err(ENDLESS_CHAIN);
        }
        // The shortest TTL of the chain counts.
        (name, ttl) = (to, ttl.min(seconds_of(seconds)));
    }
    // NXDOMAIN is about the last name of the chain (RFC 2308 §2.1, RFC 6604 §3), whatever the answer section has.
    if response.metadata.response_code == ResponseCode::NXDomain {
        return Ok(ParsedResponse::Answer(AnswerWithTtl::no_data(true, negative_ttl(response).unwrap_or_default())));
    }
    let mut addresses = Vec::new();
    for record in records(response, name).filter(|record| record.record_type() == kind) {
        ttl = ttl.min(seconds_of(record.ttl));
        addresses.extend(record.data.ip_addr().filter(|address| !addresses.contains(address)));
        if addresses.len() > ADDRESSES_MAX {
            return Err("more than 256 addresses");
        }
    }
    if !addresses.is_empty() {
        let ttl = ttl.clamp(*TTL.start(), *TTL.end());
        return Ok(ParsedResponse::Answer(AnswerWithTtl { answer: FamilyAnswer::Addresses(addresses.into()), ttl }));
    }
    match negative_ttl(response) {
        None if aliases > 0 => Ok(ParsedResponse::Alias(name.clone(), ttl)),
        // The chain is broken. For a name without data the answer section would be empty (RFC 2308 §2.2).
        None if !response.answers.is_empty() && records(response, name).next().is_none() => {
            Err("records of other names")
        }
        negative => Ok(ParsedResponse::Answer(AnswerWithTtl::no_data(false, negative.unwrap_or_default()))),
    }
}

fn alias<'r>(response: &'r Message, owner: &'r Name) -> Option<(&'r Name, u32)> {
    records(response, owner).find_map(|record| match &record.data {
        RData::CNAME(to) => Some((&to.0, record.ttl)),
        _ => None,
    })
}

fn records<'r>(response: &'r Message, owner: &'r Name) -> impl Iterator<Item = &'r Record> {
    response.answers.iter().filter(move |record| record.name == *owner)
}

/// Returns the TTL of a negative response (RFC 2308 §5).
fn negative_ttl(response: &Message) -> Option<Duration> {
    response.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(seconds_of(record.ttl.min(soa.minimum))),
        _ => None,
    })
}

fn seconds_of(ttl: u32) -> Duration {
    Duration::from_secs(ttl.into())
}
