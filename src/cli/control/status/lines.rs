//! The lines of `outgate status`, for a terminal of any width.
//! What does an operator read first?

use std::io::{IsTerminal, stdout};

use jiff::Timestamp;
use rustix::termios::tcgetwinsize;
use serde_json::Value;

use super::super::drain::describe;
use super::{list, text};
use crate::names::escape_control_characters;
use crate::state::observability::traffic::BLAMES;

/// The width of the names.
const NAME_WIDTH: usize = 15;
/// The least width of the texts. A narrower terminal wraps by itself.
const TEXT_WIDTH_MIN: usize = 20;

/// How the text of a line is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Good,
    Warning,
    Bad,
}

/// A name, and a text that is wrapped.
#[derive(Debug)]
pub(super) struct Line(&'static str, String, Tone);

/// The properties of the terminal.
pub(super) struct Style {
    has_colours: bool,
    /// `None`: stdout is no terminal, and lines are not wrapped.
    columns: Option<usize>,
    pub(super) rows: usize,
}

impl Style {
    pub(super) fn of_stdout() -> Self {
        let is_terminal = stdout().is_terminal();
        let has_colours = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let size = is_terminal.then(|| tcgetwinsize(stdout()).ok()).flatten().filter(|size| size.ws_col > 0);
        let rows = size.map_or(usize::MAX, |size| usize::from(size.ws_row));
        Self { has_colours, columns: size.map(|size| usize::from(size.ws_col)), rows }
    }
}

impl Line {
    /// Returns the rows of the terminal that the line takes.
    pub(super) fn render(&self, style: &Style) -> Vec<String> {
        let Self(name, text, tone) = self;
        let text = escape_control_characters(text).replace(['\n', '\t'], " ");
        let width = style.columns.map_or(usize::MAX, |columns| columns.saturating_sub(NAME_WIDTH).max(TEXT_WIDTH_MIN));
        let colour = match tone {
            _ if !style.has_colours => None,
            Tone::Plain => None,
            Tone::Good => Some(32),
            Tone::Warning => Some(33),
            Tone::Bad => Some(31),
        };
        let rows = wrap(&text, width).into_iter().enumerate().map(|(index, row)| {
            let name = if index == 0 { *name } else { "" };
            let row = colour.map_or(row.clone(), |colour| format!("\x1b[{colour}m{row}\x1b[0m"));
            format!("{name:<NAME_WIDTH$}{row}").trim_end().to_owned()
        });
        rows.collect()
    }

    /// Returns the line for a place that wraps nothing.
    pub(super) fn plain(&self) -> String {
        format!("{}: {}", self.0.trim_start(), self.1)
    }
}

/// Breaks a text at spaces, and a longer word anywhere.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut rows = vec![String::new()];
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        loop {
            let row = rows.last_mut().expect("there is a row");
            let used = row.chars().count();
            if used > 0 && used + 1 + word.len() <= width {
                row.push(' ');
                row.extend(word);
                break;
            } else if used > 0 {
                rows.push(String::new());
            } else if word.len() <= width {
                row.extend(word);
                break;
            } else {
                row.extend(word.drain(..width));
            }
        }
    }
    rows
}

