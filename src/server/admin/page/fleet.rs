//! The section of the fleet on the status page.
//! Which instances are live or lost, which ranges do they have, and what is wrong with the fleet?

use maud::{Markup, html};

use crate::policy::fleet::lost::FleetInstances;
use crate::state::Runtime;

/// The instances, as the store of the fleet has them. `None`: there is no fleet, or its store is away.
pub(super) fn section(runtime: &Runtime, instances: Option<&FleetInstances>) -> Markup {
    let (Some(fleet), Some(instances)) = (runtime.fleet.get(), instances) else { return html! {} };
    html! {
        section .wide aria-labelledby="fleet" {
            h2 #fleet { "Fleet" }
            @let problems = fleet.problems(instances);
            @if !problems.is_empty() { ul { @for problem in &problems { li .bad { (problem.what) } } } }
            div .scroll tabindex="0" role="group" aria-labelledby="fleet" {
                table {
                    thead { tr {
                        th scope="col" { "instance" } th scope="col" { "version" } th scope="col" { "configuration" } th scope="col" { "started" }
                        th .number scope="col" { "weight" } th scope="col" { "ready" } th .number scope="col" { "clock offset (ms)" }
                    } }
                    tbody {
                        @for found in instances.rows().iter().map(|row| &row.shown) {
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
                table {
                    thead { tr {
                        th scope="col" { "range" } th scope="col" { "instance" } th scope="col" { "state" } th .number scope="col" { "usable" } th .number scope="col" { "of" }
                    } }
                    tbody {
                        @for (range, hosts) in instances.ranges() {
                            @if hosts.is_empty() { tr { th scope="row" { (range) } td .bad colspan="4" { "no instance" } } }
                            @for (instance, found) in hosts {
                                tr {
                                    th scope="row" { (range) }
                                    td { (instance) }
                                    td { (found.state.as_str()) }
                                    td .number { (found.usable) }
                                    td .number { (found.addresses) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
