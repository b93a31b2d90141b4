//! The configuration as written: one struct per section, each value with its span in the file.
//! What may an operator write?

mod admin;
mod alerts;
mod audit;
mod captures;
mod control_paths;
mod credential;
mod decimal;
mod declared;
pub mod difference;
mod files;
mod fleet;
mod include;
mod key_dir;
mod key_index;
mod listener;
mod load;
mod locked_memory;
mod log;
mod named_sections;
mod notices;
mod pem;
pub mod pending_rollback;
pub mod problem;
mod public_key;
mod publish;
mod reader;
mod redact;
mod redaction;
mod render;
mod route;
mod route_metrics;
mod schema;
mod secret;
mod secret_bytes;
mod sections;
mod signer;
pub mod snapshot;
mod syntax;
mod timeouts;
mod traces;
mod trust;
mod units;
mod upstream;
mod url;
mod warning;
mod warning_code;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;

use crate::names::{CaptureName, ClientName, CredentialName, Host, LimitName, PoolName, SignerName, TrustName};
pub use admin::{Admin, AdminRole, AdminUser};
pub use alerts::Alerts;
pub use audit::{Audit, SyslogServer};
pub use captures::Capture;
pub use control_paths::ControlPaths;
pub use credential::{Authentication, ClientAuth, Credential, OAuth2};
pub use declared::DeclaredSections;
pub use files::StatFingerprint;
pub use fleet::{
    Fleet, FleetReplay, StoreAddress, StoreTopology, TIMEOUT_MAX as FLEET_TIMEOUT_MAX, WAIT_MAX as FLEET_WAIT_MAX,
};
pub use include::BUNDLE_DIR;
#[cfg(any(test, fuzzing))]
pub use key_dir::key_files;
pub use key_dir::{KeyDir, KeyDirs, KeyFile, KeyFolder};
pub use listener::{Alpn, Bind, BindTls, Ca, ListenerTls, ProxyProtocol, own_tls};
pub use load::{
    LoadError, Loaded, builtin, load, load_incremental, load_with_environment, load_with_overlay, parse,
    read_bundle_files,
};
pub use locked_memory::unlocked_secret_bytes;
pub use log::{Compression, DeliveryLog, Log, LogFormat, Rotate, SampleRate};
pub use notices::Notices;
pub use problem::{Problem, Severity, SourceMap, SourceSpan, truncate_similar};
pub use publish::Publish;
pub use reader::Environment;
pub use redaction::{PathForm, Redact};
pub use render::{render, to_json, to_log_lines};
pub use route::{ConnectPolicy, InterimPolicy, PlaintextPolicy, Route, Split};
pub use route_metrics::RouteMetrics;
pub use schema::known as known_keys;
pub use secret_bytes::Secret;
pub use signer::{Encoding, HmacAlgorithm, SignatureParams, Signer, SigningKey};
pub use snapshot::SourceSnapshot;
pub use timeouts::{Circuit, RouteTimeouts, Timeouts};
pub use traces::{OtlpProtocol, Traces};
pub use trust::{ClientIdentity, CrlPolicy, Roots, TlsVersion, Trust, VerifyMode};
pub use units::{duration_argument, duration_parameter};
pub use upstream::{ClientConnections, ResponseHeadMax};
pub use url::parse_url;
pub use warning::{apply_acknowledgements, remove_acknowledged, summarize};
pub use warning_code::WarningCode;

/// A value, and the span in a file where it is written.
#[derive(Clone, Debug)]
pub struct Located<T> {
    pub value: T,
    pub span: SourceSpan,
}

