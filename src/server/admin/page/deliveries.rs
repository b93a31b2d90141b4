//! The recent deliveries on the status page: one by its request id, the last refusals, and the targets.
//! What happened to this webhook, and which targets fail or are slow?

use std::collections::HashMap;

use maud::{Markup, html};

use super::super::deliveries::recent;
use super::time;
use crate::delivery::{self, Event};
use crate::state::Runtime;
use crate::state::observability::delivery_line::DeliveryLine;

/// Limits the refusals and the targets of each table.
const ROWS_MAX: usize = 10;

/// The deliveries of the ring of recent ones, the newest first.
pub(super) struct Deliveries(Vec<DeliveryLine>);

impl Deliveries {
    pub(super) fn read(runtime: &Runtime) -> Self {
        Self(recent(runtime))
    }

    /// The form for a request id, and the steps of the delivery that it names.
    pub(super) fn by_request_id(&self, request_id: Option<&str>) -> Markup {
        html! {
            section .wide aria-labelledby="delivery" {
                h2 #delivery { "One delivery" }
                form action="/" method="get" {
                    label for="request" { "Request id (" code { "Outgate-Request-Id" } " of the response)" }
                    input #request name="request" type="search" value=[request_id] autocomplete="off" spellcheck="false";
                    button { "Show" }
                }
                @if let Some(request_id) = request_id {
                    @match self.0.iter().find(|delivery| delivery.request_id == request_id) {
                        Some(delivery) => dl .steps {
                            @for Event(step, time, text) in delivery::diagnose(delivery) {
                                dt { (step) }
                                dd { @if let Some(time) = time { (format!("{time:.1} ms ")) } (text) }
                            }
                        },
                        None => p role="status" {
                            "The last " (self.0.len()) " deliveries do not have this request id. "
                            code { "outgate deliveries --request-id" } " reads the files of the delivery log."
                        },
                    }
                }
            }
        }
    }

    pub(super) fn refusals(&self) -> Markup {
        let refusals: Vec<_> = self.0.iter().filter(|delivery| delivery.code != "delivered").take(ROWS_MAX).collect();
        html! {
            section .wide aria-labelledby="refusals" {
                h2 #refusals { "Last deliveries that failed" }
                @if refusals.is_empty() { p { "none of the last " (self.0.len()) } }
                @else {
                    div .scroll tabindex="0" role="group" aria-labelledby="refusals" {
                        table {
                            thead { tr { @for name in ["time", "request id", "tenant", "target", "code", "at fault"] { th scope="col" { (name) } } } }
                            tbody {
                                @for delivery in refusals {
                                    tr {
                                        td { (time(delivery.time)) }
                                        td { a href={ "/?request=" (delivery.request_id) } { (delivery.request_id) } }
                                        td { (delivery.tenant.as_deref().unwrap_or("-")) }
                                        td { (delivery.host.as_deref().unwrap_or("-")) }
                                        td { (delivery.code) @if let Some(details) = &delivery.details { ": " (details) } }
                                        td { (delivery.blame.as_deref().unwrap_or("-")) }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    pub(super) fn targets(&self) -> Markup {
        let mut targets: HashMap<&str, Target> = HashMap::new();
        for delivery in &self.0 {
            // A delivery without a source address never contacted its target.
            let Some(host) = delivery.host.as_deref().filter(|_| delivery.source.is_some()) else { continue };
            let target = targets.entry(host).or_default();
            target.failed += usize::from(delivery.blame.as_deref() == Some("target"));
            target.milliseconds.push(delivery.ms.total);
        }
        let mut targets: Vec<_> = targets.into_iter().collect();
        targets.iter_mut().for_each(|(_, target)| target.milliseconds.sort_by(f64::total_cmp));
        let failing = sorted(&targets, |target| target.failed as f64);
        let slow = sorted(&targets, Target::median);
        html! {
            (table("failing", "Targets that fail most", self.0.len(), &failing))
            (table("slow", "Slowest targets", self.0.len(), &slow))
        }
    }
}

/// The deliveries to one host.
#[derive(Default)]
struct Target {
    failed: usize,
    /// The time of each delivery, sorted.
    milliseconds: Vec<f64>,
}

impl Target {
    fn median(&self) -> f64 {
        self.milliseconds.get(self.milliseconds.len() / 2).copied().unwrap_or_default()
    }
}

/// Returns the targets with the largest values, without those whose value is 0.
fn sorted<'a>(targets: &'a [(&'a str, Target)], value: impl Fn(&Target) -> f64) -> Vec<&'a (&'a str, Target)> {
    let mut largest: Vec<_> = targets.iter().filter(|(_, target)| value(target) > 0.0).collect();
    largest.sort_by(|(host, target), (other_host, other)| {
        value(other).total_cmp(&value(target)).then(host.cmp(other_host))
    });
    largest.truncate(ROWS_MAX);
    largest
}

fn table(id: &str, title: &str, count: usize, targets: &[&(&str, Target)]) -> Markup {
    html! {
        section aria-labelledby=(id) {
            h2 id=(id) { (title) }
            p .muted { "of the last " (count) " deliveries" }
            @if targets.is_empty() { p { "none" } }
            @else {
                table {
                    thead { tr {
                        th scope="col" { "target" }
                        @for name in ["deliveries", "failed", "median ms"] { th .number scope="col" { (name) } }
                    } }
                    tbody {
                        @for (host, target) in targets {
                            tr {
                                th scope="row" { (host) }
                                td .number { (target.milliseconds.len()) }
                                td .number { (target.failed) }
                                td .number { (format!("{:.1}", target.median())) }
                            }
                        }
                    }
                }
            }
        }
    }
}
