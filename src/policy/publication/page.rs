//! The page of the publication for people: one document without a script or an outside asset.
//! Which addresses must a firewall allow, what changes when, and how is that verified?

use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::feed::Entry;
use super::{ATOM, JSON_FEED, KEY_PEM, MANIFEST, MANIFEST_NOTE, MANIFEST_SIGNATURE, VERIFIER, folder};
use crate::digest::sha256;
use crate::policy::egress::list::format::FORMATS;
use crate::policy::egress::list::{EgressList, rfc3339};

const STYLE: &str = include_str!("page.css");

/// Permits the style of the page by its hash, and nothing else (Content Security Policy Level 3). The page has it in a
/// `meta` element, too, for servers that add no field.
pub static CONTENT_SECURITY_POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = BASE64_STANDARD.encode(sha256(STYLE.as_bytes()));
    format!("default-src 'none'; style-src 'sha256-{hash}'; img-src data:; base-uri 'none'; form-action 'none'")
});

pub(super) fn render(
    origin: &str,
    is_signed: bool,
    all: &EgressList,
    pools: &[EgressList],
    entries: &[Entry],
) -> String {
    let title = super::title(origin);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(*CONTENT_SECURITY_POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                link rel="icon" href="data:,";
                link rel="alternate" type="application/atom+xml" title="Changes" href=(ATOM);
                link rel="alternate" type="application/feed+json" title="Changes" href=(JSON_FEED);
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (title) }
                p { "Webhooks come from these addresses and from no others. Allow all of them, announced ones included." }
                p { "Serial " (all.serial()) ", changed " (time(all.changed_at)) "." }
                (changes(entries))
                (ranges(all))
                (files(pools))
                (verification(origin, is_signed))
            }
        }
    };
    page.into_string()
}

fn time(time: Timestamp) -> Markup {
    html! { time datetime=(rfc3339(time)) { (time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()) } }
}

fn changes(entries: &[Entry]) -> Markup {
    html! {
        h2 { "Dated changes" }
        @if entries.is_empty() { p { "No change is announced." } }
        @else {
            ul { @for entry in entries { li { (entry.title()) ": " @for cidr in &entry.cidrs { code { (cidr) } " " } } } }
        }
        p { "Subscribe to changes: " a href=(ATOM) { "Atom" } " or " a href=(JSON_FEED) { "JSON Feed" } "." }
    }
}

fn ranges(all: &EgressList) -> Markup {
    let or_dash = |date: Option<Timestamp>| html! { @if let Some(date) = date { (time(date)) } @else { "–" } };
    html! {
        h2 { "Ranges" }
        table {
            thead { tr { @for name in ["range", "pool", "state", "from", "until"] { th scope="col" { (name) } } } }
            tbody {
                @for range in &all.ranges {
                    tr {
                        td { code { (range.cidr) } }
                        td { (range.pool) }
                        td { (range.state.as_str()) }
                        td { (or_dash(range.from)) }
                        td { (or_dash(range.until)) }
                    }
                }
            }
        }
    }
}

fn files(pools: &[EgressList]) -> Markup {
    html! {
        h2 { "Files" }
        p { "The addresses of these files do not change. Each has an ETag: a client that sends it gets a new copy only after a change." }
        table {
            thead { tr { th scope="col" { "format" } th scope="col" { "for" } th scope="col" { "files" } } }
            tbody {
                @for format in FORMATS.iter() {
                    tr {
                        td { (format.name) }
                        td { (format.usage) }
                        td {
                            a href={ "all/" (format.file) } { "all pools" }
                            @for list in pools {
                                @if let Some(pool) = &list.pool { " " a href={ (folder(Some(pool))) "/" (format.file) } { (pool) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn verification(origin: &str, is_signed: bool) -> Markup {
    html! {
        h2 { "Verification" }
        p { a href=(MANIFEST) { (MANIFEST) } " has the SHA-256 hash of every file." }
        @if is_signed {
            p {
                "It is signed with the Ed25519 key " (origin) ": " a href=(KEY_PEM) { (KEY_PEM) } ". Compare the key with the one "
                "that you got on another way. " a href=(MANIFEST_NOTE) { (MANIFEST_NOTE) }
                " is the same text as a C2SP signed note, for the verifier " a href=(VERIFIER) { (VERIFIER) } "."
            }
            pre {
                "openssl pkeyutl -verify -pubin -inkey " (KEY_PEM) " -rawin -in " (MANIFEST) " -sigfile " (MANIFEST_SIGNATURE)
                "\nsha256sum --check --ignore-missing " (MANIFEST)
            }
        }
        p { "Public keys of the webhooks' signatures: "
            a href=".well-known/http-message-signatures-directory" { "key directory" } ", "
            a href=".well-known/jwks.json" { "JSON Web Key Set" } "." }
    }
}
