//! The section of the fleet on the status page.
//! Which instances are live, and what is wrong with the fleet?

use maud::{Markup, html};

use crate::policy::fleet::status::{InstanceAnnouncement, problems};

/// The instances, as the store of the fleet has them. `None`: there is no fleet, or its store is away.
pub(super) fn section(announcements: Option<&[InstanceAnnouncement]>) -> Markup {
    let Some(announcements) = announcements else { return html! {} };
    html! {
        section .wide aria-labelledby="fleet" {
            h2 #fleet { "Fleet" }
            ul { @for problem in problems(announcements) { li .bad { (problem.what) } } }
            div .scroll tabindex="0" role="group" aria-labelledby="fleet" {
                table {
                    thead { tr {
                        th scope="col" { "instance" } th scope="col" { "version" } th scope="col" { "configuration" } th scope="col" { "started" }
                        th .number scope="col" { "weight" } th scope="col" { "ready" } th .number scope="col" { "clock offset (ms)" }
                    } }
                    tbody {
                        @for found in announcements {
                            tr {
                                th scope="row" { (found.instance) }
                                td { (found.version) }
                                td { (found.digest.get(..12).unwrap_or_default()) }
                                td { (super::time(found.started)) }
                                td .number { (found.weight) }
                                td .bad[!found.blocked.is_empty()] { @if found.blocked.is_empty() { "yes" } @else { (found.blocked.join(", ")) } }
                                td .number { @if let Some(offset) = found.clock_offset_ms { (offset) } }
                            }
                        }
                    }
                }
            }
        }
    }
}
