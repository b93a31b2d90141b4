//! `examples/load-balancers`: haproxy in TCP mode with PROXY protocol version 2, and the files for other load balancers.
//! Does outgate know the client's address, and does traffic go to the other host before outgate refuses it?

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{checked, config, curl, folder_with, has, new_key, path, receiver_on_this_host, verify_with_public_key};
use crate::support::clients::InstalledClients;
use crate::support::configuration::{Replace, token_hash};
use crate::support::namespace::{inside_namespace, run};
use crate::support::pki::Pki;
use crate::support::process::Process;
use crate::support::receiver::{Receiver, ok};
use crate::support::{Client, Outgate, eventually, ports};

const HOST: &str = "hooks.acme.example";

#[test]
fn record_behind_haproxy_has_the_address_of_the_client() {
    if !has("haproxy", "-v") || !has("curl", "--version") {
        return;
    }
    let pki = Pki::new();
    let receiver = Receiver::tls(pki.leaf(&[HOST]), ok());
    let folder = folder_with(&pki);
    new_key(&folder, "key.pem");
    let text = config("load-balancers/config.toml").set(
        "signers.platform.keys",
        [toml::toml! {
            id = "2026-11"
            secret = "file:{dir}/key.pem"
        }],
    );
    folder.write_config("config.toml", &text);
    assert_eq!(checked(&folder, "config.toml"), ["not_public"], "addresses of documentation");

    let text = text
        .set("server.listen", ["127.0.0.1:0"])
        .set("server.proxy_protocol.from", ["127.0.0.1"])
        .set("admin.listen", ["127.0.0.1:0", "unix:{dir}/admin.sock"])
        .remove("admin.agent")
        .set("egress.default.ranges", ["127.0.7.16/28"])
        .set("clients.billing.tokens", [token_hash("TOKEN")])
        .set("clients.billing.networks", ["127.0.2.0/24"])
        .and(&receiver_on_this_host(&receiver, HOST))
        .and("[trust.public]\nroots = [\"{dir}/ca.pem\"]\n");
    let outgate = Outgate::run(folder, &text);
    let (_reserved, balancer) = ports::reserved();
    // Without the agent, and the other host is down: outgate listens on no such address.
    let (first, second) = (outgate.proxy.to_string(), format!("127.0.0.9:{}", outgate.proxy.port()));
    let file = std::fs::read_to_string(path("load-balancers/haproxy.cfg")).unwrap();
    let file = file
        .replace_one("bind 10.0.0.2:4750", &format!("bind {balancer}"))
        .replace_one("check port 4751", &format!("check port {}", outgate.admin.port()))
        .replace_all("10.0.0.5:4750", &first)
        .replace_all("10.0.0.6:4750", &second)
        .replace_all("agent-check agent-port 4753 agent-inter 500ms", "");
    let file = outgate.folder.write("haproxy.cfg", file);
    let output = Command::new("haproxy").args(["-c", "-f"]).arg(&file).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut command = Command::new("haproxy");
    let _haproxy = Process::start(command.args(["-db", "-f"]).arg(file).stderr(Stdio::null()));
    eventually("haproxy listens", || TcpStream::connect(balancer).is_ok());

    let proxy = |address: &dyn std::fmt::Display| format!("http://billing:TOKEN@{address}");
    let url = format!("http://{HOST}:{}/in", receiver.port());
    let send = |client: &str| curl(&["--interface", client, "--proxy", &proxy(&balancer), &url]);
    assert_eq!(send("127.0.2.9"), "ok\n200");
    let refused = send("127.0.3.9");
    assert!(refused.contains("client_forbidden"), "a client of another network: {refused}");
    let received = receiver.requests();
    assert_eq!(received.len(), 1, "{received:?}");
    verify_with_public_key(&received[0], &outgate.folder);
    let records = outgate.records(2);
    let (first, second) = (&records[0], &records[1]);
    assert_eq!((&first["client"], &first["peer"]), (&"billing".into(), &"127.0.2.9".into()), "{first}");
    assert_eq!((&second["code"], &second["peer"]), (&"client_forbidden".into(), &"127.0.3.9".into()), "{second}");
    // A client that goes past the load balancer has no header.
    let direct = curl(&["--interface", "127.0.2.9", "--proxy", &proxy(&outgate.proxy), &url]);
    assert!(direct.ends_with("(52) Empty reply from server\n") || direct.contains("reset by peer"), "{direct}");

    let mut drain = Command::new(env!("CARGO_BIN_EXE_outgate"));
    drain.arg("drain").arg("--admin").arg(format!("unix:{}", outgate.folder.path("admin.sock").display()));
    assert!(drain.output().unwrap().status.success());
    // In the grace time outgate still serves, but haproxy has no host left to send to.
    eventually("haproxy takes the host out of service", || send("127.0.2.9").contains("\n000"));
}

