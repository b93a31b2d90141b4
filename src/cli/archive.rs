//! Tar archives of regular files, over the crate `tar`.
//! How do several files become one that every system can open, and how are they read again?

use std::cell::Cell;
use std::collections::HashSet;
use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Archive, Builder, EntryType, Header};

/// The longest name, in bytes: a path of Linux.
const NAME_MAX: usize = 4096;
/// Limits the bytes that describe one file: its header, and a long name. The crate reads them into memory.
const HEADERS_MAX: u64 = 16 << 10;
/// Limits the files of an archive, whose names are in memory.
const FILES_MAX: usize = 1 << 18;

/// Returns a compressed archive with these files below one folder, readable by their owner alone.
pub(super) fn tar_gz(folder: &str, files: &[(String, Vec<u8>)], unix_time: i64) -> io::Result<Vec<u8>> {
    let mut archive = TarWriter::new(GzEncoder::new(Vec::new(), Compression::default()), unix_time);
    for (name, content) in files {
        archive.append(&format!("{folder}/{name}"), content.len() as u64, &mut &**content)?;
    }
    archive.finish()?.finish()
}

/// Writes an archive, one file after the other. Equal files make equal bytes.
pub(super) struct TarWriter<W: Write> {
    builder: Builder<W>,
    unix_time: i64,
}

impl<W: Write> TarWriter<W> {
    pub(super) fn new(output: W, unix_time: i64) -> Self {
        Self { builder: Builder::new(output), unix_time }
    }

    /// Appends the first `length` bytes of `content`, readable by their owner alone.
    ///
    /// # Errors
    ///
    /// The name leads out of the archive, or the content is shorter than `length`.
    pub(super) fn append(&mut self, name: &str, length: u64, content: &mut dyn Read) -> io::Result<()> {
        check_name(name)?;
        let mut header = Header::new_gnu();
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(length);
        header.set_mtime(self.unix_time.try_into().unwrap_or_default());
        let mut content = content.take(length);
        self.builder.append_data(&mut header, name, &mut content)?;
        match content.limit() {
            0 => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{name} has become shorter"))),
        }
    }

    /// Ends the archive, and returns what it was written to.
    pub(super) fn finish(self) -> io::Result<W> {
        self.builder.into_inner()
    }
}

/// Reads an archive of regular files, and calls `on_file` with the name and the content of each. A name is a path that
/// stays below its folder, and occurs once.
///
/// # Errors
///
/// The archive is cut off or damaged, or has anything else than such files.
pub(super) fn read_tar(
    input: impl Read,
    mut on_file: impl FnMut(&str, &mut dyn Read) -> io::Result<()>,
) -> io::Result<()> {
    let (left, is_cut_off) = (Cell::new(HEADERS_MAX), Cell::new(false));
    let mut archive = Archive::new(BoundedReader { input, left: &left, is_cut_off: &is_cut_off });
    let mut names = HashSet::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path_bytes();
        let name = std::str::from_utf8(&name).map_err(|_| damaged("it has a name that is not UTF-8"))?.to_owned();
        check_name(&name)?;
        if entry.header().entry_type() != EntryType::Regular {
            return Err(damaged(&format!("{name} is no regular file")));
        }
        if names.len() == FILES_MAX || !names.insert(name.clone()) {
            return Err(damaged(&format!("it has {name} twice, or more than {FILES_MAX} files")));
        }
        left.set(entry.size().saturating_add(HEADERS_MAX));
        on_file(&name, &mut entry)?;
        // The crate would skip what is left within the limit of the next header.
        io::copy(&mut entry, &mut io::sink())?;
        left.set(HEADERS_MAX);
    }
    if is_cut_off.get() {
        return Err(damaged("it has no end"));
    }
    // The layers below check their own end only if they are read up to it.
    left.set(u64::MAX);
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(())
}

/// Reads at most `left` bytes, and notes that the input has ended.
struct BoundedReader<'a, R> {
    input: R,
    left: &'a Cell<u64>,
    is_cut_off: &'a Cell<bool>,
}

