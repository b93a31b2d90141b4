//! A fleet of four hosts behind HAProxy, with a store on a host of its own; each host is a network namespace.
//! Does one limit hold for all hosts together, and what does each fault of the store or of a host change?
//!
//! Needs root, redis-server, haproxy and nft: skipped where they are missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::bystander::{p99, pick, report_row};
use crate::support::configuration::{Config, token_hash};
use crate::support::namespace::{Host, inside_namespace, run};
use crate::support::process::Process;
use crate::support::receiver::{Receiver, ok};
use crate::support::scrape::Scrape;
use crate::support::store::{self, StoreServer};
use crate::support::{Client, Folder, Outgate, eventually, post};

const INSTANCES: usize = 4;
const RATE: u32 = 100;
const BURST: u32 = 100;
const PERMITS: usize = 20;
const TENANTS: usize = 10_000;
/// The senders of a tenant that wants more than its limit, and the pause of each between two deliveries.
const SENDERS: usize = 8;
const PAUSE: Duration = Duration::from_millis(10);
const BALANCER: &str = "10.0.0.1:4750";
const STORE: &str = "10.0.0.2";

struct Fleet {
    outgates: Vec<Outgate>,
    _hosts: Vec<Host>,
    receiver: Receiver,
    /// The server, or the master.
    store: StoreServer,
    /// The replica and the sentinels.
    _others: Vec<StoreServer>,
    store_host: Host,
    is_slow: Arc<AtomicBool>,
    _haproxy: Process,
}

/// Creates a host on the bridge with this address.
fn host(number: usize) -> Host {
    let host = Host::new();
    run(&format!("ip link add port{number} type veth peer name eth0 netns {}", host.id()));
    run(&format!("ip link set port{number} master fleet up"));
    host.run(&format!("ip addr add 10.0.0.{number}/24 dev eth0"));
    host.run("ip link set eth0 up");
    host
}

/// Passes connections on to the server of the store on this host. While `is_slow`, each response takes a second more.
fn start_relay(store_port: u16, is_slow: &Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind((STORE, 0)).unwrap();
    let (address, is_slow) = (listener.local_addr().unwrap(), Arc::clone(is_slow));
    std::thread::spawn(move || {
        for instance in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect(("127.0.0.1", store_port)) else { continue };
            let is_slow = Arc::clone(&is_slow);
            let streams = (instance.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || relay(streams.0, streams.1, || {}));
            std::thread::spawn(move || {
                relay(server, instance, || {
                    if is_slow.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_secs(1)); // the fault
                    }
                });
            });
        }
    });
    address
}

