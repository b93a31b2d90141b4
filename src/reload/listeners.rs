//! The listeners that are open, and their change: the new ones are there before any of the old ones goes.
//! Where do clients and operators come in, now and after this reload?

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::config::{Bind, Config, Listen, Located, Problem};
use crate::net::listen::{self, Listener, Successor};
use crate::server::{self, Connections, ShutdownHandle};
use crate::state::Runtime;
use crate::state::config::status::BoundAddresses;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListenerKind {
    Server,
    Admin,
}

/// All of one process.
pub struct Listeners {
    runtime: Arc<Runtime>,
    connections: Connections,
    /// `server.reuse_port`, as it was at the start.
    reuse_port: bool,
    state: Mutex<ListenerSet>,
}

#[derive(Default)]
struct ListenerSet {
    open: Vec<OpenListener>,
    /// One a listener; it lasts until the last who came in there has left.
    tasks: JoinSet<()>,
}

/// What one entry of `listen` stands for.
struct OpenListener {
    kind: ListenerKind,
    bind: Bind,
    names: Vec<String>,
    addresses: Vec<SocketAddr>,
    keepers: Vec<ShutdownHandle>,
}

/// Listeners that close because another process takes them over.
pub struct HandedOver {
    pub listens: Vec<Listen>,
    keepers: Vec<ShutdownHandle>,
}

impl HandedOver {
    /// Resolves when they and their connections are closed.
    pub async fn all_closed(&self) {
        for keeper in &self.keepers {
            keeper.all_closed().await;
        }
    }
}

/// What is bound already, and takes nobody yet; and what is to go.
pub struct ListenerChange {
    added: Vec<(ListenerKind, Bind, Vec<Listener>)>,
    removed: Vec<OpenListener>,
    /// Sockets that stay, as they are written now, whose files get another mode or group.
    kept: Vec<(ListenerKind, Bind)>,
}

impl Listeners {
    pub fn new(runtime: Arc<Runtime>, connections: Connections, reuse_port: bool) -> Self {
        Self { runtime, connections, reuse_port, state: Mutex::default() }
    }

    /// Opens all, also what systemd passes, when the process starts.
    pub fn start(&self, config: &Config) -> Result<(), (Listen, io::Error)> {
        let mut added = Vec::new();
        for (kind, bind) in configured_binds(config) {
            let bound = self.bind(bind).map_err(|fault| (bind.address.clone(), fault))?;
            added.push((kind, bind.value.clone(), bound));
        }
        self.commit(ListenerChange { added, removed: Vec::new(), kept: Vec::new() });
        Ok(())
    }

