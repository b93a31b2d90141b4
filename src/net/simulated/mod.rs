//! The network of the simulation: what replaces sockets and name servers on the thread that runs a seed.
//! Where do connections and datagrams go if no kernel carries them?
//!
//! A thread without a [`Network`] uses the kernel's. Only tests compile this module.

mod socket;

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::rc::Rc;

use tokio::net::TcpStream;
use tokio::sync::mpsc;

pub(crate) use socket::{LinkProbe, SimulatedSocket, pair};

/// An attempt to connect.
pub(crate) type Connecting = Pin<Box<dyn Future<Output = io::Result<SimulatedSocket>> + Send>>;

/// The responses to one query. A sender that is dropped sends no more.
pub(crate) struct Datagrams(pub(crate) mpsc::UnboundedReceiver<io::Result<Vec<u8>>>);

/// The network of a thread that runs a seed, in place of the kernel's.
pub(crate) trait Network {
    fn connect(&self, from: IpAddr, to: SocketAddr) -> Connecting;

    fn datagrams(&self, server: SocketAddr, request: Vec<u8>, transport: DnsTransport) -> Datagrams;

    /// Decides what an operation of outgate on a socket meets. It also counts and traces the operation.
    fn fault(&self, socket: u32, operation: Operation) -> Fault;

    /// Traces the result of an operation of outgate.
    fn observe(&self, socket: u32, operation: Operation, result: &io::Result<usize>);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DnsTransport {
    Udp,
    Tcp,
}

/// An operation of outgate on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write,
    Shutdown,
    /// The connection is closed by a reset. The peer may lose the bytes that it has not read.
    Reset,
}

/// The fate of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The operation is not ready yet, and its task is woken at once.
    Pending,
    /// The operation transfers this many bytes at most, and one at least. A reset keeps this many.
    Short(usize),
    /// The connection is reset.
    Reset,
}

thread_local! {
    static NETWORK: RefCell<Option<Rc<dyn Network>>> = const { RefCell::new(None) };
}

/// Sets the network of this thread.
pub(crate) fn set_network(network: Option<Rc<dyn Network>>) {
    NETWORK.set(network);
}

fn network() -> Option<Rc<dyn Network>> {
    NETWORK.with_borrow(Option::clone)
}

/// Connects over the simulated network. `None`: this thread uses the kernel's.
pub(super) fn connect(from: IpAddr, to: SocketAddr) -> Option<Connecting> {
    Some(network()?.connect(from, to))
}

/// Sends a query over the simulated network. `None`: this thread uses the kernel's.
pub(super) fn datagrams(server: SocketAddr, request: Vec<u8>, transport: DnsTransport) -> Option<Datagrams> {
    Some(network()?.datagrams(server, request, transport))
}

impl Datagrams {
    pub(super) async fn recv(&mut self) -> io::Result<Vec<u8>> {
        match self.0.recv().await {
            Some(datagram) => datagram,
            None => std::future::pending().await,
        }
    }
}

/// The stream of an outgoing connection in tests.
#[derive(Debug)]
pub(crate) enum Wire {
    Tcp(TcpStream),
    Simulated(SimulatedSocket),
}

impl Wire {
    pub(super) fn simulated(&self) -> Option<&SimulatedSocket> {
        match self {
            Self::Tcp(_) => None,
            Self::Simulated(socket) => Some(socket),
        }
    }
}

impl From<TcpStream> for Wire {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl From<SimulatedSocket> for Wire {
    fn from(socket: SimulatedSocket) -> Self {
        Self::Simulated(socket)
    }
}

/// The stream of the kernel. Each operation handles a simulated one before.
impl Deref for Wire {
    type Target = TcpStream;
    fn deref(&self) -> &TcpStream {
        match self {
            Self::Tcp(stream) => stream,
            Self::Simulated(_) => panic!("an operation on a simulated socket that goes to the kernel"),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        (**self).as_fd()
    }
}
