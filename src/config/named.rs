//! What the operator names, in any of the files: pools, clients, routes, limits.
//! What has the operator made?

use std::collections::BTreeMap;

use super::problem::Problem;
use super::read::{Reader, Table, Value};
use super::{
    AuthMethod, Client, ConnectPolicy, InterimPolicy, Limit, LimitScope, Located, PlaintextPolicy, Pool, PoolRange,
    Route, RouteTimeouts, SelectionPolicy, Split, keys, public_key, units, upstream,
};
use crate::names::{ClientName, LimitName, PoolName};

fn at<T>(table: &Table<'_>, value: T) -> Located<T> {
    Located { value, span: table.span }
}

pub(super) fn pools(reader: &mut Reader<'_>, files: &[Table<'_>]) -> BTreeMap<PoolName, Located<Pool>> {
    let tables = reader.named_tables(files, "egress", &keys::POOL);
    tables.into_iter().map(|(name, table)| (PoolName::new(name), at(&table, pool(reader, &table)))).collect()
}

fn pool(reader: &mut Reader<'_>, table: &Table<'_>) -> Pool {
    let help = "write the addresses to send from: ranges = [\"192.0.2.0/28\"]";
    table.require(reader, "ranges", help);
    let ranges = table.many(reader, "ranges", Some(help), range);
    let exclude = table.many(reader, "exclude", None, |reader, value| reader.parsed(value, units::network));
    let select = table.one(reader, "select", |reader, value| {
        reader.choice(
            value,
            &[
                ("sticky", SelectionPolicy::Sticky),
                ("spread", SelectionPolicy::Spread),
                ("random", SelectionPolicy::Random),
            ],
        )
    });
    let failover = table.one(reader, "failover", |reader, value| reader.boolean(value));
    Pool {
        ranges: ranges.unwrap_or_default(),
        exclude: exclude.unwrap_or_default(),
        select: select.map_or(SelectionPolicy::Sticky, |select| select.value),
        failover: failover.is_none_or(|failover| failover.value),
    }
}

/// A network, or a table that says from when until when it is ours.
fn range(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<PoolRange>> {
    if !value.is_table() {
        let cidr = reader.parsed(value, units::network)?.value;
        return Some(value.at(PoolRange { cidr, from: None, until: None }));
    }
    let table = Table::open(reader, value, &keys::RANGE)?;
    table.require(reader, "cidr", "write { cidr = \"192.0.2.0/28\", from = \"2027-01-01T00:00:00Z\" }");
    let cidr = table.one(reader, "cidr", |reader, value| reader.parsed(value, units::network));
    let (from, until) = period(reader, &table);
    let Located { value: cidr, span: place } = cidr?;
    Some(Located { value: PoolRange { cidr, from, until }, span: place })
}

/// `from` and `until`: half-open, so that the end of one may be the start of the next.
pub(super) fn period(reader: &mut Reader<'_>, table: &Table<'_>) -> (Option<jiff::Timestamp>, Option<jiff::Timestamp>) {
    let from = table.one(reader, "from", |reader, value| reader.parsed(value, units::timestamp));
    let until = table.one(reader, "until", |reader, value| reader.parsed(value, units::timestamp));
    if let (Some(from), Some(until)) = (&from, &until)
        && from.value >= until.value
    {
        let problem = Problem::at(until.span, "ends before it begins").also(from.span, "begins here");
        reader.problems.push(problem.help("write an `until` that is later than `from`"));
    }
    (from.map(|from| from.value), until.map(|until| until.value))
}

pub(super) fn clients(reader: &mut Reader<'_>, files: &[Table<'_>]) -> BTreeMap<ClientName, Located<Client>> {
    let tables = reader.named_tables(files, "clients", &keys::CLIENT);
    tables.into_iter().map(|(name, table)| (ClientName::new(name), at(&table, client(reader, &table)))).collect()
}

const PROOFS: [(&str, AuthMethod); 4] = [
    ("network", AuthMethod::Network),
    ("token", AuthMethod::Token),
    ("certificate", AuthMethod::Certificate),
    ("signature", AuthMethod::Signature),
];