impl<R: Read> Read for BoundedReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left.get() == 0 {
            return Err(damaged("the description of a file is too long"));
        }
        let length = (&mut self.input).take(self.left.get()).read(buffer)?;
        self.left.set(self.left.get() - length as u64);
        self.is_cut_off.set(length == 0 && !buffer.is_empty());
        Ok(length)
    }
}

fn damaged(how: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the archive is damaged: {how}"))
}

/// Checks that a name is a path that stays below its folder: everyone who knows the recipient can make a backup.
fn check_name(name: &str) -> io::Result<()> {
    let is_plain = name.split('/').all(|part| !matches!(part, "" | "." | "..")) && !name.contains('\0');
    match is_plain && name.len() <= NAME_MAX {
        true => Ok(()),
        false => Err(damaged(&format!("the name {name:.100?} is too long, or leads out of it"))),
    }
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
        assert!(archive.append("shorter", 2, &mut &b"x"[..]).is_err());
    }

    #[test]
    fn tar_archive_has_long_names_and_large_files_and_equal_bytes_for_equal_files() {
        let name = format!("{}/{}", "folder".repeat(40), "n".repeat(200));
        let whole = archive(&[(&name, 3), ("b", 0)]);
        assert_eq!(whole, archive(&[(&name, 3), ("b", 0)]));
        let mut names = Vec::new();
        let on_file = |name: &str, _: &mut dyn Read| {
            names.push(name.to_owned());
            Ok(())
        };
        read_tar(&*whole, on_file).unwrap();
        assert_eq!(names, [name.as_str(), "b"]);
        // The header of a file of 9 GiB, whose content is cut off.
        let mut large = TarWriter::new(Vec::new(), 0);
        let error = large.append("audit.jsonl", 9 << 30, &mut &b"x"[..]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let mut lengths = Vec::new();
        let large = large.finish().unwrap();
        let cut_off = read_tar(&*large, |_, content| {
            lengths.push(content.read_to_end(&mut Vec::new())?);
            Ok(())
        });
        assert!(cut_off.is_err() && lengths == [1536], "{cut_off:?} {lengths:?}");
    }

    /// Returns an archive with one entry that the writer does not make.
    fn foreign(name: &[u8], kind: EntryType) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_link_name("/etc/passwd").unwrap();
        header.set_size(0);
        header.set_cksum();
        let mut builder = Builder::new(Vec::new());
        builder.append(&header, io::empty()).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn tar_archive_with_anything_else_than_regular_files_below_its_folder_is_refused() {
        let read = |archive: &[u8]| read_tar(archive, |_, _| Ok(())).map_err(|error| error.to_string());
        assert_eq!(read(&foreign(b"state/history/1/entry.json", EntryType::Regular)), Ok(()));
        for name in ["", "/etc/passwd", "../x", "state/../../x", "./x", "a//b", "a/"] {
            let error = read(&foreign(name.as_bytes(), EntryType::Regular)).unwrap_err();
            assert!(error.contains("leads out of it"), "{name}: {error}");
            assert!(TarWriter::new(Vec::new(), 0).append(name, 0, &mut io::empty()).is_err(), "{name}");
        }
        assert!(read(&foreign(b"a\xff", EntryType::Regular)).unwrap_err().contains("not UTF-8"));
        let kinds = [EntryType::Link, EntryType::Symlink, EntryType::Char, EntryType::Block, EntryType::Fifo];
        for kind in kinds.into_iter().chain([EntryType::Directory, EntryType::XGlobalHeader, EntryType::new(b'V')]) {
            let error = read(&foreign(b"a", kind)).unwrap_err();
            assert!(error.contains("a is no regular file"), "{kind:?}: {error}");
        }
        assert!(read(&archive(&[("a", 1), ("b", 1), ("a", 1)])).unwrap_err().contains("it has a twice"));
    }

    #[test]
    fn tar_archive_cannot_fill_the_memory_with_a_name() {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        let bomb = header.as_bytes().chain(io::repeat(b'a'));
        let error = read_tar(bomb, |_, _| Ok(())).unwrap_err().to_string();
        assert!(error.contains("the description of a file is too long"), "{error}");
        assert!(TarWriter::new(Vec::new(), 0).append(&"n".repeat(NAME_MAX + 1), 0, &mut io::empty()).is_err());
    }
}
