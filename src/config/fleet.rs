//! Reads the section `fleet`: the store that the instances of a fleet share, and the name of this instance.
//! Where is the state that all egress hosts have in common?

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use http::uri::Authority;

use super::include::text_of;
use super::problem::Problem;
use super::reader::{Reader, Table};
use super::trust::read_identity;
use super::units::ValueError;
use super::{ClientIdentity, Located, PemFile, PublicKey, Secret, captures, pem, public_key, schema, secret, units};
use crate::digest::Fingerprint;
use crate::host;
use crate::names::Host;

const PREFIX_DEFAULT: &str = "outgate";
const WAIT_DEFAULT: Duration = Duration::from_millis(5);
/// A delivery may wait this long for the store. A longer wait would make a slow store an outage of the fleet.
pub const WAIT_MAX: Duration = Duration::from_secs(1);
const TIMEOUT_DEFAULT: Duration = Duration::from_millis(250);
/// The longest `fleet.timeout`.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(10);
/// The shortest `key`, in bytes. Who guesses it opens the tokens in the store.
const KEY_MIN: usize = 32;
const NODES_MAX: usize = 64;
const APPROVE_ABOVE_DEFAULT: usize = 20;
/// A difference lists at most this many changes.
const APPROVE_ABOVE_MAX: u32 = 100;
const PORT_DEFAULT: u16 = 6379;
const SENTINEL_PORT_DEFAULT: u16 = 26379;
/// The databases of a server with its default configuration are 0 to 15; operators raise the number.
const DATABASE_MAX: u32 = 9999;

/// The section `fleet` with a `store`. Without one, each instance keeps its own state.
#[derive(Clone, Debug)]
pub struct Fleet {
    pub store: Located<StoreAddress>,
    /// The ACL user; `None`: `default`.
    pub user: Option<Located<String>>,
    pub password: Option<Located<Secret>>,
    /// The password of the sentinels, which is not that of the servers.
    pub sentinel_password: Option<Located<Secret>>,
    /// The roots for the store's certificate; `None`: the system's.
    pub ca: Option<Located<PemFile>>,
    pub identity: Option<Located<ClientIdentity>>,
    /// The start of each key.
    pub prefix: String,
    /// The name of this instance, which no other instance of the fleet has.
    pub instance: String,
    /// The longest time that a delivery waits for the store.
    pub wait: Duration,
    /// The longest time for a connection attempt or a response, after which the store counts as away.
    pub timeout: Duration,
    pub replay: FleetReplay,
    /// The key that seals what instances share. `None`: they share no token.
    pub key: Option<Located<Secret>>,
    /// The public keys of the operators who sign bundles. Empty: this instance adopts no bundle.
    pub operators: BTreeMap<String, Located<PublicKey>>,
    /// A bundle that changes more entries needs a second operator.
    pub approve_above: usize,
    /// The bucket of the bundles; `None`: the store.
    pub bundles: Option<Located<PathBuf>>,
}

/// The handling of a signed request while the store cannot tell whether its signature was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FleetReplay {
    /// outgate refuses the request.
    #[default]
    Refuse,
    /// The memory of this instance alone decides.
    Local,
}

/// The servers of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreAddress {
    pub topology: StoreTopology,
    pub uses_tls: bool,
    /// Hosts and ports; not empty.
    pub nodes: Vec<(String, u16)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreTopology {
    /// The first server that accepts writes, and the number of its database.
    Single(u32),
    /// The master of this name, which the sentinels know.
    Sentinel(String),
    Cluster,
}

