//! The status page: one document without any outside asset, complete without its script.
//! What runs, since when, and what needs attention?

mod deliveries;
mod fleet;
mod plot;
mod sections;

use std::sync::LazyLock;
use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::build_response;
use super::readiness::Readiness;
use crate::digest::sha256;
use crate::history::HistoryEntry;
use crate::policy::fleet::lost::FleetInstances;
use crate::state::Runtime;
use deliveries::Deliveries;

const MEDIA_TYPE: &str = "text/html; charset=utf-8";
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Permits this page's own style and script by their hashes, requests to this listener, and nothing else
/// (Content Security Policy Level 3).
static CONTENT_SECURITY_POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |text: &str| BASE64_STANDARD.encode(sha256(text.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; img-src data:; connect-src 'self'; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
});

/// Returns the page with the last entries of the history, and with the delivery that the viewer asks for.
pub(super) fn response(
    runtime: &Runtime,
    request_id: Option<&str>,
    history: &[HistoryEntry],
    fleet: Option<&FleetInstances>,
) -> Response<Full<Bytes>> {
    let page = render(runtime, request_id, (history, fleet), Timestamp::now(), Instant::now()).into_string();
    let mut response = build_response(StatusCode::OK, MEDIA_TYPE, page);
    let policy = HeaderValue::from_str(&CONTENT_SECURITY_POLICY).expect("hashes are visible ASCII");
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ] {
        response.headers_mut().insert(name, value);
    }
    response
}

fn render(
    runtime: &Runtime,
    request_id: Option<&str>,
    (history, fleet): (&[HistoryEntry], Option<&FleetInstances>),
    now: Timestamp,
    instant: Instant,
) -> Markup {
    let deliveries = Deliveries::read(runtime);
    let readiness = Readiness::of(runtime, now);
    let (state, class) = match (readiness.blocked.is_empty(), readiness.degraded.is_empty()) {
        (true, true) => ("ready", "state good"),
        (true, false) => ("ready, needs attention", "state bad"),
        (false, _) => ("not ready", "state bad"),
    };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "outgate: " (state) }
                // Without an icon, browsers request one.
                link rel="icon" href="data:,";
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "outgate " (env!("CARGO_PKG_VERSION")) }
                    p #summary role="status" {
                        span class=(class) { (state) }
                        " " span .muted { "at " (time(now)) }
                    }
                    button #live type="button" aria-pressed="true" hidden { "Update every 10 s" }
                }
                main {
                    (sections::attention(&readiness))
                    (sections::alerts(runtime, now))
                    (plot::traffic(&runtime.traffic.minutes(instant)))
                    (deliveries.by_request_id(request_id))
                    (deliveries.refusals())
                    (deliveries.targets())
                    (sections::configuration(runtime, now))
                    (sections::audit(runtime))
                    (sections::egress(runtime, now))
                    (fleet::section(runtime, fleet))
                    (sections::load(runtime))
                    (sections::limits(runtime))
                    (sections::history(history))
                    (sections::expiries(runtime, now))
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
}

/// Returns a time in the form of the log, in UTC without fractions of a second.
fn time(time: Timestamp) -> Markup {
    let text = time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
    html! { time datetime=(time.strftime("%Y-%m-%dT%H:%M:%SZ")) { (text) } }
}
