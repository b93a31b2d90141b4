//! The open listeners, and their change on a reload: new ones are bound before old ones close.
//! On which addresses does outgate listen, now and after a reload?

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::config::{Bind, Config, Listen, Located, Problem};
use crate::net::listen::{self, Listener, ReservedPorts, Successor};
use crate::server::{self, Connections, ShutdownHandle};
use crate::state::Runtime;
use crate::state::config::status::BoundAddresses;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListenerKind {
    Server,
    Admin,
    Agent,
    Publish,
}

/// All listeners of the process.
pub struct Listeners {
    runtime: Arc<Runtime>,
    connections: Connections,
    /// The value of `server.reuse_port` at the start.
    reuse_port: bool,
    state: Mutex<ListenerSet>,
}

#[derive(Default)]
struct ListenerSet {
    open: Vec<OpenListener>,
    /// One task for each listener. It ends when the last connection of the listener closes.
    tasks: JoinSet<()>,
}

/// The sockets of one entry of `listen`.
struct OpenListener {
    kind: ListenerKind,
    bind: Bind,
    names: Vec<String>,
    addresses: Vec<SocketAddr>,
    shutdown_handles: Vec<ShutdownHandle>,
}

/// Listeners that close because another process takes them over.
pub struct HandedOver {
    pub listens: Vec<Listen>,
    shutdown_handles: Vec<ShutdownHandle>,
}

impl HandedOver {
    /// Resolves when the listeners and their connections are closed.
    pub async fn all_closed(&self) {
        for handle in &self.shutdown_handles {
            handle.all_closed().await;
        }
    }
}

/// The new listeners, which are bound but do not accept yet, and the listeners to close.
pub struct ListenerChange {
    added: Vec<(ListenerKind, Bind, Vec<Listener>)>,
    removed: Vec<OpenListener>,
    /// Unix sockets that stay open and whose files get another mode or group.
    reconfigured: Vec<(ListenerKind, Bind)>,
}

impl Listeners {
    pub fn new(runtime: Arc<Runtime>, connections: Connections, reuse_port: bool) -> Self {
        Self { runtime, connections, reuse_port, state: Mutex::default() }
    }

    /// Opens all listeners at the start of the process, including those that systemd passes. An error says which listener,
    /// and why.
    pub fn start(&self, config: &Config, mut reserved_ports: ReservedPorts) -> Result<(), String> {
        let mut added = Vec::new();
        for (kind, bind) in configured_binds(config) {
            let bound = self
                .bind(bind, &mut reserved_ports)
                .map_err(|error| format!("cannot listen on {} ({}): {error}", bind.address, kind.key()))?;
            added.push((kind, bind.value.clone(), bound));
        }
        self.commit(ListenerChange { added, removed: Vec::new(), reconfigured: Vec::new() });
        Ok(())
    }

