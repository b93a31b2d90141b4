//! The fuzz targets of outgate's parsers, for cargo-fuzz and for a test here that mutates seeds.
//! Which input makes a parser panic or contradict itself?
//!
//! A new fuzz target needs a function here (or beside a private parser), its line in `TARGETS`, a file in
//! `fuzz/fuzz_targets`, a folder in `fuzz/seeds`, its name in `fuzz/Cargo.toml`, and a corpus: `fuzz/campaign NAME 3600`.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use data_encoding::HEXLOWER;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use jiff::Timestamp;

pub use crate::audit::audit_logs;
use crate::audit::{Checkpoint, Verifier};
pub use crate::cli::{archives, probe_targets};
use crate::config::SourceSnapshot;
use crate::config::difference::Difference;
pub use crate::config::key_files;
use crate::delivery::{self, ExplainRequest};
use crate::host::HostPattern;
use crate::http_message::{FieldValue, Fields};
use crate::names::ClientName;
pub use crate::net::client_hello::client_hellos;
pub use crate::net::field_filter::fuzz::fields;
pub use crate::net::http_client::responses;
use crate::policy::authn::{self, Caller, PresentedCredentials, SignableRequest};
use crate::policy::credential::{OAuth2, rejects_token};
use crate::policy::guard::LocalAddresses;
use crate::policy::redact::{Redactor, RoutePaths};
use crate::policy::rollout::Operators;
use crate::policy::rollout::bundle::{Bundle, SignedBundle};
use crate::policy::trace::{ParentSpan, TraceContext};
use crate::policy::{self, Plan};
pub use crate::server::http1::fuzz::{chunks, requests};
pub use crate::server::proxy_protocol::proxy_headers;
use crate::state::observability::delivery_line::LogLine;
pub use crate::state::observability::traces::otlp_responses;
use crate::{config, host};

/// Each fuzz target: its name, which its folder of seeds has too, and its function.
pub const TARGETS: &[FuzzTarget] = &[
    ("requests", requests),
    ("chunks", chunks),
    ("fields", fields),
    ("responses", responses),
    ("proxy_headers", proxy_headers),
    ("client_hellos", client_hellos),
    ("hosts", hosts),
    ("urls", urls),
    ("client_credentials", client_credentials),
    ("tokens", tokens),
    ("key_files", key_files),
    ("configuration", configuration),
    ("differences", differences),
    ("redactions", redactions),
    ("delivery_lines", delivery_lines),
    ("archives", archives),
    ("audit_logs", audit_logs),
    ("checkpoints", checkpoints),
    ("bundles", bundles),
    ("traceparents", traceparents),
    ("otlp_responses", otlp_responses),
    ("probe_targets", probe_targets),
];