/// The two hosts of the README, each at its own address of one namespace.
struct Hosts {
    outgates: [Outgate; 2],
    receiver: Receiver,
}

/// The hosts, with haproxy before them.
struct HostsBehindHaproxy {
    hosts: Hosts,
    _haproxy: Process,
    socket: PathBuf,
}

/// Starts the hosts with the files as they are, apart from the token, the target and the peer of the load balancer's
/// connections. `egress-1` has 198.51.100.16/28, and `egress-2` 198.51.100.32/28.
fn hosts() -> Hosts {
    for address in ["10.0.0.2", "10.0.0.5", "10.0.0.6", "10.1.0.9", "192.0.2.1"] {
        run(&format!("ip addr add {address}/32 dev lo"));
    }
    let pki = Pki::new();
    let receiver = Receiver::tls_at("192.0.2.1:443", pki.leaf(&[HOST]), ok());
    let outgates = [("10.0.0.5", "198.51.100.16/28"), ("10.0.0.6", "198.51.100.32/28")].map(|(address, range)| {
        run(&format!("ip route add local {range} dev lo"));
        let folder = folder_with(&pki);
        new_key(&folder, "key.pem");
        let text = config("load-balancers/config.toml")
            .set("server.listen", [format!("{address}:4750")])
            // On one host, a load balancer connects from the address to which it connects.
            .set("server.proxy_protocol.from", [address])
            .add("server.max_deliveries", 8)
            .set("admin.listen", [format!("{address}:4751")])
            .set("admin.agent", [format!("{address}:4753")])
            .set("egress.default.ranges", [range])
            .set("clients.billing.tokens", [token_hash("TOKEN")])
            .set(
                "signers.platform.keys",
                [toml::toml! {
                    id = "2026-11"
                    secret = "file:{dir}/key.pem"
                }],
            )
            .and(&format!("[guard]\nallow = [\"192.0.2.1/32\"]\n[resolver.hosts]\n{HOST:?} = [\"192.0.2.1\"]\n"))
            .and("[trust.public]\nroots = [\"{dir}/ca.pem\"]\n");
        Outgate::run(folder, &text)
    });
    Hosts { outgates, receiver }
}

fn hosts_behind_haproxy() -> HostsBehindHaproxy {
    let hosts = hosts();
    let folder = &hosts.outgates[0].folder;
    let socket = folder.path("haproxy.sock");
    let file = std::fs::read_to_string(path("load-balancers/haproxy.cfg")).unwrap();
    let stats = format!("global\n    stats socket {} level admin\n    log stderr", socket.display());
    let file = folder.write("haproxy.cfg", file.replace_one("global\n    log stderr", &stats));
    let mut command = Command::new("haproxy");
    let haproxy = Process::start(command.args(["-db", "-f"]).arg(file).stderr(Stdio::null()));
    let behind = HostsBehindHaproxy { hosts, _haproxy: haproxy, socket };
    eventually("haproxy listens", || UnixStream::connect(&behind.socket).is_ok());
    behind.wait_for("egress-1", "UP", 100);
    behind.wait_for("egress-2", "UP", 100);
    behind
}