    /// Binds the new listeners. On an error nothing has changed. Listeners that systemd passed at the start stay as
    /// they are.
    pub fn prepare(&self, config: &Config) -> Result<ListenerChange, Vec<Problem>> {
        let mut state = self.state.lock();
        let mut is_kept: Vec<bool> = state.open.iter().map(|open| open.bind.address == Listen::Systemd).collect();
        let (mut added, mut reconfigured, mut problems) = (Vec::new(), Vec::new(), Vec::new());
        for (kind, bind) in configured_binds(config).filter(|(_, bind)| bind.address != Listen::Systemd) {
            let is_same = |(at, open): &(usize, &OpenListener)| {
                !is_kept[*at] && (open.kind, &open.bind.address) == (kind, &bind.address)
            };
            if let Some((at, _)) = state.open.iter().enumerate().find(is_same) {
                is_kept[at] = true;
                let before = &state.open[at].bind;
                let group = |bind: &Bind| bind.group.as_ref().map(|group| group.value.clone());
                if (before.mode, group(before)) != (bind.mode, group(bind)) {
                    reconfigured.push((kind, bind.value.clone()));
                }
                continue;
            }
            match self.bind(bind, &mut ReservedPorts::default()) {
                Ok(bound) => added.push((kind, bind.value.clone(), bound)),
                Err(error) => problems.push(listen_problem(bind, &error)),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut is_kept = is_kept.into_iter();
        let removed = state.open.extract_if(.., |_| !is_kept.next().unwrap_or(true)).collect();
        let change = ListenerChange { added, removed, reconfigured };
        // Set before the first accept: the guard keeps deliveries away from outgate's own listeners, closing ones
        // included.
        self.runtime.sources.set_listeners(change.addresses(&state.open));
        Ok(change)
    }

    /// Accepts connections on the new listeners, and closes the removed ones.
    pub fn commit(&self, change: ListenerChange) {
        let mut state = self.state.lock();
        for (kind, bind) in change.reconfigured {
            if let Err(error) = listen::apply_owner_and_mode(&bind) {
                warn!("cannot change the mode and group of {}, which keeps the old ones: {error}", bind.address);
            }
            let is_same = |open: &&mut OpenListener| open.kind == kind && open.bind.address == bind.address;
            if let Some(open) = state.open.iter_mut().find(is_same) {
                open.bind = bind;
            }
        }
        for (kind, bind, bound) in change.added {
            let names: Vec<_> = bound.iter().map(Listener::name).collect();
            for name in &names {
                info!("{} listening on {name}", kind.as_str());
            }
            let addresses = addresses(&bound).collect();
            let serve = |listener| self.spawn_accept_loop(&mut state.tasks, kind, &bind, listener);
            let shutdown_handles = bound.into_iter().map(serve).collect();
            state.open.push(OpenListener { kind, bind, names, addresses, shutdown_handles });
        }
        for open in change.removed {
            for name in &open.names {
                info!("{} stopped listening on {name}", open.kind.as_str());
            }
            open.shutdown_handles.iter().for_each(ShutdownHandle::close);
        }
        while state.tasks.try_join_next().is_some() {}
        let names = |kind| state.open.iter().filter(move |open| open.kind == kind).flat_map(|open| open.names.clone());
        self.runtime.config_status.set_bound_addresses(BoundAddresses {
            server: names(ListenerKind::Server).collect(),
            admin: names(ListenerKind::Admin).collect(),
            agent: names(ListenerKind::Agent).collect(),
            publish: names(ListenerKind::Publish).collect(),
        });
        self.runtime.sources.set_listeners(state.open.iter().flat_map(|open| open.addresses.clone()).collect());
    }

    /// Closes the new listeners, and keeps those that were to close: the change does not take effect.
    pub fn abort(&self, change: ListenerChange) {
        let mut state = self.state.lock();
        state.open.extend(change.removed);
        self.runtime.sources.set_listeners(state.open.iter().flat_map(|open| open.addresses.clone()).collect());
    }

    fn spawn_accept_loop(
        &self,
        tasks: &mut JoinSet<()>,
        kind: ListenerKind,
        bind: &Bind,
        listener: Listener,
    ) -> ShutdownHandle {
        let (handle, shutdown) = ShutdownHandle::new(self.successor(bind));
        let runtime = Arc::clone(&self.runtime);
        match kind {
            ListenerKind::Server => {
                let connections = self.connections.clone();
                tasks.spawn(server::accept(runtime, listener, bind.address.clone(), connections, shutdown))
            }
            ListenerKind::Admin => {
                tasks.spawn(server::admin::accept(runtime, listener, bind.address.clone(), shutdown))
            }
            ListenerKind::Agent => {
                tasks.spawn(server::agent::accept(runtime, listener, bind.address.clone(), shutdown))
            }
            ListenerKind::Publish => {
                tasks.spawn(server::publish::accept(runtime, listener, bind.address.clone(), shutdown))
            }
        };
        handle
    }

    fn bind(&self, bind: &Bind, reserved_ports: &mut ReservedPorts) -> io::Result<Vec<Listener>> {
        listen::bind(bind, self.successor(bind), reserved_ports)
    }

    fn successor(&self, bind: &Bind) -> Successor {
        Successor::of(&bind.address, self.reuse_port)
    }

    /// Closes the listeners that another process takes over. Their connections are still served.
    pub fn hand_over(&self) -> HandedOver {
        let (mut listens, mut shutdown_handles) = (Vec::new(), Vec::new());
        for open in &mut self.state.lock().open {
            if self.successor(&open.bind) != Successor::AfterClose {
                open.shutdown_handles.iter().for_each(ShutdownHandle::close);
                shutdown_handles.append(&mut open.shutdown_handles);
                listens.push(open.bind.address.clone());
            }
        }
        HandedOver { listens, shutdown_handles }
    }

    /// Closes all listeners, and aborts their connections.
    pub async fn shutdown(&self) {
        let mut tasks = std::mem::take(&mut self.state.lock().tasks);
        tasks.shutdown().await;
    }
}

impl ListenerKind {
    fn as_str(self) -> &'static str {
        match self {
            ListenerKind::Server => "proxy",
            ListenerKind::Admin => "admin",
            ListenerKind::Agent => "agent",
            ListenerKind::Publish => "publish",
        }
    }

    /// Returns the key of the configuration that has the listeners.
    fn key(self) -> &'static str {
        match self {
            ListenerKind::Server => "server.listen",
            ListenerKind::Admin => "admin.listen",
            ListenerKind::Agent => "admin.agent",
            ListenerKind::Publish => "publish.listen",
        }
    }
}

impl ListenerChange {
    /// Returns the addresses that are open before or after the change.
    fn addresses(&self, open: &[OpenListener]) -> Vec<SocketAddr> {
        let open_addresses = open.iter().chain(&self.removed).flat_map(|open| open.addresses.iter().copied());
        open_addresses.chain(self.added.iter().flat_map(|(_, _, bound)| addresses(bound))).collect()
    }
}

fn configured_binds(config: &Config) -> impl Iterator<Item = (ListenerKind, &Located<Bind>)> {
    let server = config.server.listen.iter().map(|bind| (ListenerKind::Server, bind));
    let admin = config.admin.listen.iter().map(|bind| (ListenerKind::Admin, bind));
    let agent = config.admin.agent.iter().map(|bind| (ListenerKind::Agent, bind));
    server.chain(admin).chain(agent).chain(config.publish.listen.iter().map(|bind| (ListenerKind::Publish, bind)))
}

fn addresses(bound: &[Listener]) -> impl Iterator<Item = SocketAddr> {
    bound.iter().filter_map(|listener| listener.local_addr().ok().flatten())
}

fn listen_problem(bind: &Located<Bind>, error: &io::Error) -> Problem {
    let problem = Problem::at(bind.span, format!("cannot listen on {}", bind.address)).label(error.to_string());
    match error.kind() {
        io::ErrorKind::AddrInUse => problem
            .help("use a free address; an address that overlaps with a removed one becomes free with the next reload"),
        io::ErrorKind::PermissionDenied if matches!(bind.address, Listen::Tcp(_)) => problem.help(
            "restart outgate, which drops the capability for ports below 1024 at its start, or use outgate.socket",
        ),
        _ => problem,
    }
}
