//! The report: tables and a plot, written between the markers of a document.
//! What does a delivery cost in outgate, as a ratio to other proxies?

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use crate::results::{Result as Row, Results, read, summary};
use crate::workload::{Kind, WORKLOADS, Workload};
use crate::{Error, plot};

const BEGIN: &str = "<!-- benches/compare/run writes from here -->";
const END: &str = "<!-- to here -->";

/// The contender that the ratios divide by.
const BASE: &str = "outgate";
/// outgate with two workers.
const WORKERS: &str = "outgate-workers";
/// The features, as each is added to the ones before, and what a table calls them.
pub(crate) const FEATURES: &[(&str, &str)] = &[
    ("outgate-bare", "routing and guard"),
    ("outgate-limit", "a limit"),
    ("outgate-signature", "an HMAC signature"),
    ("outgate-record", "the record of each delivery"),
    ("outgate-metrics", "metrics, scraped once a second"),
    ("outgate", "the audit log"),
    ("outgate-token", "a token that identifies the client"),
];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    results: PathBuf,
    #[arg(long)]
    document: PathBuf,
    #[arg(long)]
    plot: PathBuf,
    /// Lines that describe the machine and the programs: `key=value`.
    #[arg(long)]
    facts: PathBuf,
    /// The contenders in the order of the table.
    #[arg(long, value_delimiter = ',')]
    contenders: Vec<String>,
}

pub(crate) fn write(arguments: &Arguments) -> Result<(), Error> {
    let results = read(&arguments.results)?;
    let document = fs::read_to_string(&arguments.document)?;
    let (before, rest) = document.split_once(BEGIN).ok_or("the document has no first marker")?;
    let (_, after) = rest.split_once(END).ok_or("the document has no last marker")?;
    let mut text = String::new();
    facts(&mut text, &fs::read_to_string(&arguments.facts)?)?;
    rounds(&mut text, &results)?;
    table(&mut text, &results, &arguments.contenders)?;
    latencies(&mut text, &results, &arguments.contenders)?;
    features(&mut text, &results)?;
    memory(&mut text, &results, &arguments.contenders)?;
    workers(&mut text, &results)?;
    seen(&mut text, &results, &arguments.contenders)?;
    fs::write(&arguments.document, format!("{before}{BEGIN}\n{text}{END}{after}"))?;
    plot::write(&arguments.plot, &results, &arguments.contenders, BASE)
}

fn facts(text: &mut String, facts: &str) -> Result<(), Error> {
    writeln!(text, "\n| of the run | |\n| --- | --- |")?;
    for (key, value) in facts.lines().filter_map(|line| line.split_once('=')) {
        writeln!(text, "| {key} | {value} |")?;
    }
    Ok(())
}

/// The least number of rounds of each workload: a run that was broken off has fewer.
fn rounds(text: &mut String, results: &Results) -> Result<(), Error> {
    let least = |workload: &Workload| {
        let own = results.iter().filter(|((_, name), _)| name == workload.name);
        own.map(|(_, rounds)| rounds.len()).min().map(|least| format!("{} {least}", workload.title))
    };
    let all: Vec<String> = WORKLOADS.iter().filter_map(least).collect();
    writeln!(text, "| rounds | {} |", all.join(", ")).map_err(Into::into)
}

/// Returns the figure of a measurement that the workload compares.
fn cost(workload: &Workload, row: &Row) -> f64 {
    match workload.kind {
        Kind::IdleClients | Kind::IdleTunnels => row.bytes,
        _ => row.cpu_us,
    }
}

/// Returns the cost of a contender divided by the cost of the base, for each round that has both.
pub(crate) fn ratios(results: &Results, workload: &Workload, contender: &str, base: &str) -> Vec<f64> {
    let rows = |name: &str| results.get(&(name.to_owned(), workload.name.to_owned()));
    let (Some(own), Some(base)) = (rows(contender), rows(base)) else { return Vec::new() };
    let ratio = |(round, row): (&u32, &Row)| Some(cost(workload, row) / cost(workload, base.get(round)?));
    own.iter().filter_map(ratio).collect()
}

fn cell(numbers: Vec<f64>) -> String {
    match summary(numbers) {
        Some((median, least, greatest)) => format!("{median:.2} ({least:.2}–{greatest:.2})"),
        None => "—".to_owned(),
    }
}

/// The workloads whose cost is CPU time or memory.
fn compared() -> impl Iterator<Item = &'static Workload> {
    WORKLOADS.iter().filter(|workload| workload.rate.is_none())
}

fn table(text: &mut String, results: &Results, contenders: &[String]) -> Result<(), Error> {
    writeln!(text, "\n### Cost, outgate = 1\n")?;
    let titles: Vec<&str> = compared().map(|workload| workload.title).collect();
    writeln!(text, "| | {} |", titles.join(" | "))?;
    writeln!(text, "| --- |{}", " --- |".repeat(titles.len()))?;
    for contender in contenders {
        let cells: Vec<String> = compared().map(|workload| cell(ratios(results, workload, contender, BASE))).collect();
        writeln!(text, "| {contender} | {} |", cells.join(" | "))?;
    }
    writeln!(text, "\nThe median of the rounds, with the least and the greatest. Less than 1 is cheaper than outgate.")
        .map_err(Into::into)
}

