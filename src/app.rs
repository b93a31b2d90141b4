//! Assembles the process: listeners, tasks, signals, and notifications to systemd.
//! How does the proxy start, and how does it stop?

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sd_notify::NotifyState;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{Level, info, warn};

use crate::audit::{Actor, Event, EventType, PROCESS_DRAINING, PROCESS_STOPPED, Source};
use crate::config::{self, Config, Problem};
use crate::history::known_fleet::KnownFleet;
use crate::names::pluralize;
use crate::net::fd_limit;
use crate::net::listen::ReservedPorts;
use crate::policy::Plan;
use crate::reload::Reloader;
use crate::reload::audit_events;
use crate::reload::history_writer::HistoryWriter;
use crate::reload::listeners::Listeners;
use crate::server::{Connections, admin};
use crate::state::Runtime;
use crate::state::config::ActiveConfig;
use crate::state::config::status::ReloadSource;
use crate::state::fleet::Fleet;
use crate::state::observability::log;
use crate::state::observability::records::{self, RecordDestination, Records};
use crate::state::observability::traces;
use crate::state::upstreams::sources::AddressCount;
use crate::sysexits;
use crate::upkeep;

/// The time for stopped connections to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The extension of the unit's `TimeoutStopSec` that each notification requests. It must cover the steps after the drain.
const STOP_EXTENSION: Duration = Duration::from_secs(30);

/// The time for which a start waits for the store of the fleet. The instance then starts without it.
const STORE_WAIT: Duration = Duration::from_secs(2);

/// A valid configuration and its path. `None`: it is the built-in one, which cannot be reloaded.
pub struct StartupConfig {
    pub path: Option<PathBuf>,
    pub config: Config,
    pub plan: Plan,
    pub warnings: Vec<Problem>,
    pub reserved_ports: ReservedPorts,
}

/// Runs the proxy until TERM or INT, and then drains it.
pub fn run(start: StartupConfig) -> ExitCode {
    let soft_limit = fd_limit::raise_limit();
    let workers = start.config.server.workers;
    let tokio_runtime = match tokio_runtime(workers) {
        Ok(tokio_runtime) => tokio_runtime,
        Err(error) => return fail(sysexits::OS_ERROR, &format!("cannot start worker threads: {error}")),
    };
    announce_descriptors(soft_limit, &start.plan);
    let code = tokio_runtime.block_on(async {
        match Proxy::start(start).await {
            Ok(proxy) => proxy.run_until_signal().await,
            Err(StartError(code, message)) => fail(code, &message),
        }
    });
    // A blocking task on a disk that hangs must not keep the process alive.
    tokio_runtime.shutdown_background();
    code
}

