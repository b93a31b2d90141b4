//! `outgate deliveries`: what became of webhooks, from the files of the delivery log or from the running proxy.
//! Why did customer X not get webhook Y?

mod log_files;

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use form_urlencoded::Serializer;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::ProxySelector;
use super::admin_client::{AdminError, AdminRequest, send};
use crate::cli::{DEFAULT_PATH, load_config};
use crate::config::{ControlPaths, duration_argument};
use crate::delivery::diagnose;
use crate::delivery::refusal::TABLE;
use crate::names::pluralize;
use crate::state::observability::delivery_line::{DeliveryFilter, DeliveryLine, LogLine, one_line, webhook_id_forms};
use crate::sysexits;
use log_files::LogSearch;

/// The interval between two questions to the running proxy while `--follow` waits.
const POLL: Duration = Duration::from_millis(500);

#[derive(Args)]
#[command(after_help = "Examples:
  outgate deliveries --tenant acme --since 1h
  outgate deliveries --host hooks.acme.example --code connect_timeout --full
  outgate deliveries --request-id 4f2a9c0d1e5b7a3300000042
  outgate deliveries --webhook-id msg_2KWPBgLlAfxdpx2AI54pPJ85f4W --full
  outgate deliveries --follow --json | jq .code

The newest is first. If log.deliveries is a file, this command reads it and the finished files beside it; otherwise it asks
the running proxy for its last deliveries. A delivery that is sought by its id may be in the memory of the proxy only, so
that the command asks the proxy if the files do not have it. Exit code 0: there are deliveries. 1: none matches. 66: there is nothing to read.
69: outgate does not run.")]
pub(in crate::cli) struct Deliveries {
    #[command(flatten)]
    proxy: ProxySelector,
    /// Read this delivery log and the finished files beside it, whatever the configuration says
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Only this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Only this host of targets
    #[arg(long)]
    host: Option<String>,
    /// Only this code: delivered, client_gone, or a code of docs/refusals.md
    #[arg(long)]
    code: Option<String>,
    /// Only this source address
    #[arg(long, value_name = "ADDRESS")]
    source: Option<IpAddr>,
    /// Only the delivery whose response had this Outgate-Request-Id, in full
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// Only the webhook with this Webhook-Id. It is redacted as in records before it is compared
    #[arg(long, value_name = "ID")]
    webhook_id: Option<String>,
    /// Only what arrived since this time, or within this duration: 2026-11-26T14:00:00Z, 90m, 7d
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    since: Option<Timestamp>,
    /// Show this many at most
    #[arg(long, default_value = "50", value_name = "COUNT")]
    limit: NonZeroUsize,
    /// Tell the story of each delivery: its steps, who is at fault, and what to do
    #[arg(long)]
    full: bool,
    /// Show deliveries as they end, from now on
    #[arg(long)]
    follow: bool,
    /// Print the records as they are, one line of JSON each
    #[arg(long)]
    json: bool,
}

/// A matching line of the log.
struct MatchedLine {
    parsed: LogLine,
    text: String,
}

/// The answer of the running proxy.
#[derive(Deserialize)]
struct RecentAnswer {
    count: u64,
    deliveries: Vec<Value>,
}

/// Parses a point in time, or a duration before now.
fn parse_since(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let before =
        duration_argument(text).map_err(|error| format!("neither a time as in RFC 3339 nor a duration: {error}"))?;
    Timestamp::now().checked_sub(before).map_err(|error| error.to_string())
}

impl Deliveries {
    pub(in crate::cli) fn run(self) -> ExitCode {
        let outcome = match self.log_file() {
            Ok(Some(log)) => self.run_on_files(&log),
            Ok(None) => self.run_on_proxy(),
            Err(code) => return code,
        };
        match outcome {
            Ok(0) => {
                eprintln!("outgate: no delivery matches{}", self.unknown_code());
                ExitCode::FAILURE
            }
            Ok(_) => ExitCode::SUCCESS,
            Err(code) => code,
        }
    }