fn relay(mut from: TcpStream, mut to: TcpStream, delay: impl Fn()) {
    from.set_nodelay(true).unwrap();
    let mut piece = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        delay();
        if to.write_all(&piece[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

/// Returns the configuration of a host. The names `fleet.example` and `local.example` have the same limit, of the fleet and of
/// each host.
fn config(number: usize, target: u16, store: &str) -> Config {
    // A test build beside others may need longer for a call than the default of 5 ms.
    let wait = pick("wait = \"500ms\"\ntimeout = \"1s\"", "");
    Config::parse(&format!(
        r#"
[server]
listen = ["10.0.0.{number}:4750"]
[admin]
listen = ["10.0.0.{number}:4751"]
[egress.default]
ranges = ["10.0.0.{number}/32"]
notice = "0s"
[guard]
allow = ["10.0.0.1/32"]
[resolver.hosts]
"fleet.example" = ["10.0.0.1"]
"local.example" = ["10.0.0.1"]
"permits.example" = ["10.0.0.1"]
[clients.billing]
tokens = ["{token}"]
tenants = ["*"]
[limits.fleet]
scope = "fleet"
rate = "{RATE}/s"
burst = {BURST}
per = ["tenant"]
[limits.permits]
scope = "fleet"
concurrency = {PERMITS}
[limits.local]
rate = "{RATE}/s"
burst = {BURST}
per = ["tenant"]
[[routes]]
name = "fleet"
hosts = ["fleet.example"]
ports = [{target}]
plaintext = "allow"
limits = ["fleet"]
[[routes]]
name = "local"
hosts = ["local.example"]
ports = [{target}]
plaintext = "allow"
limits = ["local"]
[[routes]]
name = "permits"
hosts = ["permits.example"]
ports = [{target}]
plaintext = "allow"
limits = ["permits"]
[fleet]
store = "{store}"
instance = "egress-{number}"
{wait}
"#,
        token = token_hash("TOKEN"),
    ))
}

const HAPROXY: &str = "\
defaults
    mode tcp
    timeout connect 500ms
    timeout client 60s
    timeout server 60s
    retries 3
    option redispatch
listen fleet
    bind 10.0.0.1:4750
    balance roundrobin
    default-server check inter 200ms fall 1 rise 1
";

impl Fleet {
    fn start() -> Self {
        Self::start_with(|is_slow| {
            let store = StoreServer::start();
            let address = start_relay(store.port, is_slow);
            (store, Vec::new(), format!("redis://{address}"))
        })
    }

    /// Starts a fleet whose store is the master that three sentinels name.
    fn start_with_sentinels() -> Self {
        Self::start_with(|_| {
            let ([master, replica], mut others) = store::with_sentinels(STORE);
            let sentinels: Vec<_> = others.iter().map(|sentinel| format!("{STORE}:{}", sentinel.port)).collect();
            others.push(replica);
            (master, others, format!("redis-sentinel://{}/outgate", sentinels.join(",")))
        })
    }

    /// `start_store` runs on the host of the store, and returns the server, the servers beside it, and the URL.
    fn start_with(
        start_store: impl FnOnce(&Arc<AtomicBool>) -> (StoreServer, Vec<StoreServer>, String) + Send,
    ) -> Self {
        run("ip link add fleet type bridge");
        run("ip addr add 10.0.0.1/24 dev fleet");
        run("ip link set fleet up");
        let receiver = Receiver::plain_at("10.0.0.1:0", ok());
        let store_host = host(2);
        let is_slow = Arc::default();
        let (store, others, url) = store_host.with(|| start_store(&is_slow));
        let hosts: Vec<Host> = (11..11 + INSTANCES).map(host).collect();
        let outgates: Vec<Outgate> = hosts
            .iter()
            .zip(11..)
            .map(|(host, number)| {
                let folder = Folder::new();
                folder.write_config("config.toml", &config(number, receiver.port(), &url));
                let mut command = host.command(env!("CARGO_BIN_EXE_outgate"));
                command.args(["run", "--config"]).arg(folder.path("config.toml"));
                Outgate::start(command, folder)
            })
            .collect();
        let servers =
            outgates.iter().zip(1..).map(|(outgate, number)| format!("    server host-{number} {}\n", outgate.proxy));
        let file = outgates[0].folder.write("haproxy.cfg", HAPROXY.to_owned() + &servers.collect::<String>());
        let mut haproxy = Command::new("haproxy");
        let haproxy = Process::start(haproxy.args(["-db", "-f"]).arg(file).stderr(Stdio::null()));
        eventually("haproxy listens", || TcpStream::connect(BALANCER).is_ok());
        let fleet =
            Self { outgates, _hosts: hosts, receiver, store, _others: others, store_host, is_slow, _haproxy: haproxy };
        fleet.wait_until_all_live();
        fleet
    }

    fn wait_until_all_live(&self) {
        let line = format!("outgate_fleet_instances {INSTANCES}");
        eventually(&line, || self.outgates.iter().all(|outgate| outgate.has_metric(&line)));
    }

    fn url(&self, host: &str) -> String {
        format!("http://{host}:{}/in", self.receiver.port())
    }

    fn calls(&self) -> f64 {
        let calls = |outgate| Scrape::of(outgate).sum("outgate_fleet_store_calls_total", &[]);
        self.outgates.iter().map(calls).sum()
    }
}

/// One sender, which connects again if its connection ends.
struct Sender {
    client: Option<Client>,
    url: String,
}

impl Sender {
    fn new(url: String) -> Self {
        Self { client: None, url }
    }

    /// Sends a webhook of this tenant, and returns whether outgate delivered it. `None`: the connection has ended.
    fn send(&mut self, tenant: &str) -> Option<bool> {
        let client = self.client.get_or_insert_with(|| Client::connect(BALANCER.parse().unwrap()));
        let fields = format!("Proxy-Authorization: Bearer TOKEN\r\nOutgate-Tenant: {tenant}\r\n");
        let is_sent = client.try_send(post(&self.url, &fields, "{}"));
        let Some(response) = is_sent.then(|| client.try_response()).flatten() else {
            self.client = None;
            return None;
        };
        assert!(response.status == 200 || response.code() == "rate_limited", "{response:?}");
        Some(response.status == 200)
    }
}

/// The deliveries of one tenant that wants more than its limit, by the second.
struct Traffic {
    is_over: AtomicBool,
    begun: Instant,
    admitted: Vec<AtomicU32>,
    refused: AtomicU32,
}

impl Traffic {
    /// Sends as long as `act` runs, and returns its result and what was sent.
    fn beside<T>(url: String, tenant: &str, act: impl FnOnce(&Self) -> T) -> (T, Self) {
        let traffic = Self {
            is_over: AtomicBool::new(false),
            begun: Instant::now(),
            admitted: (0..600).map(|_| AtomicU32::new(0)).collect(),
            refused: AtomicU32::new(0),
        };
        let result = std::thread::scope(|scope| {
            for _ in 0..SENDERS {
                scope.spawn(|| {
                    let mut sender = Sender::new(url.clone());
                    while !traffic.is_over.load(Ordering::Relaxed) {
                        match sender.send(tenant) {
                            Some(true) => traffic.admitted[traffic.second()].fetch_add(1, Ordering::Relaxed),
                            Some(false) => traffic.refused.fetch_add(1, Ordering::Relaxed),
                            None => 0,
                        };
                        std::thread::sleep(PAUSE); // steady traffic, not as much as possible
                    }
                });
            }
            let result = act(&traffic);
            traffic.is_over.store(true, Ordering::Relaxed);
            result
        });
        (result, traffic)
    }

    fn second(&self) -> usize {
        usize::try_from(self.begun.elapsed().as_secs()).unwrap()
    }

    /// Waits until this many whole seconds have passed, and returns the deliveries of each.
    fn for_seconds(&self, count: usize) -> Vec<u32> {
        let first = self.second() + 1;
        let end = self.begun + Duration::from_secs(u64::try_from(first + count).unwrap());
        std::thread::sleep(end.saturating_duration_since(Instant::now())); // the subject is what happens in this time
        self.admitted[first..first + count].iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }
}

fn is_possible(name: &str) -> bool {
    let has = |program: &str, option: &str| Command::new(program).arg(option).output().is_ok();
    let is_installed = store::is_installed() && has("haproxy", "-v") && has("nft", "--version");
    assert!(is_installed || !crate::support::required(), "missing: haproxy or nft");
    is_installed && inside_namespace(&format!("fleet::{name}"))
}

/// Prints a row of the fleet's table.
fn report(row: &str) {
    report_row("fleet.md", "| what | | | |\n|---|---|---|---|\n", row);
}

fn total(counts: &[u32]) -> u32 {
    counts.iter().sum()
}

#[test]
fn fleet_of_four_hosts_keeps_one_limit_for_each_of_ten_thousand_tenants() {
    if !is_possible("fleet_of_four_hosts_keeps_one_limit_for_each_of_ten_thousand_tenants") {
        return;
    }
    let fleet = Fleet::start();

    // A tenant that wants several times its limit.
    let seconds = pick(10, 60);
    let before = fleet.calls();
    let (measured, traffic) = Traffic::beside(fleet.url("fleet.example"), "busy", |traffic| {
        traffic.for_seconds(1); // the burst
        traffic.for_seconds(seconds)
    });
    let (calls, elapsed) = (fleet.calls() - before, traffic.begun.elapsed().as_secs_f64());
    let all: u32 = traffic.admitted.iter().map(|count| count.load(Ordering::Relaxed)).sum();
    let most = f64::from(RATE) * elapsed + f64::from(BURST);
    assert!(f64::from(all) <= most, "{all} in {elapsed} s");
    let rate = f64::from(total(&measured)) / seconds as f64;
    let sent = all + traffic.refused.load(Ordering::Relaxed);
    report(&format!(
        "| one tenant at {:.1} times its limit, {seconds} s | {rate:.2}/s of {RATE}/s | {:.3} calls a delivery asked for, {:.3} admitted |\n",
        f64::from(sent) / elapsed / f64::from(RATE),
        calls / f64::from(sent),
        calls / f64::from(all),
    ));
    assert!(rate >= 0.9 * f64::from(RATE), "{measured:?}");

    // Each tenant has its own limit, of which it uses a small part: none is refused, on whichever host.
    let (next, before) = (AtomicUsize::new(0), fleet.calls());
    std::thread::scope(|scope| {
        for _ in 0..SENDERS {
            scope.spawn(|| {
                let mut sender = Sender::new(fleet.url("fleet.example"));
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= TENANTS {
                        break;
                    }
                    assert_eq!(sender.send(&format!("tenant-{number}")), Some(true));
                }
            });
        }
    });
    report(&format!(
        "| {TENANTS} tenants, one delivery each | none refused | {:.3} calls a delivery |\n",
        (fleet.calls() - before) / TENANTS as f64
    ));
    let sources: BTreeSet<_> = fleet.receiver.requests().iter().map(|request| request.from).collect();
    assert_eq!(sources.len(), INSTANCES, "haproxy uses each host: {sources:?}");

    // The same traffic, within the limit, under the limit of the fleet and under that of each host, in turn.
    let rounds = pick(100, 5_000);
    let mut senders = ["fleet.example", "local.example"].map(|host| Sender::new(fleet.url(host)));
    let mut durations = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for (sender, durations) in senders.iter_mut().zip(&mut durations) {
            let begun = Instant::now();
            assert_eq!(sender.send("steady"), Some(true), "round {round}");
            durations.push(begun.elapsed());
            std::thread::sleep(PAUSE); // within the limit
        }
    }
    durations.iter_mut().for_each(|durations| durations.sort());
    let [of_fleet, of_host] = durations.each_ref().map(|durations| p99(durations));
    report(&format!("| p99, limit of the fleet and of a host | {of_fleet:.2?} | {of_host:.2?} |\n"));
}

#[test]
fn fleet_limit_is_neither_unlimited_nor_zero_in_any_fault() {
    if !is_possible("fleet_limit_is_neither_unlimited_nor_zero_in_any_fault") {
        return;
    }
    let mut fleet = Fleet::start();
    let partition = |fleet: &mut Fleet| {
        fleet.store_host.run("nft add table ip partition");
        fleet.store_host.run("nft add chain ip partition in { type filter hook input priority 0 ; }");
        fleet.store_host.run("nft add rule ip partition in ip saddr 10.0.0.13-10.0.0.14 drop");
    };
    let heal = |fleet: &mut Fleet| fleet.store_host.run("nft delete table ip partition");
    let set_slow = |is_slow: bool| move |fleet: &mut Fleet| fleet.is_slow.store(is_slow, Ordering::Relaxed);
    let restart = |fleet: &mut Fleet| {
        let (store, host) = (&mut fleet.store, &fleet.store_host);
        host.with(|| store.restart_empty());
    };
    fault(&mut fleet, "the store is killed, and restarted empty", 1.0, |fleet| fleet.store.kill(), restart);
    // Two hosts have the whole limit, and the others a quarter of it each.
    fault(&mut fleet, "two of four hosts do not reach the store", 1.5, partition, heal);
    fault(&mut fleet, "each response of the store takes a second more", 1.0, set_slow(true), set_slow(false));
    // The last one: the others are one less from now on.
    fault(&mut fleet, "a host is killed", 1.0, |fleet| fleet.outgates[3].signal("KILL"), |_| {});
}

/// The sentinels promote the replica after 300 ms without the master.
#[test]
fn fleet_limit_is_neither_unlimited_nor_zero_in_a_failover_of_sentinels() {
    if !is_possible("fleet_limit_is_neither_unlimited_nor_zero_in_a_failover_of_sentinels") {
        return;
    }
    let mut fleet = Fleet::start_with_sentinels();
    let seconds = pick([1, 3, 2], [10, 20, 15]);
    fault_for(
        seconds,
        &mut fleet,
        "the master of three sentinels is killed",
        1.0,
        |fleet| fleet.store.kill(),
        // Each instance has reached the new master by now.
        |fleet| fleet.wait_until_all_live(),
    );
    for outgate in &fleet.outgates {
        assert!(outgate.has_metric("outgate_fleet_store_up{} 1"));
        outgate.log.wait_for_lines(1, &["the store of the fleet answers again"]);
    }
}

/// Starts a delivery that is in flight until its client sends the body. `None`: it is refused.
fn start_upload(outgate: &Outgate, url: &str) -> Option<Client> {
    let started = outgate.try_start_upload(url, "Proxy-Authorization: Bearer TOKEN\r\n", 5);
    started.map_err(|refusal| assert_eq!(refusal.code(), "concurrency_limited", "{refusal:?}")).ok()
}

#[test]
fn fleet_permits_of_an_instance_that_was_killed_return_to_the_others() {
    if !is_possible("fleet_permits_of_an_instance_that_was_killed_return_to_the_others") {
        return;
    }
    let fleet = Fleet::start();
    let url = fleet.url("permits.example");
    let [survivors @ .., killed] = &fleet.outgates[..] else { unreachable!("there are four") };
    let mut lost: Vec<Client> = Vec::new();
    eventually("one instance has all permits", || {
        lost.extend(start_upload(killed, &url));
        lost.len() == PERMITS
    });
    assert!(survivors.iter().all(|outgate| start_upload(outgate, &url).is_none()));
    let (begun, mut uploads, mut first) = (Instant::now(), Vec::new(), None);
    killed.signal("KILL");
    eventually("the others have all permits", || {
        uploads.extend(survivors.iter().filter_map(|outgate| start_upload(outgate, &url)));
        if !uploads.is_empty() {
            first.get_or_insert_with(|| begun.elapsed());
        }
        uploads.len() >= PERMITS
    });
    let all = begun.elapsed();
    report(&format!(
        "| an instance with all {PERMITS} permits is killed | the first is back after {:.1} s | all after {:.1} s | |\n",
        first.unwrap_or_default().as_secs_f64(),
        all.as_secs_f64()
    ));
    assert_eq!(uploads.len(), PERMITS);
    assert!(survivors.iter().all(|outgate| start_upload(outgate, &url).is_none()), "no more than all");
}

/// Runs a fault beside the traffic of one tenant. `factor`: the part of the limit that the fleet admits meanwhile, at most.
fn fault(fleet: &mut Fleet, name: &str, factor: f64, begin: impl FnOnce(&mut Fleet), end: impl FnOnce(&mut Fleet)) {
    fault_for(pick([2, 4, 4], [10, 20, 15]), fleet, name, factor, begin, end);
}

/// Runs a fault for these seconds before, meanwhile and afterwards.
fn fault_for(
    seconds: [usize; 3],
    fleet: &mut Fleet,
    name: &str,
    factor: f64,
    begin: impl FnOnce(&mut Fleet),
    end: impl FnOnce(&mut Fleet),
) {
    let url = fleet.url("fleet.example");
    let ([before, during, after], _) = Traffic::beside(url, "faulty", |traffic| {
        traffic.for_seconds(1); // the burst
        let before = traffic.for_seconds(seconds[0]);
        begin(fleet);
        let during = traffic.for_seconds(seconds[1]);
        end(fleet);
        [before, during, traffic.for_seconds(seconds[2])]
    });
    let part = |counts: &[u32]| f64::from(total(counts)) / f64::from(RATE) / counts.len() as f64;
    let is_usual = |count: &&u32| (90..=110).contains(&(**count * 100 / RATE));
    let unusual = after.iter().take_while(|count| !is_usual(count)).count();
    report(&format!(
        "| {name} | {:.2} | {:.2}; {} to {} in a second | {:.2}; usual after {unusual} s |\n",
        part(&before),
        part(&during),
        during.iter().min().unwrap(),
        during.iter().max().unwrap(),
        part(&after),
    ));
    let most = |seconds: usize| factor * f64::from(RATE) * (seconds + 1) as f64 + f64::from(BURST);
    for counts in [&during, &after] {
        assert!(f64::from(total(counts)) <= most(counts.len()), "{name}: more than the limit: {counts:?}");
        assert!(
            total(counts) >= RATE * u32::try_from(counts.len()).unwrap() / 4,
            "{name}: refuses nearly all: {counts:?}"
        );
    }
}
