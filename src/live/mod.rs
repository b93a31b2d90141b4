//! What outlives a delivery: the plan in force, and the state that no reload may reset.
//! What does the running proxy remember?

pub mod aside;
mod bucket;
pub mod circuits;
pub mod configuration;
pub mod desk;
mod flow;
pub mod gate;
mod gauges;
pub mod http1_only;
mod keep_alive;
pub mod limits;
mod lines;
pub mod log;
pub mod meters;
mod priority;
pub mod proven;
mod queue;
mod rate;
pub mod reach;
mod readiness;
pub mod records;
pub mod reminders;
pub mod replay;
pub mod retired;
pub mod reuse;
mod shares;
pub mod sources;
mod table;
pub mod tokens;
pub mod tolls;
mod turns;
mod waiting;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::ServerConfig;
use tokio::sync::{Semaphore, watch};

use crate::config::{self, Select};
use crate::names::{Host, PoolName};
use crate::net::descriptors;
use crate::net::resolve::{Basis, Resolver};
use crate::net::tls;
use crate::net::tls::mint::{Mint, MintFault};
use crate::policy::Plan;
use crate::policy::egress::Pool;
use crate::policy::guard::ClearedAddresses;
use crate::policy::listener;
use crate::policy::trust::Trust;

/// The state of a running proxy; one for the process.
pub struct Live {
    in_force: ArcSwap<InForce>,
    pub aside: aside::Aside,
    /// Renders `/metrics`, and nothing else: readiness must not wait for it.
    pub scrapes: aside::Aside,
    /// Works out what other requests to the admin listener ask for.
    pub inquiries: aside::Aside,
    pub retired: Arc<retired::Retired>,
    pub limits: Arc<limits::Limits>,
    pub gate: Arc<gate::Gate>,
    /// Places of open tunnels.
    pub tunnels: Arc<Semaphore>,
    pub replay: replay::Replay,
    pub reuse: Arc<reuse::Reuse>,
    pub circuits: Arc<circuits::Circuits>,
    pub reach: reach::Reach,
    pub proven: proven::Proven,
    pub http1_only: http1_only::Http1Only,
    pub tokens: Arc<tokens::Tokens>,
    pub sources: sources::Sources,
    pub meters: meters::Meters,
    pub reminders: reminders::Reminders,
    pub signing: reminders::Signing,
    pub records: records::Records,
    pub started: Timestamp,
    pub configuration: configuration::Configuration,
    pub desk: Arc<desk::Desk>,
    /// Requests of HTTP/2, which are tasks beside their connection's.
    streams: watch::Sender<usize>,
    draining: watch::Sender<bool>,
    /// The listeners that another process has taken over: see [`Live::drain`].
    handed_over: OnceLock<Vec<config::Listen>>,
    cut: AtomicBool,
    requests: AtomicU64,
    random: RandomState,
}

/// A plan with what the network rooms made of it. A delivery holds one from its start to its end.
pub struct InForce {
    pub plan: Plan,
    pub resolver: Arc<Resolver>,
    tls: HashMap<[u8; 32], Arc<tls::Terms>>,
    /// Towards clients, on each socket where the plan has it.
    listener_tls: HashMap<config::Listen, Arc<ServerConfig>>,
    mint: Option<Arc<Mint>>,
    /// How many deliveries each pool has seen, by the IP versions of their targets. One count for all would, where two
    /// kinds alternate, let each see only every other number, and use only half of the addresses.
    turns: HashMap<PoolName, Arc<[AtomicU64; 3]>>,
    random: RandomState,
}

/// A request of HTTP/2 that is open; dropped when its delivery has left its record.
pub struct OpenStream(Arc<Live>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.send_if_modified(|count| {
            *count -= 1;
            *count == 0
        });
    }
}

/// New deliveries are refused; the ones in flight finish.
#[derive(Debug, PartialEq, Eq)]
pub struct Draining;

