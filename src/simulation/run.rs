//! Runs one seed, from the first connection of a client until nothing is left.
//! Does outgate keep its invariants in this seed?

use std::any::Any;
use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::client::{self, ClientPlan};
use super::host::SimulatedHost;
use super::invariants;
use super::scenario::{Act, Scenario};
use super::target;
use super::world::{World, WorldNetwork};
use crate::config::{Config, Listen};
use crate::net::listen::Successor;
use crate::net::simulated::set_network;
use crate::policy::fixture::messages;
use crate::server::simulated::serve_client;
use crate::server::{Connections, ShutdownHandle};
use crate::state::Runtime;
use crate::state::config::ActiveConfig;
use crate::state::config::status::AdoptedConfig;
use crate::state::observability::records::Records;

/// The time for the clients of a seed, which exceeds the patience of each.
const CLIENTS_TIMEOUT: Duration = Duration::from_secs(1800);
/// The time after the last client for the connections that serve them, and then for tasks, queries and stalled targets.
const SERVING_TIMEOUT: Duration = Duration::from_secs(300);
const SETTLING_TIME: Duration = Duration::from_secs(200);

/// The events and the findings of a seed.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The events in their order, with their times.
    pub(super) trace: String,
    pub(super) violations: Vec<String>,
    /// The operations of outgate on sockets.
    pub(super) operations: u64,
    /// The polls of each connection's task.
    pub(super) polls: Vec<u64>,
    /// The webhooks that were delivered.
    pub(super) delivered: usize,
}

thread_local! {
    /// The message of a panic on this thread, which tokio would catch.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Records the panics of threads that run a seed.
fn record_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        PANIC.set(Some(info.to_string()));
        before(info);
    }));
}

/// Runs the scenario on a thread of its own.
pub(super) fn run(seed: u64, scenario: impl FnOnce() -> Scenario + Send + 'static) -> Outcome {
    record_panics();
    let thread = thread::Builder::new().name(format!("seed {seed}")).stack_size(8 << 20);
    let run = thread.spawn(move || run_here(seed, scenario())).expect("a thread").join();
    run.unwrap_or_else(|panic: Box<dyn Any + Send>| {
        let message = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".to_owned());
        Outcome { violations: vec![message], ..Outcome::default() }
    })
}

fn run_here(seed: u64, scenario: Scenario) -> Outcome {
    let _host = SimulatedHost::enter(seed);
    let tokio = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let mut outcome = tokio.expect("a runtime").block_on(async {
        let world = World::new(scenario.rules, scenario.random, |world, socket, random| {
            tokio::spawn(target::serve(world, socket, random));
        });
        set_network(Some(Rc::new(WorldNetwork(Arc::clone(&world)))));
        let mut outcome = drive(&world, scenario.config, scenario.clients, scenario.acts).await;
        set_network(None);
        (outcome.trace, outcome.operations) = (world.take_trace(), world.operations());
        outcome
    });
    outcome.violations.extend(PANIC.take());
    outcome
}

