//! Signers: named keys under one scheme; which of them are in force, and what they say about a webhook.
//! Which headers prove to the receiver that this came from us?

mod standard_webhooks;

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use jiff::{SignedDuration, Timestamp};

use crate::config::problem::nearest;
use crate::config::{self, At, Config, Place, Problem};
use crate::names::{KeyId, SignerName, Target};

/// Every scheme there is; one file each.
const SCHEMES: [&dyn Scheme; 1] = [&standard_webhooks::StandardWebhooks];

/// How long before the last key ends an operator is told.
const WARN_BEFORE: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What a scheme knows: how its keys are written, which headers it sends, and how the signatures of several keys stand
/// together in them.
trait Scheme: Sync {
    fn name(&self) -> &'static str;

    /// The headers it sets, lower case: two signers of one webhook must not set the same.
    fn headers(&self) -> &'static [&'static str];

    /// From the secret as an operator keeps it.
    fn parse_key(&self, secret: &[u8]) -> Result<Box<dyn SecretKey>, BadKey>;

    /// A new secret, as `parse_key` takes it.
    fn new_key(&self) -> Result<String, NewKeyError>;

    /// The headers for these keys, at least one, the newest first.
    fn sign(&self, draft: &Draft<'_>, keys: &[&Key]) -> Result<Vec<(HeaderName, HeaderValue)>, SignError>;
}

/// One secret and its algorithm, symmetric or not.
trait SecretKey: Send + Sync {
    /// The raw signature of these parts, one after the other.
    fn sign(&self, message: &[&[u8]]) -> Vec<u8>;
}

/// What is wrong with a secret, without saying any of it.
struct BadKey {
    message: String,
    help: String,
}

/// A key and when it is in force.
struct Key {
    id: KeyId,
    /// Inclusive; `None`: always was.
    from: Option<Timestamp>,
    /// Exclusive; `None`: for ever.
    until: Option<Timestamp>,
    secret: Box<dyn SecretKey>,
}

/// A webhook about to leave.
pub struct Draft<'a> {
    pub method: &'a Method,
    pub target: &'a Target,
    pub path_and_query: &'a str,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
    pub now: Timestamp,
    /// `Webhook-Id`: [valid](valid_id), the same on each attempt.
    pub id: &'a str,
}

/// What is added to a webhook, and the keys it came from.
#[derive(Debug)]
pub struct Signature {
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub keys: Vec<KeyId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignError {
    NoKey,
    InvalidId,
}

impl fmt::Display for SignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoKey => "no key is in force",
            Self::InvalidId => "the webhook id cannot be signed",
        })
    }
}

impl std::error::Error for SignError {}

/// A signer: what a route's `sign` names.
pub struct Signer {
    name: SignerName,
    scheme: &'static dyn Scheme,
    /// The newest first.
    keys: Vec<Key>,
    place: Place,
}

impl Signer {
    pub fn name(&self) -> &SignerName {
        &self.name
    }

    pub fn scheme(&self) -> &'static str {
        self.scheme.name()
    }

    /// The headers it sets, lower case.
    pub fn headers(&self) -> &'static [&'static str] {
        self.scheme.headers()
    }

    /// Signs with every key in force at `draft.now`: while keys rotate, a receiver may know the old or the new one.
    pub fn sign(&self, draft: &Draft<'_>) -> Result<Signature, SignError> {
        if !valid_id(draft.id) {
            return Err(SignError::InvalidId);
        }
        let keys: Vec<&Key> = self.in_force(draft.now).collect();
        if keys.is_empty() {
            return Err(SignError::NoKey);
        }
        let headers = self.scheme.sign(draft, &keys)?;
        Ok(Signature { headers, keys: keys.iter().map(|key| key.id.clone()).collect() })
    }

    /// What an operator should know of its keys at this time: none in force is a problem, a gap to come is a warning.
    pub fn problems(&self, now: Timestamp) -> Vec<Problem> {
        let Some(gap) = self.next_gap(now) else { return Vec::new() };
        let next = self.keys.iter().filter_map(|key| key.from).filter(|&from| from > gap).min();
        let until = next.map_or(String::new(), |next| format!(" until {next}"));
        let help = "add a key, or move from and until so that one follows the other";
        if gap == now {
            let message = format!("no key of the signer {} is in force{until}", self.name);
            vec![Problem::at(self.place, message).help(help)]
        } else if gap.duration_since(now) <= WARN_BEFORE {
            let message = format!("no key of the signer {} is in force from {gap}{until}", self.name);
            vec![Problem::warning(Some(self.place), message).help(help)]
        } else {
            Vec::new()
        }
    }

    /// The newest first.
    pub fn keys_in_force(&self, now: Timestamp) -> impl Iterator<Item = &KeyId> {
        self.in_force(now).map(|key| &key.id)
    }

    fn in_force(&self, now: Timestamp) -> impl Iterator<Item = &Key> {
        let in_force = move |key: &&Key| key.from.is_none_or(|t| t <= now) && key.until.is_none_or(|t| now < t);
        self.keys.iter().filter(in_force)
    }

    /// The first moment from `now` on without a key; `None`: there is always one.
    fn next_gap(&self, now: Timestamp) -> Option<Timestamp> {
        let mut gap = now;
        loop {
            let ends: Vec<_> = self.in_force(gap).map(|key| key.until).collect();
            if ends.contains(&None) {
                return None;
            }
            match ends.into_iter().flatten().max() {
                Some(end) => gap = end,
                None => return Some(gap),
            }
        }
    }
}

