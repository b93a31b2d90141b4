//! The status page of the admin listener.
//! Does the page load nothing from outside, and does it show what happened?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::process::Command;

use super::admin_api::with_users;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use support::clients::InstalledClients;
use support::control::{get, with_admin_socket};
use support::scene::{Scene, config, scene_of};
use support::{Response, eventually, required};

fn scene() -> Scene {
    scene_of(&with_admin_socket)
}

/// Returns the page as a user of this host gets it.
fn page(scene: &Scene) -> Response {
    let response = get(&scene.outgate, "/");
    assert_eq!((response.status, response.field("content-type")), (200, "text/html; charset=utf-8"));
    response
}

/// Returns the text between two marks.
fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let start = text.find(before).unwrap_or_else(|| panic!("{before} in {text}")) + before.len();
    let length = text[start..].find(after).unwrap_or_else(|| panic!("{after} after {before}"));
    &text[start..start + length]
}

#[test]
fn status_page_permits_its_own_style_and_script_only() {
    let scene = scene();
    let response = page(&scene);
    let (text, policy) = (response.text(), response.field("content-security-policy").to_owned());
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    for (directive, before, after) in [("style-src", "<style>", "</style>"), ("script-src", "<script>", "</script>")] {
        let hash = BASE64_STANDARD.encode(digest(&SHA256, between(&text, before, after).as_bytes()));
        assert!(policy.contains(&format!("{directive} 'sha256-{hash}';")), "{directive}: {policy}");
    }
    // An attribute with a style or a script would need 'unsafe-inline', and an asset another source.
    for forbidden in ["style=", "onclick=", "http:", "https:", "src="] {
        assert!(!text.contains(forbidden), "{forbidden} in {text}");
    }
    assert_eq!(response.field("x-content-type-options"), "nosniff");
    assert_eq!(response.field("cache-control"), "no-store");
}

#[test]
fn status_page_counts_deliveries_by_the_party_at_fault() {
    let scene = scene();
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    assert_eq!(scene.outgate.post("http://no-route.invalid/", "", "x").status, 403);
    assert_eq!(scene.outgate.post("http://no-route.invalid/", "", "x").status, 403);
    eventually("three deliveries", || page(&scene).text().contains("3 deliveries in the last"));
    let response = page(&scene);
    for (name, count) in [("delivered", 1), ("refused, client", 2), ("refused, target", 0), ("refused, outgate", 0)] {
        assert!(response.text().contains(&format!("{name}: {count}<")), "{name}: {}", response.text());
    }
}

#[test]
fn status_page_shows_a_rejected_configuration_and_escapes_it() {
    let scene = scene();
    assert!(page(&scene).text().contains(">ready<"), "{}", page(&scene).text());
    let text = with_admin_socket(&config(&scene.good, &scene.plain, ""));
    scene.outgate.reconfigure_to_rejection(&format!("{text}\n[\"<script>alert(1)</script>\"]\n"));
    let response = page(&scene);
    assert!(response.text().contains("ready, needs attention"), "{}", response.text());
    assert!(response.text().contains("&lt;script&gt;alert(1)&lt;/script&gt;"), "{}", response.text());
    assert_eq!(response.text().matches("<script>").count(), 1, "the page's own: {}", response.text());
}

#[test]
fn status_page_tells_what_happened_to_a_delivery() {
    let scene = scene();
    let local_page = |scene: &Scene, query: &str| get(&scene.outgate, &format!("/{query}")).text();
    let refused = scene.outgate.post("http://no-route.invalid/", "", "x");
    let request_id = refused.field("outgate-request-id").to_owned();
    eventually("the delivery", || local_page(&scene, "").contains(&request_id));
    let found = local_page(&scene, &format!("?request={request_id}"));
    let steps = between(&found, "<dl class=\"steps\">", "</dl>");
    assert!(steps.contains("no-route.invalid") && steps.contains("<dt>fault</dt><dd>the client"), "{steps}");
    let unknown = local_page(&scene, "?request=%3Cscript%3E");
    assert!(unknown.contains("do not have this request id"), "{unknown}");
    assert!(unknown.contains("value=\"&lt;script&gt;\""), "{unknown}");
    let page = scene.outgate.admin(&format!("/?request={request_id}"));
    assert!(page.status == 401 && !page.text().contains("no-route.invalid"), "{}", page.text());
}

/// Chromium opens the page over TCP with a viewer's token, in dark and light, on a phone, and without its script.
#[test]
fn status_page_in_a_browser_is_complete_accessible_and_asks_no_other_site() {
    let Some(clients) = InstalledClients::open() else { return };
    if Command::new("chromium").arg("--version").output().is_err() {
        assert!(!required(), "missing: chromium");
        eprintln!("skipped: chromium missing");
        return;
    }
    let scene = scene_of(&|text| {
        let text = with_users(&text.and("[limits.few]\nrate = \"4/h\"\nper = [\"host\"]\n"));
        text.add("routes.signed.limits", ["few"]).add("audit.file", "{dir}/audit.jsonl")
    });
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    let refused = scene.outgate.post("http://no-route.invalid/", "", "x");
    let id = refused.field("outgate-request-id");
    eventually("both deliveries", || get(&scene.outgate, "/v1/status").json()["ended_deliveries"]["client"] == 1);
    let url = format!("http://{}/", scene.outgate.admin);
    let mut command = clients.node("status_page");
    command.args([&url, "viewer", "viewer-token", id]);
    // To look at what the test has seen.
    command.args(std::env::var_os("OUTGATE_TEST_SCREENSHOTS"));
    let output = command.output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
}
