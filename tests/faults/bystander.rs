//! Steady traffic to a healthy target while something else fails, and the table of the outcomes.
//! Does each delivery of the bystander succeed, and how long do they take with and without the fault?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::support::law::{Counts, assert_law};
use crate::support::{Client, Outgate, Response, eventually, post};

/// The keep-alive clients of the bystander, and the pause of each between two deliveries.
const CLIENTS: usize = 2;
const PAUSE: Duration = Duration::from_millis(5);
/// The longest wait of a client of the bystander: longer than the time for which a fault stops outgate.
const PATIENCE: Duration = Duration::from_secs(90);
/// The mean pause between two deliveries of a client of the fault: the load with the fault is that of the control, not as
/// much as possible. The pauses vary: a fault that fails the deliveries of all clients at once would otherwise make them
/// send in step from then on.
const LOAD_PAUSE: Duration = Duration::from_millis(20);

/// Returns the figure of this form of the run.
pub(crate) fn pick<T>(short: T, long: T) -> T {
    if is_form("long") || has_circuits() { long } else { short }
}

/// Returns whether circuits open for bad targets, as they do by default. In the other forms each delivery meets the fault.
pub(crate) fn has_circuits() -> bool {
    is_form("circuits")
}

/// The configuration of the circuit breaker in this form of the run.
pub(crate) fn circuit() -> &'static str {
    if has_circuits() { "" } else { "[circuit]\nfailures = 0\n" }
}

/// The outcome of a delivery whose target's circuit is open.
pub(crate) const CIRCUIT_OPEN: &str = "target_circuit_open";

fn is_form(name: &str) -> bool {
    std::env::var_os("OUTGATE_FAULTS").is_some_and(|form| form == name)
}

/// The rounds of a control and a fault, in turn: what else the machine does meets both.
fn rounds() -> usize {
    pick(1, 4)
}

fn period() -> Duration {
    pick(Duration::from_secs(1), Duration::from_secs(5))
}

/// The processor of outgate, the bystander and its target; and that of the clients and targets of a fault.
#[derive(Clone, Copy)]
pub(crate) enum Processor {
    Own = 0,
    Fault = 1,
}

/// Restores the processors of the thread.
pub(crate) struct Pinned(Option<CpuSet>);

/// Keeps this thread, and the threads and processes that it starts, on one processor. Only where timings are measured: what
/// the parties of a fault compute must not look like a delay of outgate.
pub(crate) fn pin(processor: Processor) -> Pinned {
    let before = sched_getaffinity(None).unwrap();
    if pick(true, false) || before.count() < 2 {
        return Pinned(None);
    }
    let mut one = CpuSet::new();
    one.set((0..CpuSet::MAX_CPU).filter(|index| before.is_set(*index)).nth(processor as usize).unwrap());
    sched_setaffinity(None, &one).unwrap();
    Pinned(Some(before))
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            sched_setaffinity(None, before).unwrap();
        }
    }
}

/// Repeats this at least once, and until the period of a fault has ended.
pub(crate) fn for_a_period(mut repeat: impl FnMut()) {
    let end = Instant::now() + period();
    loop {
        repeat();
        if Instant::now() >= end {
            return;
        }
    }
}

pub(crate) struct Bystander {
    is_over: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<Duration>>>,
}