/// May a client's `Webhook-Id` be kept? Visible ASCII without a full stop, which ends the id in what Standard Webhooks
/// signs; not so long that it makes the header a burden.
pub fn valid_id(id: &str) -> bool {
    (1..=256).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'.')
}

/// The schemes a signer may name.
pub fn schemes() -> impl Iterator<Item = &'static str> {
    SCHEMES.iter().map(|scheme| scheme.name())
}

/// A new secret for a key of this scheme, to be kept in a file or a credential.
pub fn new_key(scheme: &str) -> Result<String, NewKeyError> {
    let known = SCHEMES.iter().find(|known| known.name() == scheme);
    known.ok_or_else(|| NewKeyError::UnknownScheme(scheme.into()))?.new_key()
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewKeyError {
    UnknownScheme(String),
    /// The system gave no random bytes.
    NoRandom,
}

impl fmt::Display for NewKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownScheme(scheme) => write!(f, "no scheme is named {scheme:?}; {}", which(scheme)),
            Self::NoRandom => f.write_str("no random bytes"),
        }
    }
}

impl std::error::Error for NewKeyError {}

/// Which scheme might be meant, and which there are.
fn which(scheme: &str) -> String {
    let known: Vec<&str> = schemes().collect();
    let meant = nearest(scheme, schemes()).map_or(String::new(), |near| format!("did you mean {near:?}? "));
    format!("{meant}there is: {}", known.join(", "))
}

pub fn compile(config: &Config, problems: &mut Vec<Problem>) -> BTreeMap<SignerName, Arc<Signer>> {
    let signer = |(name, written): (&SignerName, _)| Some((name.clone(), Arc::new(signer(name, written, problems)?)));
    config.signers.iter().filter_map(signer).collect()
}

fn signer(name: &SignerName, written: &At<config::Signer>, problems: &mut Vec<Problem>) -> Option<Signer> {
    if written.keys.is_empty() {
        let help = "keys = [{ id = \"…\", secret = \"file:…\" }]; `outgate keys new` makes a secret";
        problems.push(Problem::at(written.place, format!("the signer {name} has no key")).help(help));
    }
    let mut ids = HashMap::new();
    for key in &written.keys {
        if let Some(first) = ids.insert(&key.id, key.place) {
            let problem = Problem::at(key.place, format!("two keys have the id {}", key.id)).also(first, "first here");
            problems.push(problem.help("records tell keys apart by their id"));
        }
        if let (Some(from), Some(until)) = (key.from, key.until)
            && from >= until
        {
            problems.push(Problem::at(key.place, format!("the key {} ends before it begins", key.id)));
        }
    }
    let Some(&scheme) = SCHEMES.iter().find(|scheme| scheme.name() == written.scheme.value) else {
        let message = format!("no scheme is named {:?}", written.scheme.value);
        problems.push(Problem::at(written.scheme.place, message).help(which(&written.scheme)));
        return None;
    };
    let mut keys: Vec<Key> = written.keys.iter().filter_map(|written| key(scheme, written, problems)).collect();
    // A key without a beginning is the oldest; equals stay as written.
    keys.sort_by_key(|key| Reverse(key.from));
    Some(Signer { name: name.clone(), scheme, keys, place: written.place })
}

