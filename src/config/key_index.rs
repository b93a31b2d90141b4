//! An index of a file's keys by offset, for problems that are found after parsing.
//! Which key is at this offset?

use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// The most containers that a lookup examines: those that end before the offset are skipped.
const NESTING_STEPS_MAX: usize = 64;

/// The dotted paths of keys, with the spans of the keys and of their values.
pub(super) struct KeyIndex {
    paths: Vec<String>,
    /// Sorted by start; the spans do not overlap.
    leaves: Vec<(Range<usize>, usize)>,
    /// The spans of values that contain tables, sorted by start.
    containers: Vec<(Range<usize>, usize)>,
}

impl KeyIndex {
    pub(super) fn parse(text: &str) -> Self {
        let mut index = Self { paths: Vec::new(), leaves: Vec::new(), containers: Vec::new() };
        index.add(DeTable::parse_recoverable(text).0.get_ref(), "");
        index.leaves.sort_by_key(|(span, _)| span.start);
        index.containers.sort_by_key(|(span, _)| span.start);
        index
    }

    /// Returns the path of the innermost key whose name or value is at `offset`.
    pub(super) fn key_at(&self, offset: usize) -> Option<&str> {
        let find = |spans: &[(Range<usize>, usize)]| {
            let before = spans.partition_point(|(span, _)| span.start <= offset);
            let found = spans[..before].iter().rev().take(NESTING_STEPS_MAX).find(|(span, _)| span.contains(&offset));
            found.map(|(_, path)| self.paths[*path].as_str())
        };
        find(&self.leaves).or_else(|| find(&self.containers))
    }

    fn add(&mut self, table: &DeTable<'_>, prefix: &str) {
        for (key, value) in table {
            let path = match prefix {
                "" => key.get_ref().to_string(),
                above => format!("{above}.{}", key.get_ref()),
            };
            let number = self.paths.len();
            self.paths.push(path.clone());
            self.leaves.push((key.span(), number));
            let tables: Vec<&DeTable<'_>> = match value.get_ref() {
                DeValue::Table(table) => vec![table],
                DeValue::Array(array) => array.iter().filter_map(|element| element.get_ref().as_table()).collect(),
                _ => Vec::new(),
            };
            let list = if tables.is_empty() { &mut self.leaves } else { &mut self.containers };
            list.push((value.span(), number));
            tables.into_iter().for_each(|table| self.add(table, &path));
        }
    }
}
