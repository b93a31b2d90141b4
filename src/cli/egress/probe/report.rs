//! The report about many targets, as text, JSON and CSV.
//! Which customers have not allowed the new range?

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::mail::Message;
use super::measurement::{Measured, RangeToAllow};
use super::verdict::{ProbedTarget, Verdict};
use crate::cli::json_number;
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
    pub new: Vec<RangeToAllow>,
    /// The new ranges of which this host lacks addresses. A verdict does not hold for these addresses.
    pub incomplete: BTreeSet<IpNet>,
    pub results: &'a [ProbedTarget],
    pub messages: &'a [Message<'a>],
}

impl BulkReport<'_> {
    fn by_verdict(&self) -> BTreeMap<Verdict, Vec<&ProbedTarget>> {
        let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for result in self.results {
            groups.entry(result.verdict).or_default().push(result);
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
        lines.push(
            "not tested: rules that a web server or an application firewall (WAF) applies to a request".to_owned(),
        );
        lines.push(String::new());
        for (verdict, results) in &groups {
            let (name, meaning) = verdict.words();
            lines.push(format!("{:>6}  {name:<20} {meaning}", results.len()));
        }
        for (verdict, results) in groups.iter().filter(|(verdict, _)| **verdict != Verdict::Allowed) {
            lines.push(format!("\n{}:", verdict.name()));
            for ProbedTarget { listed, detail, allow, .. } in results {
                let contact = listed.contact.as_ref().map(|contact| format!(" <{contact}>")).unwrap_or_default();
                lines.push(format!("  {}{contact}: {}: {detail}", listed.customer, listed.target));
                if !allow.is_empty() {
                    lines.push(format!("    to allow: {}", join(allow, ", ")));
                }
            }
        }
        escape_control_characters(&(lines.join("\n") + "\n"))
    }

    pub(super) fn to_json(&self) -> Value {
        let target = |result: &ProbedTarget| {
            let ProbedTarget { listed, verdict, detail, allow, measured } = result;
            let measured = measured.as_ref();
            json!({
                "line": listed.line,
                "customer": listed.customer,
                "contact": listed.contact,
                "target": listed.target.to_string(),
                "pool": measured.map(|measured| &measured.pool),
                "verdict": verdict.name(),
                "detail": detail,
                "lacking": measured.map(Measured::lacking).unwrap_or_default(),
                "allow": allow,
                "probed": measured.map(|measured| measured.probed),
                "usable": measured.map(|measured| json_number(measured.usable)),
                "probed_at": measured.map(|measured| rfc3339(measured.at)),
                "results": result.measurements(),
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
            let ProbedTarget { listed, verdict, detail, allow, measured } = result;
            let measured = measured.as_ref();
            let [new, active] =
                [true, false].map(|new| measured.map(|measured| measured.counts(new)).unwrap_or_default());
            let cells: [String; COLUMNS.len()] = [
                listed.line.to_string(),
                listed.customer.clone(),
                listed.contact.clone().unwrap_or_default(),
                listed.target.to_string(),
                measured.map(|measured| measured.pool.clone()).unwrap_or_default(),
                verdict.name().to_owned(),
                new.0.to_string(),
                new.1.to_string(),
                active.0.to_string(),
                active.1.to_string(),
                join(measured.map(Measured::lacking).unwrap_or_default(), " "),
                join(allow.iter().map(|range| range.cidr), " "),
                detail.clone(),
                measured.map(|measured| rfc3339(measured.at)).unwrap_or_default(),
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
