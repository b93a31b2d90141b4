//! Measures deliveries, uploads and tunnels through the real binary, alternately without and with ten reloads a second.
//! How much latency does a reload add?
//!
//! `cargo bench --bench reload`; `-- 300 1000` sets the seconds under reloads, and the number of other routes.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    dead_code,
    reason = "a benchmark that cannot go on ends, and needs not all of the tests"
)]

#[path = "../tests/it/support/mod.rs"]
mod stage;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use stage::pki::{Identity, Pki};
use stage::scrape::Scrape;
use stage::tunnel::tls_config_trusting;
use stage::{Client, Outgate, post, scene};

/// The duration of each turn.
const TURN: Duration = Duration::from_secs(10);
const BETWEEN_RELOADS: Duration = Duration::from_millis(100);
const UPLOAD: usize = 256 * 1024;

/// The kinds of requests, and the number of concurrent senders of each.
const LOAD: [(Kind, usize); 3] = [(Kind::Webhook, 8), (Kind::Upload, 2), (Kind::Tunnel, 2)];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A signed webhook of 1 KiB over a persistent connection.
    Webhook,
    /// A streamed upload.
    Upload,
    /// A request inside a tunnel that stays open.
    Tunnel,
}

/// The duration of each exchange in microseconds, by kind, and the number of failures.
#[derive(Default)]
struct Measurements {
    durations: [Vec<u32>; 3],
    failed: usize,
    /// The requests that opened a tunnel. Each has a record, as the exchanges have.
    tunnels: usize,
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse::<u64>().ok());
    let (seconds, routes) = (arguments.next().unwrap_or(20), arguments.next().unwrap_or(1000));
    let pki = Pki::new();
    let port = start_target(pki.leaf(&["hook.example", "upload.example", "tunnel.example"]));
    let folder = scene::folder(&pki);
    let dir = folder.path("").display().to_string();
    let text = config(port, routes).replace("{dir}", &dir);
    let outgate = Outgate::run(folder, &text);
    let (mut quiet, mut busy) = (Measurements::default(), Measurements::default());
    let mut memory = Vec::new();
    for _ in 0..seconds.div_ceil(TURN.as_secs()) {
        run_turn(&outgate, port, &pki.pem, &mut quiet, None);
        run_turn(&outgate, port, &pki.pem, &mut busy, Some(&text));
        memory.push(resident(outgate.pid()));
    }
    assert_one_record_each(&outgate, &[&quiet, &busy]);
    let reloads = outgate.log.all().iter().filter(|line| line.contains("configuration reloaded")).count();
    println!("{reloads} reloads of {routes} routes, {} failed without and {} with them", quiet.failed, busy.failed);
    println!("MiB of memory after each turn: {memory:?}");
    println!("{:<10} {:>10} {:>22} {:>22} {:>6}", "", "", "ms without, p50 p99", "ms with, p50 p99", "p99");
    for (at, name) in ["webhooks", "uploads", "in tunnels"].iter().enumerate() {
        let count = quiet.durations[at].len() + busy.durations[at].len();
        let [(p50, p99), (with_p50, with_p99)] =
            [&mut quiet, &mut busy].map(|measurements| percentiles(&mut measurements.durations[at]));
        let ratio = with_p99 / p99;
        println!("{name:<10} {count:>10} {p50:>11.2} {p99:>10.2} {with_p50:>11.2} {with_p99:>10.2} {ratio:>6.2}");
    }
}

/// Asserts that the client, the delivery log and the metrics count the same number of deliveries. A request inside a
/// tunnel is none.
fn assert_one_record_each(outgate: &Outgate, measurements: &[&Measurements]) {
    let [webhooks, uploads] = [Kind::Webhook, Kind::Upload].map(|kind| kind as usize);
    let exchanges = |one: &&Measurements| one.durations[webhooks].len() + one.durations[uploads].len();
    let sent = measurements.iter().map(|one| exchanges(one) + one.tunnels).sum::<usize>();
    let log = outgate.folder.path("deliveries.jsonl");
    let logged = || std::fs::read_to_string(&log).unwrap().lines().filter(|line| line.contains("\"code\"")).count();
    let counted = || Scrape::of(outgate).sum("outgate_deliveries_total", &[]) as usize;
    stage::eventually("one record and one count for each delivery", || [logged(), counted()] == [sent, sent]);
    println!("{sent} deliveries: the client, the log and the metrics agree");
}

/// Returns a configuration in which unused routes precede those of the load.
fn config(port: u16, others: u64) -> String {
    let others: String = (0..others)
        .map(|n| format!("[[routes]]\nname = \"r{n}\"\nhosts = [\"h{n}.acme.com\"]\npaths = [\"/a\", \"/b\"]\n"))
        .collect();
    let route = |name: &str, more: &str| {
        format!("[[routes]]\nname = {name:?}\nhosts = [\"{name}.example\"]\nports = [{port}]\n{more}\n")
    };
    [
        "[server]\nlisten = [\"127.0.0.1:0\"]\nallow_anonymous = true\n[admin]\nlisten = [\"127.0.0.1:0\"]\n\
         [log]\ndeliveries = \"file:{dir}/deliveries.jsonl\"\nrotate = false\n[egress.default]\nranges = [\"127.0.7.0/30\"]\n[guard]\nallow = [\"127.0.0.0/8\"]\n\
         [resolver.hosts]\n\"hook.example\" = [\"127.0.0.1\"]\n\"upload.example\" = [\"127.0.0.1\"]\n\
         \"tunnel.example\" = [\"127.0.0.1\"]\n[trust.public]\nroots = [\"{dir}/ca.pem\"]\n[signers.platform]\n\
         scheme = \"standard-webhooks\"\nkeys = [{ id = \"k1\", secret = \"file:{dir}/key\" }]\n\
         [limits.all]\nrate = \"1000000/s\"\nconcurrency = 100\nper = [\"host\"]\n",
        &others,
        &route("hook", "sign = [\"platform\"]\nlimits = [\"all\"]"),
        &route("upload", "limits = [\"all\"]"),
        &route("tunnel", "limits = [\"all\"]"),
    ]
    .concat()
}

