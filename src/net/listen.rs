//! Listening sockets: TCP, unix, and those that systemd passes.
//! How is a socket bound, replaced and closed?

#![expect(clippy::disallowed_methods, reason = "makes listening sockets and the files of Unix sockets")]

mod reserved;
mod stream;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use rustix::fs::{Access, access};
use socket2::{Domain, SockAddr, Type};
use tokio::net::{TcpListener, UnixListener};

pub use self::reserved::ReservedPorts;
pub use self::stream::{ClientSocket, ClientStream};
use crate::config::{Bind, Listen};
use crate::names::{folder_of, with_suffix};
use crate::net::sockopt;

/// The length of the accept queue. The kernel caps it at `net.core.somaxconn`, 4096 by default.
const BACKLOG: i32 = 4096;
/// The default mode of a unix socket: access for the user and the group of the process.
const DEFAULT_UNIX_MODE: u32 = 0o660;
const GROUP_FILE: &str = "/etc/group";

#[derive(Debug)]
pub enum Listener {
    /// A TCP socket. It ignores new clients when another process replaces it.
    Tcp { listener: TcpListener, ignores_new_clients: bool },
    /// A unix socket, with its file if this process created it; systemd's files are not owned.
    Unix(UnixListener, Option<SocketFile>),
}

/// The file of a unix socket that this process created. Dropping it removes the file, unless another file has replaced
/// it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// The process that accepts the connections that arrive while this one stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Successor {
    /// No process can bind before this one has closed its socket.
    AfterClose,
    /// The next process inherits the same socket. The kernel queues connections until then.
    InheritsSocket,
    /// Another process already listens on the same address (SO_REUSEPORT), or on another socket at the same path.
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

/// Returns one listener, or all that systemd passes, which can be taken only once in the life of the process. It must
/// be called within the runtime.
pub fn bind(bind: &Bind, successor: Successor, reserved_ports: &mut ReservedPorts) -> io::Result<Vec<Listener>> {
    match &bind.address {
        Listen::Tcp(address) => {
            let reserved = reserved_ports.take(*address);
            let socket = reserved.map_or_else(|| bound_socket(*address, successor), Ok)?;
            socket.listen(BACKLOG)?;
            Ok(vec![Listener::tcp(socket.into())?])
        }
        Listen::Unix(path) => Ok(vec![bind_unix(path, bind, successor)?]),
        Listen::Systemd => take_systemd_sockets(ListenFd::from_env()),
    }
}

impl Listener {
    /// Returns a listener whose connections send small responses at once: they inherit TCP_NODELAY.
    fn tcp(listener: std::net::TcpListener) -> io::Result<Self> {
        socket2::SockRef::from(&listener).set_tcp_nodelay(true)?;
        Ok(Self::Tcp { listener: TcpListener::from_std(listener)?, ignores_new_clients: false })
    }

    /// Accepts the next client. An error concerns this process or host (no descriptors, no memory): the caller should
    /// wait and retry. A connection that failed before it was accepted is skipped.
    pub async fn accept(&self) -> io::Result<(ClientStream, Option<SocketAddr>)> {
        loop {
            let accepted = match self {
                Self::Tcp { listener, ignores_new_clients } => listener.accept().await.map(|(stream, peer)| {
                    if *ignores_new_clients {
                        // The connection has inherited the minimum. What it dropped arrives again. The call fails only
                        // if the connection has ended.
                        let _ = sockopt::set_min_ttl(stream.as_fd(), is_ipv6(listener), 0);
                    }
                    // A dual-stack socket reports an IPv4 client as an IPv4-mapped address.
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

    /// Leaves new clients to the process that listens on the same address. Connections in the queue or in their TCP
    /// handshake can still be accepted. After an error, closing the listener may reset a connection.
    ///
    /// The kernel assigns a handshake to one of the sockets that share an address (SO_REUSEPORT, socket(7)), and resets
    /// its connection if that socket closes. So this socket ignores a SYN: the client repeats it after a second, when
    /// the socket has been closed. A handshake that has begun belongs to no socket yet, and completes. A peer whose
    /// packets arrive with the highest TTL is not ignored. A filter (SO_ATTACH_FILTER) would ignore it too, but some
    /// kernels permit that only with CAP_NET_ADMIN (seen with a 6.18.44).
    pub fn stop_new_clients(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp { listener, ignores_new_clients } => {
                sockopt::set_min_ttl(listener.as_fd(), is_ipv6(listener), u8::MAX)?;
                *ignores_new_clients = true;
            }
            Self::Unix(_, file) => *file = None,
        }
        Ok(())
    }

    /// Returns the bound address; `None`: a unix socket.
    pub fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        match self {
            Self::Tcp { listener, .. } => listener.local_addr().map(Some),
            Self::Unix(..) => Ok(None),
        }
    }

    /// Returns the address in the configuration's syntax.
    pub fn name(&self) -> String {
        match self {
            Self::Tcp { listener, .. } => {
                listener.local_addr().map_or_else(|_| "tcp".into(), |address| address.to_string())
            }
            Self::Unix(_, Some(file)) => format!("unix:{}", file.path.display()),
            Self::Unix(listener, None) => {
                let address = listener.local_addr().ok();
                let path = address.as_ref().and_then(|address| address.as_pathname());
                path.map_or_else(|| "unix".into(), |path| format!("unix:{}", path.display()))
            }
        }
    }
}

fn is_ipv6(listener: &TcpListener) -> bool {
    listener.local_addr().is_ok_and(|address| address.is_ipv6())
}

/// Returns whether an error of accept(2) is about the accepted connection, not about the listener.
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
                | libc::EPERM // a firewall rejected the connection
        )
    )
}

