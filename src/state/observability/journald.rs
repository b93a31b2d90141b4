//! The native protocol of systemd's journal: a datagram for each entry, or a sealed memory file for a large one.
//! How does an entry with fields of its own reach the journal?
//!
//! `tracing-journald` sends log events, not records, and `libsystemd` brings D-Bus. The protocol needs two system calls
//! (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).

use std::fs::File;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg_addr};

/// The socket of systemd-journald.
const SOCKET: &str = "/run/systemd/journal/socket";
/// The longest wait for a journal that does not read its socket.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// A sender of journal entries. It blocks for [`SEND_TIMEOUT`] at most, so only a writer thread may use it.
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    entry: Vec<u8>,
}

impl Journal {
    /// Opens the journal of this host. Fails if no journal listens.
    pub fn open() -> io::Result<Self> {
        Self::at(Path::new(SOCKET))
    }

    fn at(path: &Path) -> io::Result<Self> {
        // The probe's connection is dropped: a connected socket would not survive a restart of journald.
        UnixDatagram::unbound()?.connect(path)?;
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        Ok(Self { socket, path: path.to_owned(), entry: Vec::new() })
    }

    /// Sends one entry. A name has capital letters, digits and underscores, and begins with a letter. A value may be any
    /// text.
    pub fn send(&mut self, fields: &[(&str, &str)]) -> io::Result<()> {
        self.entry.clear();
        fields.iter().for_each(|(name, value)| append_field(&mut self.entry, name, value));
        let sent = match self.socket.send_to(&self.entry, &self.path) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::ENOBUFS)) => self.send_sealed(),
            sent => sent.map(drop),
        };
        sent.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the journal has not read its socket for {} s", SEND_TIMEOUT.as_secs()),
            ),
            _ => error,
        })
    }

    /// Sends the entry in a memory file. The journal accepts it only if no process can change it any more.
    fn send_sealed(&self) -> io::Result<()> {
        let file = memfd_create("outgate-journal-entry", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let mut file = File::from(file);
        file.write_all(&self.entry)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files = [file.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&files));
        let journal = SocketAddrUnix::new(&self.path)?;
        sendmsg_addr(&self.socket, &journal, &[], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// Appends `NAME=value`. A value with a line feed has its length before it instead.
fn append_field(entry: &mut Vec<u8>, name: &str, value: &str) {
    debug_assert!(is_field_name(name), "the journal drops the field {name}");
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

fn is_field_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    name.len() <= 64 && name.bytes().all(is_plain) && name.starts_with(|c: char| c.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{IoSliceMut, Read, Seek};

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    struct FakeJournal {
        socket: UnixDatagram,
        path: PathBuf,
    }

    impl FakeJournal {
        fn bind(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("outgate-journal-{name}-{}", std::process::id()));
            let _ = std::fs::remove_file(&path);
            Self { socket: UnixDatagram::bind(&path).unwrap(), path }
        }

        /// Returns the bytes of the next datagram, and the file that came with it.
        fn receive(&self) -> (Vec<u8>, Option<File>) {
            let mut bytes = vec![0; 1 << 20];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let message =
                recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::empty()).unwrap();
            bytes.truncate(message.bytes);
            let file = control.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut files) => files.next().map(File::from),
                _ => None,
            });
            (bytes, file)
        }
    }

    impl Drop for FakeJournal {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    #[test]
    fn journal_entry_has_its_fields_as_text_and_a_value_of_two_lines_with_its_length() {
        let fake = FakeJournal::bind("fields");
        let mut journal = Journal::at(&fake.path).unwrap();
        journal.send(&[("MESSAGE", "two\nlines"), ("OUTGATE_TENANT", "acme")]).unwrap();
        let (entry, file) = fake.receive();
        assert_eq!(entry, b"MESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\nOUTGATE_TENANT=acme\n");
        assert!(file.is_none());
    }

    #[test]
    fn journal_entry_that_is_larger_than_a_datagram_is_a_sealed_file() {
        let fake = FakeJournal::bind("large");
        let mut journal = Journal::at(&fake.path).unwrap();
        let value = "x".repeat(4 << 20);
        journal.send(&[("OUTGATE_RECORD", &value)]).unwrap();
        let (entry, file) = fake.receive();
        assert!(entry.is_empty());
        let mut file = file.unwrap();
        assert!(file.write_all(b"y").is_err(), "the file can still be changed");
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, format!("OUTGATE_RECORD={value}\n"));
    }

    #[test]
    fn journal_that_was_restarted_gets_the_next_entry() {
        let fake = FakeJournal::bind("restart");
        let mut journal = Journal::at(&fake.path).unwrap();
        let path = fake.path.clone();
        drop(fake);
        assert!(journal.send(&[("MESSAGE", "lost")]).is_err());
        assert!(Journal::at(&path).is_err(), "no journal listens");
        let fake = FakeJournal::bind("restart");
        journal.send(&[("MESSAGE", "again")]).unwrap();
        assert_eq!(fake.receive().0, b"MESSAGE=again\n");
    }

    #[test]
    fn journal_field_names_are_those_that_the_journal_accepts() {
        for (name, expected) in
            [("MESSAGE", true), ("OUTGATE_ID2", true), ("_PID", false), ("Lower", false), ("", false)]
        {
            assert_eq!(is_field_name(name), expected, "{name}");
        }
    }
}
