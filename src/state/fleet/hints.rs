//! Reports of other instances about targets: open circuits, and source addresses that a target does not answer.
//! Has another instance of the fleet had trouble with this target?
//!
//! A report is a hint and no verdict. It ends a few seconds after its instance has repeated it for the last time.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use data_encoding::HEXLOWER;

use super::Fleet;
use crate::digest::Fingerprint;
use crate::names::{Host, PoolName, Target};
use crate::net::store::script;

/// How often an instance reports its hints and reads those of the others.
pub const HINT_INTERVAL: Duration = Duration::from_secs(2);
const HINT_LEASE_MS: usize = 6_000;
/// The number of hints that one instance reports: the open circuits first.
pub const OWN_HINTS_MAX: usize = 64;
/// The number of hints that the store keeps and that an instance reads.
const HINTS_MAX: usize = 512;
/// The longest hint, in bytes.
const HINT_MAX: usize = 256;

/// One report. In the store it is a line with the hash of the target, the source and the instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The hash by which instances know the target.
    pub target: String,
    /// The source that the target does not answer. `None`: the circuit of the target is open.
    pub source: Option<IpAddr>,
    pub instance: String,
}

/// The hints of the other instances by target.
pub type Hints = HashMap<String, Vec<Hint>>;

/// Returns the hash of a target: from one pool for a circuit, and from all pools for a gap.
fn hash(host: &Host, port: u16, pool: Option<&PoolName>) -> String {
    let (host, pool) = (host.to_string(), pool.map_or("", PoolName::as_str));
    let parts: [&[u8]; 3] = [host.as_bytes(), &port.to_be_bytes(), pool.as_bytes()];
    HEXLOWER.encode(&Fingerprint::of_parts(parts)[..16])
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.source {
            Some(source) => write!(f, "{} {source} {}", self.target, self.instance),
            None => write!(f, "{} - {}", self.target, self.instance),
        }
    }
}

/// Returns `None` for a line that no instance writes.
fn parse(line: &[u8]) -> Option<Hint> {
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let (target, source, instance) = (words.next()?, words.next()?, words.next()?);
    let source = if source == "-" { None } else { Some(source.parse().ok()?) };
    let is_hash = target.len() == 32 && target.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_name = !instance.is_empty() && instance.bytes().all(|byte| byte.is_ascii_graphic());
    let is_valid = is_hash && is_name && words.next().is_none() && line.len() <= HINT_MAX;
    is_valid.then(|| Hint { target: target.to_owned(), source, instance: instance.to_owned() })
}

impl Fleet {
    /// Returns the hint that the circuit of a target is open.
    pub fn circuit_hint(&self, target: &Target, pool: &PoolName) -> Hint {
        Hint { target: hash(&target.host, target.port, Some(pool)), source: None, instance: self.instance.clone() }
    }

    /// Returns the hint that a target does not answer a source.
    pub fn gap_hint(&self, host: &Host, port: u16, source: IpAddr) -> Hint {
        Hint { target: hash(host, port, None), source: Some(source), instance: self.instance.clone() }
    }

    /// Reports the hints of this instance, and reads those of the others. While the store is away, there are none.
    pub async fn exchange_hints(&self, own: &[Hint]) {
        let mut arguments: Vec<&(dyn fmt::Display + Sync)> = vec![&HINT_LEASE_MS, &HINTS_MAX, &HINT_MAX];
        arguments.extend(own.iter().take(OWN_HINTS_MAX).map(|hint| hint as &(dyn fmt::Display + Sync)));
        let key = self.key("hints");
        let read = async || self.store.run::<Vec<Vec<u8>>>(&script::SHARE_HINTS, &[&key], &arguments).await;
        let lines = if self.is_up() { read().await.unwrap_or_default() } else { Vec::new() };
        let mut hints = Hints::new();
        let others = lines.iter().take(HINTS_MAX).filter_map(|line| parse(line));
        for hint in others.filter(|hint| hint.instance != self.instance) {
            hints.entry(hint.target.clone()).or_default().push(hint);
        }
        self.hints.store(Arc::new(hints));
    }

    pub fn hints(&self) -> Arc<Hints> {
        self.hints.load_full()
    }

    /// Returns the hints of others that the circuit of a target is open.
    pub fn circuit_hints(&self, target: &Target, pool: &PoolName) -> Vec<Hint> {
        self.hints_of(target, Some(pool))
    }

    /// Returns the hints of others about the sources that a target does not answer.
    pub fn gap_hints(&self, target: &Target) -> Vec<Hint> {
        self.hints_of(target, None)
    }

    fn hints_of(&self, target: &Target, pool: Option<&PoolName>) -> Vec<Hint> {
        let hints = self.hints.load();
        // Without hints, which is usual, a delivery computes no hash.
        if hints.is_empty() {
            return Vec::new();
        }
        let found = hints.get(&hash(&target.host, target.port, pool)).into_iter().flatten();
        found.filter(|hint| hint.source.is_none() == pool.is_some()).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fleet_hint_is_read_as_it_was_written_and_other_lines_are_ignored() {
        let host = Host::Name("hook.example".into());
        let target = hash(&host, 443, Some(&PoolName::new("default")));
        assert_ne!(target, hash(&host, 443, None));
        for source in [None, Some("198.51.100.18".parse().unwrap()), Some("2001:db8::1".parse().unwrap())] {
            let hint = Hint { target: target.clone(), source, instance: "egress-1".to_owned() };
            assert!(!hint.to_string().contains("hook.example"));
            assert_eq!(parse(hint.to_string().as_bytes()), Some(hint));
        }
        let long = format!("{target} - {}", "n".repeat(HINT_MAX));
        for line in ["", "- - -", &format!("{target} -"), &format!("{target} x egress-1"), &long] {
            assert_eq!(parse(line.as_bytes()), None, "{line}");
        }
        for more in ["egress-1 x", "", "egress\n1", "\u{e9}"] {
            assert_eq!(parse(format!("{target} - {more}").as_bytes()), None, "{more:?}");
        }
        assert_eq!(parse(b"\xff - egress-1"), None);
    }
}