fn bound_socket(address: SocketAddr, successor: Successor) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    // A restarted process must be able to bind despite connections in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if successor == Successor::Concurrent {
        socket.set_reuse_port(true)?; // the kernel shares an address only among processes of one user
    }
    if address.is_ipv6() {
        socket.set_only_v6(true)?; // `[::]` must not include `0.0.0.0`, which may be configured besides
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn bind_unix(path: &Path, bind: &Bind, successor: Successor) -> io::Result<Listener> {
    let group = resolve_group(bind)?;
    // Another process listens at the path until the file is replaced.
    let bind_path = match successor {
        Successor::Concurrent => temporary_path(path)?,
        Successor::AfterClose | Successor::InheritsSocket => path.to_owned(),
    };
    remove_stale(&bind_path)?;
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.bind(&SockAddr::unix(&bind_path)?)?;
    let mut file = SocketFile::of(&bind_path)?;
    // The owner and mode are set before `listen`, so that no client connects under the umask's mode.
    set_owner_and_mode(&bind_path, group, bind.mode)?;
    socket.listen(BACKLOG)?;
    if bind_path != path {
        fs::rename(&bind_path, path)?;
        path.clone_into(&mut file.path);
    }
    Ok(Listener::Unix(UnixListener::from_std(OwnedFd::from(socket).into())?, Some(file)))
}

/// Checks that a unix socket can be created: the host knows its group, and its folder is writable. Nothing is created.
/// A folder below `/run` is not checked, because systemd creates it when the service starts (RuntimeDirectory=).
pub fn probe(bind: &Bind) -> io::Result<()> {
    let Listen::Unix(path) = &bind.address else { return Ok(()) };
    resolve_group(bind)?;
    if ["/run", "/var/run"].iter().any(|run| path.starts_with(run)) {
        return Ok(());
    }
    let folder = folder_of(path);
    let with_path = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", folder.display()));
    access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|errno| with_path(errno.into()))
}

/// Sets the group and mode of the socket's file after a reload that keeps the socket.
pub fn apply_owner_and_mode(bind: &Bind) -> io::Result<()> {
    match &bind.address {
        Listen::Unix(path) => set_owner_and_mode(path, resolve_group(bind)?, bind.mode),
        Listen::Tcp(_) | Listen::Systemd => Ok(()),
    }
}

fn set_owner_and_mode(path: &Path, group: Option<u32>, mode: Option<u32>) -> io::Result<()> {
    // The group is changed first, so that the mode never grants access to the former group.
    let group = group.unwrap_or_else(|| rustix::process::getegid().as_raw());
    // A filter of system calls, as that of the unit, may forbid the change: usually the group is right already.
    if fs::symlink_metadata(path)?.gid() != group {
        lchown(path, None, Some(group)).map_err(|error| {
            let message = format!(
                "cannot change its group to {group}; add the process's user to the group, and permit the change in a drop-in \
                 of the unit (docs/security.md): {error}"
            );
            io::Error::new(error.kind(), message)
        })?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode.unwrap_or(DEFAULT_UNIX_MODE)))
}

/// Returns the number of the configured group from /etc/group. Directory services are not queried.
fn resolve_group(bind: &Bind) -> io::Result<Option<u32>> {
    let Some(name) = &bind.group else { return Ok(None) };
    if let Ok(number) = name.parse() {
        return Ok(Some(number));
    }
    let groups = fs::read_to_string(GROUP_FILE)?;
    let number = group_number(&groups, name);
    let not_found = || io::Error::new(io::ErrorKind::NotFound, format!("this host has no group \"{}\"", name.value));
    number.map(Some).ok_or_else(not_found)
}

/// Finds the number of a group in group(5): `name:password:number:members`.
fn group_number(groups: &str, name: &str) -> Option<u32> {
    let number = |line: &str| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok()).flatten()
    };
    groups.lines().find_map(number)
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let (device, inode) = device_and_inode(path)?;
        Ok(Self { path: path.to_owned(), device, inode })
    }
}

fn device_and_inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if device_and_inode(&self.path).is_ok_and(|current| current == (self.device, self.inode)) {
            let _ = fs::remove_file(&self.path); // the next process at this path removes a stale file
        }
    }
}

/// Returns the temporary path of the socket that replaces the one at `path`. A file that is not a socket is an error.
fn temporary_path(path: &Path) -> io::Result<PathBuf> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => Err(not_a_socket()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(with_suffix(path, &format!(".{}", std::process::id()))),
    }
}

fn not_a_socket() -> io::Error {
    io::Error::new(io::ErrorKind::AlreadyExists, "the path exists and is not a socket")
}

/// Removes the socket file of a process that was killed. A socket with a listener, or a file that is not a socket, is
/// an error.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => Err(not_a_socket()),
        Ok(_) => match probe_unix_socket(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
            // The listener's queue is full (connect(2), EAGAIN).
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens at this path")),
        },
    }
}

/// Connects without blocking, because the listener may never accept.
fn probe_unix_socket(path: &Path) -> io::Result<()> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)
}

fn take_systemd_sockets(mut passed: ListenFd) -> io::Result<Vec<Listener>> {
    let mut listeners = Vec::with_capacity(passed.len());
    for index in 0..passed.len() {
        if let Ok(Some(listener)) = passed.take_tcp_listener(index) {
            listener.set_nonblocking(true)?;
            listeners.push(Listener::tcp(listener)?);
        } else if let Some(listener) = passed.take_unix_listener(index)? {
            listener.set_nonblocking(true)?;
            listeners.push(Listener::Unix(UnixListener::from_std(listener)?, None));
        }
    }
    if listeners.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "systemd passed no sockets to this process, or they were already taken",
        ));
    }
    Ok(listeners)
}
