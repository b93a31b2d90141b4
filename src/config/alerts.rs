//! Reads the section `alerts`: who learns of a condition that an operator should look at.
//! Where do alerts go, and how often?

use std::time::Duration;

use super::audit::{SyslogServer, read_syslog_server};
use super::named_sections::read_word;
use super::problem::Problem;
use super::reader::{Reader, Table};
use super::{Located, Route, SourceSpan, schema, units};

const REMIND_DEFAULT: Duration = Duration::from_secs(4 * 3600);
const HOLD_DEFAULT: Duration = Duration::from_secs(120);
/// The name of the route that alerts take, in records.
const ROUTE_NAME: &str = "alerts";

#[derive(Clone, Debug)]
pub struct Alerts {
    /// The URL that gets each alert as a webhook.
    pub webhook: Option<Located<String>>,
    /// The route of the webhook, which no client's request takes.
    pub route: Located<Route>,
    pub syslog: Vec<Located<SyslogServer>>,
    /// Whether alerts also go to the journal.
    pub journald: bool,
    /// The time between two messages about one alert that lasts.
    pub remind: Duration,
    /// The time for which a condition must be gone before its alert is resolved.
    pub hold: Duration,
}

/// Alerts go to the log alone.
impl Default for Alerts {
    fn default() -> Self {
        let span = SourceSpan::default();
        Self {
            webhook: None,
            route: Located { value: Route::new(Located { value: ROUTE_NAME.to_owned(), span }), span },
            syslog: Vec::new(),
            journald: false,
            remind: REMIND_DEFAULT,
            hold: HOLD_DEFAULT,
        }
    }
}

/// Reads the keys of the route of outgate's own webhooks: its `name` in records, and the key with their URLs.
pub(super) fn read_own_route(
    reader: &mut Reader<'_>,
    table: &Table<'_>,
    (name, span): (&str, SourceSpan),
    (urls, help): (&str, &str),
) -> Located<Route> {
    for key in ["sign", "egress", "trust"] {
        if let (false, Some(value)) = (table.has(urls), table.get(key).filter(|value| !value.is_empty_or_false())) {
            let (key, urls) = (table.child_key(key), table.child_key(urls));
            let problem = Problem::at(value.span, format!("`{key}` has no effect without `{urls}`"));
            reader.problems.push(problem.help(help));
        }
    }
    let mut route = Route::new(Located { value: name.to_owned(), span });
    route.sign = table.read_list(reader, "sign", None, read_word).unwrap_or_default();
    route.egress = table.read(reader, "egress", read_word);
    route.trust = table.read(reader, "trust", read_word);
    Located { value: route, span }
}

pub(super) fn read_alerts(reader: &mut Reader<'_>, file: &Table<'_>) -> Alerts {
    let table = file.section(reader, "alerts", &schema::ALERTS);
    let webhook = table.read(reader, "webhook", read_word);
    let help = "add webhook = \"https://ops.platform.example/outgate\"";
    let span = webhook.as_ref().map_or(table.span, |webhook| webhook.span);
    let route = read_own_route(reader, &table, (ROUTE_NAME, span), ("webhook", help));
    let syslog = table.read_list(reader, "syslog", None, read_syslog_server);
    let journald = table.read(reader, "journald", |reader, value| reader.boolean(value));
    let remind = table.read(reader, "remind", |reader, value| reader.parse(value, units::positive_duration));
    let hold = table.read(reader, "hold", |reader, value| reader.parse(value, units::duration));
    Alerts {
        webhook,
        route,
        syslog: syslog.unwrap_or_default(),
        journald: journald.is_some_and(|journald| journald.value),
        remind: remind.map_or(REMIND_DEFAULT, |remind| remind.value),
        hold: hold.map_or(HOLD_DEFAULT, |hold| hold.value),
    }
}