    /// Returns a remark on a code that this version does not write. A log may have one of another version.
    fn unknown_code(&self) -> String {
        let is_known =
            |code: &str| ["delivered", "client_gone"].contains(&code) || TABLE.iter().any(|row| row.name == code);
        match self.code.as_deref().filter(|code| !is_known(code)) {
            Some(code) => format!(": this version has no code {code:?}; docs/refusals.md lists the codes"),
            None => String::new(),
        }
    }

    fn log_file(&self) -> Result<Option<PathBuf>, ExitCode> {
        if self.file.is_some() || self.proxy.admin.is_some() {
            return Ok(self.file.clone());
        }
        self.proxy.check()?;
        Ok(ControlPaths::read(self.proxy.config.as_deref().unwrap_or(Path::new(DEFAULT_PATH))).delivery_log)
    }

    fn filter(&self) -> DeliveryFilter {
        DeliveryFilter {
            tenant: self.tenant.clone(),
            host: self.host.clone(),
            code: self.code.clone(),
            request_id: self.request_id.clone(),
            source: self.source,
            since: self.since,
            webhook_ids: Vec::new(),
        }
    }

    /// Returns the filter of files, which redacts as the configuration says.
    fn file_filter(&self) -> DeliveryFilter {
        let Some(id) = &self.webhook_id else { return self.filter() };
        let redactor = load_config(self.proxy.config.as_deref()).map(|valid| valid.plan.redactor).unwrap_or_default();
        DeliveryFilter { webhook_ids: webhook_id_forms(Some(id), &redactor), ..self.filter() }
    }

    /// Returns the number of deliveries that were shown.
    fn run_on_files(&self, log: &Path) -> Result<usize, ExitCode> {
        let (mut search, filter, mut shown) = (LogSearch::default(), self.file_filter(), DeliveryPrinter::new(self));
        if self.follow {
            let error = search.follow(log, &filter, &mut |found| {
                let _ = shown.show(&found);
            });
            eprintln!("outgate: cannot read {}: {error}", log.display());
            return Err(ExitCode::from(sysexits::NO_INPUT));
        }
        search.newest_first(log, &filter, self.limit.get(), &mut |found| shown.show(&found).is_continue());
        for problem in &search.unreadable {
            eprintln!("outgate: further records are not shown: cannot read {}", one_line(problem));
        }
        if search.skipped > 0 {
            eprintln!("outgate: {} skipped that no record begins or ends in", pluralize(search.skipped, "line"));
        }
        if search.read == 0 {
            if search.unreadable.is_empty() {
                eprintln!("outgate: {}", log_files::no_file(log));
            }
            return Err(ExitCode::from(sysexits::NO_INPUT));
        }
        // The record of a delivery that has just ended waits in the memory of the proxy. Without a proxy there is none.
        let is_of_id = self.request_id.is_some() || self.webhook_id.is_some();
        if shown.count == 0 && is_of_id && self.file.is_none() {
            self.ask_proxy(0).iter().for_each(|answer| shown.show_newest_first(answer));
        }
        Ok(shown.count)
    }

    fn run_on_proxy(&self) -> Result<usize, ExitCode> {
        let mut shown = DeliveryPrinter::new(self);
        let report = |error: AdminError| {
            if let AdminError::NotListening(_) = error {
                eprintln!("outgate: log.deliveries is no file, and only a running proxy has its last deliveries:");
            }
            error.report()
        };
        let mut answer = self.ask_proxy(0).map_err(report)?;
        if !self.follow {
            shown.show_newest_first(&answer);
            return Ok(shown.count);
        }
        loop {
            std::thread::sleep(POLL);
            answer = self.ask_proxy(answer.count).map_err(report)?;
            for delivery in &answer.deliveries {
                let _ = shown.show_value(delivery);
            }
        }
    }

