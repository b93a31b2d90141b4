//! A minimal configuration that tests extend.
//! What does a test start from?

pub(crate) mod pki;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;

use crate::config::*;
use crate::names::PoolName;
use crate::policy::Plan;

/// Returns a value with its own span, so that a test can tell which span a problem points to.
pub(crate) fn at<T>(start: u32, value: T) -> Located<T> {
    Located { value, span: SourceSpan { file: 0, start, end: start + 1 } }
}

/// Returns a configuration with a loopback listener and the pool `default`.
pub(crate) fn config() -> Config {
    let second = Duration::from_secs(1);
    Config {
        server: Server {
            ca: None,
            name: "outgate".into(),
            listen: vec![at(0, Bind::new(Listen::Tcp(([127, 0, 0, 1], 4750).into())))],
            allow_anonymous: at(1, false),
            max_connections: Some(at(5, 10)),
            max_connections_per_ip: None,
            max_deliveries: 10,
            drain_grace: Duration::ZERO,
            drain_timeout: second,
            reuse_port: false,
            workers: None,
            watch: true,
            state: None,
            history: 100,
            tls: None,
            proxy_protocol: None,
        },
        admin: Admin { listen: vec![], agent: vec![], hosts: vec![], users: Default::default() },
        egress: BTreeMap::from([(PoolName::new("default"), at(2, pool()))]),
        clients: BTreeMap::new(),
        routes: vec![],
        trust: BTreeMap::new(),
        signers: BTreeMap::new(),
        credentials: BTreeMap::new(),
        limits: BTreeMap::new(),
        declared_sections: crate::config::DeclaredSections::default(),
        guard: Guard { allow: vec![], deny: vec![], ports: vec![at(3, 443)] },
        resolver: Resolver { servers: vec![], hosts: BTreeMap::new() },
        timeouts: Timeouts {
            tunnel: second,
            dns: second,
            connect: second,
            tls: second,
            body: second,
            response: second,
            idle: second,
            total: second,
            reuse: second,
        },
        circuit: Circuit { failures: 0, window: second, open: second, open_max: second },
        acknowledge: Vec::new(),
        log: Log {
            deliveries: at(0, DeliveryLog::Off),
            rotate: None,
            sample: SampleRate::ALL,
            level: "info".into(),
            format: LogFormat::Text,
        },
        redact: Redact { path: PathForm::default(), phone_numbers: true, headers: vec![], hmac_key: None },
        audit: crate::config::Audit::default(),
        captures: Default::default(),
        traces: None,
        alerts: crate::config::Alerts::default(),
        publish: crate::config::Publish::default(),
        notices: crate::config::Notices::default(),
        fleet: None,
        sources: SourceMap::default(),
        files: vec![],
        key_dirs: KeyDirs::new(),
        snapshot: std::sync::Arc::default(),
        rollback: None,
        digest: [0; 32],
    }
}

pub(crate) fn pool() -> Pool {
    let range = PoolRange { cidr: "127.0.7.0/28".parse().unwrap(), seen_as: None, from: None, until: None };
    Pool {
        ranges: vec![at(4, range)],
        exclude: vec![],
        select: SelectionPolicy::Sticky,
        failover: true,
        notice: Duration::ZERO,
        force: false,
    }
}

/// Returns a client without proofs and tenants.
pub(crate) fn client() -> Client {
    Client {
        tokens: vec![],
        certificates: vec![],
        public_keys: vec![],
        networks: vec![],
        require: vec![],
        tenants: vec![],
    }
}

/// Returns a signer without keys.
pub(crate) fn signer(scheme: &str) -> Signer {
    let scheme = at(11, scheme.into());
    Signer {
        scheme,
        keys: vec![],
        key_dir: None,
        algorithm: None,
        key_encoding: None,
        message: None,
        encoding: None,
        headers: None,
        signature_params: crate::config::SignatureParams::default(),
    }
}

/// Returns a trust without roots, with every other key at its default.
pub(crate) fn trust() -> Trust {
    Trust {
        roots: vec![],
        min_version: TlsVersion::V1_2,
        verify: at(9, VerifyMode::Full),
        strict: None,
        pins: vec![],
        crls: vec![],
        intermediates: vec![],
        crl_policy: None,
        identity: None,
    }
}

/// Returns the route `name` for `host`, with every other key at its default.
pub(crate) fn route(start: u32, name: &str, host: &str) -> Located<Route> {
    let mut route = Route::new(at(start, name.into()));
    route.hosts = vec![at(start + 1, host.into())];
    route.plaintext = at(start + 2, PlaintextPolicy::Refuse);
    at(start, route)
}

/// Returns the messages of problems; warnings and contained problems have a prefix.
pub(crate) fn messages(problems: &[Problem]) -> Vec<String> {
    let text = |problem: &Problem| match problem.severity {
        Severity::Problem => problem.message.clone(),
        Severity::Contained => format!("contained: {}", problem.message),
        Severity::Warning => format!("warning: {}", problem.message),
    };
    problems.iter().map(text).collect()
}

/// Returns the plan of a configuration with the pool `default`, to which the text is added. It is compiled on day 100.
pub(crate) fn plan(text: &str) -> Plan {
    let base = "[egress.default]\nranges = [{ cidr = \"192.0.2.0/29\", seen_as = \"203.0.113.0/29\" }]\n";
    let loaded = parse(&format!("{base}{text}"), Path::new("/nowhere/config.toml"));
    let loaded = loaded.unwrap_or_else(|rejected| panic!("{:?}", rejected.problems));
    let compiled = crate::policy::compile(&loaded.config, day(100));
    compiled.unwrap_or_else(|problems| panic!("{:?}", messages(&problems))).0
}

/// Returns the begin of a day since 1970.
pub(crate) fn day(number: i64) -> Timestamp {
    Timestamp::from_second(number * 86_400).unwrap()
}
