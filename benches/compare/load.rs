//! A measurement of one workload through one contender.
//! How much CPU time does the proxy use for a delivery, and how long does the delivery take?

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::client::Way;
use crate::pace::Pace;
use crate::receiver::{self, Seen};
use crate::results::Result as Row;
use crate::workload::{self, DOWNLOAD, End, Kind, Workload};
use crate::{Error, idle, process};

/// The only source that a contender may use.
const SOURCE: &str = "127.0.0.2";
/// The time in which a number of deliveries must end. A proxy under valgrind is slow.
const PATIENCE: Duration = Duration::from_secs(120);
/// The time in which the deliveries end that are under way at the end of a measurement.
const LAST: Duration = Duration::from_secs(5);
/// The most connections to the target for each delivery of a contender that reuses them, beyond one for each client.
const NEW_CONNECTIONS_MAX: f64 = 0.1;
/// A pause after an error: a proxy that refuses is not flooded.
const AFTER_ERROR: Duration = Duration::from_millis(5);
/// The time between two scrapes of the metrics.
const SCRAPE: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The names in the results.
    #[arg(long)]
    contender: String,
    #[arg(long)]
    workload: String,
    #[arg(long, default_value_t = 1)]
    round: u32,
    /// The folder with the certificates.
    #[arg(long)]
    authority: PathBuf,
    /// The process of the proxy.
    #[arg(long)]
    pid: u32,
    /// The contender has a listener for each target.
    #[arg(long)]
    listeners: bool,
    /// The contender closes the connections of its clients.
    #[arg(long)]
    fresh: bool,
    /// The contender signs each body.
    #[arg(long)]
    signs: bool,
    /// A line of each head, such as a credential.
    #[arg(long)]
    field: Vec<String>,
    /// The admin listener whose metrics are read once a second.
    #[arg(long)]
    scrape: Option<std::net::SocketAddr>,
    /// Seconds before the measurement.
    #[arg(long, default_value_t = 0.5)]
    warmup: f64,
    /// Seconds of the measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Clients, if not the number of the workload.
    #[arg(long)]
    clients: Option<usize>,
    /// Ends after this number of deliveries, in place of the seconds.
    #[arg(long)]
    deliveries: Option<u64>,
}

