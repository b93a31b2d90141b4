//! The actions that a change of ranges requires from customers, with their deadlines.
//! What must customers' firewall teams do before, and what may they do after?

use std::collections::BTreeMap;

use ipnet::IpNet;
use jiff::Timestamp;

use super::cover::Cover;
use super::notice::sent_ranges;
use super::{AnnouncedRange, Pool, Pools};
use crate::names::PoolName;

/// A range that webhooks leave from, now or later. `None`: it has begun; no end is planned.
struct SentRange {
    pool: PoolName,
    from: Option<Timestamp>,
    until: Option<Timestamp>,
}

type SentRanges = BTreeMap<IpNet, SentRange>;

/// Returns one sentence for each action. An address that another pool takes over needs none. `has_fleet`: other hosts have
/// ranges that this one does not know.
pub fn customer_actions(before: &Pools, after: &Pools, has_fleet: bool, now: Timestamp) -> Vec<String> {
    let sent = |pools: &Pools| -> SentRanges {
        let ranges = pools.values().flat_map(|pool| sent_ranges(pool, now));
        let dated = |(pool, range): (&Pool, AnnouncedRange)| {
            let from = range.from.filter(|from| now < *from);
            (range.seen_as, SentRange { pool: pool.name().clone(), from, until: range.until })
        };
        ranges.map(dated).collect()
    };
    actions(&sent(before), &sent(after), has_fleet)
}

fn actions(before: &SentRanges, after: &SentRanges, has_fleet: bool) -> Vec<String> {
    let (mut actions, every) = (Vec::new(), |_: &SentRange| true);
    let mut add = |pool: &PoolName, action: String| actions.push(format!("egress.{pool}: {action}"));
    for (cidr, SentRange { pool, from, until }) in after {
        let former = Cover::of(before, cidr, &every);
        let has_all = former.missing.is_empty();
        let last_start = former.entries.iter().map(|range| range.from).max().flatten();
        match from {
            Some(from) if !has_all || last_start != Some(*from) => {
                add(pool, format!("customers must allow {cidr} before {from}"));
            }
            None if !has_all || last_start.is_some() => add(pool, format!("customers must allow {cidr} at once")),
            _ => {}
        }
        let first_end = former.entries.iter().filter_map(|range| range.until).min();
        match until {
            Some(until) if first_end != Some(*until) => add(pool, format!("customers may remove {cidr} after {until}")),
            None => {
                let end = first_end.map(|end| format!("customers must keep {cidr}: it does not end on {end}"));
                end.into_iter().for_each(|action| add(pool, action));
            }
            _ => {}
        }
    }
    for (cidr, SentRange { pool, .. }) in before {
        for part in Cover::of(after, cidr, &every).missing {
            let action = match has_fleet {
                false => format!("customers may remove {part}: no new connection leaves from it"),
                true => format!(
                    "customers may remove {part} if no instance of the fleet lists it (`outgate fleet status`): no new \
                     connection of this one leaves from it"
                ),
            };
            add(pool, action);
        }
    }
    actions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_of_a_range_is_an_action_with_its_deadline() {
        let at = |day: i64| Timestamp::from_second(day * 86_400).unwrap();
        let sent = |ranges: &[(&str, &str, Option<i64>, Option<i64>)]| -> SentRanges {
            let range = |pool: &str, from: Option<i64>, until: Option<i64>| SentRange {
                pool: PoolName::new(pool),
                from: from.map(at),
                until: until.map(at),
            };
            ranges.iter().map(|(cidr, pool, from, until)| (cidr.parse().unwrap(), range(pool, *from, *until))).collect()
        };
        let before = sent(&[
            ("192.0.2.0/28", "eu", None, None),
            ("192.0.2.16/28", "eu", None, Some(20)),
            ("192.0.2.32/28", "eu", Some(15), None),
            ("192.0.2.64/27", "eu", None, None),
            ("192.0.2.128/28", "eu", None, None),
            ("192.0.2.144/28", "eu", None, None),
            ("192.0.2.160/28", "eu", None, None),
        ]);
        let after = sent(&[
            ("192.0.2.0/28", "eu", None, Some(30)),
            ("192.0.2.16/28", "eu", None, None),
            ("192.0.2.32/28", "eu", Some(12), None),
            ("192.0.2.64/28", "eu", None, None),
            ("192.0.2.128/27", "eu", None, None),
            ("192.0.2.160/28", "us", None, None),
            ("198.51.100.0/28", "eu", Some(24), None),
            ("198.51.100.16/28", "us", None, None),
        ]);
        let expected = [
            "egress.eu: customers may remove 192.0.2.0/28 after 1970-01-31T00:00:00Z",
            "egress.eu: customers must keep 192.0.2.16/28: it does not end on 1970-01-21T00:00:00Z",
            "egress.eu: customers must allow 192.0.2.32/28 before 1970-01-13T00:00:00Z",
            "egress.eu: customers must allow 198.51.100.0/28 before 1970-01-25T00:00:00Z",
            "egress.us: customers must allow 198.51.100.16/28 at once",
            "egress.eu: customers may remove 192.0.2.80/28: no new connection leaves from it",
        ];
        assert_eq!(actions(&before, &after, false), expected);
        assert_eq!(actions(&after, &after, false), Vec::<String>::new());
        let in_fleet = "egress.eu: customers may remove 192.0.2.80/28 if no instance of the fleet lists it \
                        (`outgate fleet status`): no new connection of this one leaves from it";
        let [others @ .., _] = expected;
        assert_eq!(actions(&before, &after, true), [&others[..], &[in_fleet]].concat());
    }
}
