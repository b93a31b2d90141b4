//! Reads the sections of the main file: server, guard, resolver, timeouts, circuit.
//! How is the process itself configured?

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::problem::{Problem, SourceSpan};
use super::reader::{Reader, Table, Value};
use super::{
    Bind, Circuit, DeniedNetwork, Guard, Listen, Located, Resolver, Server, Timeouts, listener, schema, units,
};
use crate::host;
use crate::names::Host;

/// The most connections to configure, above the file descriptors of any host.
const CONNECTIONS_MAX: u32 = 1_000_000;
const WORKERS_MAX: u32 = 1024;
/// The most configurations in the history, which reads each to list them.
const HISTORY_MAX: u32 = 10_000;
/// The most failures to configure before a circuit opens.
const FAILURES_MAX: u32 = 1_000_000;

pub(super) fn read_server(reader: &mut Reader<'_>, file: &Table<'_>) -> Server {
    let table = file.section(reader, "server", &schema::SERVER);
    let if_empty = Some("write at least one socket, \"127.0.0.1:4750\"");
    let name = table.read(reader, "name", |reader, value| reader.parse(value, units::pseudonym));
    let listen = table.read_list(reader, "listen", if_empty, listener::read_server_listen);
    let tls = table.read(reader, "tls", listener::read_tls);
    let ca = table.read(reader, "ca", listener::read_ca);
    let listen = listen.unwrap_or_else(|| vec![Located { value: loopback(4750), span: table.span }]);
    let proxy_protocol =
        table.read(reader, "proxy_protocol", |reader, value| listener::read_proxy_protocol(reader, value, &listen));
    let allow_anonymous = table.read(reader, "allow_anonymous", |reader, value| reader.boolean(value));
    let mut connections = |key| table.read(reader, key, |reader, value| reader.integer(value, 1..=CONNECTIONS_MAX));
    let (max_connections, max_connections_per_ip) =
        (connections("max_connections"), connections("max_connections_per_ip"));
    let max_deliveries = connections("max_deliveries");
    let mut drain = |key| table.read(reader, key, |reader, value| reader.parse(value, units::duration));
    let (drain_grace, drain_timeout) = (drain("drain_grace"), drain("drain_timeout"));
    let reuse_port = table.read(reader, "reuse_port", |reader, value| reader.boolean(value));
    let workers = table.read(reader, "workers", |reader, value| reader.integer(value, 1..=WORKERS_MAX));
    let state = table.read(reader, "state", |reader, value| read_state_dir(reader, value));
    let history = table.read(reader, "history", |reader, value| reader.integer(value, 1..=HISTORY_MAX));
    let watch = table.read(reader, "watch", |reader, value| reader.boolean(value));
    Server {
        name: name.map_or("outgate".into(), |name| name.value),
        listen,
        tls,
        ca,
        proxy_protocol,
        allow_anonymous: allow_anonymous.unwrap_or(Located { value: false, span: table.span }),
        max_connections: max_connections
            .map(|connections| Located { value: connections.value as usize, span: connections.span }),
        max_connections_per_ip: max_connections_per_ip.map(|connections| connections.value as usize),
        max_deliveries: max_deliveries.map_or(10_000, |deliveries| deliveries.value as usize),
        drain_grace: drain_grace.map_or(Duration::from_secs(30), |grace| grace.value),
        drain_timeout: drain_timeout.map_or(Duration::from_secs(30), |timeout| timeout.value),
        reuse_port: reuse_port.is_some_and(|reuse_port| reuse_port.value),
        workers: workers.map(|workers| workers.value as usize),
        watch: watch.is_none_or(|watch| watch.value),
        state: state.map(|state| state.value),
        history: history.map_or(100, |history| history.value as usize),
    }
}

