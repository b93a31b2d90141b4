//! Reads the sections that any file may have: pools, clients, routes and limits.
//! Which named sections has the operator written?

use std::collections::BTreeMap;
use std::time::Duration;

use super::problem::Problem;
use super::reader::{Reader, Table, Value};
use super::{
    AuthMethod, Client, ConnectPolicy, InterimPolicy, Limit, LimitDimension, LimitScope, Located, PlaintextPolicy,
    Pool, PoolRange, Route, RouteMetrics, RouteTimeouts, SelectionPolicy, Split, public_key, redaction, route_metrics,
    schema, units, upstream,
};
use crate::names::{ClientName, LimitName, PoolName};

/// Customers' firewall teams need days to change a rule.
const NOTICE_DEFAULT: Duration = Duration::from_secs(14 * 24 * 3600);

fn located<T>(table: &Table<'_>, value: T) -> Located<T> {
    Located { value, span: table.span }
}

pub(super) fn read_pools(reader: &mut Reader<'_>, files: &[Table<'_>]) -> BTreeMap<PoolName, Located<Pool>> {
    let tables = reader.named_tables(files, "egress", &schema::POOL);
    tables.into_iter().map(|(name, table)| (PoolName::new(name), located(&table, read_pool(reader, &table)))).collect()
}

impl SelectionPolicy {
    const CHOICES: [(&str, Self); 3] = [("sticky", Self::Sticky), ("spread", Self::Spread), ("random", Self::Random)];

    pub fn as_str(self) -> &'static str {
        Self::CHOICES.iter().find(|(_, policy)| *policy == self).map_or("", |(name, _)| name)
    }
}

fn read_pool(reader: &mut Reader<'_>, table: &Table<'_>) -> Pool {
    let help = "write the addresses to send from: ranges = [\"192.0.2.0/28\"]";
    table.require(reader, "ranges", help);
    let ranges = table.read_list(reader, "ranges", Some(help), read_range);
    let exclude = table.read_list(reader, "exclude", None, |reader, value| reader.parse(value, units::network));
    let select = table.read(reader, "select", |reader, value| reader.parse_choice(value, &SelectionPolicy::CHOICES));
    let failover = table.read(reader, "failover", |reader, value| reader.boolean(value));
    let notice = table.read(reader, "notice", |reader, value| reader.parse(value, units::duration));
    let force = table.read(reader, "force", |reader, value| reader.boolean(value));
    Pool {
        ranges: ranges.unwrap_or_default(),
        exclude: exclude.unwrap_or_default(),
        select: select.map_or(SelectionPolicy::Sticky, |select| select.value),
        failover: failover.is_none_or(|failover| failover.value),
        notice: notice.map_or(NOTICE_DEFAULT, |notice| notice.value),
        force: force.is_some_and(|force| force.value),
    }
}

/// Reads a network, or a table with a network and its validity period.
fn read_range(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<PoolRange>> {
    if !value.is_table() {
        let cidr = reader.parse(value, units::network)?.value;
        return Some(value.located(PoolRange { cidr, seen_as: None, from: None, until: None }));
    }
    let table = Table::open(reader, value, &schema::RANGE)?;
    table.require(reader, "cidr", "write { cidr = \"192.0.2.0/28\", from = \"2027-01-01T00:00:00Z\" }");
    let cidr = table.read(reader, "cidr", |reader, value| reader.parse(value, units::network));
    let seen_as = table.read(reader, "seen_as", |reader, value| reader.parse(value, units::network));
    let (from, until) = read_period(reader, &table);
    let Located { value: cidr, span: place } = cidr?;
    Some(Located { value: PoolRange { cidr, seen_as, from, until }, span: place })
}

/// Reads `from` and `until`. The period is half-open, so that the end of one may be the start of the next.
pub(super) fn read_period(
    reader: &mut Reader<'_>,
    table: &Table<'_>,
) -> (Option<jiff::Timestamp>, Option<jiff::Timestamp>) {
    let from = table.read(reader, "from", |reader, value| reader.parse(value, units::timestamp));
    let until = table.read(reader, "until", |reader, value| reader.parse(value, units::timestamp));
    if let (Some(from), Some(until)) = (&from, &until)
        && from.value >= until.value
    {
        let problem = Problem::at(until.span, format!("`{}` is not later than `from`", table.child_key("until")))
            .related(from.span, "`from` is here");
        reader.problems.push(problem.help("write an `until` that is later than `from`"));
    }
    (from.map(|from| from.value), until.map(|until| until.value))
}

pub(super) fn read_clients(reader: &mut Reader<'_>, files: &[Table<'_>]) -> BTreeMap<ClientName, Located<Client>> {
    let tables = reader.named_tables(files, "clients", &schema::CLIENT);
    tables
        .into_iter()
        .map(|(name, table)| (ClientName::new(name), located(&table, read_client(reader, &table))))
        .collect()
}