/// Builds the runtime of tokio. One worker needs no multi-threaded scheduler.
fn tokio_runtime(workers: Option<usize>) -> io::Result<tokio::runtime::Runtime> {
    let mut builder = match workers {
        Some(1) => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if let Some(workers) = workers {
        builder.worker_threads(workers);
    }
    builder.enable_all().build()
}

fn fail(code: u8, message: &str) -> ExitCode {
    log::text(Level::ERROR, &format!("outgate: {message}"));
    ExitCode::from(code)
}

/// A failed start: the exit code, and the message for stderr.
pub struct StartError(pub u8, pub String);

/// A proxy that listens.
pub struct Proxy {
    runtime: Arc<Runtime>,
    connections: Connections,
    tasks: JoinSet<()>,
    /// Sends the spans of deliveries.
    traces: JoinHandle<()>,
    listeners: Arc<Listeners>,
    reloader: Option<Reloader>,
    signals: Signals,
    /// The addresses of the listeners for clients, as bound.
    pub addresses: Vec<String>,
}

impl Proxy {
    pub async fn start(start: StartupConfig) -> Result<Self, StartError> {
        // First, since a signal without a handler kills the process.
        let signals = Signals::listen()
            .map_err(|error| StartError(sysexits::OS_ERROR, format!("cannot listen for signals: {error}")))?;
        let StartupConfig { path, config, plan, warnings, reserved_ports } = start;
        let records = RecordDestination::open(&config.log, Arc::default()).await.map_err(|error| {
            let log = records::destination_name(&config.log.deliveries);
            StartError(sysexits::CANNOT_CREATE, format!("cannot open the delivery log {log}: {error}"))
        })?;
        let active = ActiveConfig::new(plan, &config.resolver, None)
            .map_err(|error| StartError(sysexits::CONFIG, format!("cannot resolve names: {error}")))?;
        let runtime = Arc::new(Runtime::new(active, Records::new(records)));
        runtime.records.configure(&config.log);
        let (kept, first) = HistoryWriter::open(&config, &warnings, path.is_some(), &runtime).await;
        runtime
            .audit
            .start(&runtime)
            .map_err(|error| StartError(sysexits::OS_ERROR, format!("cannot start the audit thread: {error}")))?;
        runtime.config_status.adopt(first);
        // Before a delivery can come: an address may belong to another instance.
        let fleet = match &config.fleet {
            Some(fleet) => Some(join_fleet(fleet, config.server.state.as_deref(), &runtime).await?),
            None => None,
        };
        let mut tasks = JoinSet::new();
        if let Some((fleet, _)) = &fleet {
            let answer = fleet.answer();
            tasks.spawn(Arc::clone(fleet).run(Arc::clone(&runtime)));
            // Without an answer, the first deliveries would take from the share, although the store is up.
            let _ = tokio::time::timeout(STORE_WAIT, answer).await;
        }
        let connections = Connections::new();
        let listeners = Arc::new(Listeners::new(Arc::clone(&runtime), connections.clone(), config.server.reuse_port));
        listeners.start(&config, reserved_ports).map_err(|message| StartError(sysexits::UNAVAILABLE, message))?;
        let addresses = runtime.config_status.bound_addresses().server.clone();
        let (active, adopted) = (runtime.active_config(), runtime.config_status.adopted());
        let announcements = runtime.config_status.announcements();
        for event in audit_events::started(&adopted, &active.plan, &announcements, runtime.started_at) {
            runtime.audit.record(event);
        }
        let traces = tokio::spawn(traces::run(Arc::clone(&runtime)));
        if let Some((fleet, known)) = fleet {
            if let Some(state) = &config.server.state {
                tasks.spawn(upkeep::rollout::run(Arc::clone(&runtime), Arc::clone(&fleet), state.clone()));
                tasks.spawn(Arc::clone(&fleet).keep_known(state.clone(), known));
            }
            tasks.spawn(upkeep::hints::run(Arc::clone(&runtime), fleet));
        }
        tasks.spawn(upkeep::run(Arc::clone(&runtime)));
        tasks.spawn(upkeep::addresses::follow(Arc::clone(&runtime)));
        tasks.spawn(upkeep::alerts::run(Arc::clone(&runtime)));
        tasks.spawn(upkeep::notices::run(Arc::clone(&runtime)));
        let reloader = path.map(|path| Reloader::new(path, config, kept, Arc::clone(&runtime), Arc::clone(&listeners)));
        Ok(Self { runtime, connections, tasks, traces, listeners, reloader, signals, addresses })
    }

    /// Returns the delivery records so far, from the file that the configuration names.
    #[expect(clippy::disallowed_methods, reason = "reads the delivery log that this proxy writes")]
    pub fn written_records(&self, path: &Path) -> String {
        self.runtime.records.flush();
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Returns the metrics as a scraper reads them.
    pub fn metrics(&self) -> String {
        admin::render_metrics(&self.runtime, Timestamp::now())
    }

    /// Starts to reload the configuration on changes. Without a file this does nothing.
    pub fn reload_on_change(&mut self) {
        if let Some(reloader) = self.reloader.take() {
            self.tasks.spawn(reloader.run());
        }
    }

    /// Reloads on file changes and HUP, reopens log files on HUP and USR1, and drains and stops on TERM and INT.
    pub async fn run_until_signal(mut self) -> ExitCode {
        self.reload_on_change();
        self.announce();
        self.tasks.spawn(watchdog());
        loop {
            let action = self.signals.next().await;
            match action {
                SignalAction::Shutdown(signal) => {
                    self.record(PROCESS_DRAINING, &format!("{signal} was received"));
                    break;
                }
                SignalAction::ReopenLogs | SignalAction::ReloadConfig => self.runtime.records.reopen(),
            }
            if let SignalAction::ReopenLogs = action {
                continue;
            }
            match self.runtime.reload_queue.is_ready() {
                true => self.runtime.reload_queue.request(ReloadSource::Signal),
                false => info!("there is no configuration file to reload: the built-in configuration is active"),
            }
        }
        self.stop().await
    }

    /// Drains and stops. Listeners that another process takes over close; on the others new requests are refused. Requests in
    /// flight finish, idle connections close, and records are written. A second TERM or INT ends the wait.
    pub async fn stop(mut self) -> ExitCode {
        let drain_timeout = self.runtime.active_config().plan.drain_timeout;
        let handed_over = self.listeners.hand_over();
        self.runtime.drain(&handed_over.listens);
        let new_requests = match handed_over.listens.is_empty() {
            true => "new requests are refused",
            false => "the next process accepts new connections",
        };
        info!(
            "draining {} for at most {drain_timeout:?}; {new_requests}",
            pluralize(self.connections.count(), "connection")
        );
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        self.tasks.spawn(extend_stop_timeout());
        let all_closed = async {
            handed_over.all_closed().await;
            self.connections.all_closed().await;
        };
        let finished = tokio::select! {
            finished = tokio::time::timeout(drain_timeout, all_closed) => finished.is_ok(),
            () = self.signals.stop() => false,
        };
        if !finished {
            warn!(
                "{} still open at the end of the drain: outgate closes them now",
                pluralize(self.connections.count(), "connection")
            );
        }
        self.runtime.hard_stop();
        self.tasks.shutdown().await;
        if let Some(fleet) = self.runtime.fleet.get() {
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, fleet.leave(&self.runtime)).await;
        }
        self.listeners.shutdown().await;
        // The deliveries that were stopped still write their records.
        let all_gone = async {
            self.connections.all_closed().await;
            self.runtime.all_streams_closed().await;
        };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, all_gone).await;
        self.runtime.captures.flush().await;
        let now = Timestamp::now();
        let stopped = if finished { "all connections were closed" } else { "open connections were cut" };
        self.runtime.audit.close(Event::new(PROCESS_STOPPED, "outgate", now, stopped), now).await;
        self.runtime.traces.close();
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, &mut self.traces).await;
        self.runtime.records.close();
        if let Some(loss) = self.runtime.records.last_loss(Instant::now()) {
            warn!("{loss}");
        }
        info!("stopped");
        ExitCode::SUCCESS
    }

    /// Records an event of the process whose cause is a signal.
    fn record(&self, event_type: EventType, description: &str) {
        let actor = Actor { source: Source::Signal, name: None, address: None };
        let event = Event::new(event_type, "outgate", Timestamp::now(), description);
        self.runtime.audit.record(event.by(actor).with("connections", self.connections.count()));
    }

    fn announce(&self) {
        let (now, snapshot, active) = (Timestamp::now(), self.runtime.sources.snapshot(), self.runtime.active_config());
        for (name, pool) in &active.plan.pools {
            let AddressCount { configured, usable } = snapshot.count(pool, now);
            if usable == configured && usable > 0 {
                info!("egress pool {name}: {}", pluralize(usable, "usable address"));
            } else {
                let note = snapshot.withheld_note(pool, now);
                warn!(
                    "egress pool {name}: {usable} usable of {configured} addresses{note}; `outgate egress verify` lists those \
                     that this host lacks"
                );
            }
        }
        let blocked = self.runtime.blocked(now);
        if blocked.is_empty() {
            info!("ready");
        } else {
            warn!("not ready: {}; outgate refuses every webhook until that changes", blocked.join(", "));
        }
        // Ready for systemd even if no source is usable: the service listens, and refuses webhooks that it cannot send.
        let _ = sd_notify::notify(&[NotifyState::Ready]);
    }
}