type FuzzTarget = (&'static str, fn(&[u8]));

/// The plan of the built-in configuration: it accepts anonymous clients, and has no others.
static PLAN: LazyLock<Plan> = LazyLock::new(|| {
    let mut loaded = config::builtin(&["192.0.2.1".parse().expect("an address")]).expect("the built-in configuration");
    // An explanation shows the target as it is.
    loaded.config.redact.phone_numbers = false;
    policy::compile(&loaded.config, Timestamp::UNIX_EPOCH).expect("a plan").0
});

/// Compares two configurations, separated by a line of dashes. The comparison is symmetric, and finds no difference
/// between equal texts.
pub fn differences(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (before, after) = text.split_once("\n---\n").unwrap_or((text, ""));
    let snapshot = |text: &str| SourceSnapshot {
        texts: vec![(Path::new("/c.toml").into(), text.into())],
        ..SourceSnapshot::default()
    };
    let (before, after) = (snapshot(before), snapshot(after));
    let [forward, backward] =
        [(&before, &after), (&after, &before)].map(|(one, other)| Difference::between(one, other));
    assert_eq!(forward.is_empty(), backward.is_empty(), "{text:?}: {forward} {backward}");
    assert!(Difference::between(&after, &after).is_empty(), "{text:?}");
}

/// Redacts a text as a path, a message and a header value. The redactor adds no line, and keeps text without digits,
/// percent signs and long words.
pub fn redactions(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (redactor, host) = (Redactor::default(), host::canonical("hooks.acme.example").expect("a host"));
    let path = redactor.path(&RoutePaths::default(), &host, text).expect("a path");
    for redacted in [path, redactor.text(text), redactor.message(text), redactor.claim(text)] {
        assert!(redacted.as_str().lines().count() <= text.lines().count(), "{text:?} is {redacted}");
    }
    let is_ordinary = |c: char| !matches!(c, '0'..='9' | '%' | '?' | '#');
    if text.len() < 16 && text.chars().all(is_ordinary) {
        assert_eq!(redactor.message(text).as_str(), text);
    }
}

/// A line of a delivery log is told in lines that have no control characters.
pub fn delivery_lines(data: &[u8]) {
    let texts = match LogLine::parse(data) {
        Some(LogLine::Delivery(delivery)) => {
            let events = delivery::diagnose(&delivery).into_iter().map(|event| event.to_string());
            events.chain([delivery.summary()]).collect()
        }
        Some(LogLine::Gap(line)) => vec![line.gap.to_text()],
        None => return,
    };
    for text in texts {
        assert!(!text.contains(char::is_control), "{text:?}");
    }
}

/// Reads a verifier in the first line, and a signed note in the others. A note that the verifier opens is a checkpoint.
pub fn checkpoints(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (verifier, note) = text.split_once('\n').unwrap_or((text, ""));
    let checkpoint = Checkpoint::parse(note);
    if let Ok(verifier) = Verifier::parse(verifier) {
        assert_eq!(Verifier::parse(&verifier.to_string()).as_ref(), Ok(&verifier));
        if let Ok(opened) = verifier.open(note) {
            assert_eq!(Ok(opened), checkpoint);
        }
    }
}

/// Reads the bundle of a rollout. It has one form, its files lie in the folder of the bundle, and without a signature it is
/// none.
pub fn bundles(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // The canonical form of a document leads mutations behind that check.
    let Ok(bundle) = serde_json::from_str::<Bundle>(text) else { return };
    let document = bundle.document();
    let parsed = Bundle::parse(&document, "outgate");
    assert_eq!(Bundle::parse(text, "outgate").is_ok(), parsed.is_ok() && text == document, "{text:?}");
    if let Ok(parsed) = parsed {
        let folder = Path::new("/current");
        assert!(
            parsed.overlay(folder, BTreeSet::new()).texts.keys().all(|path| path.parent() == Some(folder)),
            "{text:?}"
        );
        assert_eq!(parsed, bundle);
    }
    assert!(SignedBundle::verify(&document, "", "outgate", &Operators::default()).is_err());
}

/// A trace that is continued has the trace id of its parent, and its own `traceparent` is valid.
pub fn traceparents(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(parent) = ParentSpan::parse(text) else { return };
    let continued = TraceContext::new(Some(parent), [1; 3], true);
    assert_eq!(Some(HEXLOWER.encode(&continued.trace_id).as_str()), text.get(3..35));
    assert!(ParentSpan::parse(&continued.traceparent()).is_some_and(|parent| parent.is_sampled()));
}

/// Canonicalising a host is idempotent.
pub fn hosts(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(host) = host::canonical(text) {
        let again = host.to_string();
        assert_eq!(host::canonical(&again).as_ref(), Ok(&host), "{text:?} is {again:?}");
    }
    // A pattern without a wildcard is the canonical host itself.
    if let (Ok(HostPattern::Exact(pattern)), Ok(host)) = (HostPattern::parse(text), host::canonical(text)) {
        assert_eq!(pattern, host, "{text:?}");
    }
}

/// Parsing the displayed target of a URL gives the same target.
pub fn urls(data: &[u8]) {
    let target = |url: &str| {
        let (method, client) = (&Method::POST, &ClientName::new(authn::ANONYMOUS));
        let request = ExplainRequest { method, url, client, tenant: None, now: Timestamp::UNIX_EPOCH };
        let explanation = delivery::explain(&PLAN, &request, &LocalAddresses::default());
        explanation.lines.into_iter().find(|(step, _)| *step == "target").map(|(_, target)| target)
    };
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(canonical) = target(text) {
        assert_eq!(target(&canonical).as_ref(), Some(&canonical), "{text:?}");
    }
}

/// Authenticates a request whose first line is its target, and whose other lines are fields. The plan has no client
/// with a credential, so no request may be authenticated as one. The parts of a token stand in clear between tildes, so
/// that mutations change their contents.
pub fn client_credentials(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.lines();
    let target = lines.next().unwrap_or_default();
    let mut fields = Fields::default();
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        let encoded: Vec<String> = value.split('~').map(|part| BASE64_URL_SAFE_NO_PAD.encode(part)).collect();
        let value = if authn::TWILIO_CLIENT_VALIDATION == name { &encoded.join(".") } else { value };
        let Ok(name) = HeaderName::try_from(name) else { continue };
        let Ok(value) = HeaderValue::try_from(value) else { continue };
        fields.append(&name, &value);
    }
    let value = |name: &HeaderName| fields.get(name).map(FieldValue::as_bytes);
    let presented = PresentedCredentials {
        caller: &Caller::default(),
        proxy_authorization: value(&header::PROXY_AUTHORIZATION),
        client_validation: value(&authn::TWILIO_CLIENT_VALIDATION),
        request: SignableRequest { method: &Method::POST, target, fields: &fields, has_body: true },
    };
    if let Ok(client) = PLAN.clients.authenticate(&presented, Timestamp::UNIX_EPOCH) {
        assert!(client.proof().is_none() && client.replay_token().is_none(), "{text:?}");
        assert!(presented.proxy_authorization.is_none() && presented.client_validation.is_none(), "{text:?}");
    }
    authn::strip_credentials(&mut fields);
    let removed = [header::PROXY_AUTHORIZATION, authn::TWILIO_CLIENT_VALIDATION.clone()];
    assert!(!removed.iter().any(|name| fields.contains(name)), "{text:?}");
}

