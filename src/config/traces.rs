//! Reads the section `traces`: the collector of the spans of deliveries, and the share that it gets.
//! Which deliveries are traced, and where do their spans go?

use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue};

use super::named_sections::read_word;
use super::problem::Problem;
use super::reader::{Reader, Table, Value};
use super::url::parse_url;
use super::{Located, SampleRate, log, schema, secret, units};
use crate::names::{Scheme, Target};

/// One in a hundred.
const SAMPLE_DEFAULT: SampleRate = SampleRate(100);
const CALLERS_MAX_DEFAULT: u32 = 100;
const CALLERS_MAX_MAX: u32 = 1_000_000;
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// The section `traces` with an `endpoint`. Without one, outgate records no traces.
#[derive(Clone, Debug)]
pub struct Traces {
    pub endpoint: Located<Target>,
    /// The path of OTLP/HTTP.
    pub path: PathAndQuery,
    pub protocol: OtlpProtocol,
    /// The share of the traces that outgate begins.
    pub sample: SampleRate,
    /// The traces that callers have sampled: this many in one second.
    pub callers_max: u32,
    /// Fields of each request to the collector. The values are secrets.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// `[trust.NAME]`; `None`: `public`.
    pub trust: Option<Located<String>>,
    /// The longest time that one request may take.
    pub timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtlpProtocol {
    Http,
    Grpc,
}

pub(super) fn read_traces(reader: &mut Reader<'_>, file: &Table<'_>) -> Option<Traces> {
    let table = file.section(reader, "traces", &schema::TRACES);
    let protocols = [("http", OtlpProtocol::Http), ("grpc", OtlpProtocol::Grpc)];
    let protocol = table.read(reader, "protocol", |reader, value| reader.parse_choice(value, &protocols));
    let endpoint = table.read(reader, "endpoint", read_endpoint);
    let sample = table.read(reader, "sample", log::read_share);
    let callers_max = table.read(reader, "callers_max", |reader, value| reader.integer(value, 0..=CALLERS_MAX_MAX));
    let headers = table.get("headers").map(|value| read_headers(reader, &value)).unwrap_or_default();
    let trust = table.read(reader, "trust", read_word);
    let timeout = table.read(reader, "timeout", |reader, value| reader.parse(value, units::positive_duration));
    if let (false, Some(span)) = (table.has("endpoint"), table.key_spans().first()) {
        let problem = Problem::at(*span, "the section `traces` has no effect without `traces.endpoint`");
        reader.problems.push(problem.help("add endpoint = \"https://collector.example:4318\", or remove the section"));
    }
    let (endpoint, path) = endpoint?;
    // Another process on the way could read a secret.
    if let (Scheme::Http, Some(value)) = (endpoint.scheme, table.get("headers").filter(|_| !headers.is_empty())) {
        let problem = Problem::at(value.span, "`traces.headers` would send secrets over plaintext http");
        reader.problems.push(problem.help("write an https URL in traces.endpoint, or remove the headers"));
    }
    Some(Traces {
        endpoint,
        path,
        protocol: protocol.map_or(OtlpProtocol::Http, |protocol| protocol.value),
        sample: sample.unwrap_or(SAMPLE_DEFAULT),
        callers_max: callers_max.map_or(CALLERS_MAX_DEFAULT, |callers_max| callers_max.value),
        headers,
        trust,
        timeout: timeout.map_or(TIMEOUT_DEFAULT, |timeout| timeout.value),
    })
}

/// Reads the URL of the collector, and the path of OTLP/HTTP below it.
fn read_endpoint(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<(Located<Target>, PathAndQuery)> {
    let parsed = parse_url(reader.text(value)?).and_then(|(target, base)| {
        let path = format!("{}/v1/traces", base.path().trim_end_matches('/')).parse();
        Ok((value.located(target), path.map_err(|_| "the path has a character that is not allowed there")?))
    });
    let report = |reason: &str| {
        let problem = Problem::at(value.span, "`traces.endpoint` is not the URL of a collector").label(reason);
        problem.help("write \"https://collector.example:4318\", or \"https://collector.example:4317\" for gRPC")
    };
    parsed.map_err(|reason| reader.problems.push(report(reason))).ok()
}

fn read_headers(reader: &mut Reader<'_>, value: &Value<'_>) -> Vec<(HeaderName, HeaderValue)> {
    let members = reader.members(value, "write { Authorization = \"file:PATH\" }");
    let field = |(name, value): (Located<&str>, Value<'_>)| {
        let secret = secret::read(reader, &value)?;
        let field = name.parse::<HeaderName>().ok().zip(HeaderValue::from_bytes(secret.expose()).ok());
        if field.is_none() {
            let problem = Problem::at(name.span, "`traces.headers` has a name or a value that no field can have");
            reader.problems.push(problem.help("write { Authorization = \"file:PATH\" }; the secret is one line"));
        }
        let (name, mut value) = field?;
        value.set_sensitive(true);
        Some((name, value))
    };
    members.into_iter().filter_map(field).collect()
}