fn key(scheme: &dyn Scheme, written: &config::SigningKey, problems: &mut Vec<Problem>) -> Option<Key> {
    match scheme.parse_key(written.secret.expose()) {
        Ok(secret) => Some(Key { id: written.id.clone(), from: written.from, until: written.until, secret }),
        Err(BadKey { message, help }) => {
            let message = format!("the secret of the key {} {message}", written.id);
            problems.push(Problem::at(written.secret.place, message).help(help));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Secret, SigningKey};
    use crate::policy::fixture::{at, config, messages};

    fn key(start: u32, id: &str, from: Option<&str>, until: Option<&str>) -> At<SigningKey> {
        let day = |text: &str| format!("{text}T00:00:00Z").parse().unwrap();
        let secret = at(start + 1, Secret::new(new_key("standard-webhooks").unwrap().into()));
        at(start, SigningKey { id: KeyId::new(id), secret, from: from.map(day), until: until.map(day) })
    }

    fn compiled(scheme: &str, keys: Vec<At<SigningKey>>) -> (Option<Arc<Signer>>, Vec<Problem>) {
        let name = SignerName::new("platform");
        let signer = config::Signer { scheme: at(11, scheme.into()), keys };
        let config = Config { signers: [(name.clone(), at(10, signer))].into(), ..config() };
        let mut problems = vec![];
        let signer = compile(&config, &mut problems).remove(&name);
        (signer, problems)
    }

    #[test]
    fn problems_of_what_is_written() {
        let scheme = "standard-webhooks";
        let mut short = key(20, "a", None, None);
        short.value.secret.value = Secret::new(b"whsec_c2hvcnQ=".to_vec());
        for (scheme, keys, expected) in [
            (scheme, vec![key(20, "a", None, None)], vec![]),
            (scheme, vec![], vec!["the signer platform has no key"]),
            (scheme, vec![key(20, "a", None, None), key(30, "a", None, None)], vec!["two keys have the id a"]),
            (
                scheme,
                vec![key(20, "a", Some("2027-01-02"), Some("2027-01-01"))],
                vec!["the key a ends before it begins"],
            ),
            (scheme, vec![short], vec!["the secret of the key a is 5 bytes long, not 24 to 64"]),
            ("standard-webhook", vec![key(20, "a", None, None)], vec!["no scheme is named \"standard-webhook\""]),
        ] {
            let (_, problems) = compiled(scheme, keys);
            assert_eq!(messages(&problems), expected);
        }
        let (_, problems) = compiled("standard_webhooks", vec![]);
        let help = "did you mean \"standard-webhooks\"? there is: standard-webhooks";
        assert_eq!(problems[1].help.as_deref(), Some(help));
    }

    #[test]
    fn keys_in_force_the_newest_first_and_gaps_told_in_time() {
        let keys = vec![
            key(20, "first", None, Some("2027-02-01")),
            key(30, "second", Some("2027-01-15"), Some("2027-03-01")),
            key(40, "third", Some("2027-03-10"), None),
        ];
        let (signer, problems) = compiled("standard-webhooks", keys);
        assert!(problems.is_empty(), "{problems:?}");
        let signer = signer.unwrap();
        let gap = "no key of the signer platform is in force";
        let to_come = format!("warning: {gap} from 2027-03-01T00:00:00Z until 2027-03-10T00:00:00Z");
        let now = format!("{gap} until 2027-03-10T00:00:00Z");
        for (time, expected, problem) in [
            ("2026-12-01T00:00:00Z", &["first"][..], None),
            ("2027-01-15T00:00:00Z", &["second", "first"], None),
            ("2027-01-30T00:00:00Z", &["second", "first"], Some(&to_come)),
            ("2027-02-01T00:00:00Z", &["second"], Some(&to_come)),
            ("2027-03-01T00:00:00Z", &[], Some(&now)),
            ("2027-03-10T00:00:00Z", &["third"], None),
        ] {
            let time: Timestamp = time.parse().unwrap();
            let ids: Vec<&str> = signer.in_force(time).map(|key| key.id.as_str()).collect();
            assert_eq!(ids, expected, "{time}");
            assert_eq!(messages(&signer.problems(time)), Vec::from_iter(problem.cloned()), "{time}");
        }
    }

    #[test]
    fn ids_that_may_be_kept() {
        for (id, expected) in [
            ("msg_p5jXN8AQM9LWM0D4loKWxJek", true),
            ("a", true),
            ("", false),
            ("a.b", false),
            ("a b", false),
            ("a\r\n", false),
            ("ä", false),
            (&"a".repeat(256), true),
            (&"a".repeat(257), false),
        ] {
            assert_eq!(valid_id(id), expected, "{id}");
        }
    }
}
