//! The ranges of a table that cover a range, as a whole or in parts.
//! Which table entries have the addresses of this range, and which addresses has no entry?

use std::collections::BTreeMap;

use ipnet::IpNet;

/// The entries with the addresses of a range, and the parts that no entry has.
pub(in crate::policy) struct Cover<'a, T> {
    pub(super) entries: Vec<&'a T>,
    pub(in crate::policy) missing: Vec<IpNet>,
}

impl<'a, T> Cover<'a, T> {
    /// Finds the cover of a range. If two entries contain it, the one with the longer prefix counts.
    pub(in crate::policy) fn of(table: &'a BTreeMap<IpNet, T>, cidr: &IpNet, is_valid: &dyn Fn(&T) -> bool) -> Self {
        let mut cover = Self { entries: Vec::new(), missing: Vec::new() };
        let wider = std::iter::successors(Some(*cidr), IpNet::supernet);
        match wider.filter_map(|net| table.get(&net)).find(|entry| is_valid(entry)) {
            Some(entry) => cover.entries.push(entry),
            None => cover.add_parts(table, cidr, is_valid),
        }
        cover
    }

    /// Adds the parts of a range that no single entry contains.
    fn add_parts(&mut self, table: &'a BTreeMap<IpNet, T>, cidr: &IpNet, is_valid: &dyn Fn(&T) -> bool) {
        if let Some(entry) = table.get(cidr).filter(|entry| is_valid(entry)) {
            return self.entries.push(entry);
        }
        let mut inside = table.range(*cidr..).take_while(|(net, _)| cidr.contains(*net));
        match cidr.subnets(cidr.prefix_len() + 1) {
            Ok(halves) if inside.any(|(_, entry)| is_valid(entry)) => {
                halves.for_each(|half| self.add_parts(table, &half, is_valid));
            }
            _ => self.missing.push(*cidr),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_covered_by_one_entry_or_by_several() {
        let entries = [
            ("198.51.100.0/25", 1),
            ("198.51.100.0/28", 2),
            ("198.51.100.128/26", 3),
            ("198.51.100.192/26", 4),
            ("2001:db8::/48", 5),
        ];
        let table: BTreeMap<IpNet, u32> = entries.iter().map(|(cidr, entry)| (cidr.parse().unwrap(), *entry)).collect();
        let cover = |cidr: &str| {
            let cover = Cover::of(&table, &cidr.parse().unwrap(), &|entry| *entry != 4);
            (
                cover.entries.into_iter().copied().collect::<Vec<_>>(),
                cover.missing.iter().map(ToString::to_string).collect(),
            )
        };
        let none = Vec::<String>::new;
        assert_eq!(cover("198.51.100.64/28"), (vec![1], none()), "a part");
        assert_eq!(cover("198.51.100.4/30"), (vec![2], none()), "a part of two");
        assert_eq!(
            cover("198.51.100.0/24"),
            (vec![1, 3], vec!["198.51.100.192/26".to_owned()]),
            "in parts; one is not valid"
        );
        assert_eq!(cover("203.0.113.0/28"), (vec![], vec!["203.0.113.0/28".to_owned()]));
        assert_eq!(cover("0.0.0.0/0").0, [1, 3]);
        assert_eq!(cover("2001:db8:0:5::/64"), (vec![5], none()));
        assert_eq!(cover("2001:db8::/47"), (vec![5], vec!["2001:db8:1::/48".to_owned()]));
    }
}
