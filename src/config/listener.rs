//! What a listener does before HTTP: TLS, and the PROXY protocol; and what it does inside of tunnels.
//! Who may connect how?

use ipnet::IpNet;

use super::problem::Problem;
use super::read::{Reader, Table, Value};
use super::{At, Listen, PemFile, Secret, keys, pem, secret, units};

/// What clients are shown, and what they may show.
#[derive(Clone, Debug)]
pub struct ListenerTls {
    /// The leaf first.
    pub certificate: At<PemFile>,
    /// In PEM.
    pub key: At<Secret>,
    pub client_ca: Option<At<PemFile>>,
    pub client_crls: Vec<At<PemFile>>,
}

/// Who must say, and is believed, for whom a connection is.
#[derive(Clone, Debug)]
pub enum ProxyProtocol {
    /// Whoever can connect: only this host's own processes can.
    Anyone,
    From(Vec<At<IpNet>>),
}

/// Our own authority, in whose name inspected tunnels are answered.
#[derive(Clone, Debug)]
pub struct Ca {
    /// It, and whoever stands between it and the one that clients trust.
    pub certificate: At<PemFile>,
    /// In PEM.
    pub key: At<Secret>,
}

pub(super) fn tls(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<At<ListenerTls>> {
    let table = Table::open(reader, value, &keys::SERVER_TLS)?;
    table.require(reader, "certificate", "write certificate = \"listener.pem\": the chain that clients are shown");
    table.require(reader, "key", "write key = \"listener.key\", or \"credential:NAME\" (systemd)");
    let certificate = table.one(reader, "certificate", pem::certificates);
    let key = table.one(reader, "key", secret::read_key);
    let client_ca = table.one(reader, "client_ca", pem::certificates);
    let client_crls = table.many(reader, "client_crls", None, pem::revocation_lists).unwrap_or_default();
    if let (None, Some(crls)) = (table.get("client_ca"), table.get("client_crls").filter(|_| !client_crls.is_empty())) {
        let problem = Problem::at(crls.place, "nobody's certificates could be revoked: there is no `client_ca`");
        reader.problems.push(problem.help("add client_ca, or leave client_crls out"));
    }
    Some(value.at(ListenerTls { certificate: certificate?, key: key?, client_ca, client_crls }))
}

pub(super) fn ca(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<At<Ca>> {
    let table = Table::open(reader, value, &keys::SERVER_CA)?;
    table.require(reader, "certificate", "write certificate = \"ca.pem\": `outgate ca new` makes it");
    table.require(reader, "key", "write key = \"ca.key\", or \"credential:NAME\" (systemd)");
    let certificate = table.one(reader, "certificate", pem::certificates);
    let key = table.one(reader, "key", secret::read_key);
    Some(value.at(Ca { certificate: certificate?, key: key? }))
}

/// `false`, or who may send it. A bare `true` would let whoever connects say that they are somebody else.
pub(super) fn proxy_protocol(
    reader: &mut Reader<'_>,
    value: &Value<'_>,
    listen: &[At<Listen>],
) -> Option<At<ProxyProtocol>> {
    const HELP: &str = "write false, or { from = [\"10.0.0.0/8\"] } with the networks of your load balancers";
    if value.is_table() {
        let table = Table::open(reader, value, &keys::PROXY_PROTOCOL)?;
        table.require(reader, "from", HELP);
        let read = |reader: &mut Reader<'_>, value: &Value<'_>| reader.parsed(value, units::network);
        let from = table.many(reader, "from", Some(HELP), read)?;
        return Some(value.at(ProxyProtocol::From(from)));
    }
    if !value.is_boolean() {
        reader.wrong_type(value, "false or a table", HELP);
        return None;
    }
    if !reader.boolean(value)?.value {
        return None;
    }
    if let Some(open) = listen.iter().find(|listen| !is_of_this_host(listen)) {
        let problem = Problem::at(value.place, "anybody could claim any address").also(open.place, "reached from here");
        reader.problems.push(problem.help(HELP));
        return None;
    }
    Some(value.at(ProxyProtocol::Anyone))
}

/// Where systemd's sockets listen is not known here.
fn is_of_this_host(listen: &Listen) -> bool {
    match listen {
        Listen::Tcp(address) => address.ip().to_canonical().is_loopback(),
        Listen::Unix(_) => true,
        Listen::Systemd => false,
    }
}
