//! The story of one delivery, told from its record.
//! What happened step by step, which party is at fault, and what should an operator do next?

use std::fmt;

use super::refusal::{Code, TABLE};
use crate::names::pluralize;
use crate::state::observability::delivery_line::{DeliveryLine, LoggedAttempt, LoggedCertificate, one_line};

/// A line of the story: its step, the milliseconds that the step took, and what happened. Its text has no control
/// characters.
pub struct Event(pub &'static str, pub Option<f64>, pub String);

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(step, time, text) = self;
        let time = time.map_or(String::new(), |time| format!("{time:.1} ms"));
        match *step {
            "delivery" => write!(f, "{step} {text}"),
            _ => write!(f, "  {step:<9}{time:>12}  {text}"),
        }
    }
}

/// Returns the story. Its first event names the delivery.
pub fn diagnose(delivery: &DeliveryLine) -> Vec<Event> {
    let title = format!("{} at {:.3}: {}", delivery.request_id, delivery.time, delivery.outcome());
    let mut events = vec![Event("delivery", None, title)];
    events.extend(received(delivery));
    events.extend(steps(delivery));
    events.push(outcome(delivery));
    events.push(Event("fault", None, fault(delivery)));
    events.push(Event("next", None, advice(delivery).to_owned()));
    events.into_iter().map(|Event(step, time, text)| Event(step, time, one_line(&text))).collect()
}

fn text(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or("-")
}

fn received(delivery: &DeliveryLine) -> impl Iterator<Item = Event> {
    let client = match (delivery.client.as_deref(), delivery.proof.as_deref(), delivery.claimed_client.as_deref()) {
        (Some(client), Some(proof), _) => format!("client {client}, identified by {proof},"),
        (_, _, Some(claimed)) => format!("a client that is not identified and names itself {claimed}"),
        _ => "a client that is not identified".to_owned(),
    };
    let peer = delivery.peer.as_ref().map_or("a unix socket".to_owned(), ToString::to_string);
    let tenant = delivery.tenant.as_ref().map_or(String::new(), |tenant| format!(", for tenant {tenant}"));
    let trace = delivery.trace_id.as_ref().map_or(String::new(), |trace| format!(", in trace {trace}"));
    let (method, target) = (text(&delivery.method), delivery.target());
    let request = format!("{client} asked from {peer} for {method} {target}{tenant}{trace}");
    let route = match &delivery.route {
        Some(route) => Some(format!("route {route} matched")),
        // Other deliveries without a route ended before outgate looked for one.
        None => (delivery.code == Code::NoRoute.name()).then(|| "no route matched".to_owned()),
    };
    [Some(Event("received", None, request)), route.map(|route| Event("route", None, route))].into_iter().flatten()
}

/// Returns the steps that the delivery took. The last one is the one that failed, unless it was delivered.
fn steps(delivery: &DeliveryLine) -> Vec<Event> {
    let times = &delivery.ms;
    let timed = |step, time: Option<f64>, text: String| time.map(|time| Event(step, Some(time), text));
    let source = |source: &String| {
        let text = format!("outgate chose the source address {source}, towards {}", text(&delivery.address));
        Event("source", None, text)
    };
    let tls = delivery.tls.as_ref().map_or("the TLS handshake ended".to_owned(), |tls| {
        let until = tls.certificate_expires.map_or(String::new(), |end| format!(", certificate valid until {end}"));
        let verified = match tls.verified {
            Some(false) => "outgate did NOT verify the target's certificate",
            _ => "outgate verified the target's certificate",
        };
        format!("{verified}: {}, {}{until}", tls.version, tls.suite)
    });
    let keys = delivery.signatures.join(", ");
    let response = match &delivery.status_class {
        Some(class) => format!("the target responded with status {class}, after {} bytes", delivery.bytes_sent),
        None => format!("{} bytes went to the target", delivery.bytes_sent),
    };
    let is_reused = delivery.reused == Some(true);
    let connected = match is_reused {
        true => "outgate waited for a connection that another webhook opened",
        false => "outgate opened a connection",
    };
    let steps = [
        timed("admit", times.admit, "the limits admitted the delivery".into()),
        timed("token", times.token, "outgate got the token of the credential".into()),
        timed("body", times.take_in, "outgate read the body of the request".into()),
        timed("resolve", times.resolve, "the name was resolved, and the guard cleared its addresses".into()),
        delivery.source.as_ref().map(source),
        (is_reused && times.connect.is_none())
            .then(|| Event("connect", None, "outgate reused an open connection".into())),
        timed("connect", times.connect, connected.into()),
        timed("tls", times.tls, tls),
        timed("sign", times.sign, if keys.is_empty() { "no signer".into() } else { format!("signed by {keys}") }),
        timed("response", times.response, response),
    ];
    let mut events: Vec<Event> = steps.into_iter().flatten().collect();
    // A step of a complete delivery, or of a response that has arrived, has not failed.
    let has_failed = delivery.code != "delivered" && delivery.status_class.is_none();
    if let Some(last) = events.iter_mut().rev().find(|event| event.1.is_some() && has_failed) {
        last.2 = format!("the delivery ended in this step: {}", reason(delivery));
    }
    let at = |step| events.iter().position(|event: &Event| event.0 == step && event.1.is_some());
    let (connect, tls) = (at("connect"), at("tls"));
    if let (Some(certificate), Some(at)) = (&delivery.certificate, tls) {
        events.insert(at + 1, Event("", None, shown_certificate(certificate)));
    }
    if let Some(at) = connect {
        let attempts = delivery.attempts.iter().map(|LoggedAttempt { source, address, outcome, ms }| {
            Event("", Some(*ms), format!("from {source} to {address}: {outcome}"))
        });
        events.splice(at + 1..at + 1, attempts);
    }
    events
}