const AUTH_METHODS: [(&str, AuthMethod); 4] = [
    ("network", AuthMethod::Network),
    ("token", AuthMethod::Token),
    ("certificate", AuthMethod::Certificate),
    ("signature", AuthMethod::Signature),
];

fn read_client(reader: &mut Reader<'_>, table: &Table<'_>) -> Client {
    // An empty list could mean "from nowhere" or "from anywhere", so it is rejected.
    let if_empty = Some("remove the key if the client may connect from any network");
    let tokens = table.read_list(reader, "tokens", None, |reader, value| reader.parse(value, units::token_hash));
    let networks = table.read_list(reader, "networks", if_empty, |reader, value| reader.parse(value, units::network));
    let certificates = table.read_list(reader, "certificates", None, read_word);
    let public_keys = table.read_list(reader, "public_keys", None, public_key::read);
    let if_empty = Some("remove the key if any one method suffices");
    let require =
        table.read_list(reader, "require", if_empty, |reader, value| reader.parse_choice(value, &AUTH_METHODS));
    let tenants = table.read_list(reader, "tenants", None, read_word);
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
    reader.parse(value, units::word)
}

/// Reads the routes, in the order of the files and of each file.
pub(super) fn read_routes(reader: &mut Reader<'_>, files: &[Table<'_>]) -> Vec<Located<Route>> {
    let mut routes = Vec::new();
    for value in files.iter().filter_map(|file| file.get("routes")) {
        if value.is_table() {
            reader.wrong_type(&value, "a list of tables", "write [[routes]], with two brackets on each side");
            continue;
        }
        for value in reader.list(&value, None).unwrap_or_default() {
            if let Some(table) = Table::open(reader, &value, &schema::ROUTE) {
                routes.push(located(&table, read_route(reader, &table)));
            }
        }
    }
    let mut first = BTreeMap::new();
    for route in routes.iter().filter(|route| !route.name.is_empty()) {
        if let Some(first) = first.insert(route.name.as_str(), route.name.span) {
            let problem = Problem::at(route.name.span, format!("two routes are called {:?}", route.name.value));
            let problem = problem.label("again here").related(first, "first here");
            reader.problems.push(problem.help("give one of the routes another name"));
        }
    }
    routes
}

fn read_route(reader: &mut Reader<'_>, table: &Table<'_>) -> Route {
    table.require(reader, "name", "write name = \"acme\": refusals, records and metrics name the route by it");
    table.require(reader, "hosts", "write hosts = [\"hooks.acme.example\"], or [\"*\"] for every host");
    let name =
        table.read(reader, "name", |reader, value| reader.parse(value, |text| units::name(text).map(str::to_owned)));
    let mut words = |key, if_empty| table.read_list(reader, key, if_empty, read_word).unwrap_or_default();
    let hosts = words("hosts", Some("write [\"*\"] for every host"));
    // Here, too, an empty list could mean all or nothing.
    let paths = words("paths", Some("remove the key to match every path"));
    let tenants = words("tenants", Some("remove the key to match every tenant"));
    let clients = words("clients", Some("remove the key to match every client"));
    let sign = words("sign", None);
    let limits = words("limits", None);
    let egress = table.read(reader, "egress", read_word);
    let trust = table.read(reader, "trust", read_word);
    let credential = table.read(reader, "credential", read_word);
    let ports = table.read_list(reader, "ports", None, |reader, value| reader.port(value));
    let plaintext = table.read(reader, "plaintext", |reader, value| {
        let choices = [
            ("refuse", PlaintextPolicy::Refuse),
            ("upgrade", PlaintextPolicy::Upgrade),
            ("allow", PlaintextPolicy::Allow),
        ];
        reader.parse_choice(value, &choices)
    });
    let connect = table.read(reader, "connect", |reader, value| {
        reader.parse_choice(
            value,
            &[
                ("tunnel", ConnectPolicy::Tunnel),
                ("inspect", ConnectPolicy::Inspect),
                ("refuse", ConnectPolicy::Refuse),
            ],
        )
    });
    let interim = table.read(reader, "interim", |reader, value| {
        reader.parse_choice(value, &[("http2", InterimPolicy::Http2), ("forward", InterimPolicy::Forward)])
    });
    let response_max = table.read(reader, "response_max", |reader, value| reader.parse(value, units::size));
    let response_head_max = table.read(reader, "response_head_max", upstream::read_response_head_max);
    let client_connections = table.read(reader, "client_connections", upstream::read_client_connections);
    let metrics = table.read(reader, "metrics", route_metrics::read);
    let body_max = table.read(reader, "body_max", |reader, value| reader.parse(value, units::size));
    let timeouts = table.read(reader, "timeouts", |reader, value| {
        Table::open(reader, value, &schema::ROUTE_TIMEOUTS).map(|table| read_route_timeouts(reader, &table))
    });
    let path_form = table.read(reader, "redact", redaction::read_route_redact);
    let report_only = table.read(reader, "report_only", |reader, value| reader.boolean(value));
    let mut route = Route {
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
        connect,
        interim: interim.map(|interim| interim.value).unwrap_or_default(),
        body_max,
        response_max,
        response_head_max: response_head_max.unwrap_or_default(),
        client_connections: client_connections.map(|connections| connections.value).unwrap_or_default(),
        timeouts: timeouts.unwrap_or_default(),
        path_form: path_form.map(|form| form.value),
        report_only: report_only.is_some_and(|report_only| report_only.value),
        ..Route::new(name.unwrap_or_else(|| located(table, String::new())))
    };
    route.plaintext = plaintext.unwrap_or(located(table, PlaintextPolicy::Refuse));
    route.metrics = metrics.unwrap_or(located(table, RouteMetrics::Shared));
    route.split = table.read(reader, "split", |reader, value| read_split(reader, value, &route));
    route
}