    /// Binds what is new. Where one of them cannot be had nothing has changed. What systemd passes was passed at the
    /// start: it stays as it is.
    pub fn prepare(&self, config: &Config) -> Result<ListenerChange, Vec<Problem>> {
        let mut state = self.state.lock();
        let mut kept: Vec<bool> = state.open.iter().map(|open| open.bind.address == Listen::Systemd).collect();
        let (mut added, mut changed, mut problems) = (Vec::new(), Vec::new(), Vec::new());
        for (kind, bind) in configured_binds(config).filter(|(_, bind)| bind.address != Listen::Systemd) {
            let same = |(at, open): &(usize, &OpenListener)| {
                !kept[*at] && (open.kind, &open.bind.address) == (kind, &bind.address)
            };
            if let Some((at, _)) = state.open.iter().enumerate().find(same) {
                kept[at] = true;
                let before = &state.open[at].bind;
                let group = |bind: &Bind| bind.group.as_ref().map(|group| group.value.clone());
                if (before.mode, group(before)) != (bind.mode, group(bind)) {
                    changed.push((kind, bind.value.clone()));
                }
                continue;
            }
            match self.bind(bind) {
                Ok(bound) => added.push((kind, bind.value.clone(), bound)),
                Err(fault) => problems.push(cannot_listen(bind, &fault)),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut kept = kept.into_iter();
        let removed = state.open.extract_if(.., |_| !kept.next().unwrap_or(true)).collect();
        let change = ListenerChange { added, removed, kept: changed };
        // Before anybody comes in there: the guard keeps deliveries away from our own doors, and from those that close.
        self.runtime.sources.listening(change.addresses(&state.open));
        Ok(change)
    }

    /// Lets in where it was bound, and lets nobody in any more where it goes.
    pub fn commit(&self, change: ListenerChange) {
        let mut state = self.state.lock();
        for (kind, bind) in change.kept {
            if let Err(fault) = listen::apply_owner_and_mode(&bind) {
                warn!("{} keeps its mode and group: {fault}", bind.address);
            }
            let same = |open: &&mut OpenListener| open.kind == kind && open.bind.address == bind.address;
            if let Some(open) = state.open.iter_mut().find(same) {
                open.bind = bind;
            }
        }
        for (kind, bind, bound) in change.added {
            let names: Vec<_> = bound.iter().map(Listener::name).collect();
            for name in &names {
                info!("{} listening on {name}", kind.as_str());
            }
            let addresses = addresses(&bound).collect();
            let serve = |listener| self.serve(&mut state.tasks, kind, &bind, listener);
            let keepers = bound.into_iter().map(serve).collect();
            state.open.push(OpenListener { kind, bind, names, addresses, keepers });
        }
        for open in change.removed {
            for name in &open.names {
                info!("{} listens no longer on {name}", open.kind.as_str());
            }
            open.keepers.iter().for_each(ShutdownHandle::close);
        }
        while state.tasks.try_join_next().is_some() {}
        let names = |kind| state.open.iter().filter(move |open| open.kind == kind).flat_map(|open| open.names.clone());
        self.runtime.config_status.listens(BoundAddresses {
            server: names(ListenerKind::Server).collect(),
            admin: names(ListenerKind::Admin).collect(),
        });
        self.runtime.sources.listening(state.open.iter().flat_map(|open| open.addresses.clone()).collect());
    }

    fn serve(&self, tasks: &mut JoinSet<()>, kind: ListenerKind, bind: &Bind, listener: Listener) -> ShutdownHandle {
        let (keeper, door) = ShutdownHandle::new(self.successor(bind));
        let runtime = Arc::clone(&self.runtime);
        match kind {
            ListenerKind::Server => {
                let connections = self.connections.clone();
                tasks.spawn(server::accept(runtime, listener, bind.address.clone(), connections, door))
            }
            ListenerKind::Admin => tasks.spawn(server::admin::accept(runtime, listener, door)),
        };
        keeper
    }

    fn bind(&self, bind: &Bind) -> io::Result<Vec<Listener>> {
        listen::bind(bind, self.successor(bind))
    }

    fn successor(&self, bind: &Bind) -> Successor {
        Successor::of(&bind.address, self.reuse_port)
    }

    /// Closes the listeners that another process takes over. Connections that came in there are served.
    pub fn hand_over(&self) -> HandedOver {
        let (mut listens, mut keepers) = (Vec::new(), Vec::new());
        for open in &mut self.state.lock().open {
            if self.successor(&open.bind) != Successor::AfterClose {
                open.keepers.iter().for_each(ShutdownHandle::close);
                keepers.append(&mut open.keepers);
                listens.push(open.bind.address.clone());
            }
        }
        HandedOver { listens, keepers }
    }

    /// Closes all, and cuts who is in.
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
        }
    }
}

impl ListenerChange {
    /// Of all that is open before and after.
    fn addresses(&self, kept: &[OpenListener]) -> Vec<SocketAddr> {
        let open = kept.iter().chain(&self.removed).flat_map(|open| open.addresses.iter().copied());
        open.chain(self.added.iter().flat_map(|(_, _, bound)| addresses(bound))).collect()
    }
}

fn configured_binds(config: &Config) -> impl Iterator<Item = (ListenerKind, &Located<Bind>)> {
    let server = config.server.listen.iter().map(|bind| (ListenerKind::Server, bind));
    server.chain(config.admin.listen.iter().map(|bind| (ListenerKind::Admin, bind)))
}

fn addresses(bound: &[Listener]) -> impl Iterator<Item = SocketAddr> {
    bound.iter().filter_map(|listener| listener.local_addr().ok().flatten())
}

fn cannot_listen(bind: &Located<Bind>, fault: &io::Error) -> Problem {
    let problem = Problem::at(bind.span, format!("cannot listen on {}", bind.address)).label(fault.to_string());
    match fault.kind() {
        io::ErrorKind::AddrInUse => problem.help(
            "write an address that is free; one that overlaps with an address that goes is free after another reload",
        ),
        _ => problem,
    }
}
