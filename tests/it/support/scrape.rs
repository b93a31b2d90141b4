//! A scrape of `/metrics` in the text format of Prometheus, and promtool.
//! Which series does outgate serve, and does Prometheus read them?

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Outgate, required};

/// One line with a value.
#[derive(Debug)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

#[derive(Debug)]
pub struct Scrape {
    /// The type of each metric, by the name under which samples are served without the suffix of a histogram.
    pub types: BTreeMap<String, String>,
    pub samples: Vec<Sample>,
}

impl Scrape {
    pub fn of(outgate: &Outgate) -> Self {
        Self::parse(&outgate.admin("/metrics").text())
    }

    pub fn parse(text: &str) -> Self {
        let (mut types, mut samples) = (BTreeMap::new(), Vec::new());
        for line in text.lines() {
            if let Some(described) = line.strip_prefix("# TYPE ") {
                let (name, kind) = described.split_once(' ').expect(line);
                let former = types.insert(name.to_owned(), kind.to_owned());
                assert_eq!(former, None, "{name} is described twice");
            } else if !line.starts_with('#') {
                samples.push(Self::sample(line));
            }
        }
        Self { types, samples }
    }

    fn sample(line: &str) -> Sample {
        let (series, value) = line.rsplit_once(' ').expect(line);
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let mut rest = labels.strip_suffix('}').expect(line);
        let mut labels = BTreeMap::new();
        while let Some((label, quoted)) = rest.split_once("=\"") {
            let end = quoted.find('"').expect(line);
            labels.insert(label.to_owned(), quoted[..end].to_owned());
            rest = quoted[end + 1..].trim_start_matches(',');
        }
        Sample { name: name.to_owned(), labels, value: value.parse().expect(line) }
    }

    /// Returns the metrics, under the names that queries use.
    pub fn names(&self) -> BTreeSet<String> {
        let suffixes = |(name, kind): (&String, &String)| match kind.as_str() {
            "histogram" => ["_bucket", "_sum", "_count"].iter().map(|suffix| format!("{name}{suffix}")).collect(),
            _ => vec![name.clone()],
        };
        self.types.iter().flat_map(suffixes).collect()
    }

    pub fn with<'a>(&'a self, name: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Sample> {
        let has = |sample: &Sample, (label, value): &(&str, &str)| {
            sample.labels.get(*label).map(String::as_str) == Some(*value)
        };
        self.samples.iter().filter(move |sample| sample.name == name && labels.iter().all(|label| has(sample, label)))
    }

    /// Returns the sum of the series with these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.with(name, labels).map(|sample| sample.value).sum()
    }

    /// Returns the value of the only series with these labels.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let mut found = self.with(name, labels);
        let value = found.next().map(|sample| sample.value);
        assert!(found.next().is_none(), "{name} {labels:?} has several series");
        value
    }
}

/// Runs promtool, and returns what it prints if it finds nothing wrong. `None`: it is not installed.
pub fn promtool(arguments: &[&str], folder: &Path, input: &str) -> Option<String> {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(folder);
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut child) = spawned else {
        assert!(!required(), "missing: promtool (prometheus)");
        eprintln!("skipped: promtool is missing; it is in Debian's prometheus");
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writing = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "promtool {arguments:?}:\n{text}");
    Some(text)
}
