//! The result of a sent webhook: the response and, if known, the record of the delivery.
//! How is the result shown to the operator?

use std::fmt::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use http_body::Body;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::escape_control_characters;
use crate::delivery::milliseconds;
use crate::http_message::Response;
use crate::policy::redact::Redactor;
use crate::sysexits;

/// The most bytes of a response body that are shown.
const BODY_SHOWN_MAX: usize = 64 * 1024;

/// The field of a response that has the id of its delivery.
const REQUEST_ID: &str = "outgate-request-id";
/// The steps in the order of a delivery, by their names in a record.
const STEPS: [&str; 8] = ["admit", "take_in", "resolve", "connect", "tls", "sign", "response", "total"];

pub(super) struct SendResult {
    head: Response<()>,
    body: Vec<u8>,
    /// The length of the whole body in bytes.
    length: u64,
    /// Whether the response was complete.
    is_complete: bool,
    elapsed: Duration,
    redactor: Arc<Redactor>,
    /// The record, if this process made the delivery.
    pub(super) record: Option<Value>,
}

impl SendResult {
    /// Reads the response to its end, even beyond what is kept. A delivery whose response is not read is recorded as
    /// aborted by the client.
    pub(super) async fn read<B: Body<Data = bytes::Bytes> + Unpin>(
        response: Response<B>,
        started: Instant,
        redactor: Arc<Redactor>,
    ) -> Self {
        let Response { status, version, fields, body: mut incoming, .. } = response;
        let head = Response { version, fields, ..Response::new(status, ()) };
        let (mut body, mut length, mut is_complete) = (Vec::new(), 0, true);
        while let Some(frame) = incoming.frame().await {
            let Ok(frame) = frame else {
                is_complete = false;
                break;
            };
            let Ok(data) = frame.into_data() else { continue };
            length += data.len() as u64;
            body.extend_from_slice(&data[..data.len().min(BODY_SHOWN_MAX - body.len())]);
        }
        Self { head, body, length, is_complete, elapsed: started.elapsed(), redactor, record: None }
    }

    fn field(&self, name: &str) -> Option<String> {
        self.head.fields.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    }

    /// Returns the source address, where one was chosen.
    fn source(&self) -> Option<String> {
        self.field("outgate-egress").filter(|source| source != "none")
    }

    fn is_delivered(&self) -> bool {
        self.field("outgate-error").is_none() && self.is_complete
    }

    pub(super) fn exit_code(&self) -> ExitCode {
        match self.is_delivered() {
            true if self.head.status.is_success() => ExitCode::SUCCESS,
            true => ExitCode::FAILURE,
            false => ExitCode::from(sysexits::UNAVAILABLE),
        }
    }

