//! A line of the delivery log that is read again, and its form as text for people.
//! Which delivery does a line describe, and does it match what an operator looks for?
//!
//! A line may come from a file that another program wrote or cut. A line that is not a record is `None`, and text for a
//! terminal has no control characters.

use std::net::IpAddr;

use jiff::Timestamp;
use memchr::memmem;
use serde::{Deserialize, Serialize};

use crate::names::{escape_control_characters, pluralize};
use crate::policy::redact::Redactor;

/// The longest line that is read. A record is shorter: its longest fields have limits of their own.
pub const LINE_MAX: usize = 1 << 20;

/// A line of the delivery log.
#[derive(Debug)]
pub enum LogLine {
    Delivery(Box<DeliveryLine>),
    Gap(GapLine),
}

/// The records that could not be written for some time.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct GapLine {
    pub time: Timestamp,
    pub gap: Gap,
}

impl GapLine {
    /// Returns the line, with its line feed.
    pub fn to_line(&self) -> serde_json::Result<Vec<u8>> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        Ok(line)
    }
}

#[derive(Serialize, Deserialize, Debug, Clone, PartialEq)]
pub struct Gap {
    pub lost: u64,
    pub since: Timestamp,
    pub until: Timestamp,
    pub why: String,
}

macro_rules! read_again {
    ($($(#[$doc:meta])* $name:ident [$($required:ident: $kind:ty,)*] { $($field:ident: $optional:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Deserialize, Debug, Default)]
        pub struct $name {
            $(pub $required: $kind,)*
            $(#[serde(default)] pub $field: $optional,)*
        }
    )*};
}

read_again! {
    /// The record of one delivery. `docs/records.md` has the meaning of the fields.
    DeliveryLine [time: Timestamp, request_id: String, code: String,] {
        trace_id: Option<String>,
        peer: Option<String>,
        client: Option<String>,
        proof: Option<String>,
        claimed_client: Option<String>,
        tenant: Option<String>,
        route: Option<String>,
        webhook_id: Option<String>,
        method: Option<String>,
        scheme: Option<String>,
        host: Option<String>,
        port: Option<u16>,
        path: Option<String>,
        source: Option<String>,
        address: Option<String>,
        attempts: Vec<LoggedAttempt>,
        reused: Option<bool>,
        http: Option<String>,
        tls: Option<LoggedTls>,
        certificate: Option<LoggedCertificate>,
        signatures: Vec<String>,
        status: Option<u16>,
        status_class: Option<String>,
        blame: Option<String>,
        retryable: Option<bool>,
        details: Option<String>,
        detail: Option<String>,
        cause: Option<String>,
        limit: Option<LoggedRule>,
        would_take: Option<String>,
        would_refuse: Vec<LoggedRule>,
        bytes_sent: u64,
        bytes_received: u64,
        ms: LoggedTimes,
    }
    LoggedAttempt [] { source: String, address: String, outcome: String, ms: f64, }
    LoggedTls [] { version: String, suite: String, certificate_expires: Option<Timestamp>, verified: Option<bool>, }
    LoggedCertificate [] {
        common_name: Option<String>,
        names: Vec<String>,
        issuer: Option<String>,
        not_before: Option<String>,
        not_after: Option<String>,
        verdict: String,
    }
    /// A limit that refused the delivery, or a rule that would have.
    LoggedRule [] { kind: String, name: String, code: String, }
    /// Milliseconds of each step.
    LoggedTimes [] {
        admit: Option<f64>,
        token: Option<f64>,
        take_in: Option<f64>,
        resolve: Option<f64>,
        connect: Option<f64>,
        tls: Option<f64>,
        sign: Option<f64>,
        response: Option<f64>,
        total: f64,
    }
}

impl LogLine {
    /// Returns `None` if the line is neither a record nor a gap.
    pub fn parse(line: &[u8]) -> Option<Self> {
        if line.len() > LINE_MAX {
            return None;
        }
        let delivery = serde_json::from_slice(line).map(|delivery| Self::Delivery(Box::new(delivery)));
        delivery.or_else(|_| serde_json::from_slice(line).map(Self::Gap)).ok()
    }
}

impl Gap {
    /// Returns a sentence for people.
    pub fn to_text(&self) -> String {
        let Self { lost, since, until, why } = self;
        let records = pluralize(*lost, "delivery record");
        one_line(&format!("{records} lost between {since:.3} and {until:.3}: {why}"))
    }
}

impl DeliveryLine {
    /// Returns the target as a URL, or the host and port of a tunnel.
    pub fn target(&self) -> String {
        let Self { method, scheme, host, port, path, .. } = self;
        let (Some(host), Some(scheme)) = (host, scheme) else { return "(no target)".into() };
        let default_port = if scheme == "https" { 443 } else { 80 };
        match (method.as_deref(), port) {
            (Some("CONNECT"), Some(port)) => format!("{host}:{port}"),
            (_, Some(port)) if *port != default_port => {
                format!("{scheme}://{host}:{port}{}", path.as_deref().unwrap_or_default())
            }
            _ => format!("{scheme}://{host}{}", path.as_deref().unwrap_or_default()),
        }
    }

    /// Returns whether the delivery is complete and the target, if it responded, responded with 2xx.
    pub fn is_success(&self) -> bool {
        self.code == "delivered" && self.status_class.as_deref().is_none_or(|class| class == "2xx")
    }

    /// Returns the code with the word within it: `certificate_untrusted (self_signed)`.
    pub fn outcome(&self) -> String {
        match &self.details {
            Some(details) => format!("{} ({details})", self.code),
            None => self.code.clone(),
        }
    }

    /// Returns the delivery in one line, without its time.
    pub fn summary(&self) -> String {
        let status = self.status.map_or("-".to_owned(), |status| status.to_string());
        let mut text =
            format!("{} {status} {} {}", self.outcome(), self.method.as_deref().unwrap_or("-"), self.target());
        let mut add = |before: &str, value: &Option<String>| {
            if let Some(value) = value {
                text.push_str(before);
                text.push_str(value);
            }
        };
        add(" from ", &self.source);
        add("", &Some(format!(" in {:.1} ms", self.ms.total)));
        add(", blame ", &self.blame.clone().filter(|blame| blame != "none"));
        add(", tenant ", &self.tenant);
        add(", route ", &self.route);
        add(", id ", &Some(self.request_id.clone()));
        add(", trace ", &self.trace_id);
        add(": ", &self.detail);
        one_line(&text)
    }
}

/// Returns text without line breaks and control characters.
pub fn one_line(text: &str) -> String {
    escape_control_characters(text).replace(['\n', '\t'], " ")
}

/// The conditions of a search. Every one must hold.
#[derive(Serialize, Deserialize, Debug, Default, Clone)]
#[serde(deny_unknown_fields)]
pub struct DeliveryFilter {
    pub tenant: Option<String>,
    pub host: Option<String>,
    pub code: Option<String>,
    pub request_id: Option<String>,
    pub source: Option<IpAddr>,
    /// The earliest arrival.
    pub since: Option<Timestamp>,
    /// The forms of the webhook id that a record may have. Empty: each webhook matches.
    #[serde(skip)]
    pub webhook_ids: Vec<String>,
}

/// Returns the forms that a webhook id may have in a record: as it is, or after redaction.
pub fn webhook_id_forms(id: Option<&str>, redactor: &Redactor) -> Vec<String> {
    let redact = |id| redactor.webhook_id(id, false).as_str().to_owned();
    // Without a key, a redactor that hides ids makes all of them equal.
    let is_mask = redact("a") == redact("b");
    id.into_iter().flat_map(|id| [Some(id.to_owned()), (!is_mask).then(|| redact(id))]).flatten().collect()
}

impl DeliveryFilter {
    /// Returns whether a line can match, by its bytes alone. Most lines of a large log need not be parsed.
    pub fn may_match(&self, line: &[u8]) -> bool {
        let is_verbatim =
            |text: &&String| text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
        let texts = [&self.tenant, &self.code, &self.request_id].into_iter().flatten();
        let has = |text: &String| memmem::find(line, text.as_bytes()).is_some();
        memmem::find(line, br#""gap""#).is_some()
            || texts.filter(is_verbatim).all(has)
                && (self.webhook_ids.is_empty() || self.webhook_ids.iter().any(|id| !is_verbatim(&id) || has(id)))
    }

    pub fn matches(&self, delivery: &DeliveryLine) -> bool {
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found.is_some_and(|found| found.eq_ignore_ascii_case(wanted)))
        };
        let is_exactly = |wanted: &Option<String>, found: Option<&str>| wanted.is_none() || wanted.as_deref() == found;
        let source = || delivery.source.as_deref().and_then(|source| source.parse::<IpAddr>().ok());
        is_exactly(&self.tenant, delivery.tenant.as_deref())
            && is(&self.host, delivery.host.as_deref())
            && is_exactly(&self.code, Some(&delivery.code))
            && is_exactly(&self.request_id, Some(&delivery.request_id))
            && (self.webhook_ids.is_empty()
                || delivery.webhook_id.as_ref().is_some_and(|id| self.webhook_ids.contains(id)))
            && self.source.is_none_or(|wanted| source() == Some(wanted))
            && self.since.is_none_or(|since| delivery.time >= since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"time":"2026-11-26T14:16:10.5Z","request_id":"ab12","client":"billing","tenant":"acme",
        "route":"r","method":"POST","scheme":"https","host":"hooks.acme.example","port":443,"path":"/in",
        "webhook_id":"evt_2026112XXXX","source":"198.51.100.17","reused":false,"signatures":["k1"],"status":502,"status_class":null,
        "code":"certificate_untrusted","blame":"target","details":"self_signed","detail":"the target's\u001b[2J",
        "bytes_sent":0,"bytes_received":0,"ms":{"connect":1.5,"total":20.25},"a_later_field":{"x":1}}"#;

    fn delivery(line: &str) -> Box<DeliveryLine> {
        let Some(LogLine::Delivery(delivery)) = LogLine::parse(line.as_bytes()) else { panic!("{line}") };
        delivery
    }

    #[test]
    fn delivery_line_is_summarised_without_control_characters() {
        assert_eq!(
            delivery(LINE).summary(),
            "certificate_untrusted (self_signed) 502 POST https://hooks.acme.example/in from 198.51.100.17 in 20.2 ms, \
             blame target, tenant acme, route r, id ab12: the target's\u{fffd}[2J"
        );
    }

    #[test]
    fn line_that_is_no_record_is_none() {
        for line in
            ["", "{}", "null", "[1]", "{\"time\":\"2026-11-26T14:16:10Z\"", &LINE[..LINE.len() - 1], "\u{1b}[2J"]
        {
            assert!(LogLine::parse(line.as_bytes()).is_none(), "{line}");
        }
        let long = LINE.replace("hooks", &"h".repeat(LINE_MAX));
        assert!(LogLine::parse(long.as_bytes()).is_none());
        let time = Timestamp::UNIX_EPOCH;
        let gap = GapLine { time, gap: Gap { lost: 3, since: time, until: time, why: "full".into() } };
        let line = serde_json::to_vec(&gap).unwrap();
        assert!(matches!(LogLine::parse(&line), Some(LogLine::Gap(found)) if found == gap));
    }

    #[test]
    fn delivery_filter_demands_every_condition() {
        let found = delivery(LINE);
        let filter = |change: &dyn Fn(&mut DeliveryFilter)| {
            let mut filter = DeliveryFilter { tenant: Some("acme".into()), ..DeliveryFilter::default() };
            change(&mut filter);
            filter.may_match(LINE.as_bytes()) && filter.matches(&found)
        };
        assert!(filter(&|_| {}));
        assert!(filter(&|filter| filter.host = Some("HOOKS.acme.example".into())));
        assert!(filter(&|filter| filter.source = "198.51.100.17".parse().ok()));
        assert!(filter(&|filter| filter.since = "2026-11-26T14:16:10.5Z".parse().ok()));
        assert!(!filter(&|filter| filter.since = "2026-11-26T14:16:11Z".parse().ok()));
        assert!(!filter(&|filter| filter.tenant = Some("other".into())));
        assert!(!filter(&|filter| filter.code = Some("delivered".into())));
        assert!(!filter(&|filter| filter.request_id = Some("ab1".into())));
        assert!(!filter(&|filter| filter.source = "198.51.100.18".parse().ok()));
        assert!(!filter(&|filter| filter.host = Some("acme.example".into())));
        let of_webhook =
            |id: &str| filter(&|filter| filter.webhook_ids = webhook_id_forms(Some(id), &Redactor::default()));
        assert!(of_webhook("evt_20261126001") && of_webhook("evt_2026112XXXX"));
        assert!(!of_webhook("evt_20261126") && !of_webhook("msg_1"));
    }
}