fn shown_certificate(certificate: &LoggedCertificate) -> String {
    let LoggedCertificate { common_name, names, issuer, not_before, not_after, verdict } = certificate;
    let names = if names.is_empty() { text(common_name).to_owned() } else { names.join(", ") };
    let (from, to) = (text(not_before), text(not_after));
    format!("the certificate is for {names}, issued by {}, valid from {from} to {to}: {verdict}", text(issuer))
}

/// Returns the reason of an end that is not a complete delivery.
fn reason(delivery: &DeliveryLine) -> String {
    let detail = delivery.detail.clone().unwrap_or_else(|| match delivery.code.as_str() {
        "client_gone" => "the client closed its connection, or did not read the response in time".into(),
        code => code.to_owned(),
    });
    let cause = delivery.cause.as_ref().map_or(String::new(), |cause| format!(" ({cause})"));
    let limit = delivery.limit.as_ref().map_or(String::new(), |limit| format!(" [limit {}]", limit.name));
    format!("{detail}{cause}{limit}")
}

fn outcome(delivery: &DeliveryLine) -> Event {
    let bytes = pluralize(delivery.bytes_received, "byte");
    let sent = match delivery.status {
        // `bytes_received` counts what the target sent, and outgate itself writes a refusal. The client of a tunnel that was
        // closed has got 200 and what the tunnel carried.
        Some(status) if delivery.retryable.is_some() && status != 200 => format!("the client got status {status}"),
        Some(status) => format!("the client got status {status} and {bytes}"),
        None => "the client got no response".to_owned(),
    };
    let refused = match (delivery.code.as_str(), delivery.retryable) {
        ("delivered", _) => String::new(),
        (_, Some(true)) => format!("; {}; it may retry", reason(delivery)),
        (_, Some(false)) => format!("; {}; a retry does not help", reason(delivery)),
        (_, None) => format!("; {}", reason(delivery)),
    };
    let shadow = delivery
        .would_refuse
        .iter()
        .map(|rule| format!("; with report_only off, {} {} would refuse it as {}", rule.kind, rule.name, rule.code));
    let shadow: String = shadow.collect();
    Event("end", Some(delivery.ms.total), format!("{sent}{refused}{shadow}"))
}

/// Returns the party that must act.
fn fault(delivery: &DeliveryLine) -> String {
    match delivery.blame.as_deref() {
        _ if delivery.is_success() => "none: the target received the webhook".into(),
        Some("none") | None => format!("the target: it responded with status {}", text(&delivery.status_class)),
        Some("client") => "the client, or what the configuration allows it".into(),
        Some("target") => format!("the target {}", text(&delivery.host)),
        Some("outgate") => "this outgate, or its host".into(),
        Some(other) => other.to_owned(),
    }
}

