//! A comparison of the reference documents with the code.
//! Does a document differ from the code?

use crate::support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use outgate::config::WarningCode;
use outgate::delivery::refusal::TABLE;
use outgate::policy::egress::list::format::FORMATS;
use outgate::policy::trust::error::VerifyError;
use outgate::state::alerts::{ALERT_KINDS, AlertKind, AlertSeverity};
use support::scene::scene;
use support::scrape::Scrape;

#[test]
fn refusals_page_has_every_code() {
    let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/refusals.md"));
    let expected: Vec<String> = TABLE
        .iter()
        .map(|row| {
            let retry = if row.retryable { "yes" } else { "no" };
            format!(
                "| {} | {} | {} | {} | {retry} |",
                row.name,
                row.status.as_u16(),
                row.proxy_status,
                row.blame.as_str()
            )
        })
        .collect();
    let table = page.split("| code | status | Proxy-Status error | blame | retry |").nth(1).expect("the table");
    let rows: Vec<&str> = table.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
    assert_eq!(rows, expected);
}

#[test]
fn alerts_page_has_every_alert() {
    let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/alerts.md"));
    let table = page.split("| alert | severity | consequence | next step |").nth(1).expect("the table");
    let rows: Vec<&str> = table.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
    let severity = |kind: &AlertKind| match kind.severity {
        AlertSeverity::Critical => "critical",
        AlertSeverity::Warning => "warning",
    };
    let row =
        |kind: &&AlertKind| format!("| `{}` | {} | {} | {} |", kind.name, severity(kind), kind.consequence, kind.next);
    assert_eq!(rows, ALERT_KINDS.iter().map(row).collect::<Vec<_>>());
    let (_, conditions) = table.split_once("| alert | condition |").expect("the conditions");
    assert!(ALERT_KINDS.iter().all(|kind| conditions.contains(&format!("`{}`", kind.name))));
}

#[test]
fn refusals_page_has_the_advice_of_every_code() {
    let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/refusals.md"));
    let table = page.split("| code | what to do |").nth(1).expect("the table");
    let rows: Vec<&str> = table.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
    let expected: Vec<String> = TABLE.iter().map(|row| format!("| {} | {} |", row.name, row.advice)).collect();
    assert_eq!(rows, expected);
    for row in TABLE {
        let words = row.advice.split_whitespace().count();
        assert!((5..=35).contains(&words) && row.advice.ends_with('.'), "{}: {}", row.name, row.advice);
    }
}

#[test]
fn refusals_page_has_every_certificate_detail_and_no_other() {
    let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/refusals.md"));
    let table = page.split("| details | what was wrong |").nth(1).expect("the table");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let words: BTreeSet<&str> = rows
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|cell| cell.split(',').map(|word| word.trim().trim_matches('`')))
        .collect();
    assert_eq!(words, VerifyError::ALL.iter().map(|error| error.as_str()).collect());
}

#[test]
fn egress_lists_page_has_every_format_in_order_and_no_other() {
    let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/egress-lists.md"));
    let table = page.split("| format | what reads it, and how |").nth(1).expect("the table");
    let rows: Vec<&str> = table.lines().skip(2).take_while(|line| line.starts_with('|')).collect();
    let expected: Vec<_> = FORMATS.iter().map(|format| format!("| `{}` | {} |", format.name, format.usage)).collect();
    assert_eq!(rows, expected);
}

/// Returns the names of a struct's fields in their order.
fn fields(code: &str, of: &str) -> Vec<String> {
    let body = code.split(&format!("pub(super) struct {of}")).nth(1);
    let body = body.or_else(|| code.split(&format!("pub struct {of}")).nth(1));
    let body = body.or_else(|| code.split(&format!("pub(in crate::delivery) struct {of}")).nth(1)).expect(of);
    let lines = body.lines().skip(1).take_while(|line| *line != "}").map(str::trim);
    let lines = lines.filter(|line| !line.starts_with("//") && !line.starts_with('#'));
    let names = lines.filter_map(|line| line.split_once(": "));
    names.map(|(name, _)| name.rsplit(' ').next().unwrap_or_default().to_owned()).collect()
}

/// Returns the names of the steps in a record.
fn step_names() -> Vec<String> {
    let timing = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/delivery/record/timing.rs"));
    let list = timing.split("const NAMES").nth(1).and_then(|rest| rest.split("= [").nth(1)).expect("the names");
    let names = list.split(']').next().unwrap_or_default().split(',');
    names.map(|name| name.trim().trim_matches('"').to_owned()).collect()
}