/// Joins the fleet, with one connection to its store for each worker, and returns what the former process knew of it.
async fn join_fleet(
    config: &config::Fleet,
    state: Option<&Path>,
    runtime: &Arc<Runtime>,
) -> Result<(Arc<Fleet>, Option<KnownFleet>), StartError> {
    let fleet = Fleet::new(config, Handle::current().metrics().num_workers())
        .map_err(|error| StartError(sysexits::CONFIG, format!("cannot use the store of the fleet: {error}")))?;
    let known = match state {
        Some(state) => fleet.recall(state).await,
        None => None,
    };
    // The first announcement states which addresses this host has. The listeners read them later.
    runtime.sources.refresh();
    let fleet = Arc::clone(runtime.fleet.get_or_init(|| Arc::new(fleet)));
    runtime.limits.join_fleet(&fleet);
    runtime.withhold_assigned(&[&runtime.active_config().plan]);
    Ok((fleet, known))
}

/// The signals by which an operator controls the process.
struct Signals {
    hangup: Signal,
    reopen: Signal,
    terminate: Signal,
    interrupt: Signal,
}

enum SignalAction {
    ReloadConfig,
    /// The signal of logrotate, which must not reload a configuration that an operator still edits.
    ReopenLogs,
    /// The name of the signal.
    Shutdown(&'static str),
}

impl Signals {
    fn listen() -> io::Result<Self> {
        let (hangup, terminate) = (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?);
        let reopen = signal(SignalKind::user_defined1())?;
        Ok(Self { hangup, reopen, terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> SignalAction {
        tokio::select! {
            _ = self.hangup.recv() => SignalAction::ReloadConfig,
            _ = self.reopen.recv() => SignalAction::ReopenLogs,
            _ = self.terminate.recv() => SignalAction::Shutdown("TERM"),
            _ = self.interrupt.recv() => SignalAction::Shutdown("INT"),
        }
    }

    async fn stop(&mut self) {
        while let SignalAction::ReloadConfig | SignalAction::ReopenLogs = self.next().await {}
    }
}

/// Logs how many connections the limit of file descriptors allows.
fn announce_descriptors(soft_limit: Option<u64>, plan: &Plan) {
    let Some(limit) = fd_limit::limit() else { return };
    let raised = soft_limit.filter(|soft| *soft < limit).map_or(String::new(), |soft| format!(", raised from {soft}"));
    let (wanted, most) = (plan.max_connections, fd_limit::connections_max());
    if wanted > most {
        // The warning `file_descriptors` covers a configured number; the default follows the limit.
        info!(
            "max_connections is capped from {wanted} to {most}: this process may open {limit} files \
             (RLIMIT_NOFILE{raised}); raise LimitNOFILE= of the systemd unit to accept more"
        );
    } else {
        info!("this process may open {limit} files (RLIMIT_NOFILE{raised}): enough for {wanted} client connections");
    }
}

/// Extends the stop timeout of systemd during the drain, whose duration `drain_timeout` bounds.
async fn extend_stop_timeout() {
    let mut ticks = tokio::time::interval(STOP_EXTENSION / 3);
    loop {
        ticks.tick().await;
        let _ = sd_notify::notify(&[NotifyState::ExtendTimeoutUsec(STOP_EXTENSION.as_micros() as u32)]);
    }
}

/// Notifies the watchdog of systemd twice in each period.
async fn watchdog() {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval(period / 2);
    loop {
        ticks.tick().await;
        let _ = sd_notify::notify(&[NotifyState::Watchdog]);
    }
}