/// Returns the lines of the output, the most important first.
pub(super) fn status_lines(status: &Value) -> Vec<Line> {
    let configuration = &status["configuration"];
    let digest: String = text(&configuration["digest"]).chars().take(12).collect();
    let (state, tone) = match (status["ready"] == true, list(&status["degraded"]).next().is_some()) {
        (true, false) => ("ready", Tone::Good),
        (true, true) => ("ready, needs attention", Tone::Warning),
        (false, _) => ("not ready", Tone::Bad),
    };
    let plain = |name, text: String| Line(name, text, Tone::Plain);
    let mut lines = vec![
        plain("outgate", format!("{}, started {}", text(&status["version"]), time(&status["started"]))),
        Line("state", state.to_owned(), tone),
    ];
    lines.extend(list(&status["blocked"]).map(|reason| Line("  not ready", reason, Tone::Bad)));
    lines.extend(list(&status["degraded"]).map(|reason| Line("  degraded", reason, Tone::Warning)));
    for alert in status["alerts"].as_array().into_iter().flatten() {
        let part = |name: &str| text(&alert[name]);
        let what = format!("{}, since {}: {}", part("name"), time(&alert["since"]), part("what"));
        lines.push(Line("alert", format!("{what}; {}", part("consequence")), Tone::Warning));
        lines.push(plain("  next", part("next").to_owned()));
    }
    if status["drain"]["stage"] != "serving" {
        lines.push(Line("drain", describe(status), Tone::Warning));
    }
    lines.push(plain(
        "configuration",
        format!(
            "{} of {}, since {}, by {}, digest {digest}",
            configuration["number"],
            text(&configuration["file"]),
            time(&configuration["at"]),
            text(&configuration["by"]),
        ),
    ));
    lines.extend(list(&configuration["changes"]).map(|change| plain("  changed", change)));
    if let Some(more @ 1..) = configuration["more"].as_u64() {
        lines.push(plain("  changed", format!("and {more} more")));
    }
    let restart = |key| Line("  restart", format!("{key} takes effect at the next restart"), Tone::Warning);
    lines.extend(list(&configuration["restart"]).map(restart));
    lines.extend(list(&configuration["warnings"]).map(|warning| Line("  warning", warning, Tone::Warning)));
    if let rejected @ Value::Object(_) = &status["rejected"] {
        let by = format!("at {}, by {}", time(&rejected["at"]), text(&rejected["by"]));
        lines.push(Line("rejected", by, Tone::Bad));
        lines.extend(list(&rejected["problems"]).map(|problem| Line("  problem", problem, Tone::Bad)));
    }
    lines.extend(list(&status["listeners"]["server"]).map(|name| plain("listens", name)));
    lines.extend(list(&status["listeners"]["admin"]).map(|name| plain("admin", name)));
    for pool in status["pools"].as_array().into_iter().flatten() {
        let (usable, configured) = (text(&pool["usable"]), text(&pool["configured"]));
        let tone = if usable == configured { Tone::Plain } else { Tone::Warning };
        lines.push(Line("egress", format!("{}: {usable} usable of {configured} addresses", text(&pool["pool"])), tone));
    }
    let load = &status["load"];
    lines.push(match load["limited_by"].as_str() {
        None => plain("weight", format!("{}%", load["weight"])),
        Some(factor) => Line("weight", format!("{}%, limited by {factor}", load["weight"]), Tone::Warning),
    });
    let count = |name: &str| status[name].to_string();
    let (running, waiting) = (count("deliveries_in_flight"), count("deliveries_waiting"));
    lines.push(plain("deliveries", format!("{running} in flight, {waiting} waiting for admission")));
    let ended = &status["ended_deliveries"];
    let [delivered, client, target, outgate] = BLAMES.map(|blame| ended[blame].to_string());
    let refused = format!("not delivered, at fault: client {client}, target {target}, outgate {outgate}");
    lines.push(plain("  ended", format!("{delivered} delivered; {refused}")));
    let (clients, tunnels) = (count("client_connections"), count("tunnels"));
    let idle = count("idle_target_connections");
    lines.push(plain("connections", format!("{clients} from clients, {tunnels} tunnels, {idle} idle to targets")));
    for (name, label) in [("open_circuits", "open circuits"), ("suspected_gaps", "suspected allow-list gaps")] {
        if status[name] != 0 {
            lines.push(Line("targets", format!("{} {label}", count(name)), Tone::Warning));
        }
    }
    lines
}

/// Returns a line with the rates between two samples, in deliveries per second.
pub(super) fn rates(before: &Value, after: &Value) -> Option<Line> {
    let at = |status: &Value| text(&status["at"]).parse::<Timestamp>().ok();
    let seconds = at(after)?.duration_since(at(before)?).as_secs_f64();
    let total = |status: &Value, blame: &str| status["ended_deliveries"][blame].as_f64();
    // A total falls if another process answers.
    let rate =
        |blame| Some((total(after, blame)? - total(before, blame)?).max(0.0) / seconds).filter(|_| seconds > 0.0);
    let [delivered, client, target, outgate] = BLAMES.map(rate);
    let text = format!(
        "{:.1} delivered; not delivered, at fault: client {:.1}, target {:.1}, outgate {:.1}",
        delivered?, client?, target?, outgate?
    );
    Some(Line("  per second", text, Tone::Plain))
}

/// Returns a time in UTC without fractions of a second.
fn time(value: &Value) -> String {
    let time = text(value).parse::<Timestamp>();
    time.map_or_else(|_| text(value).to_owned(), |time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn status_lines_are_wrapped_and_coloured_for_a_terminal_only() {
        let line = Line("egress", "one two three\u{1b}[2J".to_owned(), Tone::Bad);
        let style = |columns, has_colours| Style { has_colours, columns, rows: 24 };
        assert_eq!(line.render(&style(None, false)), ["egress         one two three\u{fffd}[2J"]);
        let rows = line.render(&style(Some(NAME_WIDTH + TEXT_WIDTH_MIN), true));
        assert_eq!(rows, ["egress         \u{1b}[31mone two three\u{fffd}[2J\u{1b}[0m"]);
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("a abcdefgh i", 4), ["a", "abcd", "efgh", "i"]);
        assert_eq!(wrap("", 4), [""]);
    }

    #[test]
    fn status_rates_are_those_between_two_samples() {
        let sample = |second: u32, delivered: u64| {
            let ended = json!({ "none": delivered, "client": 1, "target": 0, "outgate": 0 });
            json!({ "at": format!("2026-11-26T18:00:{second:02}Z"), "ended_deliveries": ended })
        };
        let line = rates(&sample(0, 100), &sample(4, 110)).unwrap();
        assert!(line.1.starts_with("2.5 delivered; not delivered, at fault: client 0.0"), "{line:?}");
        assert!(rates(&sample(4, 110), &sample(5, 0)).unwrap().1.starts_with("0.0 delivered"), "another process");
        assert!(rates(&sample(4, 110), &sample(4, 120)).is_none() && rates(&json!({}), &sample(4, 1)).is_none());
    }
}
