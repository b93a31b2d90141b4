//! The section `log`: delivery records, and what else is said on stderr.
//! Where does evidence go, and how much is said?

use std::path::PathBuf;

use tracing_subscriber::filter::EnvFilter;

use super::problem::Problem;
use super::read::{Reader, Table};
use super::{At, keys};

#[derive(Clone, Debug)]
pub struct Log {
    pub deliveries: At<Deliveries>,
    /// A tracing filter for diagnostics on stderr; default `info`.
    pub level: String,
    pub format: LogFormat,
}

/// The form of diagnostics on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// The sink of delivery records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deliveries {
    Stdout,
    File(PathBuf),
    Off,
}

pub(super) fn read(reader: &mut Reader<'_>, file: &Table<'_>) -> Log {
    let table = file.section(reader, "log", &keys::LOG);
    let deliveries = table.one(reader, "deliveries", |reader, value| {
        let text = reader.text(value)?;
        let deliveries = match (text, text.strip_prefix("file:")) {
            ("stdout", _) => Deliveries::Stdout,
            ("off", _) => Deliveries::Off,
            (_, Some(path)) if !path.is_empty() => Deliveries::File(reader.resolve(value.place, path)),
            _ => {
                reader.no_choice(value, "write one of \"stdout\", \"file:PATH\", \"off\"");
                return None;
            }
        };
        Some(value.at(deliveries))
    });
    let deliveries = deliveries.unwrap_or(At { value: Deliveries::Stdout, place: table.place });
    let level = table.one(reader, "level", |reader, value| {
        let text = reader.text(value)?;
        if EnvFilter::builder().parse(text).is_err() || text.is_empty() {
            let problem = Problem::at(value.place, format!("`{}` is not a log level", value.key));
            let help = "write \"error\", \"warn\", \"info\", \"debug\" or \"trace\", or one a module, \"info,outgate::net=debug\"";
            reader.problems.push(problem.help(help));
            return None;
        }
        Some(text.to_owned())
    });
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let format = table.one(reader, "format", |reader, value| reader.choice(value, &formats));
    let format = format.map_or(LogFormat::Text, |format| format.value);
    Log { deliveries, level: level.unwrap_or("info".into()), format }
}