impl Fleet {
    /// Returns a hash over the whole section, with its secrets: it differs if a restart would change something.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut fingerprint = Fingerprint::default();
        let secrets =
            [&self.password, &self.sentinel_password, &self.key].map(|secret| secret.as_ref().map(|s| s.expose()));
        let key = self.identity.as_ref().map(|identity| identity.key.expose());
        secrets.into_iter().chain([key]).for_each(|secret| fingerprint.part(secret.unwrap_or_default()));
        let files = self.ca.iter().chain(self.identity.as_ref().map(|identity| &identity.certificate));
        files.flat_map(|file| &file.parts).for_each(|part| fingerprint.part(part));
        let Self { store, user, prefix, instance, wait, timeout, replay, bundles, .. } = self;
        let bundles = bundles.as_ref().map(|bundles| &bundles.value);
        let user = user.as_ref().map(|user| &user.value);
        fingerprint
            .part(format!("{:?}", (&store.value, user, prefix, instance, wait, timeout, replay, bundles)).as_bytes());
        fingerprint.finish()
    }
}

pub(super) fn read_fleet(reader: &mut Reader<'_>, file: &Table<'_>) -> Option<Fleet> {
    let table = file.section(reader, "fleet", &schema::FLEET);
    let store = table.read(reader, "store", |reader, value| reader.parse(value, parse_store_url));
    let user = table.read(reader, "user", |reader, value| reader.parse(value, units::word));
    let password = table.read(reader, "password", secret::read);
    let sentinel_password = table.read(reader, "sentinel_password", secret::read);
    let ca = table.read(reader, "ca", pem::read_certificates);
    let identity = table.read(reader, "identity", read_identity);
    let prefix = table.read(reader, "prefix", |reader, value| reader.parse(value, parse_name));
    let instance = table.read(reader, "instance", |reader, value| reader.parse(value, parse_name));
    let wait = table.read(reader, "wait", |reader, value| reader.parse(value, |text| duration_up_to(WAIT_MAX, text)));
    let timeout =
        table.read(reader, "timeout", |reader, value| reader.parse(value, |text| duration_up_to(TIMEOUT_MAX, text)));
    let choices = [("fleet-or-refuse", FleetReplay::Refuse), ("fleet-or-local", FleetReplay::Local)];
    let replay = table.read(reader, "replay", |reader, value| reader.parse_choice(value, &choices));
    let key = table.read(reader, "key", secret::read);
    if let Some(key) = key.as_ref().filter(|key| key.expose().len() < KEY_MIN) {
        let message = format!("`fleet.key` has {} bytes and can be guessed", key.expose().len());
        let help = format!("use a secret of at least {KEY_MIN} random bytes: `openssl rand -hex 32`");
        reader.problems.push(Problem::at(key.span, message).help(help));
    }
    let operators = reader.named_tables(std::slice::from_ref(&table), "operators", &schema::FLEET_OPERATOR);
    let operators =
        operators.into_iter().filter_map(|(name, table)| Some((name.to_owned(), read_operator(reader, &table)?)));
    let operators: BTreeMap<_, _> = operators.collect();
    let approve_above =
        table.read(reader, "approve_above", |reader, value| reader.integer(value, 0..=APPROVE_ABOVE_MAX));
    let bundles = table.read(reader, "bundles", captures::read_bucket);
    let has_state = text_of(file, "server", "state").is_some();
    if let (Some(operator), false) = (operators.values().next(), has_state) {
        let problem =
            Problem::at(operator.span, "`fleet.operators` needs `server.state`, where outgate writes bundles");
        reader.problems.push(problem.help("add state = \"/var/lib/outgate\" to [server]"));
    }
    if let (false, Some(span)) = (table.has("store"), table.key_spans().first()) {
        let problem = Problem::at(*span, "the section `fleet` has no effect without `fleet.store`");
        reader.problems.push(problem.help("add store = \"rediss://valkey.internal:6379\", or remove the section"));
    }
    let store = store?;
    for key in ["ca", "identity"] {
        if let (false, Some(value)) = (store.uses_tls, table.get(key)) {
            let problem = Problem::at(value.span, format!("`fleet.{key}` has no effect without TLS"));
            reader.problems.push(problem.help("write a store URL that begins with rediss, or remove the key"));
        }
    }
    if let (Some(user), false) = (&user, table.has("password")) {
        let problem = Problem::at(user.span, "`fleet.user` has no effect without `fleet.password`");
        reader.problems.push(problem.help("add password = \"credential:fleet\""));
    }
    if let (Some(password), false) = (&sentinel_password, matches!(store.topology, StoreTopology::Sentinel(_))) {
        let problem = Problem::at(password.span, "`fleet.sentinel_password` has no effect without sentinels");
        reader.problems.push(problem.help("write a store URL that begins with rediss-sentinel, or remove the key"));
    }
    Some(Fleet {
        store,
        user,
        password,
        sentinel_password,
        ca,
        identity,
        prefix: prefix.map_or_else(|| PREFIX_DEFAULT.to_owned(), |prefix| prefix.value),
        instance: instance.map_or_else(host::own_name, |instance| instance.value),
        wait: wait.map_or(WAIT_DEFAULT, |wait| wait.value),
        timeout: timeout.map_or(TIMEOUT_DEFAULT, |timeout| timeout.value),
        replay: replay.map_or_else(FleetReplay::default, |replay| replay.value),
        key,
        operators,
        approve_above: approve_above.map_or(APPROVE_ABOVE_DEFAULT, |count| count.value as usize),
        bundles,
    })
}

