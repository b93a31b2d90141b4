//! Where our own parsers are handed any bytes at all: by cargo-fuzz, and by a test here with seeds and small mutations.
//! Which input makes one panic, or say two things about the same text?
//!
//! Another parser is a function here (or beside the parser, if that is private), its line in `ENTRIES`, a file each in
//! `fuzz/fuzz_targets` and `fuzz/seeds`, and its name in `fuzz/Cargo.toml`.

use std::path::Path;
use std::sync::LazyLock;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use jiff::Timestamp;

use crate::config::SourceSnapshot;
use crate::config::difference::Difference;
pub use crate::config::key_files;
use crate::delivery::{self, ExplainRequest};
use crate::host::HostPattern;
use crate::names::ClientName;
pub use crate::net::client_hello::hellos;
pub use crate::net::field_filter::fuzz::fields;
pub use crate::net::http_client::trailers;
use crate::policy::authn::{self, Caller, PresentedCredentials, SignableRequest};
use crate::policy::credential::{OAuth2, refuses_token};
use crate::policy::guard::LocalAddresses;
use crate::policy::{self, Plan};
pub use crate::server::http1::fuzz::{chunks, requests};
pub use crate::server::proxy_protocol::introductions;
use crate::{config, host};

/// Each entry, with the name of its target and of its folder of seeds.
pub const ENTRIES: &[FuzzTarget] = &[
    ("requests", requests),
    ("chunks", chunks),
    ("fields", fields),
    ("trailers", trailers),
    ("introductions", introductions),
    ("hellos", hellos),
    ("hosts", hosts),
    ("urls", urls),
    ("proofs", proofs),
    ("tokens", tokens),
    ("key_files", key_files),
    ("configuration", configuration),
    ("differences", differences),
];

type FuzzTarget = (&'static str, fn(&[u8]));

/// Built in: strangers are let in, and nobody else is known.
static PLAN: LazyLock<Plan> = LazyLock::new(|| {
    let loaded = config::builtin(&["192.0.2.1".parse().expect("an address")]).expect("the built-in configuration");
    policy::compile(&loaded.config, Timestamp::UNIX_EPOCH).expect("a plan").0
});

/// Two texts with a line of dashes between them: what differs one way differs the other way, and from itself nothing does.
pub fn differences(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (before, after) = text.split_once("\n---\n").unwrap_or((text, ""));
    let written = |text: &str| SourceSnapshot {
        texts: vec![(Path::new("/c.toml").into(), text.into())],
        ..SourceSnapshot::default()
    };
    let (before, after) = (written(before), written(after));
    let [there, back] = [(&before, &after), (&after, &before)].map(|(one, other)| Difference::between(one, other));
    assert_eq!(there.is_empty(), back.is_empty(), "{text:?}: {there} {back}");
    assert!(Difference::between(&after, &after).is_empty(), "{text:?}");
}

/// A canonical host is its own canonical form.
pub fn hosts(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(host) = host::canonical(text) {
        let again = host.to_string();
        assert_eq!(host::canonical(&again).as_ref(), Ok(&host), "{text:?} is {again:?}");
    }
    // A pattern that stands for one host stands for that host.
    if let (Ok(HostPattern::Exact(pattern)), Ok(host)) = (HostPattern::parse(text), host::canonical(text)) {
        assert_eq!(pattern, host, "{text:?}");
    }
}

/// What a URL is taken for is what is taken from that again.
pub fn urls(data: &[u8]) {
    let target = |url: &str| {
        let (method, client) = (&Method::POST, &ClientName::new(authn::ANONYMOUS));
        let question = ExplainRequest { method, url, client, tenant: None, now: Timestamp::UNIX_EPOCH };
        let told = delivery::explain(&PLAN, &question, &LocalAddresses::default());
        told.lines.into_iter().find(|(step, _)| *step == "target").map(|(_, target)| target)
    };
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(once) = target(text) {
        assert_eq!(target(&once).as_ref(), Some(&once), "{text:?}");
    }
}

/// A target, and fields that may claim to prove who calls: where nobody has a credential, none proves anybody. The parts
/// of a token stand between tildes and in clear, so that it is its content that is played with.
pub fn proofs(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.lines();
    let target = lines.next().unwrap_or_default();
    let mut fields = HeaderMap::new();
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        let encoded: Vec<String> = value.split('~').map(|part| BASE64_URL_SAFE_NO_PAD.encode(part)).collect();
        let value = if authn::CLIENT_VALIDATION == name { &encoded.join(".") } else { value };
        let Ok(name) = HeaderName::try_from(name) else { continue };
        let Ok(value) = HeaderValue::try_from(value) else { continue };
        fields.append(name, value);
    }
    let value = |name: &HeaderName| fields.get(name).map(HeaderValue::as_bytes);
    let claim = PresentedCredentials {
        caller: &Caller::default(),
        credential: value(&header::PROXY_AUTHORIZATION),
        validation: value(&authn::CLIENT_VALIDATION),
        sent: SignableRequest { method: &Method::POST, target, fields: &fields, has_body: true },
    };
    if let Ok(known) = PLAN.clients.authenticate(&claim, Timestamp::UNIX_EPOCH) {
        assert!(known.proof.is_none() && known.signed.is_none(), "{text:?}");
        assert!(claim.credential.is_none() && claim.validation.is_none(), "{text:?}");
    }
    authn::take_out_proofs(&mut fields);
    let taken = [header::PROXY_AUTHORIZATION, authn::CLIENT_VALIDATION.clone()];
    assert!(!taken.iter().any(|name| fields.contains_key(name)), "{text:?}");
}