/// Parses the response of a token endpoint, and the challenge of a target. An accepted token is a sensitive header
/// value of one line. A challenge keeps its meaning with additional white space.
pub fn tokens(data: &[u8]) {
    if let Ok(grant) = OAuth2::parse_response(StatusCode::OK, data) {
        let token = grant.value.as_bytes().strip_prefix(b"Bearer ").expect("a scheme");
        assert!(grant.value.is_sensitive() && token.iter().all(u8::is_ascii_graphic), "{token:?}");
        assert!(grant.refresh_after() <= grant.usable_for());
    }
    assert!(OAuth2::parse_response(StatusCode::UNAUTHORIZED, data).is_err());
    let is_rejected = |data: &[u8]| {
        let fields = HeaderValue::from_bytes(data).map(|value| Fields::from_iter([(header::WWW_AUTHENTICATE, value)]));
        fields.is_ok_and(|fields| rejects_token(StatusCode::UNAUTHORIZED, &fields))
    };
    assert_eq!(is_rejected(data), is_rejected(&[b" ,", data, b"\t"].concat()), "{data:?}");
}

/// Renders the problems of any configuration without a panic.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (problems, sources) = match config::parse(text, Path::new("/nowhere/config.toml")) {
        Ok(loaded) => {
            let compiled = policy::compile(&loaded.config, Timestamp::UNIX_EPOCH);
            (compiled.map_or_else(|problems| problems, |(_, warnings)| warnings), loaded.config.sources)
        }
        Err(rejected) => (rejected.problems, rejected.sources),
    };
    let _ = config::render(&problems, &sources, true);
    let _ = config::to_log_lines(&problems, &sources);
    let _ = config::to_json(&problems, &sources);
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use flate2::read::GzDecoder;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// A range that is removed, and the bytes that replace it.
    #[derive(Debug, Clone)]
    struct Edit {
        at: Index,
        length: usize,
        replacement: Replacement,
    }

    #[derive(Debug, Clone)]
    enum Replacement {
        Bytes(Vec<u8>),
        /// A range of this or another seed.
        Copy {
            seed: Index,
            at: Index,
            length: usize,
        },
    }

    fn edits() -> impl Strategy<Value = Vec<Edit>> {
        let special = prop::sample::select(b"\r\n\0 \t:;,.-+=/\\#@[]{}\"'0aAfF\x7f\x80\xff".to_vec());
        let bytes = vec(prop_oneof![special, any::<u8>()], 0..4).prop_map(Replacement::Bytes);
        let copy = (any::<Index>(), any::<Index>(), 1usize..40).prop_map(|(seed, at, length)| Replacement::Copy {
            seed,
            at,
            length,
        });
        let edit = (any::<Index>(), 0usize..6, prop_oneof![3 => bytes, 1 => copy]);
        vec(edit.prop_map(|(at, length, put)| Edit { at, length, replacement: put }), 0..6)
    }

    fn seeds(name: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.into_iter().filter(|path| path.is_file()).map(|path| std::fs::read(path).unwrap()).collect()
    }

    /// Returns the inputs that `fuzz/campaign` has kept.
    fn corpus(name: &str) -> Vec<Vec<u8>> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpora").join(format!("{name}.tar.gz"));
        let mut archive = tar::Archive::new(GzDecoder::new(File::open(path).unwrap()));
        let files =
            archive.entries().unwrap().map(Result::unwrap).filter(|entry| entry.header().entry_type().is_file());
        let read = |mut file: tar::Entry<'_, _>| {
            let mut input = Vec::new();
            file.read_to_end(&mut input).unwrap();
            input
        };
        files.map(read).collect()
    }

    fn mutated(seeds: &[Vec<u8>], seed: Index, edits: &[Edit]) -> Vec<u8> {
        let mut data = seed.get(seeds).clone();
        for Edit { at, length, replacement: put } in edits {
            let at = at.index(data.len() + 1);
            let end = data.len().min(at + length);
            let put = match put {
                Replacement::Bytes(bytes) => bytes.clone(),
                Replacement::Copy { seed, at, length } => {
                    let from = seed.get(seeds);
                    let at = at.index(from.len() + 1);
                    from[at..from.len().min(at + length)].to_vec()
                }
            };
            data.splice(at..end, put);
        }
        data
    }

    /// Each input reached a new edge of the code once.
    #[test]
    fn fuzz_targets_hold_for_the_kept_corpora() {
        for (name, entry) in TARGETS {
            let corpus = corpus(name);
            assert!(corpus.len() > 10, "{name}");
            corpus.iter().for_each(|input| entry(input));
        }
    }

    /// The mutations take a few seconds. Each run has another random seed.
    #[test]
    fn fuzz_targets_hold_for_seeds_and_mutations() {
        for (name, entry) in TARGETS {
            let seeds = seeds(name);
            seeds.iter().for_each(|seed| entry(seed));
            let config = ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() };
            proptest!(config, |(seed: Index, edits in edits())| entry(&mutated(&seeds, seed, &edits)));
        }
    }

    #[test]
    fn fuzz_targets_are_listed_in_the_fuzz_manifest() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let manifest = std::fs::read_to_string(root.join("fuzz/Cargo.toml")).unwrap();
        let targets = std::fs::read_dir(root.join("fuzz/fuzz_targets")).unwrap();
        let mut targets: Vec<_> = targets.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        targets.sort();
        let mut names: Vec<_> = TARGETS.iter().map(|(name, _)| format!("{name}.rs")).collect();
        names.sort();
        assert_eq!(targets, names);
        for (name, _) in TARGETS {
            assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name}");
        }
    }
}
