//! Sockets to listen on: TCP, unix, and those that systemd passes.
//! Where do clients come in?

mod stream;
mod syn_filter;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use rustix::fs::{Access, access};
use socket2::{Domain, SockAddr, Type};
use tokio::net::{TcpListener, UnixListener};

pub use self::stream::{ClientSocket, ClientStream};
use crate::config::{Bind, Listen};

/// Connections that wait to be accepted; the kernel caps it at `net.core.somaxconn`, 4096 by default.
const BACKLOG: i32 = 4096;
/// Permissions of a unix socket that has none of its own: for the user and the group of the process.
const UNIX_MODE: u32 = 0o660;
const GROUPS: &str = "/etc/group";

#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    /// With its file, where it is ours and not systemd's.
    Unix(UnixListener, Option<SocketFile>),
}

/// The file of a unix socket of ours: gone with it, unless another stands in its place by then.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// Which process accepts the connections that arrive once this one has begun to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Successor {
    /// None can bind before this process has closed its socket.
    AfterClose,
    /// The next one that is given the same socket. The kernel queues connections until then.
    InheritsSocket,
    /// Another one that listens on the same address already (SO_REUSEPORT), or on another socket at the same path.
    Concurrent,
}

impl Successor {
    pub fn of(address: &Listen, reuse_port: bool) -> Self {
        match address {
            Listen::Systemd => Self::InheritsSocket,
            Listen::Tcp(_) | Listen::Unix(_) if reuse_port => Self::Concurrent,
            Listen::Tcp(_) | Listen::Unix(_) => Self::AfterClose,
        }
    }
}

/// One listener, but of `systemd` as many as it passes, which can be taken once in the life of the process. Call it
/// within the runtime.
pub fn bind(bind: &Bind, successor: Successor) -> io::Result<Vec<Listener>> {
    match &bind.address {
        Listen::Tcp(address) => Ok(vec![tcp(*address, successor)?]),
        Listen::Unix(path) => Ok(vec![unix(path, bind, successor)?]),
        Listen::Systemd => systemd(ListenFd::from_env()),
    }
}

impl Listener {
    /// The next client. Every error is one of this process or host (no descriptors, no memory), to be answered by
    /// waiting: a connection that died before it was accepted is skipped.
    pub async fn accept(&self) -> io::Result<(ClientStream, Option<SocketAddr>)> {
        loop {
            let accepted = match self {
                Self::Tcp(listener) => listener.accept().await.map(|(stream, peer)| {
                    // Answers are small and complete. This fails only on a connection that is gone already, and
                    // reading from it will say so.
                    let _ = stream.set_nodelay(true);
                    // On a dual-stack socket an IPv4 client shows as an IPv4-mapped address.
                    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                    (ClientStream::tcp(stream), Some(peer))
                }),
                Self::Unix(listener, _) => {
                    listener.accept().await.map(|(stream, _)| (ClientStream::unix(stream), None))
                }
            };
            match accepted {
                Err(error) if is_transient_accept_error(&error) => {}
                accepted => return accepted,
            }
        }
    }

    /// Sends new clients to the process that listens beside this one. Connections that have begun, in the queue or in
    /// their TCP handshake, can still be accepted.
    pub fn turn_away(&mut self) {
        match self {
            // Where it fails, closing the socket resets what arrives in between.
            Self::Tcp(listener) => drop(syn_filter::ignore_new(listener)),
            Self::Unix(_, file) => *file = None,
        }
    }

    /// `None`: a unix socket.
    pub fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Some),
            Self::Unix(..) => Ok(None),
        }
    }

    /// As the configuration would spell it.
    pub fn name(&self) -> String {
        match self {
            Self::Tcp(listener) => listener.local_addr().map_or_else(|_| "tcp".into(), |address| address.to_string()),
            Self::Unix(_, Some(file)) => format!("unix:{}", file.path.display()),
            Self::Unix(listener, None) => {
                let address = listener.local_addr().ok();
                let path = address.as_ref().and_then(|address| address.as_pathname());
                path.map_or_else(|| "unix".into(), |path| format!("unix:{}", path.display()))
            }
        }
    }
}

/// accept(2) hands on what the network has already done to the new connection.
fn is_transient_accept_error(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::ECONNRESET
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ETIMEDOUT
                | libc::EPERM // a firewall's verdict
        )
    )
}

fn tcp(address: SocketAddr, successor: Successor) -> io::Result<Listener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    // A restart must not wait for the old connections' TIME_WAIT.
    socket.set_reuse_address(true)?;
    if successor == Successor::Concurrent {
        socket.set_reuse_port(true)?; // the kernel lets only processes of the same user share it
    }
    if address.is_ipv6() {
        socket.set_only_v6(true)?; // `[::]` beside `0.0.0.0`: what is written is what is bound
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(Listener::Tcp(TcpListener::from_std(socket.into())?))
}