    fn ask_proxy(&self, after: u64) -> Result<RecentAnswer, AdminError> {
        let mut query = Serializer::new(String::new());
        if let Ok(Value::Object(filter)) = serde_json::to_value(self.filter()) {
            query.extend_pairs(filter.iter().filter_map(|(name, value)| Some((name, value.as_str()?))));
        }
        query.extend_pairs(self.webhook_id.iter().map(|id| ("webhook_id", id)));
        query.append_pair("after", &after.to_string());
        let request = AdminRequest::get(&format!("/v1/deliveries?{}", query.finish()));
        send(&self.proxy.sockets(), &request)
    }
}

/// The output, and the number of deliveries in it.
struct DeliveryPrinter<'d> {
    options: &'d Deliveries,
    count: usize,
}

impl<'d> DeliveryPrinter<'d> {
    fn new(options: &'d Deliveries) -> Self {
        Self { options, count: 0 }
    }

    fn show_newest_first(&mut self, answer: &RecentAnswer) {
        let _ = answer.deliveries.iter().rev().try_for_each(|delivery| self.show_value(delivery));
    }

    fn show_value(&mut self, delivery: &Value) -> ControlFlow<()> {
        let text = delivery.to_string();
        match LogLine::parse(text.as_bytes()) {
            Some(parsed) => self.show(&MatchedLine { parsed, text }),
            None => ControlFlow::Continue(()),
        }
    }

    /// Shows a line, and breaks after the last one that the operator wants.
    fn show(&mut self, found: &MatchedLine) -> ControlFlow<()> {
        let options = self.options;
        let is_full = options.full || options.request_id.is_some();
        match &found.parsed {
            _ if options.json => println!("{}", escape_json(&found.text)),
            LogLine::Gap(line) => println!("{:.3} -- {}", line.time, line.gap.to_text()),
            LogLine::Delivery(delivery) if is_full => diagnose(delivery).iter().for_each(|event| println!("{event}")),
            LogLine::Delivery(delivery) => {
                if self.count == 0 {
                    println!("{}", row(["TIME", "CODE", "STATUS", "TENANT", "SOURCE", "MS", "REQUEST ID", "REQUEST"]));
                }
                println!("{}", delivery_row(delivery));
            }
        }
        self.count += usize::from(matches!(found.parsed, LogLine::Delivery(_)));
        let is_last = options.request_id.is_some() || !options.follow && self.count >= options.limit.get();
        if is_last && self.count > 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

fn row([time, code, status, tenant, source, ms, id, request]: [&str; 8]) -> String {
    one_line(&format!("{time:<24} {code:<22} {status:>6} {tenant:<12} {source:<15} {ms:>9} {id:<24} {request}"))
}

fn delivery_row(delivery: &DeliveryLine) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
    let request = format!("{} {}", text(&delivery.method), delivery.target());
    row([
        &format!("{:.3}", delivery.time),
        &delivery.outcome(),
        &delivery.status.map_or("-".to_owned(), |status| status.to_string()),
        &text(&delivery.tenant),
        &text(&delivery.source),
        &format!("{:.1}", delivery.ms.total),
        &delivery.request_id,
        &request,
    ])
}

/// Returns a line of JSON in which a terminal finds no control characters. They stand in strings, except white space.
fn escape_json(line: &str) -> String {
    let mut escaped = String::with_capacity(line.len());
    for c in line.trim_end().chars() {
        match c {
            '\t' | '\r' | '\n' => escaped.push(' '),
            c if c.is_control() => escaped.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_for_a_terminal_has_the_same_value_and_no_control_character() {
        let line = "{\"path\":\t\"/\u{9b}31m\u{7f}é\"}\r\n";
        let escaped = escape_json(line);
        assert_eq!(escaped, "{\"path\": \"/\\u009b31m\\u007fé\"}");
        let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(value(&escaped), value(line));
    }
}