fn latencies(text: &mut String, results: &Results, contenders: &[String]) -> Result<(), Error> {
    writeln!(text, "\n### Latency at 2,000 deliveries a second, outgate = 1\n")?;
    writeln!(text, "| | median | 99th percentile |\n| --- | --- | --- |")?;
    let rows = |name: &str| results.get(&(name.to_owned(), "rate".to_owned()));
    let Some(base) = rows(BASE) else { return Ok(()) };
    for contender in contenders {
        let Some(own) = rows(contender) else { continue };
        let ratio = |of: fn(&Row) -> f64| {
            let ratio = |(round, row): (&u32, &Row)| Some(of(row) / of(base.get(round)?));
            cell(own.iter().filter_map(ratio).collect())
        };
        writeln!(text, "| {contender} | {} | {} |", ratio(|row| row.p50_us), ratio(|row| row.p99_us))?;
    }
    Ok(())
}

/// Returns the median of a figure, or a dash if the contender has no such measurement.
fn median(results: &Results, contender: &str, workload: &str, unit: &str, of: fn(&Row) -> f64) -> String {
    let rows = results.get(&(contender.to_owned(), workload.to_owned()));
    let numbers = rows.map(|rows| rows.values().map(of).collect()).unwrap_or_default();
    summary(numbers).map_or("—".to_owned(), |(median, ..)| match unit {
        "%" => format!("{:.0} %", median * 100.0),
        unit => format!("{median:.2}{unit}"),
    })
}

fn memory(text: &mut String, results: &Results, contenders: &[String]) -> Result<(), Error> {
    writeln!(text, "\n### Memory\n\n| | at rest | an idle client | an idle tunnel |\n| --- | --- | --- | --- |")?;
    for contender in contenders {
        let of = |workload, unit, of| median(results, contender, workload, unit, of);
        let rest = of("idle-clients", " MiB", |row| row.at_rest / 1024.0 / 1024.0);
        let (client, tunnel) = (
            of("idle-clients", " KiB", |row| row.bytes / 1024.0),
            of("idle-tunnels", " KiB", |row| row.bytes / 1024.0),
        );
        if results.contains_key(&(contender.clone(), "idle-clients".to_owned())) {
            writeln!(text, "| {contender} | {rest} | {client} | {tunnel} |")?;
        }
    }
    Ok(())
}

/// What shows that the contenders did the same job, and all of it.
fn seen(text: &mut String, results: &Results, contenders: &[String]) -> Result<(), Error> {
    writeln!(text, "\n### What the target saw\n")?;
    writeln!(
        text,
        "| | deliveries | errors | valid signatures | new connections per delivery: plain | TLS | new TLS | resumed: new TLS, tickets |"
    )?;
    writeln!(text, "| --- | --- | --- | --- | --- | --- | --- | --- |")?;
    for contender in contenders {
        let rows = results.iter().filter(|((name, _), _)| name == contender).flat_map(|(_, rounds)| rounds.values());
        let (received, errors) = rows.fold((0.0, 0.0), |sum, row| (sum.0 + row.received, sum.1 + row.errors));
        let of = |workload, unit, of| median(results, contender, workload, unit, of);
        let signed = of("plain", "%", |row| row.signed);
        let new = ["plain", "tls", "tls-new"].map(|workload| of(workload, "", |row| row.new_connections)).join(" | ");
        let resumed = of("tls-tickets", "%", |row| row.resumed);
        writeln!(text, "| {contender} | {received} | {errors} | {signed} | {new} | {resumed} |")?;
    }
    Ok(())
}

/// Two workers on two cores that they share with the load: the time in which they wait for each other shows only as far as
/// they spin.
fn workers(text: &mut String, results: &Results) -> Result<(), Error> {
    writeln!(text, "\n### Two workers, one worker = 1\n")?;
    writeln!(text, "| | CPU time of a delivery | throughput that two cores of their own would give |")?;
    writeln!(text, "| --- | --- | --- |")?;
    for workload in compared() {
        let ratios = ratios(results, workload, WORKERS, BASE);
        if !ratios.is_empty() {
            let gains = ratios.iter().map(|ratio| 2.0 / ratio).collect();
            writeln!(text, "| {} | {} | {} |", workload.title, cell(ratios), cell(gains))?;
        }
    }
    Ok(())
}

fn features(text: &mut String, results: &Results) -> Result<(), Error> {
    writeln!(text, "\n### Cost of each feature, plain\n")?;
    writeln!(text, "| with | CPU time, first line = 1 | added to the line above |\n| --- | --- | --- |")?;
    let plain = &WORKLOADS[0];
    let mut above = None;
    for (name, title) in FEATURES {
        let whole = ratios(results, plain, name, FEATURES[0].0);
        let Some((median, ..)) = summary(whole.clone()) else { continue };
        let added = above.map_or("—".to_owned(), |above| format!("{:+.2}", median - above));
        above = Some(median);
        writeln!(text, "| {title} | {} | {added} |", cell(whole))?;
    }
    writeln!(text, "\nEach line has the features of the lines above it.").map_err(Into::into)
}