#[test]
fn records_page_has_every_field_in_order_and_no_other() {
    let line = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/delivery/record/line.rs"));
    let connection = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/delivery/record/connection.rs"));
    let within = [
        ("attempts", fields(connection, "AttemptEvidence")),
        ("tls", fields(connection, "TlsEvidence")),
        // The verdict follows the fields of the certificate in one object.
        (
            "certificate",
            [
                fields(
                    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/net/tls/certificate.rs")),
                    "CertificateSummary",
                ),
                vec!["verdict".to_owned()],
            ]
            .concat(),
        ),
        (
            "token_endpoint",
            fields(
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/delivery/record/token_endpoint.rs")),
                "TokenEndpointEvidence",
            ),
        ),
        ("limit", fields(line, "RefusingLimit")),
        ("would_refuse", fields(line, "WouldRefuse")),
        ("ms", [step_names(), vec!["total".to_owned()]].concat()),
    ];
    let expected: Vec<String> = fields(line, "RecordLine")
        .into_iter()
        .flat_map(|field| {
            let parts = within.iter().find(|(name, _)| *name == field).map(|(_, parts)| parts.as_slice());
            let parts = parts.unwrap_or_default().iter().map(|part| format!("{field}.{part}")).collect::<Vec<_>>();
            std::iter::once(field).chain(parts)
        })
        .collect();
    let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/records.md"));
    let table = page.split("| field | meaning |").nth(1).expect("the table");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let names = rows.filter_map(|row| row.split('|').nth(1)).flat_map(|cell| cell.split(','));
    let names: Vec<String> = names.map(|name| name.trim().trim_matches(['`', '*']).to_owned()).collect();
    assert_eq!(names, expected);
}

#[test]
fn metrics_page_has_every_metric_of_a_scrape_and_no_other() {
    let scene = scene();
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    scene.outgate.records(1);
    let scrape = Scrape::of(&scene.outgate);
    let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md"));
    let tables = page.split("| metric | type | unit | labels | meaning | when it is bad |\n").skip(1);
    let rows = tables.flat_map(|table| table.lines().skip(1).take_while(|line| line.starts_with('|')));
    let cells = rows.map(|row| row.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>());
    let documented: BTreeMap<String, Vec<String>> =
        cells.map(|cells| (cells[1].trim_matches('`').to_owned(), cells)).collect();
    let types: BTreeMap<String, String> =
        documented.iter().map(|(name, cells)| (name.clone(), cells[2].clone())).collect();
    assert_eq!(types, scrape.types);
    // The labels of the samples that there are.
    for sample in &scrape.samples {
        let name = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| sample.name.strip_suffix(suffix));
        let metric = name.filter(|name| documented.contains_key(*name)).unwrap_or(&sample.name);
        let labels = documented[metric][4].split(", ").map(|label| label.trim_matches('`'));
        let labels: BTreeSet<&str> = labels.filter(|label| !label.is_empty()).collect();
        let served: BTreeSet<&str> = sample.labels.keys().map(String::as_str).filter(|label| *label != "le").collect();
        assert_eq!(labels, served, "{metric}");
    }
    // The names in alerts and in text are names that outgate serves.
    let served = scrape.names();
    let pages = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages: Vec<_> = pages.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect();
    for path in pages {
        let page = fs::read_to_string(&path).unwrap();
        for rest in page.split("outgate_").skip(1) {
            let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(rest.len());
            let name = format!("outgate_{}", &rest[..end]);
            let is_file = rest.starts_with(|c: char| c.is_ascii_digit()); // outgate_0.1.0-1_amd64.deb
            let is_served = served.contains(&name) || scrape.types.contains_key(&name);
            assert!(is_file || is_served, "{} names {name}, which is not served", path.display());
        }
    }
}

#[test]
fn warnings_page_has_every_code_and_no_other() {
    let list = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/warnings.md"));
    let rows = list.split("| code | what it says |").nth(1).expect("the table").lines().skip(2);
    let codes: Vec<&str> = rows.filter_map(|row| row.split('`').nth(1)).collect();
    assert_eq!(codes, WarningCode::ALL.iter().map(|code| code.as_str()).collect::<Vec<_>>());
}

#[test]
fn migration_page_names_keys_that_exist() {
    let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/migration.md"));
    let known: BTreeSet<String> = outgate::config::known_keys().collect();
    let sections: BTreeSet<&str> =
        known.iter().filter_map(|key| key.split_once('.')).map(|(section, _)| section).collect();
    let cells = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").nth(1));
    let words = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(|word| word.split(" = ").next().unwrap());
    let is_key = |word: &&str| word.split_once('.').is_some_and(|(section, _)| sections.contains(section));
    let named: BTreeSet<String> =
        words.filter(is_key).map(|word| word.split("NAME").collect::<Vec<_>>().join("*")).collect();
    assert!(named.len() > 40, "{named:?}");
    let exists = |key: &str| known.iter().any(|known| known == key || known.starts_with(&format!("{key}.")));
    let missing: Vec<_> = named.iter().filter(|key| !exists(key)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
