//! Parses the name of a key file: `2026-11.from-2026-11-01.until-2027-12-01.key`.
//! Which key does a file hold, and when is it valid?

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::config::units::{self, ValueError};

pub(super) const EXAMPLE: &str =
    "ID.key or ID.pem, optionally with times: \"2026-11.from-2026-11-01.until-2027-12-01.key\"";

const EXTENSIONS: [&str; 2] = [".key", ".pem"];
const FROM: &str = ".from-";
const UNTIL: &str = ".until-";

#[derive(Debug, PartialEq, Eq)]
pub(super) struct ParsedName<'a> {
    pub(super) id: &'a str,
    pub(super) from: Option<Timestamp>,
    pub(super) until: Option<Timestamp>,
}

/// Parses the name of a file; `None`: its extension is not that of a key.
pub(super) fn parse(name: &str) -> Option<Result<ParsedName<'_>, ValueError>> {
    let stem = EXTENSIONS.iter().find_map(|extension| name.strip_suffix(extension))?;
    Some(parse_stem(stem))
}

fn parse_stem(stem: &str) -> Result<ParsedName<'_>, ValueError> {
    let (stem, until) = split_timestamp(stem, UNTIL)?;
    let (id, from) = split_timestamp(stem, FROM)?;
    units::name(id)?;
    if let (Some(from), Some(until)) = (from, until)
        && from >= until
    {
        let (expected, reason) = ("the period of a key", "`until` is not later than `from`".to_owned());
        return Err(ValueError { expected, reason, help: "write an `until` that is later than `from`".into() });
    }
    Ok(ParsedName { id, from, until })
}

/// Splits off the timestamp after the last `marker`. A day begins at midnight UTC.
fn split_timestamp<'a>(stem: &'a str, marker: &str) -> Result<(&'a str, Option<Timestamp>), ValueError> {
    let Some((stem, text)) = stem.rsplit_once(marker) else { return Ok((stem, None)) };
    let day = text.parse::<Date>().ok().filter(|_| text.len() == "2026-11-01".len());
    let midnight = day.and_then(|day| day.to_zoned(TimeZone::UTC).ok()).map(|day| day.timestamp());
    match midnight {
        Some(midnight) => Ok((stem, Some(midnight))),
        None => {
            let help =
                format!("write a day or a time after {marker}: 2026-11-01, 2026-11-01T12:00:00Z, 20261101T120000Z");
            let time = units::timestamp(text).map_err(|error| ValueError { help, ..error })?;
            Ok((stem, Some(time)))
        }
    }
}

/// Fuzz target: a valid file name has a plain id, and a period that begins before it ends.
#[cfg(any(test, fuzzing))]
pub fn key_files(data: &[u8]) {
    let Ok(name) = std::str::from_utf8(data) else { return };
    if let Some(Ok(parsed)) = parse(name) {
        assert!(name.starts_with(parsed.id) && units::name(parsed.id).is_ok(), "{name:?}");
        assert!(parsed.from.zip(parsed.until).is_none_or(|(from, until)| from < until), "{name:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Option<Timestamp> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn key_file_names_carry_id_and_period() {
        let noon = "2026-11-01T12:00:00Z";
        for (name, id, from, until) in [
            ("2026-11.key", "2026-11", None, None),
            ("k1.pem", "k1", None, None),
            ("a.b.c.key", "a.b.c", None, None),
            ("a.from-2026-11-01.key", "a", time("2026-11-01T00:00:00Z"), None),
            ("a.until-2026-11-01T12:00:00Z.key", "a", None, time(noon)),
            ("a.from-20261101T120000Z.pem", "a", time(noon), None),
            ("a.from-2026-11-01T13:00:00+01:00.key", "a", time(noon), None),
            (
                "x.y.from-2026-11-01.until-2027-12-01.key",
                "x.y",
                time("2026-11-01T00:00:00Z"),
                time("2027-12-01T00:00:00Z"),
            ),
        ] {
            assert_eq!(parse(name), Some(Ok(ParsedName { id, from, until })), "{name}");
        }
    }

    #[test]
    fn key_file_names_with_errors_are_rejected() {
        for name in ["", "k1", "k1.key.bak", "k1.key~", "k1.pub", "key", "k1.KEY"] {
            assert_eq!(parse(name), None, "{name}");
        }
        for (name, reason) in [
            (".key", "not a plain name"),
            ("a b.key", "not a plain name"),
            (".from-2026-11-01.key", "not a plain name"),
            ("a.from-.key", "not RFC 3339"),
            ("a.from-2026-13-01.key", "not RFC 3339"),
            ("a.from-2026-11-01T12:00:00.key", "the offset from UTC is missing"),
            ("a.until-2026-11-01.from-2025-11-01.key", "not RFC 3339"),
            ("a.from-2026-11-01.until-2026-11-01.key", "`until` is not later than `from`"),
        ] {
            let error = parse(name).unwrap().unwrap_err();
            assert_eq!(error.reason, reason, "{name}");
        }
    }
}
