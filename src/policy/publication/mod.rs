//! The publication: the lists of ranges, a page, feeds, keys, and a signed manifest, as the files of a web site.
//! Which files do customers find, and what is in them?
//!
//! It is a function of the configuration and of the time, so the publish listener and `outgate egress publish` have the
//! same bytes.

mod feed;
mod page;

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::signature::Ed25519KeyPair;
use bytes::Bytes;
use data_encoding::HEXLOWER;
use jiff::Timestamp;

use super::Plan;
use super::egress::list::format::FORMATS;
use super::egress::list::{EgressList, ListVersion, slug};
use super::sign;
use crate::audit::{Verifier, sign_note};
use crate::config::{Config, Problem};
use crate::digest::sha256;
use crate::names::PoolName;
pub use page::CONTENT_SECURITY_POLICY;

/// The names of the page, of the manifest, and of the manifest's signed forms.
pub const PAGE: &str = "index.html";
pub const MANIFEST: &str = "SHA256SUMS";
const MANIFEST_SIGNATURE: &str = "SHA256SUMS.sig";
const MANIFEST_NOTE: &str = "SHA256SUMS.note";
const KEY_PEM: &str = "key.pem";
const VERIFIER: &str = "key.txt";
const ATOM: &str = "feed.atom";
const JSON_FEED: &str = "feed.json";

const TEXT: &str = "text/plain; charset=utf-8";

/// The compiled section `[publish]`.
#[derive(Clone)]
pub struct PublishPlan {
    /// The name of the publication, and of its key.
    origin: String,
    signer: Option<Arc<Ed25519KeyPair>>,
}

/// A file of the publication.
pub struct PublishedFile {
    pub media_type: &'static str,
    pub body: Bytes,
    /// The hash of the body, in hex.
    sha256: String,
    /// The entity tag, a part of the body's SHA-256 (RFC 9110 §8.8.3).
    pub etag: String,
    /// The time of the last change. `None`: the file has content that changes without the list.
    pub modified: Option<Timestamp>,
}

/// The files by their path, without a leading slash.
pub struct Publication {
    pub files: BTreeMap<String, PublishedFile>,
    pub serial: i64,
    /// The time at which a range changes its state, and with it some files.
    pub valid_until: Option<Timestamp>,
}

/// Compiles `[publish]`.
pub(super) fn compile(config: &Config, problems: &mut Vec<Problem>) -> PublishPlan {
    let signer = config.publish.sign.as_ref().and_then(|key| {
        let parsed = sign::parse_ed25519_key(key.expose());
        let report = |(message, help)| {
            problems.push(Problem::at(key.span, format!("the key of `publish.sign` {message}")).help(help));
        };
        parsed.map_err(report).ok()
    });
    PublishPlan { origin: config.publish.origin.clone(), signer: signer.map(Arc::new) }
}

impl Publication {
    /// Makes all files.
    pub fn render(plan: &Plan, version: &ListVersion, now: Timestamp) -> Self {
        let PublishPlan { origin, signer } = &plan.publish;
        let all = plan.egress_list(None, version, now);
        let pools: Vec<_> = plan.pools.keys().map(|pool| plan.egress_list(Some(pool), version, now)).collect();
        let mut files = Files { files: BTreeMap::new(), changed_at: all.changed_at };
        for list in [&all].into_iter().chain(&pools) {
            for format in FORMATS.iter() {
                files.add(
                    format!("{}/{}", folder(list.pool.as_ref()), format.file),
                    format.media_type(),
                    format.render(list),
                );
            }
        }
        if let Some(json) = files.files.get("all/ranges.json").map(|file| file.body.clone()) {
            files.add(".well-known/egress-ranges.json", "application/json", json);
        }
        let entries = feed::entries(&all);
        files.add(ATOM, "application/atom+xml", feed::atom(origin, &all, &entries));
        files.add(JSON_FEED, "application/feed+json", feed::json(origin, &all, &entries));
        let is_signed = signer.is_some();
        files.add(PAGE, "text/html; charset=utf-8", page::render(origin, is_signed, &all, &pools, &entries));
        // Keys have dates of their own.
        let directory = sign::directory(&plan.signers, None, now).to_string();
        let media_type = "application/http-message-signatures-directory+json";
        files.add_undated(".well-known/http-message-signatures-directory", media_type, directory);
        let jwks = sign::jwks(&plan.signers, None, now).to_string();
        files.add_undated(".well-known/jwks.json", "application/jwk-set+json", jwks);
        let signed = signer.as_deref().and_then(|signer| Some((signer, sign::PublicKey::of_pair(signer)?)));
        if let Some((signer, public)) = &signed {
            files.add(VERIFIER, TEXT, format!("{}\n", Verifier::of(origin, signer)));
            files.add(KEY_PEM, "application/x-pem-file", public.pem());
        }
        let manifest = files.manifest(origin, &all);
        if let Some((signer, _)) = signed {
            let signature = signer.sign(manifest.as_bytes()).as_ref().to_vec();
            files.add_undated(MANIFEST_SIGNATURE, "application/octet-stream", signature);
            files.add_undated(MANIFEST_NOTE, TEXT, sign_note(&manifest, origin, signer));
        }
        files.add_undated(MANIFEST, TEXT, manifest);
        Self { files: files.files, serial: all.serial(), valid_until: all.next_change }
    }
}

/// Returns the title of the page and of the feeds.
fn title(origin: &str) -> String {
    format!("Source addresses of webhooks: {origin}")
}

/// Returns the folder of a list.
fn folder(pool: Option<&PoolName>) -> String {
    pool.map_or_else(|| "all".to_owned(), |pool| format!("pools/{}", slug(pool)))
}

struct Files {
    files: BTreeMap<String, PublishedFile>,
    changed_at: Timestamp,
}

impl Files {
    /// Adds a file that changes with the ranges.
    fn add(&mut self, path: impl Into<String>, media_type: &'static str, body: impl Into<Bytes>) {
        self.insert(path.into(), media_type, body.into(), Some(self.changed_at));
    }

    fn add_undated(&mut self, path: &str, media_type: &'static str, body: impl Into<Bytes>) {
        self.insert(path.to_owned(), media_type, body.into(), None);
    }

    fn insert(&mut self, path: String, media_type: &'static str, body: Bytes, modified: Option<Timestamp>) {
        let sha256 = HEXLOWER.encode(&sha256(&body));
        let etag = format!("\"{}\"", &sha256[..32]);
        self.files.insert(path, PublishedFile { media_type, body, sha256, etag, modified });
    }

    /// Returns the hash of each file, in the form of `sha256sum`, which ignores the comments.
    fn manifest(&self, origin: &str, list: &EgressList) -> String {
        let mut manifest = format!("# {origin}\n# serial {}\n# changed {}\n", list.serial(), list.date());
        for (path, file) in &self.files {
            manifest.push_str(&format!("{}  {path}\n", file.sha256));
        }
        manifest
    }
}

#[cfg(test)]
mod tests;
