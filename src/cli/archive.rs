//! A tar archive in the format ustar (POSIX.1-2017, pax).
//! How do several files become one that every system can open, and how are they read again?

use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::write::GzEncoder;

/// The length of a header, and of the units that contents fill.
const BLOCK: usize = 512;
/// The longest name, in bytes.
const NAME_MAX: usize = 100;
/// The longest content, in bytes: eleven octal digits.
const CONTENT_MAX: u64 = (1 << 33) - 1;
/// The type of a regular file.
const REGULAR_FILE: u8 = b'0';

/// Returns a compressed archive with these files below one folder, readable by their owner alone.
pub(super) fn tar_gz(folder: &str, files: &[(String, Vec<u8>)], unix_time: i64) -> io::Result<Vec<u8>> {
    let mut archive = TarWriter::new(GzEncoder::new(Vec::new(), Compression::default()), unix_time);
    for (name, content) in files {
        archive.append(&format!("{folder}/{name}"), content.len() as u64, &mut &**content)?;
    }
    archive.finish()?.finish()
}

/// Writes an archive, one file after the other.
pub(super) struct TarWriter<W> {
    output: W,
    unix_time: i64,
}

impl<W: Write> TarWriter<W> {
    pub(super) fn new(output: W, unix_time: i64) -> Self {
        Self { output, unix_time }
    }

    /// Appends the first `length` bytes of `content`, readable by their owner alone.
    ///
    /// # Errors
    ///
    /// The name or the content is too long for the format, or the content is shorter than `length`.
    pub(super) fn append(&mut self, name: &str, length: u64, content: &mut dyn Read) -> io::Result<()> {
        self.output.write_all(&header(name, length, self.unix_time)?)?;
        if io::copy(&mut content.take(length), &mut self.output)? < length {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{name} has become shorter")));
        }
        self.output.write_all(&[0; BLOCK][..padding(length)])
    }

    /// Ends the archive, and returns what it was written to.
    pub(super) fn finish(mut self) -> io::Result<W> {
        // Two empty blocks end an archive.
        self.output.write_all(&[0; 2 * BLOCK])?;
        Ok(self.output)
    }
}

/// Reads an archive of regular files, and calls `on_file` with the name and the content of each.
///
/// # Errors
///
/// The archive is cut off or damaged, or has anything else than regular files.
pub(super) fn read_tar(
    mut input: impl Read,
    mut on_file: impl FnMut(&str, &mut dyn Read) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        let mut block = [0; BLOCK];
        input.read_exact(&mut block)?;
        if block == [0; BLOCK] {
            // The layers below check their own end only if they are read up to it.
            io::copy(&mut input, &mut io::sink())?;
            return Ok(());
        }
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the archive is damaged");
        let length = u64::from_str_radix(text(&block[124..136]).ok_or_else(damaged)?, 8).map_err(|_| damaged())?;
        let name = text(&block[..NAME_MAX]).ok_or_else(damaged)?.to_owned();
        if block[156] != REGULAR_FILE || checksum(&block) != text(&block[148..155]).ok_or_else(damaged)? {
            return Err(damaged());
        }
        let mut content = (&mut input).take(length);
        on_file(&name, &mut content)?;
        io::copy(&mut content, &mut io::sink())?;
        input.read_exact(&mut [0; BLOCK][..padding(length)])?;
    }
}

fn padding(length: u64) -> usize {
    (length.next_multiple_of(BLOCK as u64) - length) as usize
}

/// Returns a field up to its first NUL.
fn text(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field.split(|byte| *byte == 0).next()?).ok()
}

/// Returns the sum of the bytes, as six octal digits. It counts its own field as spaces.
fn checksum(header: &[u8; BLOCK]) -> String {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    format!("{:06o}", sum(&header[..148]) + 8 * u32::from(b' ') + sum(&header[156..]))
}

fn header(name: &str, length: u64, unix_time: i64) -> io::Result<[u8; BLOCK]> {
    if name.len() > NAME_MAX || length > CONTENT_MAX {
        let what = format!("{name} is too long for an archive: {length} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let mut header = [0; BLOCK];
    let mut put = |offset: usize, text: &str| header[offset..offset + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000600\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{length:011o}\0"));
    put(136, &format!("{:011o}\0", unix_time.max(0)));
    put(257, "ustar\x0000");
    header[156] = REGULAR_FILE;
    let checksum = format!("{}\0 ", checksum(&header));
    header[148..156].copy_from_slice(checksum.as_bytes());
    Ok(header)
}

/// Reads an archive. What was read and is written again must be read as the same.
#[cfg(any(test, fuzzing))]
pub fn archives(data: &[u8]) {
    let read = |archive: &[u8]| {
        let mut files = Vec::new();
        let whole = read_tar(archive, |name, content| {
            let mut bytes = Vec::new();
            content.read_to_end(&mut bytes)?;
            files.push((name.to_owned(), bytes));
            Ok(())
        });
        whole.is_ok().then_some(files)
    };
    let Some(files) = read(data) else { return };
    let mut archive = TarWriter::new(Vec::new(), 0);
    for (name, content) in &files {
        // A content that the archive cuts off is an error of the reader, so that each has its length.
        archive.append(name, content.len() as u64, &mut &**content).expect("what was read can be written");
    }
    assert_eq!(read(&archive.finish().expect("memory takes every write")), Some(files));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, usize)]) -> Vec<u8> {
        let mut archive = TarWriter::new(Vec::new(), 0);
        for (name, length) in files {
            archive.append(name, *length as u64, &mut io::repeat(b'x')).unwrap();
        }
        archive.finish().unwrap()
    }

    #[test]
    fn tar_archive_is_read_as_it_was_written() {
        let files = [("a", 0), ("b/c", 1), ("d", 511), ("e", 512), ("f", 100_000)];
        let mut found = Vec::new();
        let on_file = |name: &str, content: &mut dyn Read| {
            // A content that is read in part does not move the next file.
            found.push((name.to_owned(), content.take(1000).read_to_end(&mut Vec::new())?));
            Ok(())
        };
        read_tar(&*archive(&files), on_file).unwrap();
        let found: Vec<_> = found.iter().map(|(name, length)| (name.as_str(), *length)).collect();
        assert_eq!(found, [("a", 0), ("b/c", 1), ("d", 511), ("e", 512), ("f", 1000)]);
    }

    #[test]
    fn tar_archive_that_is_cut_off_or_damaged_is_an_error() {
        let whole = archive(&[("a", 1000), ("b", 10)]);
        for length in [0, 100, 511, 600, 1535, 1536, 2047, 2060, 2560] {
            assert!(read_tar(&whole[..length], |_, _| Ok(())).is_err(), "{length} bytes");
        }
        for at in [0, 100, 124, 150, 156] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(read_tar(&*damaged, |_, _| Ok(())).is_err(), "byte {at}");
        }
        let mut archive = TarWriter::new(Vec::new(), 0);
        assert!(archive.append(&"n".repeat(101), 0, &mut io::empty()).is_err());
        assert!(archive.append("shorter", 2, &mut &b"x"[..]).is_err());
    }
}
