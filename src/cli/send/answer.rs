//! What came of a webhook that was sent: the answer, and what is known of the way there.
//! What does an operator want to see of it?

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use http::response::Parts;
use http::{HeaderMap, Response};
use http_body::Body;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::visible;
use crate::delivery::milliseconds;
use crate::sysexits;

/// Bytes of an answer's body that are shown.
const SHOWN_MAX: usize = 64 * 1024;

/// In the order of the story, as a record names them.
const STEPS: [&str; 8] = ["admit", "take_in", "resolve", "connect", "tls", "sign", "response", "total"];

pub(super) struct SendResult {
    head: Parts,
    body: Vec<u8>,
    /// Of the whole body, in bytes.
    length: u64,
    /// It came to its end.
    whole: bool,
    took: Duration,
    /// The delivery's own, where it was made here.
    pub(super) record: Option<Value>,
}

impl SendResult {
    /// To its end, whatever is kept of it: a delivery that is not heard out would be recorded as one that was left.
    pub(super) async fn read<B: Body<Data = bytes::Bytes> + Unpin>(response: Response<B>, started: Instant) -> Self {
        let (head, mut incoming) = response.into_parts();
        let (mut body, mut length, mut whole) = (Vec::new(), 0, true);
        while let Some(frame) = incoming.frame().await {
            let Ok(frame) = frame else {
                whole = false;
                break;
            };
            let Ok(data) = frame.into_data() else { continue };
            length += data.len() as u64;
            body.extend_from_slice(&data[..data.len().min(SHOWN_MAX - body.len())]);
        }
        Self { head, body, length, whole, took: started.elapsed(), record: None }
    }

    fn field(&self, name: &str) -> Option<String> {
        self.head.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    }

    /// Returns the source address, where one was chosen.
    fn source(&self) -> Option<String> {
        self.field("outgate-egress").filter(|source| source != "none")
    }

    fn is_delivered(&self) -> bool {
        self.field("outgate-error").is_none() && self.whole
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        match self.is_delivered() {
            true if self.head.status.is_success() => ExitCode::SUCCESS,
            true => ExitCode::FAILURE,
            false => ExitCode::from(sysexits::UNAVAILABLE),
        }
    }

    /// The problem details of a refusal (RFC 9457), which tell more than its code.
    fn problem(&self) -> Option<Value> {
        self.field("outgate-error").map(|code| {
            let problem: Value = serde_json::from_slice(&self.body).unwrap_or_default();
            let mut refusal = json!({ "code": code, "retry_after": self.field("retry-after") });
            for key in ["details", "blame", "retryable", "detail"] {
                refusal[key] = problem[key].clone();
            }
            refusal["cause"] = self.recorded("cause").clone();
            refusal
        })
    }

    fn recorded(&self, key: &str) -> &Value {
        self.record.as_ref().map_or(&Value::Null, |record| &record[key])
    }

    pub(super) fn as_json(&self) -> Value {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers: Vec<_> =
            self.head.headers.iter().map(|(name, value)| json!([name.as_str(), text(value.as_bytes())])).collect();
        json!({
            "delivered": self.is_delivered(),
            "request_id": self.field("outgate-request-id"),
            "source": self.source(),
            "status": self.head.status.as_u16(),
            "headers": headers,
            "body": text(&self.body),
            "body_bytes": self.length,
            "whole": self.whole,
            "ms": milliseconds(self.took),
            "refusal": self.problem(),
            "record": self.record,
        })
    }

    pub(super) fn in_words(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &str| {
            if !value.is_empty() {
                let _ = writeln!(text, "{name:<10} {}", visible(value));
            }
        };
        line("request", &self.field("outgate-request-id").unwrap_or_else(|| "no outgate has answered".to_owned()));
        line("source", &self.source().unwrap_or_default());
        for (name, value) in self.way() {
            line(name, &value);
        }
        match &self.record {
            Some(record) => STEPS.iter().for_each(|step| {
                if let Some(took) = record["ms"][*step].as_f64() {
                    line(step, &format!("{took:>9.3} ms"));
                }
            }),
            None => line("total", &format!("{:>9.3} ms", milliseconds(self.took))),
        }
        if let Some(problem) = self.problem() {
            refusal_in_words(&problem, &mut line);
        }
        if !self.whole {
            line("broke off", words(self.recorded("code")).as_deref().unwrap_or("before the end of the answer"));
        }
        let _ = writeln!(text, "\n{:?} {}", self.head.version, self.head.status);
        text.push_str(&head_in_words(&self.head.headers));
        if self.problem().is_none() {
            text.push_str(&self.body_in_words());
        }
        text
    }

    /// What the record alone knows.
    fn way(&self) -> Vec<(&'static str, String)> {
        let Some(record) = &self.record else { return Vec::new() };
        let get = |key: &str| words(&record[key]);
        let mut way = Vec::new();
        way.extend(get("address").map(|address| ("target", address)));
        let tenant = get("tenant").map(|tenant| format!(", tenant {tenant}")).unwrap_or_default();
        way.extend(get("client").map(|client| ("client", format!("{client}{tenant}"))));
        way.extend(get("route").map(|route| ("route", route)));
        let tls = &record["tls"];
        if let (Some(version), Some(suite), Some(expires)) =
            (words(&tls["version"]), words(&tls["suite"]), words(&tls["certificate_expires"]))
        {
            let unverified = if tls["verified"] == false { ", NOT VERIFIED" } else { "" };
            way.push(("tls", format!("{version}, {suite}, certificate until {expires}{unverified}")));
        }
        let keys = record["signatures"].as_array().map(Vec::as_slice).unwrap_or_default();
        let keys: Vec<_> = keys.iter().filter_map(words).collect();
        way.push(("signed", if keys.is_empty() { "by no key".to_owned() } else { format!("by {}", keys.join(", ")) }));
        way
    }

    fn body_in_words(&self) -> String {
        if self.body.is_empty() {
            return String::new();
        }
        let mut text = format!("\n{}", visible(&String::from_utf8_lossy(&self.body)));
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let hidden = self.length - self.body.len() as u64;
        if hidden > 0 {
            let _ = writeln!(text, "[{hidden} bytes more]");
        }
        text
    }
}

fn refusal_in_words(problem: &Value, line: &mut impl FnMut(&str, &str)) {
    let get = |key: &str| words(&problem[key]);
    let details = get("details").map(|word| format!(" ({word})")).unwrap_or_default();
    let detail = get("detail").map(|detail| format!(": {detail}")).unwrap_or_default();
    line("refused", &format!("{}{details}{detail}", get("code").unwrap_or_default()));
    line("cause", &get("cause").unwrap_or_default());
    line("blame", &get("blame").unwrap_or_default());
    let after = get("retry_after").map(|seconds| format!(" after {seconds} s")).unwrap_or_default();
    match problem["retryable"].as_bool() {
        Some(true) => line("advice", &format!("may be sent again{after}")),
        Some(false) => line("advice", "do not send it again as it is"),
        None => {}
    }
}

fn head_in_words(headers: &HeaderMap) -> String {
    let line = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        format!("{name}: {}\n", visible(&String::from_utf8_lossy(value.as_bytes())))
    };
    headers.iter().map(line).collect()
}

fn words(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}
