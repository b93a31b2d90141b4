//! Tests of the files of a publication.
//! Does each file have every range, with its dates?

use super::*;
use crate::policy::fixture::{day, plan};

/// Returns the text of a file of the publication, on day 100.
fn text(publication: &Publication, path: &str) -> String {
    String::from_utf8(publication.files[path].body.to_vec()).unwrap()
}

/// The pool `other` begins on day 120, 1970-05-01.
#[test]
fn publication_has_the_ranges_and_their_changes_for_people_and_programs() {
    let plan = plan(
        "[egress.other]\nranges = [{ cidr = \"198.51.100.8/30\", from = 1970-05-01T00:00:00Z }]\nforce = true\n\
         [server]\nallow_anonymous = true\n[publish]\norigin = \"platform.example/ranges\"\n",
    );
    let version = plan.list_version(None, day(100), day(100));
    let publication = Publication::render(&plan, &version, day(100));
    assert_eq!(publication.valid_until, Some(day(120)));
    let title = "Source addresses of webhooks: platform.example/ranges";
    let change = "From 1970-05-01T00:00:00Z, webhooks of pool other come from 1 range";
    let page = text(&publication, PAGE);
    for part in [
        format!("<h1>{title}</h1>"),
        "<time datetime=\"1970-04-11T00:00:00Z\">1970-04-11 00:00:00 UTC</time>".to_owned(),
        format!("<li>{change}: <code>198.51.100.8/30</code> </li>"),
        "<td><code>203.0.113.0/29</code></td><td>default</td><td>active</td><td>–</td><td>–</td>".to_owned(),
        "<a href=\"pools/other/ranges.json\">other</a>".to_owned(),
        "<a href=\"SHA256SUMS\">SHA256SUMS</a> has the SHA-256 hash of every file.".to_owned(),
    ] {
        assert!(page.contains(&part), "{part}: {page}");
    }
    assert!(!page.contains("openssl"), "it is not signed");
    let atom = text(&publication, ATOM);
    assert!(atom.starts_with("<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<feed "), "{atom}");
    assert!(atom.contains(&format!("<title>{title}</title>")) && atom.contains(&format!("<title>{change}</title>")));
    let json: serde_json::Value = serde_json::from_str(&text(&publication, JSON_FEED)).unwrap();
    assert_eq!((&json["title"], &json["items"][0]["title"]), (&title.into(), &change.into()));
    assert_eq!(json["items"][0]["_egress"]["cidrs"], serde_json::json!(["198.51.100.8/30"]));
    assert_eq!(json["items"].as_array().unwrap().len(), 1);
}
