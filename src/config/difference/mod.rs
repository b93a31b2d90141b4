//! What differs between two configurations, in words: by section, name and key, whatever the keys are.
//! What would change?
//!
//! The trees of TOML are compared, not what was made of them: so no key can be forgotten here.

mod node;
mod referenced;

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::SourceSnapshot;
use node::{Document, Node};

/// Changes that are told one by one: nobody reads more.
const CHANGES_MAX: usize = 100;
/// What is decided when the process starts.
const AT_START: [&str; 3] = ["server.reuse_port", "server.workers", "server.state"];
/// Their elements are listeners, of which those that systemd passes are passed once.
const LISTENERS: [&str; 2] = ["server.listen", "admin.listen"];
const RESTART: &str = " (takes effect at the next restart)";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// One a line: `routes.acme: egress "default" → "eu"`.
    pub changes: Vec<String>,
    /// How many more there are.
    pub more: usize,
}

impl Difference {
    /// Between what is written; white space, comments and order are none.
    pub fn between(before: &SourceSnapshot, after: &SourceSnapshot) -> Self {
        let mut difference = Self::default();
        // Borrowed: nothing is copied of a configuration with a hundred thousand routes.
        let texts = (own_texts(before, after), own_texts(after, before));
        difference.compare(&KeyPath::default(), Node::of_files(&texts.0), Node::of_files(&texts.1));
        referenced::compare(before, after, &mut difference);
        difference
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    fn tell(&mut self, change: impl FnOnce() -> String) {
        if self.changes.len() < CHANGES_MAX {
            self.changes.push(change());
        } else {
            self.more += 1;
        }
    }

    fn compare(&mut self, place: &KeyPath, before: Node<'_>, after: Node<'_>) {
        if let (Some(before), Some(after)) = (before.members(), after.members()) {
            self.compare_members(place, before, after);
        } else if let (Some(before), Some(after)) = (before.elements(), after.elements()) {
            self.compare_elements(place, &before, &after);
        } else if !before.same(&after) {
            self.tell(|| format!("{place} {before} → {after}{}", place.restart("")));
        }
    }

    fn compare_members<'a>(
        &mut self,
        path: &KeyPath,
        mut before: BTreeMap<&'a str, Node<'a>>,
        after: BTreeMap<&'a str, Node<'a>>,
    ) {
        // In the order of the names, whichever side they are of.
        let mut sides: BTreeMap<&str, (Option<Node<'_>>, Option<Node<'_>>)> = BTreeMap::new();
        for (name, after) in after {
            let before = before.remove(name);
            if !before.as_ref().is_some_and(|before| before.same(&after)) {
                sides.insert(name, (before, Some(after)));
            }
        }
        sides.extend(before.into_iter().map(|(name, before)| (name, (Some(before), None))));
        for (name, sides) in sides {
            let place = path.inside(name);
            let is_table = |node: &Node<'_>| node.members().is_some();
            match sides {
                (Some(before), Some(after)) => self.compare(&place, before, after),
                // A section is not a thing of its own, but its members are.
                (Some(before), None) if place.is_section() && is_table(&before) => {
                    self.compare(&place, before, Node::empty());
                }
                (None, Some(after)) if place.is_section() && is_table(&after) => {
                    self.compare(&place, Node::empty(), after);
                }
                (Some(before), None) if is_table(&before) => self.tell(|| format!("{}: removed", place.full())),
                (None, Some(after)) if is_table(&after) => self.tell(|| format!("{}: added: {after}", place.full())),
                (Some(node), None) => self.tell(|| format!("{place} {node} removed{}", place.restart(""))),
                (None, Some(node)) => self.tell(|| format!("{place} {node} added{}", place.restart(""))),
                (None, None) => {}
            }
        }
    }

    /// Lists are sets to a reader; what is only in another order is said to be that.
    fn compare_elements(&mut self, place: &KeyPath, before: &[Node<'_>], after: &[Node<'_>]) {
        // By their spelling, for there may be many of them.
        let mut unmatched: HashMap<String, usize> = HashMap::new();
        for element in before {
            *unmatched.entry(element.spelled()).or_default() += 1;
        }
        let mut take = |element: &&Node<'_>| match unmatched.get_mut(&element.spelled()) {
            Some(count) if *count > 0 => {
                *count -= 1;
                true
            }
            _ => false,
        };
        let added: Vec<_> = after.iter().filter(|element| !take(element)).collect();
        let removed: Vec<_> = before.iter().filter(take).collect();
        if removed.is_empty() && added.is_empty() {
            return self.tell(|| format!("{place} in another order"));
        }
        let removed = removed.into_iter().map(|element| (element, "removed"));
        for (element, what) in removed.chain(added.into_iter().map(|element| (element, "added"))) {
            self.tell(|| {
                let element = element.to_string();
                format!("{place} {element} {what}{}", place.restart(&element))
            });
        }
    }
}

/// A file whose text is the same on the other side says the same.
fn own_texts<'a>(written: &'a SourceSnapshot, other: &SourceSnapshot) -> Vec<Document<'a>> {
    let others: HashMap<_, _> = other.texts.iter().map(|(path, text)| (path, text)).collect();
    let own = written.texts.iter().filter(|(path, text)| others.get(path) != Some(&text));
    own.map(|(path, text)| Document::new(path, text)).collect()
}

/// Where something stands: the key `egress` of `routes.acme`.
#[derive(Default)]
struct KeyPath {
    table: String,
    key: String,
}

impl KeyPath {
    fn inside(&self, name: &str) -> Self {
        Self { table: self.full(), key: name.to_owned() }
    }
    fn full(&self) -> String {
        if self.table.is_empty() { self.key.clone() } else { format!("{}.{}", self.table, self.key) }
    }
    fn is_section(&self) -> bool {
        self.table.is_empty()
    }

    fn restart(&self, element: &str) -> &'static str {
        let full = self.full();
        let is_passed = LISTENERS.contains(&full.as_str()) && element == "\"systemd\"";
        if AT_START.contains(&full.as_str()) || is_passed { RESTART } else { "" }
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_section() { write!(f, "{}:", self.key) } else { write!(f, "{}: {}", self.table, self.key) }
    }
}

impl fmt::Display for Difference {
    /// One a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for change in &self.changes {
            writeln!(f, "{change}")?;
        }
        match self.more {
            0 => Ok(()),
            more => writeln!(f, "and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests;
