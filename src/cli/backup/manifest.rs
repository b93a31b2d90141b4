//! The last file of a backup: the names, lengths and digests of all others.
//! Is a backup whole, and which instance made it?

use std::io::{self, Read};

use aws_lc_rs::digest::{Context, SHA256};
use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The name of the manifest. No file of an instance has it: theirs are in folders.
pub(super) const MANIFEST: &str = "manifest.json";

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) host: String,
    pub(super) at: Timestamp,
    /// The version of outgate that made the backup.
    pub(super) version: String,
    /// The files in the order of the archive.
    pub(super) files: Vec<ManifestFile>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ManifestFile {
    pub(super) name: String,
    pub(super) size: u64,
    /// Hexadecimal digits.
    pub(super) sha256: String,
}

/// Hashes what is read through it.
pub(super) struct HashingReader<R> {
    input: R,
    size: u64,
    digest: Context,
}

impl<R: Read> HashingReader<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, size: 0, digest: Context::new(&SHA256) }
    }

    pub(super) fn finish(self, name: &str) -> ManifestFile {
        let sha256 = HEXLOWER.encode(self.digest.finish().as_ref());
        ManifestFile { name: name.to_owned(), size: self.size, sha256 }
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(buffer)?;
        self.digest.update(&buffer[..length]);
        self.size += length as u64;
        Ok(length)
    }
}
