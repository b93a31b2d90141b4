//! Reads a route's settings for connections to targets and for response heads.
//! Which clients share a connection, and how large may a response head be?

use super::problem::Problem;
use super::reader::{Reader, Table, Value};
use super::{Located, schema, units};

/// Whether deliveries of different clients may use one connection to a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientConnections {
    /// Each client has connections of its own.
    #[default]
    Separate,
    /// All clients use the same connections.
    Shared,
}

/// Limits of one field section of a response: the head, or the trailers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResponseHeadMax {
    /// Field lines.
    pub count: usize,
    /// Bytes as received over HTTP/1.1; names, values and 32 per field over HTTP/2 (RFC 9113 §6.5.2).
    pub bytes: usize,
}

/// Values that an operator may write for `count`; the HTTP/1.1 parser allocates 64 bytes for each.
const COUNT_RANGE: std::ops::RangeInclusive<u32> = 1..=2_000;
/// Values that an operator may write for `bytes`; one response head is held in memory.
const BYTES_RANGE: std::ops::RangeInclusive<u64> = 1 << 10..=1 << 20;

impl Default for ResponseHeadMax {
    fn default() -> Self {
        Self { count: 100, bytes: 64 << 10 }
    }
}

/// Reads `response_head_max = { count = 100, bytes = "64 KiB" }`; a missing key has its default.
pub(super) fn read_response_head_max(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<ResponseHeadMax> {
    let table = Table::open(reader, value, &schema::RESPONSE_HEAD_MAX)?;
    let default = ResponseHeadMax::default();
    let count = table.read(reader, "count", |reader, value| reader.integer(value, COUNT_RANGE));
    let bytes = table.read(reader, "bytes", |reader, value| {
        let bytes = reader.parse(value, units::size)?;
        if !BYTES_RANGE.contains(&bytes.value) {
            let problem = Problem::at(value.span, format!("`{}` is out of range", value.key));
            reader.problems.push(problem.help("write a size from \"1 KiB\" to \"1 MiB\""));
        }
        Some(bytes)
    });
    let number = |number: Located<u32>| number.value as usize;
    let bytes = bytes.and_then(|bytes| usize::try_from(bytes.value).ok());
    Some(ResponseHeadMax { count: count.map_or(default.count, number), bytes: bytes.unwrap_or(default.bytes) })
}

/// Reads `client_connections`.
pub(super) fn read_client_connections(
    reader: &mut Reader<'_>,
    value: &Value<'_>,
) -> Option<Located<ClientConnections>> {
    let choices = [("separate", ClientConnections::Separate), ("shared", ClientConnections::Shared)];
    reader.parse_choice(value, &choices)
}