impl Bystander {
    /// Starts clients that post to the healthy target, and waits for the first delivery of each.
    pub(crate) fn start(proxy: SocketAddr, url: &str) -> Self {
        let (is_over, started_clients) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let start = |_| {
            let (is_over, request) = (Arc::clone(&is_over), post(url, "", "x"));
            let started_clients = Arc::clone(&started_clients);
            std::thread::spawn(move || {
                let (mut client, mut durations) = (Client::connect(proxy), Vec::new());
                client.set_patience(PATIENCE);
                while !is_over.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    client.send(&request);
                    let response = client.response();
                    assert_eq!((response.status, response.code()), (200, ""), "the fault harms the bystander");
                    durations.push(started.elapsed());
                    if durations.len() == 1 {
                        started_clients.fetch_add(1, Ordering::Relaxed);
                    }
                    std::thread::sleep(PAUSE); // steady traffic, not as much as possible
                }
                durations
            })
        };
        let bystander = Self { clients: (0..CLIENTS).map(start).collect(), is_over: Arc::clone(&is_over) };
        eventually("each client has delivered", || started_clients.load(Ordering::Relaxed) == CLIENTS);
        bystander
    }

    /// Returns the durations of all deliveries in ascending order. Each of them succeeded.
    pub(crate) fn finish(mut self) -> Vec<Duration> {
        self.is_over.store(true, Ordering::Relaxed);
        let join = |client: JoinHandle<_>| client.join().expect("each delivery of the bystander succeeds");
        let mut durations: Vec<Duration> = self.clients.drain(..).flat_map(join).collect();
        durations.sort();
        durations
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// The deliveries that a fault harmed, as their clients saw them.
#[derive(Default)]
pub(crate) struct Harm {
    pub(crate) counts: Counts,
    pub(crate) longest: Duration,
}

impl Harm {
    /// Sends a delivery, and counts its outcome and the time that its client waited.
    pub(crate) fn send(&mut self, proxy: SocketAddr, url: &str) -> Response {
        let started = Instant::now();
        let mut client = Client::connect(proxy);
        client.send(post(url, "Connection: close\r\n", "x"));
        let response = Response::parse(&client.rest());
        self.longest = self.longest.max(started.elapsed());
        let code = match response.code() {
            "" if is_whole(&response) => "delivered",
            "" => BROKEN_OFF,
            code => code,
        };
        self.add(code, 1);
        response
    }

    /// Does something for which a party of the fault waits.
    pub(crate) fn wait_for(&mut self, act: impl FnOnce()) {
        let started = Instant::now();
        act();
        self.longest = self.longest.max(started.elapsed());
    }

    pub(crate) fn add(&mut self, code: &str, count: u64) {
        *self.counts.entry(code.to_owned()).or_default() += count;
    }

    /// Sends deliveries over parallel connections until the period of the fault has ended.
    pub(crate) fn send_for_a_period(&mut self, proxy: SocketAddr, url: &(dyn Fn() -> String + Sync)) {
        let run = || {
            let _pinned = pin(Processor::Fault);
            let mut harm = Self::default();
            for_a_period(|| {
                harm.send(proxy, &url());
                std::thread::sleep(LOAD_PAUSE.mul_f64(0.5 + fastrand::f64())); // the offered load
            });
            harm
        };
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..pick(4, 32)).map(|_| scope.spawn(run)).collect();
            for harm in clients.into_iter().map(|client| client.join().unwrap()) {
                self.longest = self.longest.max(harm.longest);
                harm.counts.iter().for_each(|(code, count)| self.add(code, *count));
            }
        });
    }
}

/// The outcome of a response that ends before its length, as its client sees it.
pub(crate) const BROKEN_OFF: &str = "broken off";

/// The response has all bytes of its Content-Length, or the last chunk.
fn is_whole(response: &Response) -> bool {
    match response.field("content-length").parse::<usize>() {
        Ok(length) => response.body.len() == length,
        Err(_) => response.field("transfer-encoding") != "chunked" || response.body.ends_with(b"0\r\n\r\n"),
    }
}

/// A row of the table: what the fault was, and who noticed it.
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    /// The parties that the fault harms.
    pub(crate) harmed: &'static str,
    /// What outgate reports beside the outcomes: metrics, alerts and log lines that the test asserts.
    pub(crate) reported: &'static str,
}

impl Fault {
    /// Runs the fault beside traffic to the healthy target at `url`. Returns the outcomes that the clients of the fault saw
    /// and the deliveries of the bystander, each of which succeeded.
    pub(crate) fn run(&self, proxy: SocketAddr, url: &str, fault: impl FnOnce(&mut Harm)) -> (Harm, u64) {
        // The traffic without the fault is what is measured.
        let without = beside(proxy, url, || std::thread::sleep(period()));
        let mut harm = Harm::default();
        let with = beside(proxy, url, || fault(&mut harm));
        self.report(&harm, &without, &with);
        (harm, (without.len() + with.len()) as u64)
    }

