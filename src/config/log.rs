//! Reads the section `log`: the sink of delivery records, and the level and format of log lines.
//! Where do records and log lines go?

use std::path::PathBuf;

use super::problem::{Problem, closest_match};
use super::reader::{Reader, Table};
use super::{Located, schema};

#[derive(Clone, Debug)]
pub struct Log {
    pub deliveries: Located<DeliveryLog>,
    /// A tracing filter for log lines on stderr; default `info`.
    pub level: String,
    pub format: LogFormat,
}

/// The levels, from the fewest lines to the most.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// The crates that write log lines: outgate, and its libraries for HTTP/2 and DNS messages.
const CRATES: [&str; 3] = ["outgate", "h2", "hickory_proto"];

/// The format of log lines on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// The sink of delivery records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryLog {
    Stdout,
    File(PathBuf),
    Off,
}

pub(super) fn read_log(reader: &mut Reader<'_>, file: &Table<'_>) -> Log {
    let table = file.section(reader, "log", &schema::LOG);
    let deliveries = table.read(reader, "deliveries", |reader, value| {
        let text = reader.text(value)?;
        let deliveries = match (text, text.strip_prefix("file:")) {
            ("stdout", _) => DeliveryLog::Stdout,
            ("off", _) => DeliveryLog::Off,
            (_, Some(path)) if !path.is_empty() => DeliveryLog::File(reader.resolve_path(value.span, path)),
            _ => {
                reader.report_unknown_value(value, "write one of \"stdout\", \"file:PATH\", \"off\"");
                return None;
            }
        };
        Some(value.located(deliveries))
    });
    let deliveries = deliveries.unwrap_or(Located { value: DeliveryLog::Stdout, span: table.span });
    let level = table.read(reader, "level", |reader, value| {
        let text = reader.text(value)?;
        if let Err(ValueError { what, help }) = check_level(text) {
            let problem = Problem::at(value.span, format!("`{}` is not a log level: {what}", value.key));
            reader.problems.push(problem.help(help));
            return None;
        }
        Some(text.to_owned())
    });
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let format = table.read(reader, "format", |reader, value| reader.parse_choice(value, &formats));
    let format = format.map_or(LogFormat::Text, |format| format.value);
    Log { deliveries, level: level.unwrap_or("info".into()), format }
}

/// Why a text is not a log level.
struct ValueError {
    what: String,
    help: String,
}

/// Checks each directive. The filter takes an unknown word for the name of a module, which would silence the log.
fn check_level(text: &str) -> Result<(), ValueError> {
    let mut has_default = false;
    for directive in text.split(',') {
        match directive.split_once('=') {
            None => {
                check_word(directive)?;
                has_default = true;
            }
            Some((module, level)) => {
                let name = module.split("::").next().unwrap_or(module);
                let is_path = module.split("::").all(|part| !part.is_empty() && part.chars().all(is_module_name_char));
                if !CRATES.contains(&name) || !is_path {
                    let all = || format!("a module is of {}, such as \"info,outgate::net=debug\"", CRATES.join(", "));
                    let help = closest_match(name, CRATES).filter(|near| *near != name);
                    let help = help.map_or_else(all, |near| format!("did you mean `{near}`?"));
                    return Err(ValueError { what: format!("no module is called `{module}`"), help });
                }
                check_word(level)?;
            }
        }
    }
    if has_default {
        return Ok(());
    }
    let help = format!("write \"info,{text}\"");
    Err(ValueError { what: "it has no level for all other modules, which would log nothing".to_owned(), help })
}

fn check_word(word: &str) -> Result<(), ValueError> {
    if LEVELS.contains(&word) {
        return Ok(());
    }
    let lower = word.to_ascii_lowercase();
    let near = if lower == "warning" { Some("warn") } else { closest_match(&lower, LEVELS) };
    let all = || "write \"error\", \"warn\", \"info\", \"debug\", \"trace\" or \"off\", or one a module, \"info,outgate::net=debug\"";
    let help = near.map_or_else(|| all().to_owned(), |near| format!("did you mean `{near}`?"));
    Err(ValueError { what: format!("there is no level `{word}`"), help })
}

fn is_module_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_level_accepts_only_known_levels_and_modules() {
        for valid in
            ["error", "off", "info,outgate::net=debug", "outgate=debug,warn", "info,h2=trace,hickory_proto=off"]
        {
            assert!(check_level(valid).is_ok(), "{valid}");
        }
        for (invalid, help) in [
            ("warning", "did you mean `warn`?"),
            ("INFO", "did you mean `info`?"),
            ("verbose", "write \"error\""),
            ("", "write \"error\""),
            ("info,", "write \"error\""),
            ("info,foo", "write \"error\""),
            ("info,outgate=loud", "write \"error\""),
            ("info,outgate::=debug", "a module is of outgate, h2"),
            ("info,outgat::net=debug", "did you mean `outgate`?"),
            ("info,rustls=debug", "a module is of outgate, h2"),
            ("info,outgate[span]=debug", "a module is of outgate, h2"),
            ("h2=debug", "write \"info,h2=debug\""),
        ] {
            let error = check_level(invalid).expect_err(invalid);
            assert!(error.help.starts_with(help), "{invalid}: {}", error.help);
        }
    }
}
