//! The report about many targets, as text, JSON and CSV.
//! Which customers have not allowed the new range?

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::mail::Message;
use super::measurement::{ProbedTarget, RangeToAllow, Verdict};
use crate::names::{escape_control_characters, pluralize};
use crate::policy::egress::list::rfc3339;

const COLUMNS: [&str; 14] = [
    "line",
    "customer",
    "contact",
    "target",
    "pool",
    "verdict",
    "new_connections",
    "new_answered",
    "active_connections",
    "active_answered",
    "lacking",
    "allow",
    "detail",
    "probed_at",
];

/// The results of all targets, in the order of the file.
pub(super) struct BulkReport<'a> {
    pub started: Timestamp,
    pub ended: Timestamp,
    pub new: BTreeSet<RangeToAllow>,
    /// The new ranges of which this host lacks addresses. A verdict does not hold for these addresses.
    pub incomplete: BTreeSet<IpNet>,
    pub results: &'a [ProbedTarget],
    pub messages: &'a [Message<'a>],
}

impl BulkReport<'_> {
    fn by_verdict(&self) -> BTreeMap<Verdict, Vec<&ProbedTarget>> {
        let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for result in self.results {
            groups.entry(result.outcome.verdict).or_default().push(result);
        }
        groups
    }

    pub(super) fn to_text(&self) -> String {
        let (count, groups) = (self.results.len(), self.by_verdict());
        let (started, ended) = (rfc3339(self.started), rfc3339(self.ended));
        let mut lines = vec![format!("{}, probed from {started} to {ended}", pluralize(count, "target"))];
        lines.push(match self.new.is_empty() {
            true => "no range is new: the active addresses were compared".to_owned(),
            false => format!("new: {}", join(&self.new, ", ")),
        });
        if !self.incomplete.is_empty() {
            let ranges = join(&self.incomplete, ", ");
            lines.push(format!("not probed: addresses of {ranges} that this host lacks; assign them first"));
        }
        lines.push(String::new());
        for (verdict, results) in &groups {
            let (name, meaning) = verdict.words();
            lines.push(format!("{:>6}  {name:<20} {meaning}", results.len()));
        }
        for (verdict, results) in groups.iter().filter(|(verdict, _)| **verdict != Verdict::Allowed) {
            lines.push(format!("\n{}:", verdict.name()));
            for ProbedTarget { listed, target, outcome, .. } in results {
                let contact = listed.contact.as_ref().map(|contact| format!(" <{contact}>")).unwrap_or_default();
                lines.push(format!("  {}{contact}: {target}: {}", listed.customer, outcome.detail));
                if !outcome.allow.is_empty() {
                    lines.push(format!("    to allow: {}", join(&outcome.allow, ", ")));
                }
            }
        }
        escape_control_characters(&(lines.join("\n") + "\n"))
    }

    pub(super) fn to_json(&self) -> Value {
        let target = |result: &ProbedTarget| {
            let ProbedTarget { listed, target, outcome } = result;
            json!({
                "line": listed.line,
                "customer": listed.customer,
                "contact": listed.contact,
                "target": target,
                "pool": outcome.pool,
                "verdict": outcome.verdict.name(),
                "detail": outcome.detail,
                "lacking": outcome.lacking(),
                "allow": outcome.allow,
                "probed_at": outcome.at.map(rfc3339),
                "results": outcome.measurements,
            })
        };
        let message = |message: &Message<'_>| {
            let Message { customer, contact, subject, body } = message;
            json!({ "customer": customer, "contact": contact, "subject": subject, "body": body })
        };
        let summary: BTreeMap<_, _> =
            self.by_verdict().into_iter().map(|(verdict, results)| (verdict.name(), results.len())).collect();
        json!({
            "started": rfc3339(self.started),
            "ended": rfc3339(self.ended),
            "new": self.new,
            "incomplete": self.incomplete,
            "summary": summary,
            "targets": self.results.iter().map(target).collect::<Vec<_>>(),
            "messages": self.messages.iter().map(message).collect::<Vec<_>>(),
        })
    }

    /// Returns the results as CSV (RFC 4180), one row for each line of the file.
    pub(super) fn to_csv(&self) -> String {
        let row = |result: &ProbedTarget| {
            let ProbedTarget { listed, target, outcome } = result;
            let [new, active] = [true, false].map(|new| outcome.counts(new));
            let cells: [String; COLUMNS.len()] = [
                listed.line.to_string(),
                listed.customer.clone(),
                listed.contact.clone().unwrap_or_default(),
                target.clone(),
                outcome.pool.clone().unwrap_or_default(),
                outcome.verdict.name().to_owned(),
                new.0.to_string(),
                new.1.to_string(),
                active.0.to_string(),
                active.1.to_string(),
                join(outcome.lacking(), " "),
                join(outcome.allow.iter().map(|range| range.cidr), " "),
                outcome.detail.clone(),
                outcome.at.map(rfc3339).unwrap_or_default(),
            ];
            cells.map(|cell| csv_cell(&cell)).join(",") + "\r\n"
        };
        COLUMNS.join(",") + "\r\n" + &self.results.iter().map(row).collect::<String>()
    }
}

/// Returns a quoted cell. A spreadsheet takes a cell that begins with one of these characters for a formula, so an
/// apostrophe precedes it.
fn csv_cell(text: &str) -> String {
    let guard = if text.trim_start().starts_with(['=', '+', '-', '@']) { "'" } else { "" };
    format!("\"{guard}{}\"", escape_control_characters(text).replace('"', "\"\""))
}

fn join(items: impl IntoIterator<Item = impl ToString>, separator: &str) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(separator)
}