async fn drive(world: &Arc<World>, config: Config, clients: Vec<ClientPlan>, acts: Vec<(Duration, Act)>) -> Outcome {
    let total_max = acts.iter().fold(config.timeouts.total, |max, (_, act)| match act {
        Act::Reload(config) => max.max(config.timeouts.total),
        _ => max,
    });
    let runtime = Arc::new(Runtime::new(compile(&config, None), Records::in_memory()));
    let (connections, listen) = (Connections::new(), Arc::new(Listen::Tcp(([127, 0, 0, 1], 4750).into())));
    let (handle, shutdown) = ShutdownHandle::new(Successor::Concurrent);
    // A former configuration is dropped at the end, because the thread that would drop it has its own time.
    let mut former = Vec::new();
    let mut acting: Vec<JoinHandle<Option<Arc<ActiveConfig>>>> = Vec::new();
    let handle = Arc::new(handle);
    for (at, act) in acts {
        acting.push(tokio::spawn(perform(Arc::clone(world), Arc::clone(&runtime), Arc::clone(&handle), at, act)));
    }
    let mut serving = Vec::new();
    let running: Vec<JoinHandle<()>> = clients
        .into_iter()
        .enumerate()
        .map(|(number, mut plan)| {
            let peer = [198, 51, 100, number as u8 + 1];
            let (near, far) = world.link([([127, 0, 0, 1], 4750).into(), (peer, 50_000).into()]);
            let (starts, cancel_at) = (plan.starts, plan.cancel_at);
            let serve = serve_client(
                Arc::clone(&runtime),
                connections.clone(),
                shutdown.clone(),
                near,
                (Arc::clone(&listen), peer.into()),
            );
            let serve = async move {
                sleep(starts).await;
                Counted { future: Some(Box::pin(serve)), polls: 0, cancel_at }.await
            };
            serving.push(tokio::spawn(serve));
            let world = Arc::clone(world);
            tokio::spawn(async move {
                sleep(starts).await;
                client::run(&world, far, &mut plan).await;
            })
        })
        .collect();
    let mut outcome = Outcome::default();
    for client in running {
        if timeout(CLIENTS_TIMEOUT, client).await.is_err() {
            outcome.violations.push("a client is still waiting after every timeout".to_owned());
        }
    }
    for served in serving {
        match timeout(SERVING_TIMEOUT, served).await {
            Ok(Ok(polls)) => outcome.polls.push(polls),
            Ok(Err(panic)) => outcome.violations.push(panic.to_string()),
            Err(_) => outcome.violations.push("a connection is still served after its client is gone".to_owned()),
        }
    }
    for act in acting {
        former.extend(act.await.ok().flatten());
    }
    world.heal();
    sleep(SETTLING_TIME).await;
    let (delivered, mut violations) = invariants::check(world, &runtime, &connections, total_max).await;
    outcome.delivered = delivered;
    outcome.violations.append(&mut violations);
    drop(former);
    outcome
}

/// Returns the configuration that was replaced.
async fn perform(
    world: Arc<World>,
    runtime: Arc<Runtime>,
    listener: Arc<ShutdownHandle>,
    at: Duration,
    act: Act,
) -> Option<Arc<ActiveConfig>> {
    sleep(at).await;
    match act {
        Act::Reload(config) => {
            world.trace(format_args!("reload"));
            let former = runtime.active_config();
            runtime.adopt(compile(&config, Some(&former)), AdoptedConfig::default());
            return Some(former);
        }
        Act::Drain => {
            world.trace(format_args!("drain"));
            drop(runtime.request_drain("test".to_owned(), Duration::ZERO, Timestamp::now()));
        }
        Act::Undrain => drop(runtime.undrain("test")),
        Act::SweepConnections => runtime.sweep_connections(),
        Act::SweepLimits => runtime.limits.sweep().await,
        Act::CloseListener => listener.close(),
    }
    None
}

fn compile(config: &Config, before: Option<&ActiveConfig>) -> ActiveConfig {
    let compiled = crate::policy::compile(config, Timestamp::now());
    let (plan, _) = compiled.unwrap_or_else(|problems| panic!("{:?}", messages(&problems)));
    ActiveConfig::new(plan, &config.resolver, before).expect("name servers are configured")
}

/// A future that counts its polls, and that is dropped at one of them.
struct Counted {
    future: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    polls: u64,
    cancel_at: Option<u64>,
}

impl Future for Counted {
    type Output = u64;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u64> {
        self.polls += 1;
        if self.cancel_at == Some(self.polls) {
            self.future = None;
        }
        match self.future.as_mut().map(|future| future.as_mut().poll(cx)) {
            Some(Poll::Pending) => Poll::Pending,
            _ => Poll::Ready(self.polls),
        }
    }
}
