//! Reads the section `log`: the sink of delivery records, and the level and format of log lines.
//! Where do records and log lines go?

use std::path::PathBuf;
use std::time::Duration;

use super::problem::{Problem, closest_match};
use super::reader::{Reader, Table, Value};
use super::{Located, schema, units};

#[derive(Clone, Debug)]
pub struct Log {
    pub deliveries: Located<DeliveryLog>,
    /// The rotation of a delivery log in a file. `None`: another program rotates it.
    pub rotate: Option<Rotate>,
    pub sample: SampleRate,
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
    Journald,
    File(PathBuf),
    Off,
}

/// The share of successful deliveries that the log has, in units of 1/10,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleRate(pub u32);

impl SampleRate {
    pub const ALL: Self = Self(10_000);
}

/// When the delivery log begins a new file, and which of the old files it keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotate {
    /// Bytes of one file before compression.
    pub size: u64,
    /// The longest time that one file covers.
    pub age: Duration,
    /// The time for which old files are kept.
    pub keep: Duration,
    /// Bytes of all files together. The oldest are deleted first.
    pub total: u64,
    pub compress: Compression,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    Zstd,
    Gzip,
    Off,
}

/// The security logs of the platform are kept for 180 days.
impl Default for Rotate {
    fn default() -> Self {
        let day = Duration::from_secs(24 * 3600);
        Self { size: 256 << 20, age: day, keep: 180 * day, total: 20 << 30, compress: Compression::Zstd }
    }
}

/// Limits the number of files.
const ROTATE_SIZE_MIN: u64 = 4096;
const ROTATE_AGE_MIN: Duration = Duration::from_secs(1);

/// Reads `false`, or a table whose missing keys have their defaults.
fn read_rotate(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Option<Rotate>> {
    if value.is_boolean() {
        return reader.boolean(value).map(|is_on| is_on.value.then(Rotate::default));
    }
    let table = Table::open(reader, value, &schema::LOG_ROTATE)?;
    let size = table.read(reader, "size", |reader, value| reader.parse(value, units::size));
    let age = table.read(reader, "age", |reader, value| reader.parse(value, units::positive_duration));
    let keep = table.read(reader, "keep", |reader, value| reader.parse(value, units::retention));
    let total = table.read(reader, "total", |reader, value| reader.parse(value, units::size));
    let forms = [("zstd", Compression::Zstd), ("gzip", Compression::Gzip), ("none", Compression::Off)];
    let compress = table.read(reader, "compress", |reader, value| reader.parse_choice(value, &forms));
    if let Some(size) = size.as_ref().filter(|size| size.value < ROTATE_SIZE_MIN) {
        let problem = Problem::at(size.span, "`log.rotate.size` would make a file of every few records");
        reader.problems.push(problem.help("write \"4 KiB\" or more"));
    }
    if let Some(age) = age.as_ref().filter(|age| age.value < ROTATE_AGE_MIN) {
        let problem = Problem::at(age.span, "`log.rotate.age` is shorter than a second");
        reader.problems.push(problem.help("write \"1s\" or more"));
    }
    let default = Rotate::default();
    let rotate = Rotate {
        size: size.map_or(default.size, |size| size.value),
        age: age.map_or(default.age, |age| age.value),
        keep: keep.map_or(default.keep, |keep| keep.value),
        total: total.as_ref().map_or(default.total, |total| total.value),
        compress: compress.map_or(default.compress, |compress| compress.value),
    };
    // The file that outgate writes to counts, and is not deleted.
    if let Some(total) = total.filter(|total| total.value < 2 * rotate.size) {
        let problem = Problem::at(total.span, "`log.rotate.total` is less than two files of `log.rotate.size`");
        reader.problems.push(problem.help("write at least twice the size"));
    }
    Some(Some(rotate))
}

pub(super) fn read_share(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<SampleRate> {
    const HELP: &str = "write a number from 0 to 1 with at most four decimals, without quotes or sign: 0.1, 0.0025";
    reader.decimal(value, ("a share", 1, 4), HELP).map(|share| SampleRate(share.value))
}

pub(super) fn read_log(reader: &mut Reader<'_>, file: &Table<'_>) -> Log {
    let table = file.section(reader, "log", &schema::LOG);
    let deliveries = table.read(reader, "deliveries", |reader, value| {
        let text = reader.text(value)?;
        let deliveries = match (text, text.strip_prefix("file:")) {
            ("stdout", _) => DeliveryLog::Stdout,
            ("journald", _) => DeliveryLog::Journald,
            ("off", _) => DeliveryLog::Off,
            (_, Some(path)) if !path.is_empty() => DeliveryLog::File(reader.resolve_path(value.span, path)),
            _ => {
                reader.report_unknown_value(value, "write one of \"stdout\", \"file:PATH\", \"journald\", \"off\"");
                return None;
            }
        };
        Some(value.located(deliveries))
    });
    let deliveries = deliveries.unwrap_or(Located { value: DeliveryLog::Stdout, span: table.span });
    let rotate = table.read(reader, "rotate", read_rotate);
    let sample = table.read(reader, "sample", read_share);
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
    Log {
        deliveries,
        rotate: rotate.unwrap_or_else(|| Some(Rotate::default())),
        sample: sample.unwrap_or(SampleRate::ALL),
        level: level.unwrap_or("info".into()),
        format,
    }
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
    Err(ValueError { what: "it sets no level for all other modules, which would log nothing".to_owned(), help })
}

fn check_word(word: &str) -> Result<(), ValueError> {
    if LEVELS.contains(&word) {
        return Ok(());
    }
    let lower = word.to_ascii_lowercase();
    let near = if lower == "warning" { Some("warn") } else { closest_match(&lower, LEVELS) };
    let all = || {
        "write \"error\", \"warn\", \"info\", \"debug\", \"trace\" or \"off\"; add a level for a module as in \
         \"info,outgate::net=debug\""
    };
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
