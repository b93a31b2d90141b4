//! The listeners beside the proxy's: they accept few and short connections, and speak HTTP/1.1 or write a line.
//! How does the admin, the agent or the publish listener accept a connection?

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use super::accept_queue::AcceptQueue;
use super::listener_shutdown::ListenerShutdown;
use super::throttled_log::{ThrottledLog, WarningKind};
use crate::config::Listen;
use crate::net::listen::{ClientStream, Listener};
use crate::net::peer::{self, Peer};
use crate::net::tls::accept;
use crate::panics::contain;
use crate::policy::authn::PeerCertificate;
use crate::state::Runtime;

/// Limits the open connections of one unix socket; further ones wait.
const UNIX_CONNECTIONS_MAX: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest request head over TCP, in bytes.
const HEAD_MAX: usize = 16 * 1024;
/// Limits the lifetime of a connection: one request needs it no longer.
const CONNECTION_LIFETIME_MAX: Duration = Duration::from_secs(60);
/// The longest time for a line, and the bytes that its client may send.
const LINE_TIMEOUT: Duration = Duration::from_secs(5);
const LINE_INPUT_MAX: u64 = 1024;

pub(super) type ServiceResponse = Response<Full<Bytes>>;

type Responding<'a> = Pin<Box<dyn Future<Output = ServiceResponse> + Send + 'a>>;

/// A service of a listener, and the limits of its connections.
#[derive(Clone, Copy)]
pub(super) struct Service {
    /// The name in the log.
    pub(super) name: &'static str,
    /// Limits the open connections of one TCP socket, and of one address. Clients are few and get their response within
    /// a second, so the oldest connection is the one to close.
    pub(super) connections_max: usize,
    pub(super) connections_per_ip_max: usize,
    pub(super) protocol: Protocol,
}

/// The protocol of a service.
#[derive(Clone, Copy)]
pub(super) enum Protocol {
    Http(for<'a> fn(&'a Arc<Runtime>, Request<Incoming>, &'a ServiceConnection) -> Responding<'a>),
    /// The service writes one line to each connection, and closes it.
    Line(fn(&Runtime) -> String),
}

/// The connection that a request arrives on.
pub(super) struct ServiceConnection {
    pub(super) listen: Listen,
    pub(super) remote: Remote,
}

pub(super) enum Remote {
    /// A unix socket. `None`: the kernel does not name the process at the other end.
    Unix(Option<Peer>),
    /// TCP; `certificate`: over TLS, the verified certificate of the client, which may be empty.
    Tcp { address: SocketAddr, certificate: Option<PeerCertificate> },
}

impl ServiceConnection {
    pub(super) fn address(&self) -> Option<SocketAddr> {
        match &self.remote {
            Remote::Unix(_) => None,
            Remote::Tcp { address, .. } => Some(*address),
        }
    }
}