    /// Runs the fault, and asserts that the clients, the delivery log and the metrics count the same. `recorded` names the
    /// outcomes that records call otherwise than clients.
    pub(crate) fn run_by_law(
        &self,
        outgate: &Outgate,
        url: &str,
        recorded: &[(&str, &str)],
        fault: impl FnOnce(&mut Harm),
    ) -> Harm {
        let (harm, delivered) = self.run(outgate.proxy, url, fault);
        assert_harm_counts(outgate, &harm, delivered, recorded);
        harm
    }

    /// Sends the same load to the target of the fault and, as its control, to a healthy target, in turn. The bystander must
    /// not notice which of the two it is. Asserts the law as [`Fault::run_by_law`] does.
    pub(crate) fn run_load_by_law(
        &self,
        outgate: &Outgate,
        url: &str,
        recorded: &[(&str, &str)],
        [control, bad]: [&str; 2],
    ) -> Harm {
        let (mut harm, mut healthy) = (Harm::default(), Harm::default());
        let [mut without, mut with] = [Vec::new(), Vec::new()];
        for _ in 0..rounds() {
            without.extend(beside(outgate.proxy, url, || {
                healthy.send_for_a_period(outgate.proxy, &|| control.to_owned())
            }));
            with.extend(beside(outgate.proxy, url, || harm.send_for_a_period(outgate.proxy, &|| bad.to_owned())));
        }
        assert_eq!(healthy.counts.keys().collect::<Vec<_>>(), ["delivered"], "the control");
        without.sort();
        with.sort();
        self.report(&harm, &without, &with);
        let delivered = (without.len() + with.len()) as u64 + healthy.counts["delivered"];
        assert_harm_counts(outgate, &harm, delivered, recorded);
        harm
    }

    fn report(&self, harm: &Harm, without: &[Duration], with: &[Duration]) {
        const HEAD: &str = "| fault | harmed | their outcomes | longest wait | reported | bystander: delivered, refused \
                            | its p99 without the fault | its p99 with the fault |\n|---|---|---|---|---|---|---|---|\n";
        let outcomes: BTreeMap<_, _> = harm.counts.iter().collect();
        let row = format!(
            "| {} | {} | {outcomes:?} | {:.1?} | {} | {}, 0 | {:.2?} | {:.2?} |\n",
            self.name,
            self.harmed,
            harm.longest,
            self.reported,
            with.len(),
            p99(without),
            p99(with),
        );
        report_row("faults.md", HEAD, &row);
    }
}

/// Prints a row, and appends it to a table of the long form.
pub(crate) fn report_row(table: &str, head: &str, row: &str) {
    print!("{row}");
    if pick(false, true) {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(table);
        let mut table = OpenOptions::new().create(true).append(true).open(path).unwrap();
        let head = if table.metadata().unwrap().len() == 0 { head } else { "" };
        table.write_all(format!("{head}{row}").as_bytes()).unwrap();
    }
}

/// Runs the bystander while `act` runs. Returns the durations of its deliveries in ascending order.
fn beside(proxy: SocketAddr, url: &str, act: impl FnOnce()) -> Vec<Duration> {
    let bystander = Bystander::start(proxy, url);
    act();
    bystander.finish()
}

/// Asserts that the delivery log and the metrics count these outcomes and `delivered` further deliveries.
fn assert_harm_counts(outgate: &Outgate, harm: &Harm, delivered: u64, recorded: &[(&str, &str)]) {
    let mut sent = Counts::from([("delivered".to_owned(), delivered)]);
    for (code, count) in &harm.counts {
        let code = recorded.iter().find(|(seen, _)| seen == code).map_or(&**code, |(_, recorded)| recorded);
        *sent.entry(code.to_owned()).or_default() += count;
    }
    assert_law(outgate, &sent);
}

pub(crate) fn p99(ascending: &[Duration]) -> Duration {
    ascending.get(ascending.len() * 99 / 100).copied().unwrap_or_default()
}