impl InForce {
    /// Prepares `plan` for the network. What `before` has for the same trust is kept, and with it the sessions that
    /// can be resumed; likewise the resolver and its cache.
    pub fn new(mut plan: Plan, resolver: &config::Resolver, before: Option<&InForce>) -> io::Result<Self> {
        descriptors::cap(&mut plan);
        let basis = Basis::read(resolver)?;
        let resolver = match before.map(|before| &before.resolver) {
            Some(kept) if *kept.basis() == basis => Arc::clone(kept),
            _ => Arc::new(Resolver::new(basis)),
        };
        let terms_of = |trust: &Arc<Trust>| {
            let kept = before.and_then(|before| before.tls.get(&trust.fingerprint)).cloned();
            (trust.fingerprint, kept.unwrap_or_else(|| Arc::new(tls::Terms::new(trust))))
        };
        let tls = plan.trusts.values().map(terms_of).collect();
        let turn_of = |name: &PoolName| {
            let kept = before.and_then(|before| before.turns.get(name)).cloned();
            (name.clone(), kept.unwrap_or_default())
        };
        let turns = plan.pools.keys().map(turn_of).collect();
        let listener_tls = listener_tls(&plan, before);
        let mint = mint(&plan, before)?;
        Ok(Self { plan, resolver, tls, listener_tls, mint, turns, random: RandomState::new() })
    }

    /// The position in the round for a pool that spreads, a random number for one that throws dice.
    pub fn turn(&self, pool: &Pool, cleared: &ClearedAddresses) -> u64 {
        let has = |v6| cleared.addresses().iter().any(|address| address.is_ipv6() == v6);
        let kind = if has(false) { usize::from(has(true)) } else { 2 };
        let next = || self.turns.get(pool.name()).map_or(0, |turns| turns[kind].fetch_add(1, Ordering::Relaxed));
        match pool.select() {
            Select::Sticky => 0,
            Select::Spread => next(),
            Select::Random => self.random.hash_one(next()),
        }
    }

    /// What a client is shown in the place of `host`, where tunnels are inspected.
    pub fn minted(&self, host: &Host, now: Timestamp) -> Result<Arc<ServerConfig>, MintFault> {
        match (&self.mint, &self.plan.authority) {
            (Some(mint), Some(authority)) => mint.server_config(authority, host, now),
            _ => Err(MintFault::NoAuthority),
        }
    }

    /// TLS on a socket, and the fingerprint of what it shows and believes; `None`: plaintext.
    pub fn listener_tls(&self, listen: &config::Listen) -> Option<(&Arc<ServerConfig>, [u8; 32])> {
        self.listener_tls.get(listen).zip(self.plan.listener.tls(listen).map(|tls| tls.fingerprint))
    }

    pub fn tls_terms(&self, trust: &Arc<Trust>) -> Arc<tls::Terms> {
        // Every trust of the plan has them: `new` made them.
        self.tls.get(&trust.fingerprint).cloned().unwrap_or_else(|| Arc::new(tls::Terms::new(trust)))
    }
}

/// What was minted in the name of the same authority is kept.
fn mint(plan: &Plan, before: Option<&InForce>) -> io::Result<Option<Arc<Mint>>> {
    let Some(authority) = &plan.authority else { return Ok(None) };
    let same =
        |before: &&InForce| before.plan.authority.as_ref().is_some_and(|b| b.fingerprint == authority.fingerprint);
    match before.filter(same).and_then(|before| before.mint.clone()) {
        Some(kept) => Ok(Some(kept)),
        None => Mint::new().map(|mint| Some(Arc::new(mint))).map_err(io::Error::other),
    }
}

/// A session can be resumed for as long as what is shown and whom we believe stay the same.
fn listener_tls(plan: &Plan, before: Option<&InForce>) -> HashMap<config::Listen, Arc<ServerConfig>> {
    let config_of = |(listen, tls): (&config::Listen, &listener::Tls)| {
        let kept = before.and_then(|before| {
            let same = before.plan.listener.tls(listen).is_some_and(|before| before.fingerprint == tls.fingerprint);
            before.listener_tls.get(listen).filter(|_| same).cloned()
        });
        (listen.clone(), kept.unwrap_or_else(|| tls::accept::server_config(tls)))
    };
    plan.listener.all_tls().map(config_of).collect()
}

