//! The sections that stand once, in the main file: server, admin, guard, resolver, timeouts, circuit.
//! How does the proxy itself behave?

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::problem::{Problem, SourceSpan};
use super::read::{Reader, Table, Value};
use super::{
    Admin, Bind, Circuit, DeniedNetwork, Guard, Listen, Located, Resolver, Server, Timeouts, keys, listener, units,
};
use crate::host;
use crate::names::Host;

/// More connections than any host has file descriptors for.
const CONNECTIONS_MAX: u32 = 1_000_000;
const WORKERS_MAX: u32 = 1024;
/// Each is read when they are listed.
const HISTORY_MAX: u32 = 10_000;
/// Who waits for more does not mean a circuit.
const FAILURES_MAX: u32 = 1_000_000;

pub(super) fn server(reader: &mut Reader<'_>, file: &Table<'_>) -> Server {
    let table = file.section(reader, "server", &keys::SERVER);
    let if_empty = Some("write at least one socket, \"127.0.0.1:4750\"");
    let name = table.one(reader, "name", |reader, value| reader.parsed(value, units::pseudonym));
    let listen = table.many(reader, "listen", if_empty, listener::server_listen);
    let tls = table.one(reader, "tls", listener::tls);
    let ca = table.one(reader, "ca", listener::ca);
    let listen = listen.unwrap_or_else(|| vec![Located { value: loopback(4750), span: table.span }]);
    let proxy_protocol =
        table.one(reader, "proxy_protocol", |reader, value| listener::proxy_protocol(reader, value, &listen));
    let allow_anonymous = table.one(reader, "allow_anonymous", |reader, value| reader.boolean(value));
    let mut connections = |key| table.one(reader, key, |reader, value| reader.integer(value, 1..=CONNECTIONS_MAX));
    let (max_connections, max_connections_per_ip) =
        (connections("max_connections"), connections("max_connections_per_ip"));
    let max_deliveries = connections("max_deliveries");
    let drain_timeout = table.one(reader, "drain_timeout", |reader, value| reader.parsed(value, units::duration));
    let reuse_port = table.one(reader, "reuse_port", |reader, value| reader.boolean(value));
    let workers = table.one(reader, "workers", |reader, value| reader.integer(value, 1..=WORKERS_MAX));
    let state = table.one(reader, "state", |reader, value| state(reader, value));
    let history = table.one(reader, "history", |reader, value| reader.integer(value, 1..=HISTORY_MAX));
    let watch = table.one(reader, "watch", |reader, value| reader.boolean(value));
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
        drain_timeout: drain_timeout.map_or(Duration::from_secs(30), |timeout| timeout.value),
        reuse_port: reuse_port.is_some_and(|reuse_port| reuse_port.value),
        workers: workers.map(|workers| workers.value as usize),
        watch: watch.is_none_or(|watch| watch.value),
        state: state.map(|state| state.value),
        history: history.map_or(100, |history| history.value as usize),
    }
}

