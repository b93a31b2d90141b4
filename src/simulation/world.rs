//! The world around outgate in one seed: the network, its faults, and what clients and targets have seen.
//! What does an operation of outgate meet, and what did the other side observe?

use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::sleep;

use super::dns::{self, Zone};
use super::host;
use super::ledger::Ledger;
use super::random::Random;
use crate::net::simulated::{
    Connecting, Datagrams, DnsTransport, Fault, LinkProbe, Network, Operation, SimulatedSocket, pair,
};

/// The bytes of a trace, beyond which a seed does not end.
const TRACE_MAX: usize = 16 << 20;

/// The rules of a seed's world. They are fixed at its start.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    /// How many of a thousand operations are not ready at first, transfer few bytes, or meet a reset.
    pub(super) pending: usize,
    pub(super) short: usize,
    pub(super) reset: usize,
    /// The number of the operation that meets a reset.
    pub(super) reset_at: Option<u64>,
    /// Each operation is not ready at first, so that every await for one is reached as pending.
    pub(super) always_pending: bool,
    /// The bytes that a connection holds for its reader.
    pub(super) window: usize,
    /// How many of a thousand connections, exchanges and queries go wrong.
    pub(super) trouble: usize,
    pub(super) zones: Vec<Zone>,
}

/// Serves a connection in the place of a target.
type ServeTarget = fn(Arc<World>, SimulatedSocket, Random);

pub(super) struct World {
    pub(super) rules: Rules,
    serve_target: ServeTarget,
    state: Mutex<WorldState>,
}

struct WorldState {
    random: Random,
    trace: String,
    /// The operations of outgate so far.
    operations: u64,
    /// The operations that were not ready, with `always_pending`.
    delayed: BTreeSet<(u32, u8)>,
    links: Vec<LinkProbe>,
    is_healthy: bool,
    ledger: Ledger,
}

impl World {
    pub(super) fn new(rules: Rules, random: Random, serve_target: ServeTarget) -> Arc<Self> {
        let state = WorldState {
            random,
            trace: String::new(),
            operations: 0,
            delayed: BTreeSet::new(),
            links: Vec::new(),
            is_healthy: false,
            ledger: Ledger::default(),
        };
        Arc::new(Self { rules, serve_target, state: Mutex::new(state) })
    }

    pub(super) fn trace(&self, event: fmt::Arguments<'_>) {
        let elapsed = host::elapsed();
        let length = self.state.lock().trace.len();
        assert!(length < TRACE_MAX, "the seed does not end");
        let _ = writeln!(self.state.lock().trace, "{:>12.6} {event}", elapsed.as_secs_f64());
    }

    pub(super) fn take_trace(&self) -> String {
        std::mem::take(&mut self.state.lock().trace)
    }

    pub(super) fn ledger(&self) -> impl std::ops::DerefMut<Target = Ledger> {
        MutexGuard::map(self.state.lock(), |state| &mut state.ledger)
    }

    pub(super) fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// Ends all trouble with name servers, so that what waits for them can end.
    pub(super) fn heal(&self) {
        self.state.lock().is_healthy = true;
    }

    pub(super) fn fork_random(&self) -> Random {
        self.state.lock().random.fork()
    }

    /// Makes a connection. The first end is outgate's.
    pub(super) fn link(&self, addresses: [SocketAddr; 2]) -> (SimulatedSocket, SimulatedSocket) {
        let mut state = self.state.lock();
        let (near, far) = pair(state.links.len() as u32, addresses, self.rules.window);
        state.links.push(far.probe());
        (near, far)
    }

    /// Returns the number of connections that outgate holds open.
    pub(super) fn open_links(&self) -> usize {
        self.state.lock().links.iter().filter(|link| !link.is_closed_by_outgate()).count()
    }
}

/// The world as the network of a thread.
pub(super) struct WorldNetwork(pub(super) Arc<World>);

impl Network for WorldNetwork {
    fn connect(&self, from: IpAddr, to: SocketAddr) -> Connecting {
        let world = Arc::clone(&self.0);
        let mut random = world.fork_random();
        world.trace(format_args!("connect {from} -> {to}"));
        world.ledger().connected(from, to);
        let delay = if random.permille(500) { Duration::ZERO } else { random.millis(1, 400) };
        let error = random.permille(world.rules.trouble).then(|| {
            random.one_of(&[
                Some(libc::ECONNREFUSED),
                Some(libc::ETIMEDOUT),
                Some(libc::ENETUNREACH),
                Some(libc::EADDRNOTAVAIL),
                None,
            ])
        });
        Box::pin(async move {
            if !delay.is_zero() {
                sleep(delay).await;
            }
            match error {
                Some(Some(errno)) => Err(io::Error::from_raw_os_error(errno)),
                Some(None) => std::future::pending().await,
                None => {
                    let (near, far) = world.link([SocketAddr::new(from, 40_000), to]);
                    (world.serve_target)(Arc::clone(&world), far, random);
                    Ok(near)
                }
            }
        })
    }

    fn datagrams(&self, server: SocketAddr, request: Vec<u8>, transport: DnsTransport) -> Datagrams {
        let (mut random, is_healthy) = (self.0.fork_random(), self.0.state.lock().is_healthy);
        let trouble = if is_healthy { 0 } else { self.0.rules.trouble };
        let zones = if is_healthy { &[][..] } else { &self.0.rules.zones };
        let responses = dns::respond(&request, transport, zones, trouble, &mut random);
        self.0.trace(format_args!("query {server} {transport:?}: {} responses", responses.len()));
        let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            for (delay, response) in responses {
                if !delay.is_zero() {
                    sleep(delay).await;
                }
                let _ = sender.send(response); // the query may have been given up
            }
        });
        Datagrams(receiver)
    }

    fn fault(&self, socket: u32, operation: Operation) -> Fault {
        let (mut state, rules) = (self.0.state.lock(), &self.0.rules);
        if operation == Operation::Reset {
            return if state.random.permille(500) { Fault::Short(state.random.below(64)) } else { Fault::None };
        }
        if rules.always_pending && state.delayed.insert((socket, operation as u8)) {
            return Fault::Pending;
        }
        state.operations += 1;
        let fault = match () {
            () if rules.reset_at == Some(state.operations) || state.random.permille(rules.reset) => Fault::Reset,
            () if state.random.permille(rules.pending) => Fault::Pending,
            () if state.random.permille(rules.short) => Fault::Short(state.random.between(1, 9)),
            () => Fault::None,
        };
        drop(state);
        if fault == Fault::Reset {
            self.0.trace(format_args!("fault: link {socket} is reset at its {operation:?}"));
        }
        fault
    }

    fn observe(&self, socket: u32, operation: Operation, result: &io::Result<usize>) {
        self.0.state.lock().delayed.remove(&(socket, operation as u8));
        match result {
            Ok(count) => self.0.trace(format_args!("outgate {operation:?} on link {socket}: {count}")),
            Err(error) => self.0.trace(format_args!("outgate {operation:?} on link {socket}: {:?}", error.kind())),
        }
    }
}