impl HostsBehindHaproxy {
    /// Returns the status and the weight of a server, as haproxy's runtime API has them.
    fn server(&self, name: &str) -> (String, u32) {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.write_all(b"show stat\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let mut lines = text.lines().map(|line| line.trim_start_matches("# ").split(',').collect::<Vec<_>>());
        let titles = lines.next().unwrap();
        let row = lines.find(|row| row.get(1) == Some(&name)).unwrap_or_else(|| panic!("no {name}: {text}"));
        let cell = |title: &str| row[titles.iter().position(|other| *other == title).unwrap()];
        (cell("status").to_owned(), cell("weight").parse().unwrap())
    }

    fn wait_for(&self, name: &str, status: &str, weight: u32) {
        let mut found = Default::default();
        eventually(&format!("haproxy has {name} as {status} {weight}"), || {
            found = self.server(name);
            found.0.starts_with(status) && found.1 == weight
        });
    }
}

impl Hosts {
    /// Sends webhooks through the load balancer, each over a new connection. Each must be delivered. Returns how many came
    /// from each host.
    fn send(&self, count: usize) -> [usize; 2] {
        let before = self.receiver.requests().len();
        for _ in 0..count {
            assert_eq!(send_one(), "ok\n200");
        }
        let requests = self.receiver.requests();
        let of = |range: &str| {
            let range: ipnet::IpNet = range.parse().unwrap();
            requests[before..].iter().filter(|request| range.contains(&request.from)).count()
        };
        let counts = [of("198.51.100.16/28"), of("198.51.100.32/28")];
        assert_eq!(counts.iter().sum::<usize>(), count);
        counts
    }
}

/// Sends a webhook through the load balancer, and returns the body and the status of its response.
fn send_one() -> String {
    let url = format!("http://{HOST}/in");
    curl(&["--interface", "10.1.0.9", "--proxy", "http://billing:TOKEN@10.0.0.2:4750", &url])
}

/// Starts a delivery through `egress-1` that is in flight until its client sends the body.
fn in_flight() -> Client {
    let mut client = Client::connect("10.0.0.5:4750".parse().unwrap());
    client.send(format!(
        "PROXY TCP4 10.1.0.9 10.0.0.5 40000 4750\r\nPOST http://{HOST}/in HTTP/1.1\r\nHost: {HOST}\r\nOutgate-TLS: 1\r\n\
         Proxy-Authorization: Bearer TOKEN\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n"
    ));
    assert_eq!(client.next_response("POST").status, 100);
    client
}

#[test]
fn haproxy_shifts_traffic_before_an_instance_refuses_it() {
    const NAME: &str = "examples::load_balancers::haproxy_shifts_traffic_before_an_instance_refuses_it";
    if !has("haproxy", "-v") || !has("curl", "--version") || !inside_namespace(NAME) {
        return;
    }
    let behind = hosts_behind_haproxy();
    let hosts = &behind.hosts;
    assert_eq!(hosts.send(20), [10, 10]);

    // Overload: seven of eight places are taken.
    let mut clients: Vec<_> = (0..7).map(|_| in_flight()).collect();
    behind.wait_for("egress-1", "UP", 25);
    let [loaded, other] = hosts.send(50);
    assert!(loaded <= 15 && other >= 35, "{loaded} of 50 went to the loaded host");
    for client in &mut clients {
        client.send("x");
        assert_eq!(client.response().status, 200);
    }
    behind.wait_for("egress-1", "UP", 100);

    // Half of the addresses are lost, and then all.
    run("ip route del local 198.51.100.16/28 dev lo");
    run("ip route add local 198.51.100.16/29 dev lo");
    behind.wait_for("egress-1", "UP", 50);
    let [lost, other] = hosts.send(30);
    assert!(lost <= 12 && other >= 18, "{lost} of 30 went to the host that lost addresses");
    run("ip route del local 198.51.100.16/29 dev lo");
    eventually("haproxy takes the host out", || {
        behind.server("egress-1").1 == 0 || !behind.server("egress-1").0.starts_with("UP")
    });
    assert_eq!(hosts.send(10), [0, 10]);
    run("ip route add local 198.51.100.16/28 dev lo");
    behind.wait_for("egress-1", "UP", 100);
    let [back, _] = hosts.send(20);
    assert!(back >= 8, "{back} of 20 went to the host whose addresses are back");
    for outgate in &hosts.outgates {
        assert!(outgate.has_metric("outgate_deliveries_shed_total 0"));
    }

    // nginx gets the weights from its script, and AWS reads a status.
    if !has("nginx", "-v") {
        return;
    }
    let folder = &hosts.outgates[0].folder;
    let servers = folder.path("outgate-servers.conf");
    let update = || {
        let mut script = Command::new(path("load-balancers/nginx-servers"));
        script.args(["10.0.0.5", "10.0.0.6"]).env("SERVERS_FILE", &servers).env("NGINX", "true");
        assert!(script.status().unwrap().success());
        std::fs::read_to_string(&servers).unwrap()
    };
    let line = |address: &str, how: &str| format!("server {address}:4750 {how} max_fails=1 fail_timeout=5s;\n");
    assert_eq!(update(), line("10.0.0.5", "weight=10") + &line("10.0.0.6", "weight=10"));
    let file = std::fs::read_to_string(path("load-balancers/nginx.conf")).unwrap();
    let file =
        folder.write("nginx.conf", file.replace_one("/etc/nginx/outgate-servers.conf", servers.to_str().unwrap()));
    let tested = Command::new("nginx").arg("-t").arg("-c").arg(file).output().unwrap();
    assert!(tested.status.success(), "{}", String::from_utf8_lossy(&tested.stderr));

    let group = std::fs::read_to_string(path("load-balancers/aws-target-group.json")).unwrap();
    let group: serde_json::Value = serde_json::from_str(&group).unwrap();
    let path = group["HealthCheckPath"].as_str().unwrap();
    let health = || hosts.outgates.each_ref().map(|outgate| outgate.admin(path).status.to_string());
    assert_eq!(group["HealthCheckPort"], hosts.outgates[0].admin.port().to_string());
    let expected = group["Matcher"]["HttpCode"].as_str().unwrap();
    assert_eq!(health(), [expected, expected]);
    let _clients: Vec<_> = (0..8).map(|_| in_flight()).collect();
    assert_eq!(health(), ["503", expected]);
    assert_eq!(update(), line("10.0.0.5", "weight=1") + &line("10.0.0.6", "weight=10"));
    run("ip route del local 198.51.100.16/28 dev lo");
    eventually("the host has no address", || update().starts_with("server 10.0.0.5:4750 down;\n"));
    run("ip route del local 198.51.100.32/28 dev lo");
    let some = "server 10.0.0.5:4750 weight=1;\nserver 10.0.0.6:4750 weight=1;\n";
    eventually("nginx keeps the hosts if none has an address", || update() == some);
}

/// Envoy reads `/loadz` of both hosts, also while it has no traffic.
#[test]
fn envoy_shifts_traffic_before_an_instance_refuses_it() {
    const NAME: &str = "examples::load_balancers::envoy_shifts_traffic_before_an_instance_refuses_it";
    let Some(clients) = InstalledClients::open() else { return };
    if !inside_namespace(NAME) {
        return;
    }
    let hosts = hosts();
    hosts.outgates.iter().for_each(|outgate| outgate.wait_for_metric("outgate_load_weight 100"));
    let mut envoy = clients.envoy();
    envoy.args(["--concurrency", "1", "--disable-hot-restart", "-c"]).arg(path("load-balancers/envoy.yaml"));
    let _envoy = Process::start(envoy.stderr(Stdio::null()));
    eventually("Envoy listens", || TcpStream::connect("10.0.0.2:4750").is_ok());
    eventually("Envoy sends to both hosts", || hosts.send(4).iter().all(|count| *count > 0));

    // A quarter of the addresses is left: the host is degraded. One healthy host of two gets 70 % of the traffic: Envoy's
    // overprovisioning factor is 1.4.
    run("ip route add local 198.51.100.16/30 dev lo");
    run("ip route del local 198.51.100.16/28 dev lo");
    hosts.outgates[0].wait_for_metric("outgate_load_weight 25");
    eventually("Envoy prefers the other host", || hosts.send(100)[0] <= 35);
    run("ip route del local 198.51.100.16/30 dev lo");
    // Until the next check, Envoy sends some to the host without addresses, which refuses them.
    eventually("Envoy takes the host out", || (0..50).all(|_| send_one() == "ok\n200"));
    assert_eq!(hosts.send(10), [0, 10]);
    run("ip route add local 198.51.100.16/28 dev lo");
    eventually("Envoy sends to both hosts again", || hosts.send(4).iter().all(|count| *count > 0));
    for outgate in &hosts.outgates {
        assert!(outgate.has_metric("outgate_deliveries_shed_total 0"));
    }
}