fn unix(path: &Path, bind: &Bind, successor: Successor) -> io::Result<Listener> {
    let group = group(bind)?;
    // Another process keeps listening at the path until this one can.
    let at = match successor {
        Successor::Concurrent => beside(path)?,
        Successor::AfterClose | Successor::InheritsSocket => path.to_owned(),
    };
    remove_stale(&at)?;
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.bind(&SockAddr::unix(&at)?)?;
    let mut file = SocketFile::of(&at)?;
    // Between bind and listen, so that nobody gets in under the umask's mode.
    set_owner(&at, group, bind.mode)?;
    socket.listen(BACKLOG)?;
    if at != path {
        fs::rename(&at, path)?;
        path.clone_into(&mut file.path);
    }
    Ok(Listener::Unix(UnixListener::from_std(OwnedFd::from(socket).into())?, Some(file)))
}

/// Returns why a unix socket could not be made: this host does not know its group, or its folder cannot be written. Nothing
/// is created. A folder below `/run` is not judged: systemd makes it when the service starts (RuntimeDirectory=).
pub fn probe(bind: &Bind) -> io::Result<()> {
    let Listen::Unix(path) = &bind.address else { return Ok(()) };
    group(bind)?;
    if ["/run", "/var/run"].iter().any(|run| path.starts_with(run)) {
        return Ok(());
    }
    let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let fault = |fault: io::Error| io::Error::new(fault.kind(), format!("{}: {fault}", folder.display()));
    access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|errno| fault(errno.into()))
}

/// Gives the socket's file the group and mode of `bind`: what a reload changes of a socket that stays.
pub fn apply_mode(bind: &Bind) -> io::Result<()> {
    match &bind.address {
        Listen::Unix(path) => set_owner(path, group(bind)?, bind.mode),
        Listen::Tcp(_) | Listen::Systemd => Ok(()),
    }
}

fn set_owner(path: &Path, group: Option<u32>, mode: Option<u32>) -> io::Result<()> {
    // The group first: a mode that lets the group in is for the new one.
    let group = group.unwrap_or_else(|| rustix::process::getegid().as_raw());
    lchown(path, None, Some(group)).map_err(|fault| {
        let why = format!("cannot change its group to {group}: the process is not a member: {fault}");
        io::Error::new(fault.kind(), why)
    })?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode.unwrap_or(UNIX_MODE)))
}

/// The number of the group that is written, as this host knows it; a directory in the network is not asked.
fn group(bind: &Bind) -> io::Result<Option<u32>> {
    let Some(name) = &bind.group else { return Ok(None) };
    if let Ok(number) = name.parse() {
        return Ok(Some(number));
    }
    let groups = fs::read_to_string(GROUPS)?;
    let number = group_number(&groups, name);
    let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("this host has no group \"{}\"", name.value));
    number.map(Some).ok_or_else(unknown)
}

/// group(5): `name:password:number:members`
fn group_number(groups: &str, name: &str) -> Option<u32> {
    let number = |line: &str| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok()).flatten()
    };
    groups.lines().find_map(number)
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let (device, inode) = file_at(path)?;
        Ok(Self { path: path.to_owned(), device, inode })
    }
}

fn file_at(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if file_at(&self.path).is_ok_and(|now| now == (self.device, self.inode)) {
            let _ = fs::remove_file(&self.path); // the next who listens there removes what is stale
        }
    }
}

/// Returns the path at which the socket is made that is to replace the one at `path`. What is not a socket is not replaced.
fn beside(path: &Path) -> io::Result<PathBuf> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => Err(not_a_socket()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{}", std::process::id()));
            Ok(name.into())
        }
    }
}

fn not_a_socket() -> io::Error {
    io::Error::new(io::ErrorKind::AlreadyExists, "a file that is not a socket stands there")
}

/// A process that was killed leaves its socket file behind. One that still answers, and anything that is not a
/// socket, is left alone.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => Err(not_a_socket()),
        Ok(_) => match probe_unix_socket(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
            // More are waiting already than it lets wait (connect(2), EAGAIN).
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
        },
    }
}

/// Waits for nobody: who listens there may never accept.
fn probe_unix_socket(path: &Path) -> io::Result<()> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)
}

fn systemd(mut passed: ListenFd) -> io::Result<Vec<Listener>> {
    let mut listeners = Vec::with_capacity(passed.len());
    for index in 0..passed.len() {
        if let Ok(Some(listener)) = passed.take_tcp_listener(index) {
            listener.set_nonblocking(true)?;
            listeners.push(Listener::Tcp(TcpListener::from_std(listener)?));
        } else if let Some(listener) = passed.take_unix_listener(index)? {
            listener.set_nonblocking(true)?;
            listeners.push(Listener::Unix(UnixListener::from_std(listener)?, None));
        }
    }
    if listeners.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "systemd has passed no sockets, or they are taken"));
    }
    Ok(listeners)
}