/// Accepts connections until the listener closes, and returns when all of them are closed.
pub(super) async fn accept(
    runtime: Arc<Runtime>,
    listener: Listener,
    listen: Listen,
    shutdown: ListenerShutdown,
    service: Service,
) {
    let connection_slots = Arc::new(Semaphore::new(UNIX_CONNECTIONS_MAX));
    let mut serving = JoinSet::new();
    let throttled_log = Arc::new(ThrottledLog::new());
    let mut queue = AcceptQueue::new(listener, shutdown.clone());
    let (is_tcp, mut connections) = (queue.is_tcp(), TcpConnections::default());
    loop {
        let next = async {
            let permit = match is_tcp {
                true => None,
                false => Arc::clone(&connection_slots).acquire_owned().await.ok(),
            };
            (queue.next().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            biased;
            Some(_) = serving.join_next() => continue,
            accepted = next => accepted,
            // This branch wins while all connection slots are taken.
            () = shutdown.admission_closed() => break,
        };
        let Some(accepted) = accepted else { break };
        match accepted {
            Ok((stream, peer)) => {
                let (runtime, shutdown) = (Arc::clone(&runtime), shutdown.clone());
                let (listen, throttled_log) = (listen.clone(), Arc::clone(&throttled_log));
                let task = serving.spawn(contain(async move {
                    let remote = match peer {
                        None => Remote::Unix(peer::from_stream(&stream)),
                        Some(address) => Remote::Tcp { address, certificate: None },
                    };
                    let connection = ServiceConnection { listen, remote };
                    establish(&runtime, stream, connection, &shutdown, &throttled_log, service).await;
                    drop(permit);
                }));
                if let Some(peer) = peer {
                    connections.insert(peer.ip(), task, service);
                }
            }
            Err(_) => tokio::time::sleep(super::ACCEPT_RETRY_DELAY).await,
        }
    }
    drop(queue);
    while serving.join_next().await.is_some() {}
}

/// Accepts TLS where the listener has it, and serves the connection.
async fn establish(
    runtime: &Arc<Runtime>,
    stream: ClientStream,
    mut connection: ServiceConnection,
    shutdown: &ListenerShutdown,
    throttled_log: &ThrottledLog,
    service: Service,
) {
    let active = runtime.active_config();
    let tls = active.listener_tls(&connection.listen);
    let tls = tls.filter(|_| active.plan.listener.has_own_tls(&connection.listen));
    let (Remote::Tcp { address, certificate }, Some((config, fingerprint))) = (&mut connection.remote, tls) else {
        return serve(runtime, stream, &connection, shutdown, service).await;
    };
    let deadline = tokio::time::Instant::now() + active.plan.timeouts.tls;
    match accept::accept(stream, config, fingerprint, deadline).await {
        Ok((stream, verified)) => {
            *certificate = Some(verified);
            drop(active);
            serve(runtime, stream, &connection, shutdown, service).await;
        }
        Err(error) => throttled_log.warn(WarningKind::TlsHandshake, || {
            format!("a connection from {} to the {} listener was closed: {error}", address.ip(), service.name)
        }),
    }
}

async fn serve(
    runtime: &Arc<Runtime>,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    connection: &ServiceConnection,
    shutdown: &ListenerShutdown,
    service: Service,
) {
    let respond = match service.protocol {
        Protocol::Http(respond) => respond,
        Protocol::Line(line) => {
            let _ = tokio::time::timeout(LINE_TIMEOUT, write_line(stream, &line(runtime))).await;
            return;
        }
    };
    let responding =
        service_fn(|request| async move { Ok::<_, Infallible>(respond(runtime, request, connection).await) });
    let mut http1 = hyper::server::conn::http1::Builder::new();
    if connection.address().is_some() {
        http1.max_buf_size(HEAD_MAX);
    }
    let serving = http1
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), responding);
    let mut serving = pin!(serving);
    let served = async {
        tokio::select! {
            _ = serving.as_mut() => return,
            () = shutdown.closing() => serving.as_mut().graceful_shutdown(),
        }
        let _ = serving.await;
    };
    let _ = tokio::time::timeout(CONNECTION_LIFETIME_MAX, served).await;
}

/// Writes the line, and waits for the client to close. Closing before would reset the connection if the client has sent
/// something, and the client might lose the line.
async fn write_line(mut stream: impl AsyncRead + AsyncWrite + Unpin, line: &str) -> io::Result<()> {
    stream.write_all(line.as_bytes()).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(LINE_INPUT_MAX), &mut tokio::io::sink()).await?;
    Ok(())
}

/// The connections of one TCP socket, oldest first.
#[derive(Default)]
struct TcpConnections(VecDeque<(IpAddr, AbortHandle)>);

impl TcpConnections {
    /// Adds a connection. At a limit it closes the oldest connection of the same address, or of all addresses.
    fn insert(&mut self, address: IpAddr, task: AbortHandle, limits: Service) {
        self.0.retain(|(_, task)| !task.is_finished());
        let open_for_address = self.0.iter().filter(|(other, _)| *other == address).count();
        let oldest = if open_for_address >= limits.connections_per_ip_max {
            self.0.iter().position(|(other, _)| *other == address)
        } else {
            (self.0.len() >= limits.connections_max).then_some(0)
        };
        if let Some((_, oldest)) = oldest.and_then(|oldest| self.0.remove(oldest)) {
            oldest.abort();
        }
        self.0.push_back((address, task));
    }
}