/// What the clients share.
struct Run {
    way: Way,
    kind: Kind,
    fresh: bool,
    pace: Option<Pace>,
    /// When the measurement began, and when it ended.
    begun: Cell<Option<Instant>>,
    ended: Cell<Option<Instant>>,
    /// Deliveries that no client has taken.
    left: Cell<u64>,
    /// Deliveries that succeeded, and those within the measurement.
    sent: Cell<u64>,
    done: Cell<u64>,
    latencies: RefCell<Vec<Duration>>,
    errors: RefCell<BTreeMap<String, u64>>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<(), Error> {
    let workload = workload::find(&arguments.workload)?;
    let receiver = receiver::start(&arguments.authority)?;
    let way = Way::new(workload, arguments.listeners, &arguments.field);
    way.wait_until_it_listens().await?;
    way.exchange(&mut way.open().await?).await?;
    if workload.port >= receiver::TLS {
        refuses_other_certificates(&arguments, &receiver).await?;
    }
    let before = receiver.seen();
    tokio::task::spawn_local(stay_awake());
    let mut row = match workload.kind {
        Kind::IdleClients | Kind::IdleTunnels => idle::measure(&way, workload.clients, arguments.pid).await?,
        _ => measure(&arguments, workload, way).await?,
    };
    (row.contender, row.workload, row.round) = (arguments.contender, arguments.workload, arguments.round);
    describe(&mut row, &before, &receiver.seen());
    checks(&row, workload, arguments.fresh, arguments.signs)?;
    let offered = workload.rate.filter(|_| arguments.deliveries.is_none()).map_or(0.0, |rate| rate * arguments.seconds);
    if row.deliveries < 0.99 * offered {
        return Err(format!("{} of {offered} deliveries ended that were due", row.deliveries).into());
    }
    println!("{}", serde_json::to_string(&row)?);
    Ok(())
}

/// Keeps this thread from sleeping. A proxy that sends to a thread that sleeps pays for waking it, so a proxy slower than the
/// load generator would pay for each delivery what a faster one pays for few.
async fn stay_awake() {
    loop {
        tokio::task::yield_now().await; // until the thread has looked for events
    }
}

/// A contender that would send to a target without a valid certificate does another, cheaper job.
async fn refuses_other_certificates(arguments: &Arguments, receiver: &receiver::Handle) -> Result<(), Error> {
    for (port, certificate) in
        [(receiver::TLS_UNKNOWN, "from an unknown root"), (receiver::TLS_OTHER_NAME, "for another name")]
    {
        let connections = receiver.seen().connections;
        let way = Way::to_port(port, arguments.listeners, &arguments.field);
        let refused = way.exchange(&mut way.open().await?).await.is_err();
        let seen = receiver.seen();
        if !refused || seen.untrusted > 0 {
            return Err(format!("the contender accepts a certificate {certificate}").into());
        }
        if seen.connections == connections {
            return Err(format!("the contender did not look at the certificate {certificate}").into());
        }
    }
    Ok(())
}

/// Adds what the receiver saw.
fn describe(row: &mut Row, before: &Seen, after: &Seen) {
    let deliveries = (after.deliveries - before.deliveries).max(1) as f64;
    row.received = (after.deliveries - before.deliveries) as f64;
    row.signed = (after.signed - before.signed) as f64 / deliveries;
    row.new_connections = (after.connections - before.connections) as f64 / deliveries;
    row.resumed = (after.resumed - before.resumed) as f64 / (after.connections - before.connections).max(1) as f64;
    row.sources = after.sources.iter().map(ToString::to_string).collect();
}

/// Returns an error if the contender did another job than the others, or did not do all of it.
fn checks(row: &Row, workload: &Workload, fresh: bool, signs: bool) -> Result<(), Error> {
    if row.sources != [SOURCE] {
        return Err(format!("the target saw the sources {:?}", row.sources).into());
    }
    if row.deliveries == 0.0 {
        return Err("no delivery ended within the measurement".into());
    }
    if row.errors > 0.001 * row.deliveries {
        return Err(format!("{} errors in {} deliveries: {}", row.errors, row.deliveries, row.error).into());
    }
    // A delivery that failed for its client may have reached the target.
    if row.received < row.sent || row.received > row.sent + row.errors {
        let Row { sent, received, errors, .. } = row;
        return Err(format!("{sent} deliveries succeeded and {errors} failed, and the target saw {received}").into());
    }
    if row.signed < 1.0 && (signs || row.signed > 0.0) {
        return Err(format!("the signature of {} % of the deliveries is valid", row.signed * 100.0).into());
    }
    let new = row.new_connections * row.received - workload.clients as f64;
    let reuses = workload.kind == Kind::Deliver && !fresh && [receiver::PLAIN, receiver::TLS].contains(&workload.port);
    if reuses && new > NEW_CONNECTIONS_MAX * row.received {
        return Err(format!("{} connections to the target for each delivery", row.new_connections).into());
    }
    Ok(())
}

async fn measure(arguments: &Arguments, workload: &Workload, way: Way) -> Result<Row, Error> {
    let end = match arguments.deliveries {
        Some(count) => End::Deliveries(count),
        None => End::After(Duration::from_secs_f64(arguments.seconds)),
    };
    let run = Rc::new(Run {
        way,
        kind: workload.kind,
        fresh: arguments.fresh || workload.kind == Kind::Tunnel,
        pace: workload.rate.map(Pace::start),
        begun: Cell::new(matches!(end, End::Deliveries(_)).then(Instant::now)),
        ended: Cell::new(None),
        left: Cell::new(if let End::Deliveries(count) = end { count } else { u64::MAX }),
        sent: Cell::new(0),
        done: Cell::new(0),
        latencies: RefCell::default(),
        errors: RefCell::default(),
    });
    if let Some(address) = arguments.scrape {
        tokio::task::spawn_local(run.clone().scrape(address));
    }
    let clients: Vec<_> = (0..arguments.clients.unwrap_or(workload.clients))
        .map(|_| tokio::task::spawn_local(run.clone().client()))
        .collect();
    let mut started = process::cpu_seconds(arguments.pid)?;
    if let End::After(length) = end {
        tokio::time::sleep(Duration::from_secs_f64(arguments.warmup)).await;
        started = process::cpu_seconds(arguments.pid)?;
        run.begun.set(Some(Instant::now()));
        tokio::time::sleep(length).await;
        run.ended.set(Some(Instant::now()));
    }
    let mut cpu = process::cpu_seconds(arguments.pid)? - started;
    // The target sees what is under way at the end, so it is waited for. It counts only if it was due at an offered rate.
    let patience = if let End::After(_) = end { LAST } else { PATIENCE };
    let deadline = tokio::time::Instant::now() + patience;
    for client in clients {
        let abort = client.abort_handle();
        if tokio::time::timeout_at(deadline, client).await.is_err() {
            abort.abort();
            run.error("a delivery that did not end".to_owned());
        }
    }
    if matches!(end, End::Deliveries(_)) || run.pace.is_some() {
        cpu = process::cpu_seconds(arguments.pid)? - started;
    }
    Ok(run.row(cpu))
}

impl Run {
    async fn client(self: Rc<Self>) {
        let mut conn = None;
        while self.left.get() > 0 {
            self.left.set(self.left.get() - 1);
            let due = match &self.pace {
                Some(pace) => pace.next().await,
                None => Instant::now(),
            };
            if self.ended.get().is_some_and(|end| due >= end) {
                break;
            }
            match self.delivery(&mut conn).await {
                Ok(()) => {
                    self.sent.set(self.sent.get() + 1);
                    // A download has counted its MiB.
                    if self.counts(due) && self.kind != Kind::Bulk {
                        self.done.set(self.done.get() + 1);
                        self.latencies.borrow_mut().push(due.elapsed());
                    }
                }
                Err(error) => {
                    conn = None;
                    self.error(error.to_string());
                    tokio::time::sleep(AFTER_ERROR).await;
                }
            }
        }
    }

