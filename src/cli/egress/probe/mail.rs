//! The text that asks a customer to allow addresses. It claims no more than the probe measured.
//! What must a customer allow, until when, and why do we think so?

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::measurement::{Answer, Measurement, RangeToAllow};
use super::verdict::ProbedTarget;
use crate::names::{Target, join_first, pluralize};
use crate::policy::egress::allow_list_gap::LISTED_MAX;
use crate::policy::egress::list::rfc3339;

/// The message to one customer, about all its targets.
pub(super) struct Message<'a> {
    pub customer: &'a str,
    /// Mail addresses with commas between them.
    pub contact: Option<String>,
    pub subject: String,
    pub body: String,
}

impl Message<'_> {
    /// Returns the message with its header (RFC 5322), as `sendmail -t` reads it.
    pub(super) fn to_mail(&self) -> String {
        let to = self.contact.as_ref().map(|contact| format!("To: {contact}\n")).unwrap_or_default();
        let mime = "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit";
        format!("{to}Subject: {}\n{mime}\n\n{}", self.subject, self.body)
    }
}

/// Returns a message for each customer whose allow-list probably lacks addresses.
pub(super) fn messages<'a>(
    results: &'a [ProbedTarget],
    sender: Option<&str>,
    list_url: Option<&str>,
) -> Vec<Message<'a>> {
    let mut customers: BTreeMap<_, Vec<&ProbedTarget>> = BTreeMap::new();
    for result in results.iter().filter(|result| result.verdict.concerns_customer()) {
        customers.entry(result.listed.customer.as_str()).or_default().push(result);
    }
    // A row of the customer may have the contact that another one lacks.
    let mut contacts: BTreeMap<_, BTreeSet<&str>> = BTreeMap::new();
    for ProbedTarget { listed, .. } in results {
        contacts.entry(listed.customer.as_str()).or_default().extend(listed.contact.as_deref());
    }
    let message = |(customer, mut targets): (_, Vec<&'a ProbedTarget>)| {
        let contacts: Vec<&str> = contacts.get(customer).into_iter().flatten().copied().collect();
        let contact = Some(contacts.join(", ")).filter(|contact| !contact.is_empty());
        targets.sort_by_key(|result| result.listed.target.to_string());
        targets.dedup_by_key(|result| &result.listed.target);
        let others = match targets.len() {
            1 => String::new(),
            count => format!(" and {}", pluralize(count - 1, "other")),
        };
        let subject = format!("Please allow our source addresses: {}{others}", targets[0].listed.target);
        Message { customer, contact, subject, body: body(customer, &targets, sender, list_url) }
    };
    customers.into_iter().map(message).collect()
}

fn body(customer: &str, targets: &[&ProbedTarget], sender: Option<&str>, list_url: Option<&str>) -> String {
    let from = match sender {
        Some(sender) => format!("{sender} sends webhooks to your servers from fixed source addresses."),
        None => "your servers receive our webhooks from fixed source addresses.".to_owned(),
    };
    let mut text = format!("Hello {customer},\n\n{from}\nYour allow-list probably lacks some of them.\n");
    // The targets of one customer may have different pools.
    let mut by_ranges: BTreeMap<&[RangeToAllow], Vec<&Target>> = BTreeMap::new();
    for result in targets {
        by_ranges.entry(&result.allow).or_default().push(&result.listed.target);
    }
    by_ranges.iter().for_each(|(allow, targets)| ask(&mut text, targets, allow));
    text.push_str("\nKeep the addresses that you allow already.\n\nWhat we measured:\n");
    for result in targets {
        let at = result.measured.as_ref().map(|measured| rfc3339(measured.at)).unwrap_or_default();
        let _ = writeln!(text, "\n  {} at {at}", result.listed.target);
        // A failure that is probably our own is none of the customer's business.
        let is_evidence = |found: &&Measurement| found.lacking || found.answer == Answer::Answered;
        for found in result.measurements().iter().filter(is_evidence) {
            let sources = join_first(&found.sources, LISTED_MAX);
            let _ = writeln!(text, "    {}: {} from {sources}", found.target, describe(found));
        }
    }
    text.push_str(
        "\nWe opened connections and sent no webhook. We tried two of the failed connections\nof each range a second time. \
         We cannot see your firewall: if it allows these\naddresses, please look for another cause of the failed connections.\n",
    );
    if let Some(url) = list_url {
        let _ = write!(text, "\nTo verify this message, compare the addresses with our published list:\n{url}\n");
    }
    text
}

/// Appends what a customer must allow for some of its hosts, and until when.
fn ask(text: &mut String, targets: &[&Target], allow: &[RangeToAllow]) {
    text.push_str("\nPlease allow inbound TCP connections to these hosts and ports:\n\n");
    // Writing to a `String` cannot fail.
    for Target { host, port, .. } in targets {
        let _ = writeln!(text, "  {host} port {port}");
    }
    text.push_str("\nfrom these source addresses:\n\n");
    for range in allow {
        let _ = writeln!(text, "  {range}");
    }
    let deadline = match allow.iter().map(|range| range.from).min().flatten() {
        None => "now: we use some of these addresses already, and connections from them failed".to_owned(),
        Some(from) => format!("before {}:\nfrom then on, webhooks come from these addresses, too", rfc3339(from)),
    };
    let _ = writeln!(text, "\nPlease do so {deadline}.");
}

/// Describes a result for a reader who does not know outgate's codes.
fn describe(found: &Measurement) -> &'static str {
    match found.result {
        _ if found.answer == Answer::Answered => "answered connections",
        "connect_timeout" => "no answer in time to connections",
        "connect_refused" => "refused connections",
        "connect_unreachable" => "reported as unreachable: connections",
        "connection_lost" => "accepted and then closed connections",
        _ => "not established: connections",
    }
}
