//! SHA-256 (FIPS 180-4) as an array of bytes, and the fingerprint of several parts.
//! Which hash do these bytes have?

use aws_lc_rs::digest::{Context, Digest, SHA256, SHA256_OUTPUT_LEN, digest};

pub type Sha256 = [u8; SHA256_OUTPUT_LEN];

pub fn sha256(bytes: &[u8]) -> Sha256 {
    to_array(&digest(&SHA256, bytes))
}

fn to_array(digest: &Digest) -> Sha256 {
    let mut array = Sha256::default();
    array.copy_from_slice(digest.as_ref());
    array
}

/// Hashes several parts. Length prefixes make the encoding of a list of parts unambiguous.
pub struct Fingerprint(Context);

impl Default for Fingerprint {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Fingerprint {
    pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Sha256 {
        let mut fingerprint = Self::default();
        parts.into_iter().for_each(|part| fingerprint.part(part));
        fingerprint.finish()
    }

    /// Adds bytes without their length.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn number(&mut self, number: u64) {
        self.0.update(&number.to_be_bytes());
    }

    /// Adds bytes after their length.
    pub fn part(&mut self, part: &[u8]) {
        self.number(part.len() as u64);
        self.bytes(part);
    }

    pub fn finish(self) -> Sha256 {
        to_array(&self.0.finish())
    }
}

/// Returns the first eight bytes of a hash as a number.
pub fn leading_number(hash: &Sha256) -> u64 {
    hash.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sha256_and_its_leading_number_are_those_of_fips_180() {
        // FIPS 180-4 example: SHA-256("abc") begins with ba7816bf 8f01cfea.
        assert_eq!(leading_number(&sha256(b"abc")), 0xba78_16bf_8f01_cfea);
        assert_eq!(Fingerprint::of_parts([]), sha256(b""));
    }

    #[test]
    fn fingerprint_depends_on_the_borders_of_its_parts() {
        assert_ne!(Fingerprint::of_parts([&b"ab"[..], b"c"]), Fingerprint::of_parts([&b"a"[..], b"bc"]));
    }
}
