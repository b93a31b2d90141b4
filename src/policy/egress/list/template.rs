//! Templates of text formats: sections of lines with placeholders such as `<cidr>`.
//! Which text does a format have for these CIDRs?
//!
//! A placeholder stands for an address, a number, a time, or a name of letters, digits, hyphens and underscores. So no
//! value has a meaning of its own in any format.

use std::fmt::Write;

use ipnet::IpNet;
use serde::Deserialize;

use super::{EgressList, rfc3339};

/// The lines of one family. All texts are templates; the line also has the placeholders of a CIDR.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    family: Family,
    #[serde(default)]
    open: String,
    line: String,
    /// The text between two lines.
    #[serde(default)]
    separator: String,
    #[serde(default)]
    close: String,
    /// The text of a family without ranges, in place of all others.
    #[serde(default)]
    empty: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Family {
    V4,
    V6,
    All,
}

/// The texts that the placeholders of a list stand for.
struct Placeholders {
    name: String,
    identifier: String,
    serial: String,
    date: String,
    scope: String,
    count: String,
}

/// Expands templates for a list.
pub(super) struct Renderer<'l> {
    list: &'l EgressList,
    placeholders: Placeholders,
    out: String,
}

impl<'l> Renderer<'l> {
    pub(super) fn new(list: &'l EgressList) -> Self {
        let name = list.name();
        let scope =
            list.pool.as_ref().map_or_else(|| "all pools".to_owned(), |pool| format!("pool {}", super::slug(pool)));
        let placeholders = Placeholders {
            identifier: name.replace('-', "_"),
            serial: list.serial().to_string(),
            date: rfc3339(list.changed_at),
            count: list.prefixes.len().to_string(),
            name,
            scope,
        };
        Self { list, placeholders, out: String::new() }
    }

    pub(super) fn finish(self) -> String {
        self.out
    }

    pub(super) fn text(&mut self, template: &str) {
        self.expand(template, None);
    }

    pub(super) fn section(&mut self, section: &Section) {
        let list = self.list;
        let is_selected = |net: &&IpNet| match section.family {
            Family::All => true,
            family => (family == Family::V6) == matches!(net, IpNet::V6(_)),
        };
        let mut nets = list.prefixes.iter().filter(is_selected).peekable();
        if nets.peek().is_none() {
            return self.text(&section.empty);
        }
        self.text(&section.open);
        while let Some(net) = nets.next() {
            self.expand(&section.line, Some(net));
            if nets.peek().is_some() {
                self.out.push_str(&section.separator);
            }
        }
        self.text(&section.close);
    }

    fn expand(&mut self, template: &str, net: Option<&IpNet>) {
        let mut rest = template;
        while let Some((text, (placeholder, after))) =
            rest.split_once('<').and_then(|(text, tail)| Some((text, tail.split_once('>')?)))
        {
            self.out.push_str(text);
            self.placeholder(placeholder, net);
            rest = after;
        }
        self.out.push_str(rest);
    }

    fn placeholder(&mut self, placeholder: &str, net: Option<&IpNet>) {
        let Placeholders { name, identifier, serial, date, scope, count } = &self.placeholders;
        match (placeholder, net) {
            ("name", _) => self.out.push_str(name),
            ("identifier", _) => self.out.push_str(identifier),
            ("serial", _) => self.out.push_str(serial),
            ("date", _) => self.out.push_str(date),
            ("scope", _) => self.out.push_str(scope),
            ("count", _) => self.out.push_str(count),
            (part, Some(net)) => {
                let _ = write_part(&mut self.out, part, net); // a String accepts every write
            }
            (other, None) => debug_assert!(false, "no placeholder <{other}>"),
        }
    }
}

/// Writes a part of a CIDR: `cidr`, `network`, `mask`, or `cisco`, the form of an object group.
fn write_part(out: &mut String, part: &str, net: &IpNet) -> std::fmt::Result {
    let is_host = net.prefix_len() == net.max_prefix_len();
    match (part, net) {
        ("cidr", net) => write!(out, "{net}"),
        ("network", net) => write!(out, "{}", net.network()),
        ("mask", net) => write!(out, "{}", net.netmask()),
        ("cisco", net) if is_host => write!(out, "host {}", net.addr()),
        ("cisco", IpNet::V4(net)) => write!(out, "{} {}", net.network(), net.netmask()),
        ("cisco", IpNet::V6(net)) => write!(out, "{net}"),
        (other, _) => {
            debug_assert!(false, "no placeholder <{other}>");
            Ok(())
        }
    }
}