impl<T> Deref for Located<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// The whole configuration, with includes merged and referenced files read. Names in it may still refer to nothing.
#[derive(Clone, Debug)]
pub struct Config {
    pub server: Server,
    pub admin: Admin,
    pub egress: BTreeMap<PoolName, Located<Pool>>,
    pub clients: BTreeMap<ClientName, Located<Client>>,
    pub routes: Vec<Located<Route>>,
    pub trust: BTreeMap<TrustName, Located<Trust>>,
    pub signers: BTreeMap<SignerName, Located<Signer>>,
    pub credentials: BTreeMap<CredentialName, Located<Credential>>,
    pub limits: BTreeMap<LimitName, Located<Limit>>,
    pub declared_sections: DeclaredSections,
    pub guard: Guard,
    pub resolver: Resolver,
    pub timeouts: Timeouts,
    pub circuit: Circuit,
    pub log: Log,
    pub redact: Redact,
    pub audit: Audit,
    pub captures: BTreeMap<CaptureName, Located<Capture>>,
    /// `None`: outgate records no traces.
    pub traces: Option<Traces>,
    pub alerts: Alerts,
    pub publish: Publish,
    pub notices: Notices,
    /// `None`: the state of this process is its own.
    pub fleet: Option<Fleet>,
    /// Codes of warnings that the operator has acknowledged.
    pub acknowledge: Vec<Located<WarningCode>>,
    /// The text of each file; the spans of problems refer to it.
    pub sources: SourceMap,
    /// Every file whose content is part of this configuration (the main file, includes, keys, certificates), and
    /// every directory that a pattern of `include` lists: a new file there is a change too.
    pub files: Vec<PathBuf>,
    /// The key directories that were read; the next load reuses their unchanged folders.
    pub key_dirs: KeyDirs,
    /// The number of the configuration that an unfinished rollback restores.
    pub rollback: Option<u64>,
    /// The texts of the files, for comparison with another configuration and for the history.
    pub snapshot: Arc<SourceSnapshot>,
    /// SHA-256 over path and content of `files`, and the system's roots if used: equal means nothing changed.
    pub digest: [u8; 32],
}

impl Config {
    /// Returns the entries of every `listen`.
    pub fn binds(&self) -> impl Iterator<Item = &Located<Bind>> {
        self.server.listen.iter().chain(&self.admin.listen).chain(&self.admin.agent).chain(&self.publish.listen)
    }
}

/// A socket to listen on: `127.0.0.1:4750`, `[::1]:0`, `unix:/path`, `systemd`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Listen {
    Tcp(std::net::SocketAddr),
    Unix(PathBuf),
    Systemd,
}

impl Listen {
    /// Returns the address of a TCP socket.
    pub fn tcp(&self) -> Option<std::net::SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) | Self::Systemd => None,
        }
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Listen::Tcp(address) => address.fmt(f),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
            Listen::Systemd => f.write_str("systemd"),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Server {
    /// The pseudonym of outgate in `Via` and `Proxy-Status`; default `outgate`.
    pub name: String,
    pub listen: Vec<Located<Bind>>,
    pub ca: Option<Located<Ca>>,
    pub allow_anonymous: Located<bool>,
    /// `None`: 20,000.
    pub max_connections: Option<Located<usize>>,
    /// Connections of one client address; `None`: half of all, see `Plan::max_connections_per_ip`.
    pub max_connections_per_ip: Option<usize>,
    /// Deliveries in flight; tunnels do not count.
    pub max_deliveries: usize,
    /// The time from a requested drain to the first refusal, for load balancers that read `/readyz`.
    pub drain_grace: Duration,
    pub drain_timeout: Duration,
    /// Whether another process may listen on the same addresses (SO_REUSEPORT).
    pub reuse_port: bool,
    /// Worker threads; `None`: one per core.
    pub workers: Option<usize>,
    /// Whether outgate reloads when a file changes.
    pub watch: bool,
    /// The state directory of outgate; `None`: the directory of the packages, if it exists.
    pub state: Option<PathBuf>,
    /// The number of adopted configurations that the history keeps.
    pub history: usize,
    /// TLS for every TCP socket of `listen` that has no `tls` of its own.
    pub tls: Option<Located<ListenerTls>>,
    /// The PROXY protocol on every socket of `listen`; `None`: clients send no PROXY header.
    pub proxy_protocol: Option<Located<ProxyProtocol>>,
}

