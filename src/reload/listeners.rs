//! The listeners that are open, and their change: the new ones are there before any of the old ones goes.
//! Where do clients and operators come in, now and after this reload?

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::JoinSet;
use tracing::info;

use crate::config::{At, Config, Listen, Problem};
use crate::live::Live;
use crate::live::configuration::Listening;
use crate::net::listen::{self, Listener};
use crate::server::{self, Connections, Doorkeeper};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Server,
    Admin,
}

/// All of one process.
pub struct Listeners {
    live: Arc<Live>,
    connections: Connections,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    open: Vec<Open>,
    /// One a listener; it lasts until the last who came in there has left.
    tasks: JoinSet<()>,
}

/// What one entry of `listen` stands for.
struct Open {
    kind: Kind,
    listen: Listen,
    names: Vec<String>,
    addresses: Vec<SocketAddr>,
    keepers: Vec<Doorkeeper>,
}

/// What is bound already, and takes nobody yet; and what is to go.
pub struct Change {
    added: Vec<(Kind, Listen, Vec<Listener>)>,
    removed: Vec<Open>,
}

impl Listeners {
    pub fn new(live: Arc<Live>, connections: Connections) -> Self {
        Self { live, connections, state: Mutex::default() }
    }

    /// Opens all, also what systemd passes, when the process starts.
    pub fn start(&self, config: &Config) -> Result<(), (Listen, io::Error)> {
        let mut added = Vec::new();
        for (kind, listen) in wanted(config) {
            let bound = listen::bind(&listen.value).map_err(|fault| (listen.value.clone(), fault))?;
            added.push((kind, listen.value.clone(), bound));
        }
        self.commit(Change { added, removed: Vec::new() });
        Ok(())
    }

    /// Binds what is new. Where one of them cannot be had nothing has changed. What systemd passes was passed at the
    /// start: it stays as it is.
    pub fn prepare(&self, config: &Config) -> Result<Change, Vec<Problem>> {
        let mut state = self.state();
        let mut kept: Vec<bool> = state.open.iter().map(|open| open.listen == Listen::Systemd).collect();
        let (mut added, mut problems) = (Vec::new(), Vec::new());
        for (kind, listen) in wanted(config).filter(|(_, listen)| listen.value != Listen::Systemd) {
            let same = |(at, open): &(usize, &Open)| !kept[*at] && (open.kind, &open.listen) == (kind, &listen.value);
            if let Some((at, _)) = state.open.iter().enumerate().find(same) {
                kept[at] = true;
                continue;
            }
            match listen::bind(&listen.value) {
                Ok(bound) => added.push((kind, listen.value.clone(), bound)),
                Err(fault) => problems.push(cannot_listen(listen, &fault)),
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut kept = kept.into_iter();
        let removed = state.open.extract_if(.., |_| !kept.next().unwrap_or(true)).collect();
        let change = Change { added, removed };
        // Before anybody comes in there: the guard keeps deliveries away from our own doors, and from those that close.
        self.live.sources.listening(change.addresses(&state.open));
        Ok(change)
    }

    /// Lets in where it was bound, and lets nobody in any more where it goes.
    pub fn commit(&self, change: Change) {
        let mut state = self.state();
        for (kind, listen, bound) in change.added {
            let names: Vec<_> = bound.iter().map(Listener::name).collect();
            for name in &names {
                info!("{} listening on {name}", kind.as_str());
            }
            let addresses = addresses(&bound).collect();
            let keepers = bound.into_iter().map(|listener| self.serve(&mut state.tasks, kind, listener)).collect();
            state.open.push(Open { kind, listen, names, addresses, keepers });
        }
        for open in change.removed {
            for name in &open.names {
                info!("{} listens no longer on {name}", open.kind.as_str());
            }
            open.keepers.iter().for_each(Doorkeeper::close);
        }
        while state.tasks.try_join_next().is_some() {}
        let names = |kind| state.open.iter().filter(move |open| open.kind == kind).flat_map(|open| open.names.clone());
        self.live
            .configuration
            .listens(Listening { server: names(Kind::Server).collect(), admin: names(Kind::Admin).collect() });
        self.live.sources.listening(state.open.iter().flat_map(|open| open.addresses.clone()).collect());
    }

    fn serve(&self, tasks: &mut JoinSet<()>, kind: Kind, listener: Listener) -> Doorkeeper {
        let (keeper, door) = Doorkeeper::new();
        let live = Arc::clone(&self.live);
        match kind {
            Kind::Server => tasks.spawn(server::accept(live, listener, self.connections.clone(), door)),
            Kind::Admin => tasks.spawn(server::admin::accept(live, listener, door)),
        };
        keeper
    }

    /// Closes all, and cuts who is in.
    pub async fn shutdown(&self) {
        let mut tasks = std::mem::take(&mut self.state().tasks);
        tasks.shutdown().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Server => "proxy",
            Kind::Admin => "admin",
        }
    }
}

impl Change {
    /// Of all that is open before and after.
    fn addresses(&self, kept: &[Open]) -> Vec<SocketAddr> {
        let open = kept.iter().chain(&self.removed).flat_map(|open| open.addresses.iter().copied());
        open.chain(self.added.iter().flat_map(|(_, _, bound)| addresses(bound))).collect()
    }
}

fn wanted(config: &Config) -> impl Iterator<Item = (Kind, &At<Listen>)> {
    let server = config.server.listen.iter().map(|listen| (Kind::Server, listen));
    server.chain(config.admin.listen.iter().map(|listen| (Kind::Admin, listen)))
}

fn addresses(bound: &[Listener]) -> impl Iterator<Item = SocketAddr> {
    bound.iter().filter_map(|listener| listener.local_addr().ok().flatten())
}

fn cannot_listen(listen: &At<Listen>, fault: &io::Error) -> Problem {
    let problem = Problem::at(listen.place, format!("cannot listen on {}", listen.value)).label(fault.to_string());
    match fault.kind() {
        io::ErrorKind::AddrInUse => problem.help(
            "write an address that is free; one that overlaps with an address that goes is free after another reload",
        ),
        _ => problem,
    }
}