/// Reads the one public key of an operator.
fn read_operator(reader: &mut Reader<'_>, table: &Table<'_>) -> Option<Located<PublicKey>> {
    table.require(reader, "key", "write the path of the operator's public key: key = \"alice.pub.pem\"");
    let keys = table.read(reader, "key", public_key::read)?;
    if keys.len() > 1 {
        let problem = Problem::at(table.span, "an operator has one key, and the file has several");
        reader.problems.push(problem.help("give each operator a file of its own"));
    }
    keys.into_iter().next()
}

/// Parses a part of a key. A brace would change the slot of the key in a cluster.
fn parse_name(text: &str) -> Result<String, ValueError> {
    units::name(text).map(str::to_owned)
}

fn duration_up_to(most: Duration, text: &str) -> Result<Duration, ValueError> {
    let duration = units::positive_duration(text)?;
    (duration <= most).then_some(duration).ok_or_else(|| ValueError {
        expected: "a duration",
        reason: "too long: deliveries would wait for a store that is slow".to_owned(),
        help: format!("write at most \"{}ms\"", most.as_millis()),
    })
}

/// Parses the URL of a store: a scheme, hosts and ports with commas between them, and a path.
fn parse_store_url(text: &str) -> Result<StoreAddress, ValueError> {
    let invalid = |reason: &str, help: &str| ValueError {
        expected: "the URL of a store",
        reason: reason.to_owned(),
        help: help.to_owned(),
    };
    const HELP: &str = "write \"rediss://HOST:6379\", \"rediss-cluster://HOST:6379\" or \
                        \"rediss-sentinel://HOST:26379/MASTER\"; without TLS, redis in place of rediss";
    let (scheme, rest) = text.split_once("://").ok_or_else(|| invalid("no scheme", HELP))?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.contains('@') {
        let help = "write fleet.user, and fleet.password = \"credential:NAME\"";
        return Err(invalid("a user or a password, which the configuration must not contain", help));
    }
    let (protocol, kind) = scheme.split_once('-').unwrap_or((scheme, ""));
    let uses_tls = match protocol {
        "rediss" => true,
        "redis" => false,
        _ => return Err(invalid("the scheme is not that of a Redis or Valkey server", HELP)),
    };
    let topology = match (kind, path) {
        ("", "") => StoreTopology::Single(0),
        ("", number) => {
            let number = number.parse().ok().filter(|number| *number <= DATABASE_MAX);
            StoreTopology::Single(number.ok_or_else(|| {
                invalid("the path is not the number of a database", "write \"rediss://HOST:6379/0\", or no path")
            })?)
        }
        ("cluster", "") => StoreTopology::Cluster,
        ("cluster", _) => return Err(invalid("a path, and a cluster has one database", "remove the path")),
        ("sentinel", "") => {
            return Err(invalid("no name of a master", "write \"rediss-sentinel://HOST:26379/MASTER\""));
        }
        ("sentinel", master) => {
            let name =
                units::name(master).map_err(|error| invalid("the path is not the name of a master", &error.help));
            StoreTopology::Sentinel(name?.to_owned())
        }
        _ => return Err(invalid("the scheme is not that of a Redis or Valkey server", HELP)),
    };
    let default = if kind == "sentinel" { SENTINEL_PORT_DEFAULT } else { PORT_DEFAULT };
    let nodes = authority.split(',').map(|node| parse_node(node, default).map_err(|reason| invalid(&reason, HELP)));
    let nodes = nodes.collect::<Result<Vec<_>, _>>()?;
    if nodes.len() > NODES_MAX {
        return Err(invalid("too many hosts", "write a few: outgate learns the others from them"));
    }
    Ok(StoreAddress { topology, uses_tls, nodes })
}