/// Reads a split. Settings that it omits are those of the route.
fn read_split(reader: &mut Reader<'_>, value: &Value<'_>, route: &Route) -> Option<Located<Split>> {
    let table = Table::open(reader, value, &schema::SPLIT)?;
    table.require(reader, "percent", "write the percentage of tenants and hosts: percent = 1");
    let share = table.read(reader, "percent", |reader, value| {
        const HELP: &str = "write a number from 0 to 100 with at most two decimals, without quotes or sign: 1, 0.25";
        reader.decimal(value, ("a percentage", 100, 2), HELP)
    });
    let mut split_route = route.clone();
    let (egress, trust) = (table.read(reader, "egress", read_word), table.read(reader, "trust", read_word));
    let (sign, credential) =
        (table.read_list(reader, "sign", None, read_word), table.read(reader, "credential", read_word));
    let timeouts = table.read(reader, "timeouts", |reader, value| {
        Table::open(reader, value, &schema::ROUTE_TIMEOUTS).map(|table| read_route_timeouts(reader, &table))
    });
    if egress.is_none() && trust.is_none() && sign.is_none() && credential.is_none() && timeouts.is_none() {
        let problem = Problem::at(table.span, "this split changes nothing for its share of tenants and hosts");
        reader.problems.push(problem.help("set at least one of egress, trust, sign, credential and timeouts"));
    }
    split_route.egress = egress.or(split_route.egress);
    split_route.trust = trust.or(split_route.trust);
    split_route.sign = sign.unwrap_or(split_route.sign);
    split_route.credential = credential.or(split_route.credential);
    split_route.timeouts =
        timeouts.map_or(split_route.timeouts.clone(), |timeouts| timeouts.or_inherit(&split_route.timeouts));
    Some(located(&table, Split { share: share?.value, route: Box::new(split_route) }))
}

fn read_route_timeouts(reader: &mut Reader<'_>, table: &Table<'_>) -> RouteTimeouts {
    let mut duration = |key| {
        let value = table.read(reader, key, |reader, value| reader.parse(value, units::positive_duration));
        value.map(|duration| duration.value)
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

pub(super) fn read_limits(reader: &mut Reader<'_>, files: &[Table<'_>]) -> BTreeMap<LimitName, Located<Limit>> {
    let tables = reader.named_tables(files, "limits", &schema::LIMIT);
    tables
        .into_iter()
        .map(|(name, table)| (LimitName::new(name), located(&table, read_limit(reader, &table))))
        .collect()
}

impl LimitDimension {
    const CHOICES: [(&str, Self); 5] = [
        ("client", Self::Client),
        ("tenant", Self::Tenant),
        ("route", Self::Route),
        ("host", Self::Host),
        ("egress", Self::Egress),
    ];

    pub fn as_str(self) -> &'static str {
        Self::CHOICES.iter().find(|(_, dimension)| *dimension == self).map_or("", |(name, _)| name)
    }
}

fn read_limit(reader: &mut Reader<'_>, table: &Table<'_>) -> Limit {
    // `policy::limits` checks that the limit has an effect.
    let per =
        table.read_list(reader, "per", None, |reader, value| reader.parse_choice(value, &LimitDimension::CHOICES));
    let wait = table.read(reader, "wait", |reader, value| reader.parse(value, units::duration));
    let report_only = table.read(reader, "report_only", |reader, value| reader.boolean(value));
    Limit {
        rate: table.read(reader, "rate", |reader, value| reader.parse(value, units::rate)),
        burst: table.read(reader, "burst", |reader, value| reader.integer(value, 0..=u32::MAX)),
        concurrency: table.read(reader, "concurrency", |reader, value| reader.integer(value, 0..=u32::MAX)),
        per: per.unwrap_or_default(),
        wait: wait.map_or_else(Default::default, |wait| wait.value),
        bandwidth: table.read(reader, "bandwidth", |reader, value| reader.parse(value, units::bandwidth)),
        scope: table.read(reader, "scope", |reader, value| reader.parse_choice(value, &LimitScope::CHOICES)),
        report_only: report_only.is_some_and(|report_only| report_only.value),
    }
}

impl LimitScope {
    const CHOICES: [(&str, Self); 2] = [("host", Self::Host), ("fleet", Self::Fleet)];
}
