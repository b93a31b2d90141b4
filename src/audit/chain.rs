//! The chain of an audit log: each record has the hash of the record before.
//! Is this line the next record of the log?

use std::fmt;

use data_encoding::HEXLOWER;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::record::{AUDIT_CONTINUED, Event, Position, Record};
use super::tree::{Tree, hash};
use crate::digest::Sha256;
use crate::names::pluralize;

/// Steps back that are no set clock: events of several threads wait for the disk in another order than they happened.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(10);

/// The state of a log after some records: all that the next record and the next file need.
#[derive(Clone, Debug, Default)]
pub(super) struct Chain {
    tree: Tree,
    /// The hash of the last line.
    last: Sha256,
    /// The time of the last record. `None`: there is none, or another file has it.
    last_date: Option<Timestamp>,
}

/// The reason why a line is not the next record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ChainError {
    Malformed(String),
    /// Records are missing, or appear twice.
    Sequence {
        expected: u64,
        found: u64,
    },
    /// The record before was changed, or another record stood there.
    Previous,
    /// The record is older than the one before, and does not say that the clock was set back.
    Clock,
    /// The first record of a file does not have the state of the files before.
    Continuation,
}

impl fmt::Display for ChainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => write!(f, "the line is not an audit record: {error}"),
            Self::Sequence { expected, found } if found > expected => {
                write!(f, "the line has seq {found}: the records from {expected} to {} are missing", found - 1)
            }
            Self::Sequence { expected, found } => {
                write!(f, "the line has seq {found}, and {expected} is next: a record is repeated or was moved")
            }
            Self::Previous => f.write_str("`prev` is not the hash of the line before"),
            Self::Clock => {
                f.write_str("`event_date` is earlier than in the record before, and the clock was not set back")
            }
            Self::Continuation => f.write_str("the file does not continue the file before it"),
        }
    }
}

impl std::error::Error for ChainError {}

impl Chain {
    pub(super) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Returns the `seq` of the next record.
    pub(super) fn next_seq(&self) -> u64 {
        self.tree.size()
    }

    /// Returns the time of the last record, if this file has it.
    pub(super) fn last_date(&self) -> Option<Timestamp> {
        self.last_date
    }

    /// Returns whether the last line has this hash, and the records before are the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.tree == other.tree && self.last == other.last
    }

    /// Returns the line of the next record, without its line feed, and the state after it.
    pub(super) fn extend(&self, origin: &str, event: Event) -> serde_json::Result<(Vec<u8>, Self)> {
        let (seq, prev, at) = (self.next_seq(), self.last, event.at);
        let clock_set_back_ms = self.milliseconds_back(at);
        let line = serde_json::to_vec(&Record::new(&Position { seq, prev, clock_set_back_ms }, origin, event))?;
        let next = self.after(&line, at);
        Ok((line, next))
    }

    /// Returns the first record of a file that continues another one. It has the state of the chain, so that the file
    /// can be verified without the files before it.
    pub(super) fn continuation(&self, former: &str, at: Timestamp) -> Event {
        let subtrees: Vec<String> = self.tree.subtrees().iter().map(|root| HEXLOWER.encode(root)).collect();
        let size = self.tree.size();
        let what = format!("the log continues {former}, which ends after {}", pluralize(size, "record"));
        Event::new(AUDIT_CONTINUED, former, at, what).with("size", size).with("subtrees", subtrees)
    }

    /// Returns by how much the clock was set back, if a record at this time comes next.
    fn milliseconds_back(&self, at: Timestamp) -> Option<u64> {
        let back = self.last_date?.duration_since(at);
        u64::try_from(back.as_millis()).ok().filter(|_| back > CLOCK_TOLERANCE)
    }

    fn after(&self, line: &[u8], at: Timestamp) -> Self {
        let mut tree = self.tree.clone();
        tree.push(line);
        Self { tree, last: hash(&[line]), last_date: Some(at) }
    }

    /// Verifies the next line, and adds it to the chain.
    pub(super) fn verify(&mut self, line: &[u8]) -> Result<Record, ChainError> {
        let record = parse(line)?;
        if record.seq != self.next_seq() {
            return Err(ChainError::Sequence { expected: self.next_seq(), found: record.seq });
        }
        if record.prev != HEXLOWER.encode(&self.last) {
            return Err(ChainError::Previous);
        }
        if self.milliseconds_back(record.event_date).is_some() && record.clock_set_back_ms.is_none() {
            return Err(ChainError::Clock);
        }
        *self = self.after(line, record.event_date);
        Ok(record)
    }

    /// Returns whether `next` has the hash of `line`.
    pub(super) fn is_followed_by(line: &[u8], next: &[u8]) -> bool {
        parse(next).is_ok_and(|next| next.prev == HEXLOWER.encode(&hash(&[line])))
    }

    /// Returns the state before the first line of a file, as this line states it.
    pub(super) fn resume(line: &[u8]) -> Result<Self, ChainError> {
        let record = parse(line)?;
        if record.seq == 0 {
            return Ok(Self::default());
        }
        let subtrees = record.event_data.get("subtrees").and_then(Value::as_array).ok_or(ChainError::Continuation)?;
        let hashes: Option<Vec<Sha256>> = subtrees.iter().map(|root| decode(root.as_str()?)).collect();
        let tree = hashes.and_then(|hashes| Tree::resume(record.seq, hashes)).ok_or(ChainError::Continuation)?;
        let last = decode(&record.prev).ok_or(ChainError::Continuation)?;
        let is_continuation = record.event_type == AUDIT_CONTINUED.name;
        is_continuation.then_some(Self { tree, last, last_date: None }).ok_or(ChainError::Continuation)
    }
}

fn parse(line: &[u8]) -> Result<Record, ChainError> {
    serde_json::from_slice(line).map_err(|error| ChainError::Malformed(error.to_string()))
}

fn decode(digits: &str) -> Option<Sha256> {
    HEXLOWER.decode(digits.as_bytes()).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;

    use super::*;
    use crate::audit::record::PROCESS_STARTED;

    fn at(second: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + second.seconds()
    }

    fn event(second: i64) -> Event {
        Event::new(PROCESS_STARTED, "outgate", at(second), "started")
    }

    #[test]
    fn chain_of_a_file_continues_from_its_first_record_alone() {
        let (_, chain) = Chain::default().extend("log", event(1)).unwrap();
        let (_, chain) = chain.extend("log", event(2)).unwrap();
        let (first, chain) = chain.extend("log", chain.continuation("log.2", at(3))).unwrap();
        let (second, chain) = chain.extend("log", event(4)).unwrap();
        let mut resumed = Chain::resume(&first).unwrap();
        assert_eq!(resumed.next_seq(), 2);
        assert_eq!(resumed.verify(&first).unwrap().event_type, "audit.continued");
        assert_eq!(resumed.verify(&second).unwrap().seq, 3);
        assert!(resumed.is_same(&chain));
        assert_eq!(Chain::resume(&second).unwrap_err(), ChainError::Continuation);
    }

    #[test]
    fn record_states_by_how_much_the_clock_was_set_back() {
        let (first, chain) = Chain::default().extend("log", event(100)).unwrap();
        let (second, _) = chain.extend("log", event(40)).unwrap();
        let mut verified = Chain::default();
        verified.verify(&first).unwrap();
        let record = verified.clone().verify(&second).unwrap();
        assert_eq!((record.seq, record.clock_set_back_ms), (1, Some(60_000)));
        let silent = Record { clock_set_back_ms: None, ..record };
        assert_eq!(verified.verify(&serde_json::to_vec(&silent).unwrap()), Err(ChainError::Clock));
    }
}