    fn is_measuring(&self) -> bool {
        self.begun.get().is_some() && self.ended.get().is_none()
    }

    /// Returns whether a delivery that has just ended counts. At an offered rate, each delivery does that was due within the
    /// measurement, however late it ends: a proxy cannot hide a pause behind the end.
    fn counts(&self, due: Instant) -> bool {
        match &self.pace {
            Some(_) => {
                let has_begun = self.begun.get().is_some_and(|begun| due >= begun);
                has_begun && self.ended.get().is_none_or(|end| due < end)
            }
            None => self.is_measuring(),
        }
    }

    async fn delivery(&self, conn: &mut Option<crate::http1::Conn<tokio::net::TcpStream>>) -> std::io::Result<()> {
        let mut open = match conn.take() {
            Some(open) => open,
            None => self.way.open().await?,
        };
        let stays = if self.kind == Kind::Bulk {
            self.download(&mut open).await?
        } else {
            self.way.exchange(&mut open).await?
        };
        *conn = (stays && !self.fresh).then_some(open);
        Ok(())
    }

    /// Counts MiB as deliveries, so that a download need not end within the measurement.
    async fn download(&self, conn: &mut crate::http1::Conn<tokio::net::TcpStream>) -> std::io::Result<bool> {
        conn.send(&self.way.request).await?;
        conn.response(false).await?;
        let mut buffer = vec![0; MIB];
        for _ in 0..DOWNLOAD / MIB as u64 {
            conn.discard(MIB as u64, &mut buffer).await?;
            if self.is_measuring() {
                self.done.set(self.done.get() + 1);
            }
        }
        Ok(true)
    }

    fn error(&self, error: String) {
        *self.errors.borrow_mut().entry(error).or_default() += 1;
    }

    /// Reads the metrics until the measurement ends.
    async fn scrape(self: Rc<Self>, address: std::net::SocketAddr) {
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        while self.ended.get().is_none() {
            let answer = async {
                let mut conn = crate::http1::Conn::new(tokio::net::TcpStream::connect(address).await?);
                conn.send(request.as_bytes()).await?;
                let head = conn.response(false).await?;
                conn.body(head.framing, &mut |_| ()).await?;
                if head.status == 200 { Ok(()) } else { Err(std::io::Error::other(format!("status {}", head.status))) }
            };
            if let Err(error) = answer.await {
                self.error(format!("a scrape of the metrics: {error}"));
            }
            tokio::time::sleep(SCRAPE).await;
        }
    }

    fn row(&self, cpu: f64) -> Row {
        let mut latencies = self.latencies.borrow_mut();
        latencies.sort_unstable();
        let quantile = |share: f64| {
            let index = (latencies.len() as f64 * share) as usize;
            latencies.get(index).map_or(0.0, |latency| latency.as_secs_f64() * 1e6)
        };
        let done = self.done.get() as f64;
        let errors = self.errors.borrow();
        Row {
            deliveries: done,
            sent: self.sent.get() as f64,
            cpu_us: cpu * 1e6 / done,
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            errors: errors.values().sum::<u64>() as f64,
            error: errors.keys().next().cloned().unwrap_or_default(),
            ..Row::default()
        }
    }
}

const MIB: usize = 1 << 20;