fn read_state_dir(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<PathBuf>> {
    let text = reader.text(value)?;
    if text.is_empty() {
        let problem = Problem::at(value.span, "`server.state` is empty");
        reader.problems.push(problem.help("write the path of a directory, \"/var/lib/outgate\""));
        return None;
    }
    Some(value.located(reader.resolve_path(value.span, text)))
}

fn loopback(port: u16) -> Bind {
    Bind::new(Listen::Tcp(([127, 0, 0, 1], port).into()))
}

pub(super) fn read_guard(reader: &mut Reader<'_>, file: &Table<'_>) -> Guard {
    let table = file.section(reader, "guard", &schema::GUARD);
    let mut networks = |key| {
        table.read_list(reader, key, None, |reader, value| reader.parse(value, units::network)).unwrap_or_default()
    };
    let allow = networks("allow");
    let deny = table.read_list(reader, "deny", None, read_denied_network).unwrap_or_default();
    let ports = table.read_list(reader, "ports", None, |reader, value| reader.port(value));
    Guard { allow, deny, ports: ports.unwrap_or_else(|| vec![Located { value: 443, span: table.span }]) }
}

/// Reads an entry of `guard.deny`: a network, or a table with `report_only`.
fn read_denied_network(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<DeniedNetwork>> {
    if !value.is_table() {
        let cidr = reader.parse(value, units::network)?;
        return Some(value.located(DeniedNetwork { cidr: cidr.value, report_only: false }));
    }
    let table = Table::open(reader, value, &schema::DENIED)?;
    table.require(reader, "cidr", "write cidr = \"203.0.113.0/24\"");
    let cidr = table.read(reader, "cidr", |reader, value| reader.parse(value, units::network));
    let report_only = table.read(reader, "report_only", |reader, value| reader.boolean(value));
    Some(value.located(DeniedNetwork {
        cidr: cidr?.value,
        report_only: report_only.is_some_and(|report_only| report_only.value),
    }))
}

pub(super) fn read_resolver(reader: &mut Reader<'_>, file: &Table<'_>) -> Resolver {
    let table = file.section(reader, "resolver", &schema::RESOLVER);
    let servers = table.read_list(reader, "servers", None, |reader, value| reader.parse(value, units::server));
    let mut hosts = BTreeMap::new();
    // Two spellings may name the same host.
    let mut first: BTreeMap<Host, SourceSpan> = BTreeMap::new();
    let members = table.get("hosts").map(|value| reader.members(&value, "write { \"NAME\" = [\"ADDRESS\"] }"));
    for (name, value) in members.unwrap_or_default() {
        let if_empty = Some("write the host's addresses, or remove the name");
        let addresses = reader.list(&value, if_empty).unwrap_or_default();
        let addresses = addresses.iter().filter_map(|value| reader.parse(value, units::host_address));
        let addresses: Vec<IpAddr> = addresses.map(|address| address.value).collect();
        match host::canonical(&name) {
            Ok(host @ Host::Name(_)) => {
                if let Some(first) = first.insert(host.clone(), name.span) {
                    let problem = Problem::at(name.span, format!("`resolver.hosts` has {host} twice"));
                    reader.problems.push(
                        problem.label("again here").related(first, "first here").help("write one list of addresses"),
                    );
                }
                hosts.insert(host, addresses);
            }
            Ok(Host::Ip(_)) => {
                let problem = Problem::at(name.span, "`resolver.hosts` has an address in place of a host name");
                reader.problems.push(problem.help("write a host name"));
            }
            Err(error) => {
                let problem = Problem::at(name.span, format!("`{}` is not a host name", name.value));
                reader.problems.push(problem.label(error.to_string()).help("write a DNS name"));
            }
        }
    }
    Resolver { servers: servers.unwrap_or_default(), hosts }
}

pub(super) fn read_timeouts(reader: &mut Reader<'_>, file: &Table<'_>) -> Timeouts {
    let table = file.section(reader, "timeouts", &schema::TIMEOUTS);
    let mut seconds = |key, default| {
        let value = table.read(reader, key, |reader, value| reader.parse(value, units::positive_duration));
        value.map_or(Duration::from_secs(default), |duration| duration.value)
    };
    Timeouts {
        dns: seconds("dns", 3),
        connect: seconds("connect", 5),
        tls: seconds("tls", 5),
        body: seconds("body", 30),
        response: seconds("response", 30),
        idle: seconds("idle", 90),
        total: seconds("total", 120),
        tunnel: seconds("tunnel", 3600),
        reuse: seconds("reuse", 600),
    }
}

pub(super) fn read_circuit(reader: &mut Reader<'_>, file: &Table<'_>) -> Circuit {
    let table = file.section(reader, "circuit", &schema::CIRCUIT);
    let failures = table.read(reader, "failures", |reader, value| reader.integer(value, 0..=FAILURES_MAX));
    let mut seconds = |key, default| {
        let value = table.read(reader, key, |reader, value| reader.parse(value, units::positive_duration));
        value.unwrap_or(Located { value: Duration::from_secs(default), span: table.span })
    };
    let (window, open, open_max) = (seconds("window", 30), seconds("open", 10), seconds("open_max", 120));
    if open.value > open_max.value {
        let problem = Problem::at(open.span, "`circuit.open` is longer than `circuit.open_max`");
        reader.problems.push(
            problem.related(open_max.span, "`open_max` is here").help("write a shorter open or a longer open_max"),
        );
    }
    Circuit {
        failures: failures.map_or(10, |failures| failures.value),
        window: window.value,
        open: open.value,
        open_max: open_max.value,
    }
}
