//! The form of a log line: text, JSON, or text with the priority that the journal reads.
//! How is one log event written?

use std::fmt::{self, Debug};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, Ordering};

use jiff::Timestamp;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{self, Full, Writer};
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::names::SyslogSeverity;
use crate::policy::redact::Redactor;

/// The form of the log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogStyle {
    Text = 0,
    Json = 1,
    /// sd-daemon(3): the journal takes `<N>` at the start of a line for its priority, and adds the time.
    Journal = 2,
}

/// The form that the process's log has now. A reload may change it.
static STYLE: AtomicU8 = AtomicU8::new(LogStyle::Text as u8);

impl LogStyle {
    pub(super) fn now() -> Self {
        match STYLE.load(Ordering::Relaxed) {
            1 => Self::Json,
            2 => Self::Journal,
            _ => Self::Text,
        }
    }

    pub(super) fn put_in_force(self) {
        STYLE.store(self as u8, Ordering::Relaxed);
    }
}

/// Redacts the lines of libraries, whatever the configuration says.
static LIBRARIES: LazyLock<Redactor> = LazyLock::new(Redactor::default);

/// Returns the severity that the journal reads.
fn severity(level: Level) -> &'static str {
    let severity = match level {
        Level::ERROR => SyslogSeverity::Error,
        Level::WARN => SyslogSeverity::Warning,
        Level::INFO => SyslogSeverity::Informational,
        Level::DEBUG | Level::TRACE => SyslogSeverity::Debug,
    };
    severity.as_str()
}

/// Returns text that is not an event in the present form, with its line feed.
pub(super) fn text(level: Level, text: &str) -> String {
    match LogStyle::now() {
        LogStyle::Text => format!("{text}\n"),
        LogStyle::Journal => {
            text.lines().filter(|line| !line.is_empty()).map(|line| format!("<{}>{line}\n", severity(level))).collect()
        }
        LogStyle::Json => {
            let mut fields = Map::new();
            fields.insert("message".into(), text.trim_end().into());
            json(level, fields)
        }
    }
}

fn json(level: Level, fields: Map<String, Value>) -> String {
    let mut line = Map::new();
    line.insert("time".into(), Timestamp::now().to_string().into());
    line.insert("level".into(), level.as_str().to_ascii_lowercase().into());
    line.extend(fields);
    format!("{}\n", Value::Object(line))
}

/// Formats events in the present form.
pub(super) struct EventFormat {
    timed: format::Format<Full, SystemTime>,
    untimed: format::Format<Full, ()>,
}

impl EventFormat {
    pub(super) fn new() -> Self {
        let format = || format::Format::default().with_target(false);
        Self { timed: format(), untimed: format().without_time().with_level(false) }
    }
}

impl<S, N> FormatEvent<S, N> for EventFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        // Libraries log parts of requests at the levels debug and trace: h2, for one, a malformed path.
        let is_own = event.metadata().target().starts_with(env!("CARGO_CRATE_NAME"));
        match LogStyle::now() {
            LogStyle::Text if is_own => self.timed.format_event(context, to, event),
            LogStyle::Text => {
                let mut line = String::new();
                self.timed.format_event(context, Writer::new(&mut line), event)?;
                to.write_str(LIBRARIES.message(&line).as_str())
            }
            LogStyle::Journal => {
                let mut line = String::new();
                self.untimed.format_event(context, Writer::new(&mut line), event)?;
                let line = if is_own { line } else { LIBRARIES.message(&line).to_string() };
                line.lines().try_for_each(|line| writeln!(to, "<{}>{line}", severity(level)))
            }
            LogStyle::Json => {
                let mut fields = JsonFields(Map::new());
                event.record(&mut fields);
                if !is_own {
                    fields.redact();
                }
                to.write_str(&json(level, fields.0))
            }
        }
    }
}

struct JsonFields(Map<String, Value>);

impl JsonFields {
    fn redact(&mut self) {
        for value in self.0.values_mut() {
            if let Value::String(text) = value {
                *text = LIBRARIES.message(text).to_string();
            }
        }
    }
}

impl Visit for JsonFields {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name().into(), format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(line);
            Ok(line.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn log_lines_of_libraries_are_redacted_and_those_of_outgate_stay() {
        let path = "/in/9f86d081884c7d659a2feaa0c55ad015/+819012345678?a=b";
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer().event_format(EventFormat::new()).with_ansi(false);
        let subscriber = tracing_subscriber::registry().with(layer.with_writer(move || writer.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!(target: "h2::server", "malformed path ({path:?})");
            tracing::info!(target: "outgate::app", "configuration 9f86d081884c7d659a2feaa0c55ad015");
        });
        let text = String::from_utf8(lines.0.lock().expect("no panic").clone()).expect("UTF-8");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].ends_with("malformed path (\"/in/***/+81901234XXXX?***\")"), "{text}");
        assert!(lines[1].ends_with("configuration 9f86d081884c7d659a2feaa0c55ad015"), "{text}");
        let mut fields = JsonFields(Map::from_iter([("message".to_owned(), Value::from(path))]));
        fields.redact();
        assert_eq!(fields.0["message"], "/in/***/+81901234XXXX?***");
    }
}