fn advice(delivery: &DeliveryLine) -> &'static str {
    match delivery.details.as_deref() {
        Some("no_tenant") => {
            return "Let the client name its tenant in `Outgate-Tenant`, or give the signer of the route `keys`.";
        }
        Some("no_tenant_key") => {
            return "Put a key into the tenant's folder in `key_dir` of the signer, or give the signer `keys`.";
        }
        _ => {}
    }
    if let Some(row) = TABLE.iter().find(|row| row.name == delivery.code) {
        return row.advice;
    }
    match delivery.code.as_str() {
        "client_gone" => {
            "Find out why the client hung up, or why it did not read the response before `timeouts.total` of the route: its own \
             timeout must be longer than that. The target may have the webhook."
        }
        "delivered" if delivery.is_success() => {
            "Nothing: if the customer misses it, give this id and time to the target's owner."
        }
        "delivered" => "Ask the target's owner about this status, and give the time: outgate delivered the webhook.",
        _ => "Read docs/refusals.md of the version of outgate that wrote this record.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::observability::delivery_line::LogLine;

    fn story(line: &str) -> String {
        let Some(LogLine::Delivery(delivery)) = LogLine::parse(line.as_bytes()) else { panic!("{line}") };
        diagnose(&delivery).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn diagnosis_tells_the_step_that_failed_the_party_at_fault_and_the_next_step() {
        let story = story(
            r#"{"time":"2026-11-26T14:16:10Z","request_id":"ab","code":"certificate_untrusted","details":"self_signed",
            "client":"billing","proof":"token","peer":"10.0.0.1","tenant":"acme","route":"r","method":"POST",
            "scheme":"https","host":"h.example","port":8443,"path":"/in","source":"198.51.100.1","address":"203.0.113.9",
            "certificate":{"names":["h.example"],"issuer":"h.example","verdict":"self_signed"},"status":502,
            "attempts":[{"source":"198.51.100.1","address":"203.0.113.9","outcome":"connected","ms":2.0}],
            "blame":"target","retryable":false,"detail":"the target's \u001b]0;x\u0007 is refused",
            "ms":{"admit":0.1,"resolve":1.0,"connect":2.0,"tls":3.0,"total":6.5}}"#,
        );
        let expected = "\
delivery ab at 2026-11-26T14:16:10.000Z: certificate_untrusted (self_signed)
  received               client billing, identified by token, asked from 10.0.0.1 for POST https://h.example:8443/in, for tenant acme
  route                  route r matched
  admit          0.1 ms  the limits admitted the delivery
  resolve        1.0 ms  the name was resolved, and the guard cleared its addresses
  source                 outgate chose the source address 198.51.100.1, towards 203.0.113.9
  connect        2.0 ms  outgate opened a connection
                 2.0 ms  from 198.51.100.1 to 203.0.113.9: connected
  tls            3.0 ms  the delivery ended in this step: the target's \u{fffd}]0;x\u{fffd} is refused
                         the certificate is for h.example, issued by h.example, valid from - to -: self_signed
  end            6.5 ms  the client got status 502; the target's \u{fffd}]0;x\u{fffd} is refused; a retry does not help
  fault                  the target h.example
  next                   Ask the target's owner to correct the certificate: `details` says what is wrong with it.";
        assert_eq!(story, expected);
    }

    #[test]
    fn next_step_for_a_tenant_without_a_key_is_the_operators() {
        let told = |details: &str| {
            story(&format!(
                r#"{{"time":"2026-11-26T14:16:10Z","request_id":"ab","code":"client_forbidden","details":"{details}",
                "status":403,"blame":"client","retryable":false,"detail":"refused","ms":{{"total":1}}}}"#
            ))
        };
        assert!(told("no_tenant_key").contains("next                   Put a key into the tenant's folder"));
        assert!(
            told("no_tenant").contains("next                   Let the client name its tenant in `Outgate-Tenant`")
        );
        assert!(told("tenant").contains("next                   Allow the client what it asks for"));
    }

    #[test]
    fn diagnosis_names_a_route_only_where_outgate_looked_for_one() {
        let told = |code: &str| {
            story(&format!(
                r#"{{"time":"2026-11-26T14:16:10Z","request_id":"ab","code":"{code}","status":407,"blame":"client",
                "retryable":false,"detail":"refused","ms":{{"total":1}}}}"#
            ))
        };
        for code in ["client_unauthenticated", "client_forbidden", "draining", "request_malformed"] {
            assert!(!told(code).contains("route  "), "{}", told(code));
        }
        assert!(told("no_route").contains("route                  no route matched"), "{}", told("no_route"));
        assert!(told("no_route").contains("the client got status 407; refused"), "{}", told("no_route"));
    }

    #[test]
    fn diagnosis_of_a_delivery_blames_the_status_of_the_target_alone() {
        let told = |class: &str| {
            story(&format!(
                r#"{{"time":"2026-11-26T14:16:10Z","request_id":"ab","code":"delivered","status_class":"{class}",
                "blame":"none","signatures":["k1"],"ms":{{"sign":0.1,"response":5,"total":6}}}}"#
            ))
        };
        assert!(told("2xx").contains("none: the target received the webhook") && told("2xx").contains("signed by k1"));
        assert!(told("5xx").contains("the target: it responded with status 5xx"), "{}", told("5xx"));
        assert!(!told("5xx").contains("ended in this step"));
    }
}