fn state(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<PathBuf>> {
    let text = reader.text(value)?;
    if text.is_empty() {
        let problem = Problem::at(value.span, "`server.state` is empty");
        reader.problems.push(problem.help("write the path of a directory, \"/var/lib/outgate\""));
        return None;
    }
    Some(value.at(reader.resolve(value.span, text)))
}

fn loopback(port: u16) -> Bind {
    Bind::plain(Listen::Tcp(([127, 0, 0, 1], port).into()))
}

pub(super) fn admin(reader: &mut Reader<'_>, file: &Table<'_>) -> Admin {
    let table = file.section(reader, "admin", &keys::ADMIN);
    let listen = table.many(reader, "listen", None, listener::admin_listen);
    let hosts = table.many(reader, "hosts", None, admin_host).unwrap_or_default();
    Admin { listen: listen.unwrap_or_else(|| vec![Located { value: loopback(4751), span: table.span }]), hosts }
}

fn admin_host(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Host> {
    let text = reader.text(value)?;
    match host::canonical(text) {
        Ok(host @ Host::Name(_)) => Some(host),
        Ok(Host::Ip(_)) => {
            let problem = Problem::at(value.span, "an address is always a name of the admin listener");
            reader.problems.push(problem.help("leave it out"));
            None
        }
        Err(error) => {
            let problem = Problem::at(value.span, format!("`{text}` is not a host name")).label(error.to_string());
            reader.problems.push(problem.help("write the name that scrapers send in Host, without a port"));
            None
        }
    }
}

pub(super) fn guard(reader: &mut Reader<'_>, file: &Table<'_>) -> Guard {
    let table = file.section(reader, "guard", &keys::GUARD);
    let mut networks =
        |key| table.many(reader, key, None, |reader, value| reader.parsed(value, units::network)).unwrap_or_default();
    let allow = networks("allow");
    let deny = table.many(reader, "deny", None, denied).unwrap_or_default();
    let ports = table.many(reader, "ports", None, |reader, value| reader.port(value));
    Guard { allow, deny, ports: ports.unwrap_or_else(|| vec![Located { value: 443, span: table.span }]) }
}

/// A network alone, or one that only reports.
fn denied(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<DeniedNetwork>> {
    if !value.is_table() {
        let cidr = reader.parsed(value, units::network)?;
        return Some(value.at(DeniedNetwork { cidr: cidr.value, report_only: false }));
    }
    let table = Table::open(reader, value, &keys::DENIED)?;
    table.require(reader, "cidr", "write cidr = \"203.0.113.0/24\"");
    let cidr = table.one(reader, "cidr", |reader, value| reader.parsed(value, units::network));
    let report_only = table.one(reader, "report_only", |reader, value| reader.boolean(value));
    Some(
        value.at(DeniedNetwork {
            cidr: cidr?.value,
            report_only: report_only.is_some_and(|report_only| report_only.value),
        }),
    )
}

pub(super) fn resolver(reader: &mut Reader<'_>, file: &Table<'_>) -> Resolver {
    let table = file.section(reader, "resolver", &keys::RESOLVER);
    let servers = table.many(reader, "servers", None, |reader, value| reader.parsed(value, units::server));
    let mut hosts = BTreeMap::new();
    // The same name may be written twice in two spellings.
    let mut first: BTreeMap<Host, SourceSpan> = BTreeMap::new();
    let members = table.get("hosts").map(|value| reader.members(&value, "write { \"NAME\" = [\"ADDRESS\"] }"));
    for (name, value) in members.unwrap_or_default() {
        let if_empty = Some("write the host's addresses, or leave the name out");
        let addresses = reader.list(&value, if_empty).unwrap_or_default();
        let addresses = addresses.iter().filter_map(|value| reader.parsed(value, units::host_address));
        let addresses: Vec<IpAddr> = addresses.map(|address| address.value).collect();
        match host::canonical(&name) {
            Ok(host @ Host::Name(_)) => {
                if let Some(first) = first.insert(host.clone(), name.span) {
                    let problem = Problem::at(name.span, format!("`{host}` has its addresses twice"));
                    reader.problems.push(problem.label("again here").also(first, "first here").help("write one list"));
                }
                hosts.insert(host, addresses);
            }
            Ok(Host::Ip(_)) => {
                let problem = Problem::at(name.span, "an address has no addresses of its own");
                reader.problems.push(problem.help("write a host name"));
            }
            Err(error) => {
                let problem = Problem::at(name.span, format!("`{}` is not a host name", name.value));
                reader.problems.push(problem.label(error.to_string()).help("write a name as in DNS"));
            }
        }
    }
    Resolver { servers: servers.unwrap_or_default(), hosts }
}

pub(super) fn timeouts(reader: &mut Reader<'_>, file: &Table<'_>) -> Timeouts {
    let table = file.section(reader, "timeouts", &keys::TIMEOUTS);
    let mut seconds = |key, default| {
        let written = table.one(reader, key, |reader, value| reader.parsed(value, units::positive_duration));
        written.map_or(Duration::from_secs(default), |duration| duration.value)
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

pub(super) fn circuit(reader: &mut Reader<'_>, file: &Table<'_>) -> Circuit {
    let table = file.section(reader, "circuit", &keys::CIRCUIT);
    let failures = table.one(reader, "failures", |reader, value| reader.integer(value, 0..=FAILURES_MAX));
    let mut seconds = |key, default| {
        let written = table.one(reader, key, |reader, value| reader.parsed(value, units::positive_duration));
        written.unwrap_or(Located { value: Duration::from_secs(default), span: table.span })
    };
    let (window, open, open_max) = (seconds("window", 30), seconds("open", 10), seconds("open_max", 120));
    if open.value > open_max.value {
        let problem = Problem::at(open.span, "a pause that begins longer than it may grow");
        reader.problems.push(problem.also(open_max.span, "the longest").help("write a longer open_max"));
    }
    Circuit {
        failures: failures.map_or(10, |failures| failures.value),
        window: window.value,
        open: open.value,
        open_max: open_max.value,
    }
}