fn client(reader: &mut Reader<'_>, table: &Table<'_>) -> Client {
    // An empty list could be read as "from nowhere" or as "from anywhere": it must be neither.
    let if_empty = Some("leave it out if the client may call from anywhere");
    let tokens = table.many(reader, "tokens", None, |reader, value| reader.parsed(value, units::token_hash));
    let networks = table.many(reader, "networks", if_empty, |reader, value| reader.parsed(value, units::network));
    let certificates = table.many(reader, "certificates", None, read_word);
    let public_keys = table.many(reader, "public_keys", None, public_key::read);
    let if_empty = Some("leave it out if any one proof will do");
    let require = table.many(reader, "require", if_empty, |reader, value| reader.choice(value, &PROOFS));
    let tenants = table.many(reader, "tenants", None, read_word);
    Client {
        tokens: tokens.unwrap_or_default(),
        certificates: certificates.unwrap_or_default(),
        public_keys: public_keys.into_iter().flatten().flatten().collect(),
        networks: networks.unwrap_or_default(),
        require: require.unwrap_or_default(),
        tenants: tenants.unwrap_or_default(),
    }
}

pub(super) fn read_word(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<String>> {
    reader.parsed(value, units::word)
}

/// In the order of the files, and of each file.
pub(super) fn routes(reader: &mut Reader<'_>, files: &[Table<'_>]) -> Vec<Located<Route>> {
    let mut routes = Vec::new();
    for value in files.iter().filter_map(|file| file.get("routes")) {
        if value.is_table() {
            reader.wrong_type(&value, "a list of tables", "write [[routes]], with two brackets on each side");
            continue;
        }
        for value in reader.list(&value, None).unwrap_or_default() {
            if let Some(table) = Table::open(reader, &value, &keys::ROUTE) {
                routes.push(at(&table, route(reader, &table)));
            }
        }
    }
    let mut first = BTreeMap::new();
    for route in routes.iter().filter(|route| !route.name.is_empty()) {
        if let Some(first) = first.insert(route.name.as_str(), route.name.span) {
            let problem = Problem::at(route.name.span, format!("two routes are called {:?}", route.name.value));
            let problem = problem.label("again here").also(first, "first here");
            reader.problems.push(problem.help("give one of them another name"));
        }
    }
    routes
}

fn route(reader: &mut Reader<'_>, table: &Table<'_>) -> Route {
    table.require(reader, "name", "write name = \"acme\": refusals, records and metrics tell routes by it");
    table.require(reader, "hosts", "write hosts = [\"hooks.acme.example\"], or [\"*\"] for every host");
    let name =
        table.one(reader, "name", |reader, value| reader.parsed(value, |text| units::name(text).map(str::to_owned)));
    let mut words = |key, if_empty| table.many(reader, key, if_empty, read_word).unwrap_or_default();
    let hosts = words("hosts", Some("write [\"*\"] for every host"));
    // Here too an empty list could mean all or nothing.
    let paths = words("paths", Some("leave it out for every path"));
    let tenants = words("tenants", Some("leave it out for every tenant"));
    let clients = words("clients", Some("leave it out for every client"));
    let sign = words("sign", None);
    let limits = words("limits", None);
    let egress = table.one(reader, "egress", read_word);
    let trust = table.one(reader, "trust", read_word);
    let credential = table.one(reader, "credential", read_word);
    let ports = table.many(reader, "ports", None, |reader, value| reader.port(value));
    let plaintext = table.one(reader, "plaintext", |reader, value| {
        let choices = [
            ("refuse", PlaintextPolicy::Refuse),
            ("upgrade", PlaintextPolicy::Upgrade),
            ("allow", PlaintextPolicy::Allow),
        ];
        reader.choice(value, &choices)
    });
    let connect = table.one(reader, "connect", |reader, value| {
        reader.choice(
            value,
            &[
                ("tunnel", ConnectPolicy::Tunnel),
                ("inspect", ConnectPolicy::Inspect),
                ("refuse", ConnectPolicy::Refuse),
            ],
        )
    });
    let interim = table.one(reader, "interim", |reader, value| {
        reader.choice(value, &[("http2", InterimPolicy::Http2), ("forward", InterimPolicy::Forward)])
    });
    let response_max = table.one(reader, "response_max", |reader, value| reader.parsed(value, units::size));
    let response_head_max = table.one(reader, "response_head_max", upstream::response_head_max);
    let client_connections = table.one(reader, "client_connections", upstream::client_connections);
    let body_max = table.one(reader, "body_max", |reader, value| reader.parsed(value, units::size));
    let timeouts = table.one(reader, "timeouts", |reader, value| {
        Table::open(reader, value, &keys::ROUTE_TIMEOUTS).map(|table| route_timeouts(reader, &table))
    });
    let report_only = table.one(reader, "report_only", |reader, value| reader.boolean(value));
    let mut route = Route {
        name: name.unwrap_or_else(|| at(table, String::new())),
        hosts,
        paths,
        ports: ports.unwrap_or_default(),
        tenants,
        clients,
        egress,
        trust,
        sign,
        credential,
        limits,
        plaintext: plaintext.unwrap_or(at(table, PlaintextPolicy::Refuse)),
        connect,
        interim: interim.map(|interim| interim.value).unwrap_or_default(),
        body_max,
        response_max,
        response_head_max: response_head_max.unwrap_or_default(),
        client_connections: client_connections.map(|connections| connections.value).unwrap_or_default(),
        timeouts: timeouts.unwrap_or_default(),
        split: None,
        report_only: report_only.is_some_and(|report_only| report_only.value),
    };
    route.split = table.one(reader, "split", |reader, value| split(reader, value, &route));
    route
}