fn run_turn(outgate: &Outgate, port: u16, ca: &str, measurements: &mut Measurements, reloading: Option<&str>) {
    let end = Instant::now() + TURN;
    std::thread::scope(|scope| {
        let work = |kind| move || exchange(outgate, kind, port, ca, end);
        let senders: Vec<_> = LOAD
            .iter()
            .flat_map(|(kind, count)| std::iter::repeat_n(*kind, *count))
            .map(|kind| (kind, scope.spawn(work(kind))))
            .collect();
        if let Some(text) = reloading {
            reload_until(end, outgate, text);
        }
        for (kind, sender) in senders {
            let (durations, failed) = sender.join().unwrap();
            measurements.durations[kind as usize].extend(durations);
            measurements.failed += failed;
            measurements.tunnels += if kind == Kind::Tunnel { 1 + failed } else { 0 };
        }
    });
}

/// Reloads until `end`. Each reload changes a limit and the timeout of a route.
fn reload_until(end: Instant, outgate: &Outgate, text: &str) {
    let mut next_at = Instant::now();
    for count in 1u64.. {
        if Instant::now() >= end {
            break;
        }
        let changed = text.replace("rate = \"1000000/s\"", &format!("rate = \"{}/s\"", 1_000_000 + count % 1000));
        let next =
            outgate.folder.write("next", format!("{changed}timeouts = {{ response = \"{}s\" }}\n", 10 + count % 9));
        std::fs::rename(next, outgate.folder.path("config.toml")).unwrap();
        outgate.signal("HUP");
        next_at += BETWEEN_RELOADS;
        std::thread::sleep(next_at.saturating_duration_since(Instant::now()));
    }
}

/// Sends requests in sequence over one connection. Returns the duration of each, and the number of failures.
fn exchange(outgate: &Outgate, kind: Kind, port: u16, ca: &str, end: Instant) -> (Vec<u32>, usize) {
    let (mut durations, mut failed) = (Vec::new(), 0);
    let request = match kind {
        Kind::Webhook => post(&format!("https://hook.example:{port}/in"), "", &"x".repeat(1024)),
        Kind::Upload => post(&format!("https://upload.example:{port}/in"), "", &"x".repeat(UPLOAD)),
        Kind::Tunnel => post("/in", "", &"x".repeat(1024)),
    };
    let open = || match kind {
        Kind::Tunnel => {
            let client = outgate.open_tunnel(&format!("tunnel.example:{port}"));
            client.start_tls("tunnel.example", tls_config_trusting(ca)).unwrap().0
        }
        _ => outgate.connect(),
    };
    let mut client: Client = open();
    while Instant::now() < end {
        let start = Instant::now();
        let response = client.try_send(&request).then(|| client.response());
        durations.push(u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX));
        if response.is_none_or(|response| response.status != 200) {
            failed += 1;
            client = open();
        }
    }
    (durations, failed)
}

/// Starts a target that responds with 200 to each request with a length, over persistent connections.
fn start_target(identity: Identity) -> u16 {
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(identity.chain, identity.key)
        .unwrap();
    let (config, listener) = (Arc::new(config), TcpListener::bind("127.0.0.1:0").unwrap());
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let config = Arc::clone(&config);
            std::thread::spawn(move || serve_target(StreamOwned::new(ServerConnection::new(config).unwrap(), stream)));
        }
    });
    port
}

fn serve_target(mut stream: StreamOwned<ServerConnection, TcpStream>) -> Option<()> {
    let _ = stream.sock.set_nodelay(true);
    let (mut buffer, mut piece) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let head = loop {
            if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            let length = stream.read(&mut piece).ok().filter(|length| *length > 0)?;
            buffer.extend_from_slice(&piece[..length]);
        };
        let fields = std::str::from_utf8(&buffer[..head]).ok()?.to_ascii_lowercase();
        let (_, length) = fields.split_once("content-length:")?;
        let length: usize = length.lines().next()?.trim().parse().ok()?;
        let mut remaining = (head + length).saturating_sub(buffer.len());
        buffer.drain(..buffer.len().min(head + length));
        while remaining > 0 {
            let limit = remaining.min(piece.len());
            remaining -= stream.read(&mut piece[..limit]).ok().filter(|length| *length > 0)?;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").ok()?;
    }
}

fn percentiles(durations: &mut [u32]) -> (f64, f64) {
    durations.sort_unstable();
    let at = |share: f64| {
        durations.get((durations.len() as f64 * share) as usize).map_or(f64::NAN, |us| f64::from(*us) / 1e3)
    };
    (at(0.5), at(0.99))
}

/// Returns the resident memory of a process in MiB.
fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}