/// The content of a PEM file: each of its sections in DER.
#[derive(Clone, Debug)]
pub struct PemFile {
    pub path: PathBuf,
    pub parts: Vec<Vec<u8>>,
}

#[derive(Clone, Debug)]
pub struct Pool {
    pub ranges: Vec<Located<PoolRange>>,
    pub exclude: Vec<Located<IpNet>>,
    pub select: SelectionPolicy,
    pub failover: bool,
    /// The time between the announcement of a range and its first webhook.
    pub notice: Duration,
    /// Whether ranges may start without that notice.
    pub force: bool,
}

#[derive(Clone, Debug)]
pub struct PoolRange {
    pub cidr: IpNet,
    /// The addresses that targets see behind NAT, in the order of those of `cidr`.
    pub seen_as: Option<Located<IpNet>>,
    pub from: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

/// How a delivery chooses among the addresses of its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectionPolicy {
    /// Hashes (tenant, host): the same pair leaves from the same address.
    Sticky,
    /// Round robin.
    Spread,
    Random,
}

#[derive(Clone, Debug)]
pub struct Client {
    /// SHA-256 of each token.
    pub tokens: Vec<Located<[u8; 32]>>,
    /// Subject alternative names.
    pub certificates: Vec<Located<String>>,
    pub public_keys: Vec<Located<PublicKey>>,
    pub networks: Vec<Located<IpNet>>,
    /// Methods that must all succeed; empty: any one suffices.
    pub require: Vec<Located<AuthMethod>>,
    /// Names of tenants, or `*`.
    pub tenants: Vec<Located<String>>,
}

/// A public key that was read from its file.
#[derive(Clone, Debug)]
pub struct PublicKey {
    pub path: PathBuf,
    /// SubjectPublicKeyInfo.
    pub der: Vec<u8>,
}

/// A method to authenticate a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthMethod {
    Network,
    Token,
    Certificate,
    Signature,
}

impl AuthMethod {
    pub fn as_str(self) -> &'static str {
        match self {
            AuthMethod::Network => "network",
            AuthMethod::Token => "token",
            AuthMethod::Certificate => "certificate",
            AuthMethod::Signature => "signature",
        }
    }
    /// Returns the configuration key of the method's material.
    pub fn config_key(self) -> &'static str {
        match self {
            AuthMethod::Network => "networks",
            AuthMethod::Token => "tokens",
            AuthMethod::Certificate => "certificates",
            AuthMethod::Signature => "public_keys",
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Limit {
    pub rate: Option<Located<Rate>>,
    pub burst: Option<Located<u32>>,
    pub concurrency: Option<Located<u32>>,
    pub per: Vec<Located<LimitDimension>>,
    /// How long a delivery may wait for the limit before outgate refuses it.
    pub wait: Duration,
    /// Bytes per second.
    pub bandwidth: Option<Located<u64>>,
    /// `None`: each host has a limit of its own.
    pub scope: Option<Located<LimitScope>>,
    pub report_only: bool,
}

/// The deliveries that a limit counts together (`scope`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitScope {
    /// Those of this host.
    Host,
    /// Those of all instances of the fleet.
    Fleet,
}

/// `N/s`, `N/m`, `N/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub count: u32,
    pub period: Duration,
}

/// A property of deliveries by which a limit counts (`per`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LimitDimension {
    Client,
    Tenant,
    Route,
    Host,
    Egress,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeniedNetwork {
    pub cidr: IpNet,
    /// Whether a match is only recorded and the delivery continues.
    pub report_only: bool,
}

#[derive(Clone, Debug)]
pub struct Guard {
    pub allow: Vec<Located<IpNet>>,
    pub deny: Vec<Located<DeniedNetwork>>,
    pub ports: Vec<Located<u16>>,
}

#[derive(Clone, Debug)]
pub struct Resolver {
    /// Empty: the system's resolv.conf.
    pub servers: Vec<Located<std::net::SocketAddr>>,
    pub hosts: BTreeMap<Host, Vec<IpAddr>>,
}