/// What is not said of those in it is as for all others.
fn split(reader: &mut Reader<'_>, value: &Value<'_>, route: &Route) -> Option<Located<Split>> {
    let table = Table::open(reader, value, &keys::SPLIT)?;
    table.require(reader, "percent", "write the part of tenants and hosts: percent = 1");
    let share = table.one(reader, "percent", |reader, value| reader.percent(value));
    let mut other = route.clone();
    let (egress, trust) = (table.one(reader, "egress", read_word), table.one(reader, "trust", read_word));
    let (sign, credential) = (table.many(reader, "sign", None, read_word), table.one(reader, "credential", read_word));
    let timeouts = table.one(reader, "timeouts", |reader, value| {
        Table::open(reader, value, &keys::ROUTE_TIMEOUTS).map(|table| route_timeouts(reader, &table))
    });
    if egress.is_none() && trust.is_none() && sign.is_none() && credential.is_none() && timeouts.is_none() {
        let problem = Problem::at(table.span, "a split between two that are the same");
        reader.problems.push(problem.help("write what is other: egress, trust, sign, credential or timeouts"));
    }
    other.egress = egress.or(other.egress);
    other.trust = trust.or(other.trust);
    other.sign = sign.unwrap_or(other.sign);
    other.credential = credential.or(other.credential);
    other.timeouts = timeouts.map_or(other.timeouts.clone(), |timeouts| timeouts.or(&other.timeouts));
    Some(at(&table, Split { share: share?.value, other: Box::new(other) }))
}

fn route_timeouts(reader: &mut Reader<'_>, table: &Table<'_>) -> RouteTimeouts {
    let mut duration = |key| {
        let written = table.one(reader, key, |reader, value| reader.parsed(value, units::positive_duration));
        written.map(|duration| duration.value)
    };
    RouteTimeouts {
        dns: duration("dns"),
        connect: duration("connect"),
        tls: duration("tls"),
        body: duration("body"),
        response: duration("response"),
        idle: duration("idle"),
        total: duration("total"),
        tunnel: duration("tunnel"),
    }
}

pub(super) fn limits(reader: &mut Reader<'_>, files: &[Table<'_>]) -> BTreeMap<LimitName, Located<Limit>> {
    let tables = reader.named_tables(files, "limits", &keys::LIMIT);
    tables.into_iter().map(|(name, table)| (LimitName::new(name), at(&table, limit(reader, &table)))).collect()
}

fn limit(reader: &mut Reader<'_>, table: &Table<'_>) -> Limit {
    const PER: [(&str, LimitScope); 5] = [
        ("client", LimitScope::Client),
        ("tenant", LimitScope::Tenant),
        ("route", LimitScope::Route),
        ("host", LimitScope::Host),
        ("egress", LimitScope::Egress),
    ];
    // That a limit limits something at all is judged where limits are compiled.
    let per = table.many(reader, "per", None, |reader, value| reader.choice(value, &PER));
    let wait = table.one(reader, "wait", |reader, value| reader.parsed(value, units::duration));
    let report_only = table.one(reader, "report_only", |reader, value| reader.boolean(value));
    Limit {
        rate: table.one(reader, "rate", |reader, value| reader.parsed(value, units::rate)),
        burst: table.one(reader, "burst", |reader, value| reader.integer(value, 0..=u32::MAX)),
        concurrency: table.one(reader, "concurrency", |reader, value| reader.integer(value, 0..=u32::MAX)),
        per: per.unwrap_or_default(),
        wait: wait.map_or_else(Default::default, |wait| wait.value),
        bandwidth: table.one(reader, "bandwidth", |reader, value| reader.parsed(value, units::bandwidth)),
        report_only: report_only.is_some_and(|only| only.value),
    }
}
