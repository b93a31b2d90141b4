//! Reads the settings of listeners: address, TLS, the PROXY protocol, and the CA of inspected tunnels.
//! How may clients connect?

use ipnet::IpNet;

use super::WarningCode;
use super::problem::Problem;
use super::reader::{Reader, Table, Value};
use super::schema::Schema;
use super::{Listen, Located, PemFile, Secret, Server, pem, schema, secret, units};

/// One entry of `listen`: an address and its own settings.
#[derive(Clone, Debug)]
pub struct Bind {
    pub address: Listen,
    pub tls: BindTls,
    /// The protocols that TLS offers; `None`: HTTP/2 and HTTP/1.1.
    pub alpn: Option<Vec<Alpn>>,
    /// Permissions of a unix socket; `None`: 0660.
    pub mode: Option<u32>,
    /// Group of a unix socket, by name or number; `None`: that of the process.
    pub group: Option<Located<String>>,
}

/// TLS of one listener.
#[derive(Clone, Debug)]
pub enum BindTls {
    /// The TLS of `server.tls`, if that is set.
    Inherited,
    Off,
    Own(Box<Located<ListenerTls>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    Http2,
    Http1,
}

impl Bind {
    /// Creates a listener without settings of its own.
    pub fn new(address: Listen) -> Self {
        Self { address, tls: BindTls::Inherited, alpn: None, mode: None, group: None }
    }