    /// The problem details of a refusal (RFC 9457), which tell more than its code.
    fn refusal_json(&self) -> Option<Value> {
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

    /// Returns the header fields without secrets and phone numbers.
    fn shown_headers(&self) -> impl Iterator<Item = (&str, String)> {
        self.head.fields.iter().map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes());
            let shown = match name == *REQUEST_ID {
                true => value.into_owned(), // outgate has generated it
                false => self.redactor.header(name, &value).to_string(),
            };
            (name.as_written(), shown)
        })
    }

    fn recorded(&self, key: &str) -> &Value {
        self.record.as_ref().map_or(&Value::Null, |record| &record[key])
    }

    pub(super) fn as_json(&self) -> Value {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers: Vec<_> = self.shown_headers().map(|(name, value)| json!([name, value])).collect();
        json!({
            "delivered": self.is_delivered(),
            "request_id": self.field(REQUEST_ID),
            "source": self.source(),
            "status": self.head.status.as_u16(),
            "headers": headers,
            "body": text(&self.body),
            "body_bytes": self.length,
            "whole": self.is_complete,
            "ms": milliseconds(self.elapsed),
            "refusal": self.refusal_json(),
            "record": self.record,
        })
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &str| {
            if !value.is_empty() {
                let _ = writeln!(text, "{name:<10} {}", escape_control_characters(value));
            }
        };
        line("request", &self.field(REQUEST_ID).unwrap_or_else(|| "the response is not from outgate".to_owned()));
        line("source", &self.source().unwrap_or_default());
        for (name, value) in self.delivery_lines() {
            line(name, &value);
        }
        match &self.record {
            Some(record) => STEPS.iter().for_each(|step| {
                if let Some(took) = record["ms"][*step].as_f64() {
                    line(step, &format!("{took:>9.3} ms"));
                }
            }),
            None => line("total", &format!("{:>9.3} ms", milliseconds(self.elapsed))),
        }
        if let Some(problem) = self.refusal_json() {
            write_refusal(&problem, &mut line);
        }
        if !self.is_complete {
            line("aborted", string(self.recorded("code")).as_deref().unwrap_or("the response is incomplete"));
        }
        let _ = writeln!(text, "\n{:?} {}", self.head.version, self.head.status);
        for (name, value) in self.shown_headers() {
            let _ = writeln!(text, "{name}: {}", escape_control_characters(&value));
        }
        if self.refusal_json().is_none() {
            text.push_str(&self.body_text());
        }
        text
    }

    /// Returns the lines that only the record can provide.
    fn delivery_lines(&self) -> Vec<(&'static str, String)> {
        let Some(record) = &self.record else { return Vec::new() };
        let get = |key: &str| string(&record[key]);
        let mut lines = Vec::new();
        lines.extend(get("address").map(|address| ("target", address)));
        let tenant = get("tenant").map(|tenant| format!(", tenant {tenant}")).unwrap_or_default();
        lines.extend(get("client").map(|client| ("client", format!("{client}{tenant}"))));
        lines.extend(get("route").map(|route| ("route", route)));
        let tls = &record["tls"];
        if let (Some(version), Some(suite), Some(expires)) =
            (string(&tls["version"]), string(&tls["suite"]), string(&tls["certificate_expires"]))
        {
            let unverified = if tls["verified"] == false { ", NOT VERIFIED" } else { "" };
            lines.push(("tls", format!("{version}, {suite}, certificate until {expires}{unverified}")));
        }
        let keys = record["signatures"].as_array().map(Vec::as_slice).unwrap_or_default();
        let keys: Vec<_> = keys.iter().filter_map(string).collect();
        lines.push(("signed", if keys.is_empty() { "no".to_owned() } else { format!("by {}", keys.join(", ")) }));
        lines
    }

    fn body_text(&self) -> String {
        if self.body.is_empty() {
            return String::new();
        }
        let mut text = format!("\n{}", escape_control_characters(&String::from_utf8_lossy(&self.body)));
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let hidden = self.length - self.body.len() as u64;
        if hidden > 0 {
            let _ = writeln!(text, "[{hidden} more bytes]");
        }
        text
    }
}

fn write_refusal(problem: &Value, line: &mut impl FnMut(&str, &str)) {
    let get = |key: &str| string(&problem[key]);
    let details = get("details").map(|word| format!(" ({word})")).unwrap_or_default();
    let detail = get("detail").map(|detail| format!(": {detail}")).unwrap_or_default();
    line("refused", &format!("{}{details}{detail}", get("code").unwrap_or_default()));
    line("cause", &get("cause").unwrap_or_default());
    line("blame", &get("blame").unwrap_or_default());
    let after = get("retry_after").map(|seconds| format!(" after {seconds} s")).unwrap_or_default();
    match problem["retryable"].as_bool() {
        Some(true) => line("advice", &format!("may be retried{after}")),
        Some(false) => line("advice", "do not retry unchanged"),
        None => {}
    }
}

fn string(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::Full;

    use super::*;

    #[tokio::test]
    async fn own_request_id_is_shown_whole_and_a_phone_number_is_not() {
        let response =
            http::Response::builder().header(REQUEST_ID, "4f2a9c0d1e5b7a3300000042").header("x-to", "+819012345678");
        let response = response.body(Full::new(Bytes::new())).unwrap();
        let result = SendResult::read(response.into(), Instant::now(), Arc::default()).await;
        let text = result.to_text();
        assert!(text.contains("outgate-request-id: 4f2a9c0d1e5b7a3300000042\n"), "{text}");
        assert!(text.contains("x-to: ") && !text.contains("+819012345678"), "{text}");
    }
}
