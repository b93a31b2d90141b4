//! The plot of the last hour: one bar for each minute, divided by the party that ended the deliveries.
//! When did traffic or refusals rise or fall?

use maud::{Markup, html};

use crate::names::pluralize;
use crate::state::observability::traffic::{BLAMES, MINUTES, MinuteCount};

/// The size of the plot, in units of its view box.
const WIDTH: u64 = 720;
const HEIGHT: u64 = 160;
/// The labels below the plot, at equal distances.
const LABELS: [&str; 4] = ["60 min ago", "40 min", "20 min", "now"];

/// The names of [`BLAMES`] for readers, in the same order.
const PARTIES: [&str; BLAMES.len()] = ["delivered", "refused, client", "refused, target", "refused, outgate"];

pub(super) fn traffic(minutes: &[MinuteCount]) -> Markup {
    let highest = minutes.iter().map(|minute| minute.iter().sum::<u64>()).max().unwrap_or(0);
    let totals: [u64; BLAMES.len()] = std::array::from_fn(|party| minutes.iter().map(|minute| minute[party]).sum());
    let summary = format!(
        "{} in the last {}; at most {highest} in one minute",
        pluralize(totals.iter().sum::<u64>(), "delivery"),
        pluralize(minutes.len() as u64, "minute")
    );
    html! {
        section .wide aria-labelledby="traffic" {
            h2 #traffic { "Last hour" }
            p { (summary) }
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } role="img" aria-label=(summary) {
                @for (index, minute) in minutes.iter().enumerate() {
                    (bar(*minute, age(minutes, index), highest))
                }
                line .axis x1="0" x2=(WIDTH) y1=(HEIGHT) y2=(HEIGHT) {}
            }
            div .labels .muted aria-hidden="true" { @for label in LABELS { span { (label) } } }
            ul .legend {
                @for (party, name) in PARTIES.iter().enumerate() {
                    li {
                        svg viewBox="0 0 1 1" aria-hidden="true" { rect class=(class(party)) width="1" height="1" {} }
                        (name) ": " (totals[party])
                    }
                }
            }
            details {
                summary { "Deliveries by minute, as a table" }
                div .scroll tabindex="0" role="group" aria-label="Deliveries by minute" { (table(minutes)) }
            }
        }
    }
}

/// Returns the bar of a minute: its parts lie on each other, the delivered ones at the bottom.
fn bar(minute: MinuteCount, age: u64, highest: u64) -> Markup {
    let mut below = 0;
    let parts = minute.map(|count| {
        below += count;
        let (top, height) = (HEIGHT - scale(below, highest), scale(below, highest) - scale(below - count, highest));
        (count, top, height)
    });
    html! {
        @for (party, (_, top, height)) in parts.iter().enumerate().filter(|(_, (count, ..))| *count > 0) {
            rect class=(class(party)) x=(left(age)) y=(top) width=(WIDTH / MINUTES as u64 - 2) height=(height) {}
        }
    }
}

fn table(minutes: &[MinuteCount]) -> Markup {
    html! {
        table {
            thead { tr { th scope="col" { "minute" } @for name in PARTIES { th .number scope="col" { (name) } } } }
            tbody {
                @for (index, minute) in minutes.iter().enumerate().rev() {
                    tr {
                        th scope="row" { (label(age(minutes, index))) }
                        @for count in minute { td .number { (count) } }
                    }
                }
            }
        }
    }
}

/// Returns how many minutes ago a minute began. The last one is 0.
fn age(minutes: &[MinuteCount], index: usize) -> u64 {
    (minutes.len() - 1 - index) as u64
}

fn label(age: u64) -> String {
    if age == 0 { "now".to_owned() } else { format!("-{age} min") }
}

/// Returns the place of a minute: the present one is at the right edge.
fn left(age: u64) -> u64 {
    WIDTH - (age + 1) * (WIDTH / MINUTES as u64)
}

/// Returns the height of a count. A count above zero is visible.
fn scale(count: u64, highest: u64) -> u64 {
    if count == 0 { 0 } else { (u128::from(count) * u128::from(HEIGHT) / u128::from(highest.max(1))).max(1) as u64 }
}

fn class(party: usize) -> String {
    format!("bar-{}", BLAMES[party])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_plot_shows_each_minute_and_its_parts_to_scale() {
        let plot = traffic(&[[0; 4], [30, 0, 10, 0], [1, 0, 0, 79]]).into_string();
        assert!(plot.contains("120 deliveries in the last 3 minutes; at most 80 in one minute"), "{plot}");
        for part in [
            r#"<rect class="bar-none" x="696" y="100" width="10" height="60">"#,
            r#"<rect class="bar-target" x="696" y="80" width="10" height="20">"#,
            r#"<rect class="bar-none" x="708" y="158" width="10" height="2">"#,
            r#"<rect class="bar-outgate" x="708" y="0" width="10" height="158">"#,
        ] {
            assert!(plot.contains(part), "{part}: {plot}");
        }
        assert_eq!(plot.matches("<rect").count(), 4 + BLAMES.len(), "an empty minute has no bar: {plot}");
    }

    #[test]
    fn traffic_plot_without_deliveries_is_empty() {
        assert_eq!(traffic(&[[0; 4]]).into_string().matches("<rect").count(), BLAMES.len());
    }
}