    fn has_own_settings(&self) -> bool {
        !matches!(self.tls, BindTls::Inherited) || self.alpn.is_some()
    }
}

impl Server {
    /// Returns the TLS settings of all listeners for clients, the shared one once.
    pub fn all_tls(&self) -> impl Iterator<Item = &Located<ListenerTls>> {
        self.tls.iter().chain(own_tls(&self.listen))
    }
}

/// Returns the TLS settings that listeners have of their own.
pub fn own_tls(listen: &[Located<Bind>]) -> impl Iterator<Item = &Located<ListenerTls>> {
    listen.iter().filter_map(|bind| match &bind.tls {
        BindTls::Own(tls) => Some(&**tls),
        BindTls::Inherited | BindTls::Off => None,
    })
}

/// The certificate that clients get, and the CA of certificates that clients may send.
#[derive(Clone, Debug)]
pub struct ListenerTls {
    /// The chain, the leaf first.
    pub certificate: Located<PemFile>,
    /// The private key in PEM.
    pub key: Located<Secret>,
    pub client_ca: Option<Located<PemFile>>,
    pub client_crls: Vec<Located<PemFile>>,
}

/// The peers that must send a PROXY header, which outgate believes.
#[derive(Clone, Debug)]
pub enum ProxyProtocol {
    /// Every peer. Valid only if all listeners are local to the host.
    AnyPeer,
    From(Vec<Located<IpNet>>),
}

/// The CA that issues certificates for inspected tunnels.
#[derive(Clone, Debug)]
pub struct Ca {
    /// The CA certificate, followed by intermediates up to the root that clients trust.
    pub certificate: Located<PemFile>,
    /// The private key in PEM.
    pub key: Located<Secret>,
}

pub(super) fn read_tls(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<ListenerTls>> {
    let table = Table::open(reader, value, &schema::SERVER_TLS)?;
    table.require(
        reader,
        "certificate",
        "write certificate = \"listener.pem\": the chain that outgate sends to clients",
    );
    table.require(reader, "key", "write key = \"listener.key\", or \"credential:NAME\" (systemd)");
    let certificate = table.read(reader, "certificate", pem::read_certificates);
    let key = table.read(reader, "key", secret::read_key);
    let client_ca = table.read(reader, "client_ca", pem::read_certificates);
    let client_crls = table.read_list(reader, "client_crls", None, pem::read_revocation_lists).unwrap_or_default();
    if let (None, Some(crls)) = (table.get("client_ca"), table.get("client_crls").filter(|_| !client_crls.is_empty())) {
        let problem = Problem::at(crls.span, "`client_crls` has no effect without `client_ca`");
        reader.problems.push(problem.help("add client_ca, or remove client_crls"));
    }
    Some(value.located(ListenerTls { certificate: certificate?, key: key?, client_ca, client_crls }))
}

/// Reads an entry of `server.listen`: an address, or a table with an address and settings.
pub(super) fn read_server_listen(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<Bind>> {
    let (table, bind) = read_bind(reader, value, &schema::SERVER_LISTEN)?;
    let Some(table) = table else { return Some(value.located(bind)) };
    let read_tls_off = |reader: &mut Reader<'_>, value: &Value<'_>| {
        let is_on = reader.boolean(value)?.value;
        if is_on {
            let problem = Problem::at(value.span, "`tls` names no certificate");
            reader.problems.push(problem.help("write { certificate = …, key = … }, or remove `tls` to use server.tls"));
        }
        (!is_on).then_some(BindTls::Off)
    };
    let tls = table.read(reader, "tls", |reader, value| match value.is_boolean() {
        true => read_tls_off(reader, value),
        false => read_tls(reader, value).map(|tls| BindTls::Own(Box::new(tls))),
    });
    let choices = [("h2", Alpn::Http2), ("http/1.1", Alpn::Http1)];
    let if_empty = Some("write [\"h2\", \"http/1.1\"], or one of them");
    let alpn =
        table.read_list(reader, "alpn", if_empty, |reader, value| Some(reader.parse_choice(value, &choices)?.value));
    reject_on_unix_socket(reader, &table, &bind.address, &["tls", "alpn"]);
    Some(value.located(Bind { tls: tls.unwrap_or(BindTls::Inherited), alpn, ..bind }))
}

/// Reads an entry of `admin.listen`, which has TLS only if the entry itself says so.
pub(super) fn read_admin_listen(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<Bind>> {
    let bind = read_own_tls_bind(reader, value, &schema::ADMIN_LISTEN)?;
    if bind.mode.is_some_and(|mode| mode & 0o002 != 0) {
        let message = "every user of this host can change the proxy's configuration through this socket";
        let help = "write a mode without permissions for others, \"0660\", and a group";
        reader.problems.push(Problem::warning(WarningCode::AdminSocketMode, Some(value.span), message).help(help));
    }
    Some(value.located(bind))
}

/// Reads an entry of `admin.agent`: an address and port, since an agent check uses TCP without TLS.
pub(super) fn read_agent_listen(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<Bind>> {
    let address = reader.parse(value, units::listen)?;
    if !matches!(address.value, Listen::Tcp(_)) {
        let problem = Problem::at(value.span, format!("`{}` is no address and port", address.value));
        reader
            .problems
            .push(problem.help("write an address and port, \"10.0.0.5:4753\": load balancers check over TCP"));
        return None;
    }
    Some(value.located(Bind::new(address.value)))
}

/// Reads an entry of `publish.listen`.
pub(super) fn read_publish_listen(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<Bind>> {
    let bind = read_own_tls_bind(reader, value, &schema::PUBLISH_LISTEN)?;
    if bind.address == Listen::Systemd {
        let problem = Problem::at(value.span, "`publish.listen` takes no socket of systemd");
        reader.problems.push(problem.help("write an address, \"0.0.0.0:8443\"; systemd passes those of server.listen"));
        return None;
    }
    Some(value.located(bind))
}

/// Reads an entry that has TLS only if it says so itself.
fn read_own_tls_bind(reader: &mut Reader<'_>, value: &Value<'_>, schema: &'static Schema) -> Option<Bind> {
    let (table, bind) = read_bind(reader, value, schema)?;
    let tls = table.and_then(|table| {
        reject_on_unix_socket(reader, &table, &bind.address, &["tls"]);
        table.read(reader, "tls", read_tls)
    });
    Some(Bind { tls: tls.map_or(BindTls::Inherited, |tls| BindTls::Own(Box::new(tls))), ..bind })
}

fn reject_on_unix_socket(reader: &mut Reader<'_>, table: &Table<'_>, address: &Listen, keys: &[&str]) {
    for key in keys {
        if let (Listen::Unix(_), Some(value)) = (address, table.get(key)) {
            let problem = Problem::at(value.span, format!("`{key}` is set for a unix socket, which has no TLS"));
            reader.problems.push(problem.help("remove the key"));
        }
    }
}

/// Reads an entry. The table is `None` if the entry is only an address.
fn read_bind<'a>(
    reader: &mut Reader<'_>,
    value: &Value<'a>,
    schema: &'static Schema,
) -> Option<(Option<Table<'a>>, Bind)> {
    if !value.is_table() {
        let address = reader.parse(value, units::listen)?;
        return Some((None, Bind::new(address.value)));
    }
    let table = Table::open(reader, value, schema)?;
    table.require(reader, "address", "write address = \"0.0.0.0:4750\" or \"unix:/path\"");
    let address = table.read(reader, "address", |reader, value| reader.parse(value, units::listen));
    let mode = table.read(reader, "mode", |reader, value| reader.parse(value, units::mode));
    let group =
        table.read(reader, "group", |reader, value| reader.text(value).map(|text| value.located(text.to_owned())));
    let address = address?.value;
    for key in ["mode", "group"] {
        if let (false, Some(value)) = (matches!(address, Listen::Unix(_)), table.get(key)) {
            let problem = Problem::at(value.span, format!("`{key}` applies only to unix sockets"));
            let help = "remove the key; a socket unit of systemd has SocketMode= and SocketGroup=";
            reader.problems.push(problem.help(help));
        }
    }
    Some((Some(table), Bind { mode: mode.map(|mode| mode.value), group, ..Bind::new(address) }))
}

/// Reports two entries of the lists with the same socket. Port 0 is another port each time, but two such entries may not have
/// settings, because nothing tells them apart.
pub(super) fn reject_duplicate_sockets(reader: &mut Reader<'_>, lists: [&Vec<Located<Bind>>; 4]) {
    let mut seen: Vec<&Located<Bind>> = Vec::new();
    for bind in lists.into_iter().flatten() {
        let is_any_port = matches!(bind.address, Listen::Tcp(address) if address.port() == 0);
        match seen.iter().find(|other| other.address == bind.address) {
            Some(other) if !is_any_port || bind.has_own_settings() || other.has_own_settings() => {
                let problem = Problem::at(bind.span, format!("two listeners have the socket {}", bind.address))
                    .label("again here");
                reader
                    .problems
                    .push(problem.related(other.span, "first here").help("give each listener its own port or path"));
            }
            _ => seen.push(bind),
        }
    }
}

pub(super) fn read_ca(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<Ca>> {
    let table = Table::open(reader, value, &schema::SERVER_CA)?;
    table.require(reader, "certificate", "write certificate = \"ca.pem\": `outgate ca new` makes it");
    table.require(reader, "key", "write key = \"ca.key\", or \"credential:NAME\" (systemd)");
    let certificate = table.read(reader, "certificate", pem::read_certificates);
    let key = table.read(reader, "key", secret::read_key);
    Some(value.located(Ca { certificate: certificate?, key: key? }))
}

/// Reads `false`, `true`, or the networks that send PROXY headers. `true` lets every client claim any address, so it
/// requires local listeners.
pub(super) fn read_proxy_protocol(
    reader: &mut Reader<'_>,
    value: &Value<'_>,
    listen: &[Located<Bind>],
) -> Option<Located<ProxyProtocol>> {
    const HELP: &str = "write false, or { from = [\"10.0.0.0/8\"] } with the networks of your load balancers";
    if value.is_table() {
        let table = Table::open(reader, value, &schema::PROXY_PROTOCOL)?;
        table.require(reader, "from", HELP);
        let read = |reader: &mut Reader<'_>, value: &Value<'_>| reader.parse(value, units::network);
        let from = table.read_list(reader, "from", Some(HELP), read)?;
        return Some(value.located(ProxyProtocol::From(from)));
    }
    if !value.is_boolean() {
        reader.wrong_type(value, "false or a table", HELP);
        return None;
    }
    if !reader.boolean(value)?.value {
        return None;
    }
    if let Some(exposed) = listen.iter().find(|bind| !is_local(&bind.address)) {
        let problem = Problem::at(value.span, "every client that can connect could claim any client address")
            .related(exposed.span, "other hosts can connect here");
        reader.problems.push(problem.help(HELP));
        return None;
    }
    Some(value.located(ProxyProtocol::AnyPeer))
}

/// Returns whether only processes of this host can connect. The addresses of systemd's sockets are unknown.
fn is_local(listen: &Listen) -> bool {
    match listen {
        Listen::Tcp(address) => address.ip().to_canonical().is_loopback(),
        Listen::Unix(_) => true,
        Listen::Systemd => false,
    }
}