fn parse_node(text: &str, default: u16) -> Result<(String, u16), String> {
    let authority: Authority = text.parse().map_err(|_| "not a host and a port")?;
    // The store's address is no URI: an IPv6 address has no brackets.
    let host = match host::canonical(authority.host()).map_err(|error| error.to_string())? {
        Host::Name(name) => name.to_string(),
        Host::Ip(address) => address.to_string(),
    };
    let port = authority.as_str()[authority.host().len()..].strip_prefix(':');
    let port = port.map_or(Some(default), |port| port.parse().ok().filter(|port| *port > 0));
    Ok((host, port.ok_or("the port is not a number from 1 to 65535")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn store_urls_name_a_server_a_cluster_or_a_master_of_sentinels() {
        let parsed = |text| {
            let StoreAddress { topology, uses_tls, nodes } = parse_store_url(text).unwrap();
            (topology, uses_tls, nodes[0].clone())
        };
        let node = |host: &str, port| (host.to_owned(), port);
        assert_eq!(parsed("rediss://Valkey.internal"), (StoreTopology::Single(0), true, node("valkey.internal", 6379)));
        assert_eq!(parsed("redis://[::1]:7000/3"), (StoreTopology::Single(3), false, node("::1", 7000)));
        assert_eq!(parsed("rediss-cluster://192.0.2.1"), (StoreTopology::Cluster, true, node("192.0.2.1", 6379)));
        let several = parse_store_url("rediss-cluster://a,b:7000").unwrap().nodes;
        assert_eq!(several, [node("a", 6379), node("b", 7000)]);
        let sentinel = (StoreTopology::Sentinel("mymaster".to_owned()), false, node("s", 26379));
        assert_eq!(parsed("redis-sentinel://s/mymaster"), sentinel);
        for (text, reason) in [
            ("valkey.internal:6379", "no scheme"),
            ("http://valkey.internal", "the scheme is not that of a Redis or Valkey server"),
            ("redis-ring://valkey.internal", "the scheme is not that of a Redis or Valkey server"),
            ("rediss://u:hunter2@valkey.internal", "a user or a password, which the configuration must not contain"),
            ("rediss://valkey.internal,", "not a host and a port"),
            ("rediss://valkey.internal:0", "the port is not a number from 1 to 65535"),
            ("rediss://valkey.internal/x", "the path is not the number of a database"),
            ("rediss-cluster://valkey.internal/1", "a path, and a cluster has one database"),
            ("rediss-sentinel://valkey.internal", "no name of a master"),
            ("rediss-sentinel://valkey.internal/a b", "the path is not the name of a master"),
        ] {
            assert_eq!(parse_store_url(text).unwrap_err().reason, reason, "{text}");
        }
    }
}