impl Live {
    pub fn new(in_force: InForce, records: records::Records) -> Self {
        Self {
            in_force: ArcSwap::from_pointee(in_force),
            aside: aside::Aside::default(),
            scrapes: aside::Aside::named("metrics"),
            inquiries: aside::Aside::named("admin"),
            retired: Arc::default(),
            limits: Arc::new(limits::Limits::new()),
            gate: Arc::new(gate::Gate::new()),
            tunnels: Arc::new(Semaphore::new(descriptors::connections_max().min(Semaphore::MAX_PERMITS))),
            replay: replay::Replay::new(),
            reuse: Arc::new(reuse::Reuse::new()),
            circuits: Arc::default(),
            reach: reach::Reach::default(),
            proven: proven::Proven::default(),
            http1_only: http1_only::Http1Only::default(),
            tokens: Arc::default(),
            sources: sources::Sources::new(),
            meters: meters::Meters::new(),
            reminders: reminders::Reminders::default(),
            signing: reminders::Signing::default(),
            records,
            started: Timestamp::now(),
            configuration: configuration::Configuration::default(),
            desk: Arc::default(),
            streams: watch::Sender::new(0),
            draining: watch::Sender::new(false),
            handed_over: OnceLock::new(),
            cut: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            random: RandomState::new(),
        }
    }

    pub fn in_force(&self) -> Arc<InForce> {
        self.in_force.load_full()
    }

    /// Atomic: a delivery sees the plan before or the plan after, never a mixture. Nothing leaves any more over idle
    /// connections from addresses that are not ours now.
    pub fn adopt(&self, next: InForce, adopted: configuration::Adopted) {
        self.retired.keep(self.in_force.swap(Arc::new(next)));
        self.sweep_retired();
        self.configuration.adopt(adopted);
        self.meters.reloaded(true);
        self.sweep_connections();
    }

    /// Frees plans that nobody holds any more, away from the threads that carry traffic.
    pub fn sweep_retired(&self) {
        if self.retired.count() > 0 {
            let retired = Arc::clone(&self.retired);
            drop(self.aside.run(move || retired.sweep()));
        }
    }

    /// The configuration on disk is not adopted; the one in force stays.
    pub fn reject(&self, rejected: configuration::Rejected) {
        self.configuration.reject(rejected);
        self.meters.reloaded(false);
    }

    /// Why the one in force is not in the history; `None`: it is.
    pub fn unkept(&self, why: Option<String>) {
        self.meters.history_failed.set(i64::from(why.is_some()));
        self.configuration.unkept(why);
    }

    /// The configuration on disk is again the one in force.
    pub fn unreject(&self) {
        self.configuration.unreject();
        self.meters.reload_failed.set(0);
    }

    /// Closes the idle connections to targets that nobody may use any more.
    pub fn sweep_connections(&self) {
        let (now, view, in_force) = (Timestamp::now(), self.sources.view(), self.in_force());
        let (pools, timeouts) = (&in_force.plan.pools, &in_force.plan.timeouts);
        self.reuse.keep_sources(pools.values().cloned().collect());
        self.reuse.sweep(timeouts.reuse, |from| view.has(from) && pools.values().any(|pool| pool.contains(from, now)));
    }

    /// New deliveries are refused, but of clients that connected to a listener of `handed_over`: their connections began
    /// before, and this process alone can serve them.
    pub fn drain(&self, handed_over: &[config::Listen]) {
        self.handed_over.get_or_init(|| handed_over.to_vec());
        self.draining.send_replace(true);
    }
    /// The drain is over: what is still in flight ends now, and not by its client's doing.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Relaxed);
    }
    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }
    /// Resolves when the drain begins.
    pub fn drained(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }
    /// Judges a request of a client that connected to `listen`.
    pub fn refuse_when_draining(&self, listen: Option<&config::Listen>) -> Result<(), Draining> {
        let is_handed_over = || {
            let handed_over = self.handed_over.get();
            handed_over.zip(listen).is_some_and(|(handed_over, listen)| handed_over.contains(listen))
        };
        if self.is_draining() && !is_handed_over() { Err(Draining) } else { Ok(()) }
    }

    pub fn open_stream(self: &Arc<Self>) -> OpenStream {
        self.streams.send_if_modified(|count| {
            *count += 1;
            false
        });
        OpenStream(Arc::clone(self))
    }
    /// Resolves when no request of HTTP/2 is open.
    pub async fn all_streams_closed(&self) {
        let _ = self.streams.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Unique in this process and, for all practical purposes, beyond it.
    pub fn next_request_id(&self) -> String {
        let count = self.requests.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}{count:08x}", self.random.hash_one((count, "request")))
    }
}
