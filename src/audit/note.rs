//! Signed checkpoints of the audit log, as C2SP signed notes (c2sp.org/signed-note, c2sp.org/tlog-checkpoint).
//! Who vouches that the log had this many records, with this root?

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::tree::Tree;
use crate::digest::{Sha256, sha256};

/// The signature type of Ed25519 (c2sp.org/signed-note, "Signature types").
const ED25519_TYPE: u8 = 1;
const KEY_ID_LENGTH: usize = 4;
/// The longest note, in bytes: three lines and a few signatures.
pub const NOTE_MAX: usize = 64 << 10;

/// The size and the root of a log at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The name of the log, and of the key that signs it.
    pub origin: String,
    pub size: u64,
    /// The Merkle tree hash, SHA-256.
    pub root: Sha256,
}

impl Checkpoint {
    /// Returns the checkpoint of a log in its present state.
    pub(super) fn of(origin: &str, tree: &Tree) -> Self {
        Self { origin: origin.to_owned(), size: tree.size(), root: tree.root() }
    }

    /// Reads a signed note without verifying a signature.
    pub fn parse(note: &str) -> Result<Self, NoteError> {
        let (text, _) = split(note)?;
        let mut lines = text.lines();
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
            return Err(NoteError::Malformed);
        };
        let root = BASE64_STANDARD.decode(root).map_err(|_| NoteError::Malformed)?;
        Ok(Self {
            origin: origin.to_owned(),
            size: size.parse().map_err(|_| NoteError::Malformed)?,
            root: root.try_into().map_err(|_| NoteError::Malformed)?,
        })
    }

    fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, BASE64_STANDARD.encode(self.root))
    }

    /// Returns the signed note.
    pub fn sign(&self, key: &Ed25519KeyPair) -> String {
        sign_note(&self.text(), &self.origin, key)
    }
}

/// Returns a text as a note that is signed under `name`. The text ends with a line feed.
pub fn sign_note(text: &str, name: &str, key: &Ed25519KeyPair) -> String {
    let signature = [&key_id(name, key.public_key().as_ref()), key.sign(text.as_bytes()).as_ref()].concat();
    format!("{text}\n\u{2014} {name} {}\n", BASE64_STANDARD.encode(signature))
}

/// The public half of a log's key: `NAME+ID+KEY`, as witnesses take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verifier {
    name: String,
    public_key: Vec<u8>,
}

impl Verifier {
    /// Returns the verifier of the signatures that `key` makes under `name`.
    pub fn of(name: &str, key: &Ed25519KeyPair) -> Self {
        Self::new(name, key.public_key().as_ref())
    }

    fn new(name: &str, public_key: &[u8]) -> Self {
        Self { name: name.to_owned(), public_key: public_key.to_vec() }
    }

    /// Reads the text form.
    pub fn parse(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::Key);
        };
        let key = BASE64_STANDARD.decode(key).map_err(|_| NoteError::Key)?;
        let [ED25519_TYPE, public_key @ ..] = &*key else { return Err(NoteError::Key) };
        let verifier = Self::new(name, public_key);
        if verifier.id_text() == id { Ok(verifier) } else { Err(NoteError::Key) }
    }

    fn id_text(&self) -> String {
        format!("{:08x}", u32::from_be_bytes(key_id(&self.name, &self.public_key)))
    }

    /// Reads a signed note and verifies the signature of this key. Signatures of other keys are ignored.
    pub fn open(&self, note: &str) -> Result<Checkpoint, NoteError> {
        let (text, signatures) = split(note)?;
        let id = key_id(&self.name, &self.public_key);
        let own_signature = |line: &str| {
            let (name, signature) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
            let signature = BASE64_STANDARD.decode(signature).ok()?;
            let (key, signature) = signature.split_at_checked(KEY_ID_LENGTH)?;
            (name == self.name && key == id).then(|| signature.to_vec())
        };
        let signature = signatures.lines().find_map(own_signature).ok_or(NoteError::Unsigned)?;
        UnparsedPublicKey::new(&ED25519, &self.public_key)
            .verify(text.as_bytes(), &signature)
            .map_err(|_| NoteError::Signature)?;
        Checkpoint::parse(note)
    }
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = BASE64_STANDARD.encode([&[ED25519_TYPE], &*self.public_key].concat());
        write!(f, "{}+{}+{key}", self.name, self.id_text())
    }
}

/// Splits a note into its text, with the last line feed, and the lines of its signatures. The text ends before the last
/// empty line (c2sp.org/signed-note, "Format").
fn split(note: &str) -> Result<(&str, &str), NoteError> {
    let end = note.rfind("\n\n").filter(|_| note.len() <= NOTE_MAX).ok_or(NoteError::Malformed)?;
    Ok((&note[..=end], &note[end + 2..]))
}

/// Returns the identifier of a key: the first bytes of a hash over its name, its type and its public half.
fn key_id(name: &str, public_key: &[u8]) -> [u8; KEY_ID_LENGTH] {
    let hash = sha256(&[name.as_bytes(), b"\n", &[ED25519_TYPE], public_key].concat());
    let mut id = [0; KEY_ID_LENGTH];
    id.copy_from_slice(&hash[..KEY_ID_LENGTH]);
    id
}

/// The reason why a note proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoteError {
    Key,
    Malformed,
    Unsigned,
    Signature,
}

impl fmt::Display for NoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key => "the verifier is not of the form NAME+ID+KEY with an Ed25519 key",
            Self::Malformed => "the checkpoint is not a C2SP signed note with origin, size and root",
            Self::Unsigned => "the checkpoint has no signature of this key",
            Self::Signature => "the signature of the checkpoint does not verify",
        })
    }
}

impl std::error::Error for NoteError {}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of Go's module golang.org/x/mod/sumdb/note (package documentation).
    const GO_VERIFIER: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    const GO_NOTE: &str = "If you think cryptography is the answer to your problem,\n\
                           then you don't know what your problem is.\n\n\
                           \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

    fn key() -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a seed")
    }

    fn checkpoint() -> Checkpoint {
        let mut tree = Tree::default();
        tree.push(b"one");
        Checkpoint::of("egress-1.example/audit", &tree)
    }

    #[test]
    fn checkpoint_opens_with_the_verifier_of_its_key_alone() {
        let verifier = Verifier::new("egress-1.example/audit", key().public_key().as_ref());
        let note = checkpoint().sign(&key());
        assert_eq!(Verifier::parse(&verifier.to_string()), Ok(verifier.clone()));
        assert_eq!(verifier.open(&note), Ok(checkpoint()));
        assert_eq!(verifier.open(&note.replacen("\n1\n", "\n2\n", 1)), Err(NoteError::Signature));
        let another = Ed25519KeyPair::from_seed_unchecked(&[8; 32]).expect("a seed");
        let another = Verifier::new("egress-1.example/audit", another.public_key().as_ref());
        assert_eq!(another.open(&note), Err(NoteError::Unsigned));
        assert_eq!(verifier.open("no note"), Err(NoteError::Malformed));
    }

    #[test]
    fn note_verifies_the_example_of_another_implementation() {
        let verifier = Verifier::parse(GO_VERIFIER).expect("a verifier");
        // Its signature verifies; its text is no checkpoint.
        assert_eq!(verifier.open(GO_NOTE), Err(NoteError::Malformed));
        assert_eq!(verifier.open(&GO_NOTE.replace("answer", "question")), Err(NoteError::Signature));
    }
}