/// What a token endpoint says, or a target of a token: one that is shown is no more than one header, and secret; a
/// refusal of one is a refusal however it is spaced.
pub fn tokens(data: &[u8]) {
    if let Ok(grant) = OAuth2::judge(StatusCode::OK, data) {
        let token = grant.value.as_bytes().strip_prefix(b"Bearer ").expect("a scheme");
        assert!(grant.value.is_sensitive() && token.iter().all(u8::is_ascii_graphic), "{token:?}");
        assert!(grant.refresh_after() <= grant.usable_for());
    }
    assert!(OAuth2::judge(StatusCode::UNAUTHORIZED, data).is_err());
    let refuses = |data: &[u8]| {
        let fields =
            HeaderValue::from_bytes(data).map(|value| HeaderMap::from_iter([(header::WWW_AUTHENTICATE, value)]));
        fields.is_ok_and(|fields| refuses_token(StatusCode::UNAUTHORIZED, &fields))
    };
    assert_eq!(refuses(data), refuses(&[b" ,", data, b"\t"].concat()), "{data:?}");
}

/// Whatever is wrong with a configuration can be shown.
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
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// A piece that is removed, and what comes in its place.
    #[derive(Debug, Clone)]
    struct Edit {
        at: Index,
        length: usize,
        put: Replacement,
    }

    #[derive(Debug, Clone)]
    enum Replacement {
        Bytes(Vec<u8>),
        /// A piece of this or another seed.
        Copy {
            seed: Index,
            at: Index,
            length: usize,
        },
    }

    fn edits() -> impl Strategy<Value = Vec<Edit>> {
        let telling = prop::sample::select(b"\r\n\0 \t:;,.-+=/\\#@[]{}\"'0aAfF\x7f\x80\xff".to_vec());
        let bytes = vec(prop_oneof![telling, any::<u8>()], 0..4).prop_map(Replacement::Bytes);
        let copy = (any::<Index>(), any::<Index>(), 1usize..40).prop_map(|(seed, at, length)| Replacement::Copy {
            seed,
            at,
            length,
        });
        let edit = (any::<Index>(), 0usize..6, prop_oneof![3 => bytes, 1 => copy]);
        vec(edit.prop_map(|(at, length, put)| Edit { at, length, put }), 0..6)
    }

    fn seeds(name: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.into_iter().filter(|path| path.is_file()).map(|path| std::fs::read(path).unwrap()).collect()
    }

    fn mutated(seeds: &[Vec<u8>], seed: Index, edits: &[Edit]) -> Vec<u8> {
        let mut data = seed.get(seeds).clone();
        for Edit { at, length, put } in edits {
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

    /// So many mutations take a few seconds; they begin elsewhere in every run.
    #[test]
    fn every_entry_holds() {
        for (name, entry) in ENTRIES {
            let seeds = seeds(name);
            seeds.iter().for_each(|seed| entry(seed));
            let config = ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() };
            proptest!(config, |(seed: Index, edits in edits())| entry(&mutated(&seeds, seed, &edits)));
        }
    }

    #[test]
    fn every_entry_is_a_target() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let manifest = std::fs::read_to_string(root.join("fuzz/Cargo.toml")).unwrap();
        let targets = std::fs::read_dir(root.join("fuzz/fuzz_targets")).unwrap();
        let mut targets: Vec<_> = targets.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        targets.sort();
        let mut names: Vec<_> = ENTRIES.iter().map(|(name, _)| format!("{name}.rs")).collect();
        names.sort();
        assert_eq!(targets, names);
        for (name, _) in ENTRIES {
            assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name}");
        }
    }
}
