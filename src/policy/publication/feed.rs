//! The feeds of changes: Atom (RFC 4287) and JSON Feed 1.1.
//! Which ranges begin or end, and when?

use std::collections::BTreeMap;

use ipnet::IpNet;
use jiff::Timestamp;
use maud::{Markup, PreEscaped, html};
use serde_json::json;

use super::{ATOM, JSON_FEED, title};
use crate::digest::Fingerprint;
use crate::names::PoolName;
use crate::policy::egress::list::{EgressList, rfc3339};

/// Ranges of a pool that begin or end at one time.
pub(super) struct Entry {
    pub(super) pool: PoolName,
    pub(super) at: Timestamp,
    pub(super) begins: bool,
    pub(super) cidrs: Vec<IpNet>,
    /// The time of the announcement, or of the change itself if it has passed.
    updated: Timestamp,
}

impl Entry {
    pub(super) fn title(&self) -> String {
        let (count, pool) = (crate::names::pluralize(self.cidrs.len() as u128, "range"), &self.pool);
        let verb = if self.begins { "come from" } else { "no longer come from" };
        format!("From {}, webhooks of pool {pool} {verb} {count}", rfc3339(self.at))
    }

    fn text(&self) -> String {
        let cidrs = self.cidrs.iter().map(IpNet::to_string).collect::<Vec<_>>().join("\n");
        let action =
            if self.begins { "Allow these addresses before this time." } else { "Remove them after this time." };
        format!("{}. {action}\n{cidrs}\n", self.title())
    }

    /// Returns an id that stays the same when the ranges of the entry change.
    fn id(&self) -> String {
        let kind = if self.begins { "from" } else { "until" };
        uuid(&[self.pool.as_str(), kind, &rfc3339(self.at)])
    }
}

/// Returns the dated changes of the list, the latest first.
pub(super) fn entries(list: &EgressList) -> Vec<Entry> {
    let mut changes: BTreeMap<_, Vec<IpNet>> = BTreeMap::new();
    for range in &list.ranges {
        for (time, begins) in [(range.from, true), (range.until, false)] {
            if let Some(time) = time {
                changes.entry((time, &range.pool, begins)).or_default().push(range.cidr);
            }
        }
    }
    let entry = |((at, pool, begins), cidrs): ((Timestamp, &PoolName, bool), Vec<IpNet>)| Entry {
        pool: pool.clone(),
        at,
        begins,
        cidrs: IpNet::aggregate(&cidrs),
        updated: at.min(list.configured_at),
    };
    changes.into_iter().rev().map(entry).collect()
}

/// Returns a UUID of version 8 (RFC 9562 §5.8), a hash of the parts.
fn uuid(parts: &[&str]) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&Fingerprint::of_parts(parts.iter().map(|part| part.as_bytes()))[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = data_encoding::HEXLOWER.encode(&bytes);
    format!("urn:uuid:{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

pub(super) fn atom(origin: &str, list: &EgressList, entries: &[Entry]) -> String {
    let entry = |entry: &Entry| -> Markup {
        html! {
            entry {
                id { (entry.id()) }
                title { (entry.title()) }
                updated { (rfc3339(entry.updated)) }
                content type="text" { (entry.text()) }
            }
        }
    };
    let feed = html! {
        (PreEscaped("<?xml version=\"1.0\" encoding=\"utf-8\"?>\n"))
        feed xmlns="http://www.w3.org/2005/Atom" {
            id { (uuid(&[origin])) }
            title { (title(origin)) }
            updated { (list.date()) }
            author { name { (origin) } }
            (PreEscaped(format!("<link rel=\"self\" href=\"{ATOM}\"/>")))
            @for change in entries { (entry(change)) }
        }
    };
    feed.into_string()
}

pub(super) fn json(origin: &str, list: &EgressList, entries: &[Entry]) -> String {
    let item = |entry: &Entry| {
        json!({
            "id": entry.id(), "title": entry.title(), "content_text": entry.text(),
            "date_modified": rfc3339(entry.updated),
            "_egress": {
                "pool": entry.pool.as_str(), "change": if entry.begins { "from" } else { "until" }, "at": rfc3339(entry.at),
                "cidrs": entry.cidrs.iter().map(IpNet::to_string).collect::<Vec<_>>(),
            },
        })
    };
    let feed = json!({
        "version": "https://jsonfeed.org/version/1.1", "title": title(origin),
        "_egress": { "serial": list.serial(), "self": JSON_FEED },
        "items": entries.iter().map(item).collect::<Vec<_>>(),
    });
    format!("{feed:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(begins: bool) -> Entry {
        let at = "2026-12-01T00:00:00Z".parse().unwrap();
        let cidrs = ["192.0.2.0/28", "198.51.100.0/24"].map(|cidr| cidr.parse().unwrap()).into();
        Entry { pool: PoolName::new("default"), at, begins, cidrs, updated: at }
    }

    #[test]
    fn feed_entry_says_what_to_do_with_which_addresses() {
        let (begins, ends) = (entry(true), entry(false));
        assert_eq!(begins.title(), "From 2026-12-01T00:00:00Z, webhooks of pool default come from 2 ranges");
        assert_eq!(
            begins.text(),
            "From 2026-12-01T00:00:00Z, webhooks of pool default come from 2 ranges. Allow these addresses before this \
             time.\n192.0.2.0/28\n198.51.100.0/24\n"
        );
        assert!(ends.text().contains("no longer come from 2 ranges. Remove them after this time.\n192.0.2.0/28"));
        // The id stays the same when the ranges change, and differs between the beginning and the end.
        assert_eq!(Entry { cidrs: Vec::new(), ..entry(true) }.id(), begins.id());
        assert_ne!(begins.id(), ends.id());
    }

    #[test]
    fn feed_id_is_a_uuid_of_version_8_that_depends_on_each_part() {
        let mut ids = std::collections::BTreeSet::new();
        for number in 0..64 {
            let id = uuid(&["pool", "from", &number.to_string()]);
            let hex = id.strip_prefix("urn:uuid:").unwrap();
            let groups: Vec<usize> = hex.split('-').map(str::len).collect();
            assert_eq!(groups, [8, 4, 4, 4, 12], "{id}");
            // The version and the variant (RFC 9562 §4.1, §4.2).
            assert!(hex[14..].starts_with('8') && hex[19..].starts_with(['8', '9', 'a', 'b']), "{id}");
            ids.insert(id);
        }
        assert_eq!(ids.len(), 64);
        // The other bits of both bytes are the hash's.
        let digits =
            |at: usize| ids.iter().map(|id| id.as_bytes()[at]).collect::<std::collections::BTreeSet<_>>().len();
        assert_eq!((digits("urn:uuid:".len() + 14), digits("urn:uuid:".len() + 19)), (1, 4));
        assert!(digits("urn:uuid:".len() + 15) > 8 && digits("urn:uuid:".len() + 20) > 8);
        assert_ne!(uuid(&["a", "bc"]), uuid(&["ab", "c"]));
    }
}
