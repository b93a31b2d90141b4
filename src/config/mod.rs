//! The configuration as written: one struct a section, every value with the place it was read from.
//! What may an operator write?

mod control_paths;
mod credential;
mod declared;
pub mod difference;
mod files;
mod key_dir;
mod key_index;
mod listener;
mod load;
mod log;
mod named_sections;
mod pem;
pub mod pending_rollback;
pub mod problem;
mod public_key;
mod reader;
mod redact;
mod render;
mod schema;
mod secret;
mod sections;
mod signer;
pub mod snapshot;
mod syntax;
mod timeouts;
mod trust;
mod units;
mod upstream;
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

use crate::names::{ClientName, CredentialName, Host, LimitName, PoolName, SignerName, TrustName};
pub use control_paths::ControlPaths;
pub use credential::{Authentication, ClientAuth, Credential, OAuth2};
pub use declared::DeclaredSections;
pub use files::StatFingerprint;
#[cfg(any(test, fuzzing))]
pub use key_dir::key_files;
pub use key_dir::{KeyDir, KeyDirs, KeyFile, KeyFolder};
pub use listener::{Alpn, Bind, BindTls, Ca, ListenerTls, ProxyProtocol};
pub use load::{LoadError, Loaded, builtin, load, load_incremental, load_with_environment, load_with_overlay, parse};
pub use log::{DeliveryLog, Log, LogFormat};
pub use problem::{Problem, Severity, SourceMap, SourceSpan, truncate_similar};
pub use reader::Environment;
pub use render::{render, to_json, to_log_lines};
pub use schema::known as known_keys;
pub use signer::{Encoding, HmacAlgorithm, SignatureParams, Signer, SigningKey};
pub use snapshot::SourceSnapshot;
pub use timeouts::{Circuit, RouteTimeouts, Timeouts};
pub use trust::{ClientIdentity, CrlPolicy, Roots, TlsVersion, Trust, VerifyMode};
pub use units::duration_argument;
pub use upstream::{ClientConnections, ResponseHeadMax};
pub use warning::{apply_acknowledgements, remove_acknowledged, summarize};
pub use warning_code::WarningCode;

/// A value and the place in a file where it was written.
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

/// The whole configuration, includes merged, files it names already read; it may still be meaningless.
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
    /// Kinds of warnings that the operator has decided about.
    pub acknowledge: Vec<Located<WarningCode>>,
    /// The text of each file, for problems to point into.
    pub sources: SourceMap,
    /// Every file whose content is part of this configuration (the file, includes, keys, certificates), and every
    /// directory that a pattern of `include` looked into: a file that appears there is a change too.
    pub files: Vec<PathBuf>,
    /// What the next reading need not read again.
    pub key_dirs: KeyDirs,
    /// Of the configuration that is being put back, where a rollback has not finished.
    pub rollback: Option<u64>,
    /// As the files say it, to be compared with another and kept.
    pub snapshot: Arc<SourceSnapshot>,
    /// SHA-256 over path and content of `files`, and the system's roots if used: equal means nothing changed.
    pub digest: [u8; 32],
}

/// A socket to listen on: `127.0.0.1:4750`, `[::1]:0`, `unix:/path`, `systemd`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Listen {
    Tcp(std::net::SocketAddr),
    Unix(PathBuf),
    Systemd,
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
    /// Our pseudonym in `Via` and `Proxy-Status`; default `outgate`.
    pub name: String,
    pub listen: Vec<Located<Bind>>,
    pub ca: Option<Located<Ca>>,
    pub allow_anonymous: Located<bool>,
    /// `None`: 20,000.
    pub max_connections: Option<Located<usize>>,
    /// For one client's address; `None`: half of all, see `Plan::max_connections_per_ip`.
    pub max_connections_per_ip: Option<usize>,
    /// In flight; tunnels do not count.
    pub max_deliveries: usize,
    pub drain_timeout: Duration,
    /// Whether another process may listen on the same addresses (SO_REUSEPORT).
    pub reuse_port: bool,
    /// Worker threads; `None`: one a core.
    pub workers: Option<usize>,
    /// Whether files are read again when they change.
    pub watch: bool,
    /// A folder of our own; `None`: where the packages have it, if it is there.
    pub state: Option<PathBuf>,
    /// Adopted configurations that are kept.
    pub history: usize,
    /// On every TCP socket of `listen` without a `tls` of its own.
    pub tls: Option<Located<ListenerTls>>,
    /// On every socket of `listen`; `None`: nobody sends it.
    pub proxy_protocol: Option<Located<ProxyProtocol>>,
}

/// What stands in a PEM file, part by part in DER.
#[derive(Clone, Debug)]
pub struct PemFile {
    pub path: PathBuf,
    pub parts: Vec<Vec<u8>>,
}

#[derive(Clone, Debug)]
pub struct Admin {
    pub listen: Vec<Located<Bind>>,
    /// Names by which it is asked over TCP, besides addresses and `localhost`.
    pub hosts: Vec<Host>,
}

#[derive(Clone, Debug)]
pub struct Pool {
    pub ranges: Vec<Located<PoolRange>>,
    pub exclude: Vec<Located<IpNet>>,
    pub select: SelectionPolicy,
    pub failover: bool,
}

#[derive(Clone, Debug)]
pub struct PoolRange {
    pub cidr: IpNet,
    pub from: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

/// How a delivery chooses among the addresses of its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelectionPolicy {
    /// By (tenant, host): the same pair leaves from the same address.
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
    /// Proofs that must all be given; empty: any one.
    pub require: Vec<Located<AuthMethod>>,
    /// Names of tenants, or `*`.
    pub tenants: Vec<Located<String>>,
}

/// A public key, already read from where it stands.
#[derive(Clone, Debug)]
pub struct PublicKey {
    pub path: PathBuf,
    /// SubjectPublicKeyInfo.
    pub der: Vec<u8>,
}

/// How a client shows who it is.
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
    /// The key that its material is written under.
    pub fn config_key(self) -> &'static str {
        match self {
            AuthMethod::Network => "networks",
            AuthMethod::Token => "tokens",
            AuthMethod::Certificate => "certificates",
            AuthMethod::Signature => "public_keys",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Route {
    pub name: Located<String>,
    /// `hooks.acme.example`, `*.acme.example`, `*`, or an address; as written.
    pub hosts: Vec<Located<String>>,
    pub paths: Vec<Located<String>>,
    /// Ports beyond `guard.ports`.
    pub ports: Vec<Located<u16>>,
    pub tenants: Vec<Located<String>>,
    pub clients: Vec<Located<String>>,
    pub egress: Option<Located<String>>,
    pub trust: Option<Located<String>>,
    pub sign: Vec<Located<String>>,
    pub credential: Option<Located<String>>,
    pub limits: Vec<Located<String>>,
    pub plaintext: Located<PlaintextPolicy>,
    /// `None`: a tunnel, unless the route signs or has a credential.
    pub connect: Option<Located<ConnectPolicy>>,
    pub interim: InterimPolicy,
    /// Bytes.
    pub body_max: Option<Located<u64>>,
    pub response_max: Option<Located<u64>>,
    pub response_head_max: ResponseHeadMax,
    pub client_connections: ClientConnections,
    pub timeouts: RouteTimeouts,
    /// For some of its tenants and hosts it is another.
    pub split: Option<Located<Split>>,
    /// It is judged beside the others, and not taken.
    pub report_only: bool,
}

/// A part of a route's tenants and hosts, treated otherwise.
#[derive(Clone, Debug)]
pub struct Split {
    /// Hundredths of a percent, of 10,000.
    pub share: u32,
    /// The route as it is for them.
    pub route: Box<Route>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaintextPolicy {
    Refuse,
    Upgrade,
    Allow,
}

/// Which clients get the target's interim responses (1xx).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InterimPolicy {
    /// Clients over HTTP/2. Many HTTP/1.1 clients take 103 for the final response.
    #[default]
    Http2,
    /// Every client whose version of HTTP has interim responses.
    Forward,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectPolicy {
    Tunnel,
    Inspect,
    Refuse,
}

/// A secret's bytes: wiped when dropped, never printed.
#[derive(Clone)]
pub struct Secret(zeroize::Zeroizing<Vec<u8>>);

impl Secret {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(zeroize::Zeroizing::new(bytes))
    }
    /// The bytes themselves; the only way to them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[derive(Clone, Debug, Default)]
pub struct Limit {
    pub rate: Option<Located<Rate>>,
    pub burst: Option<Located<u32>>,
    pub concurrency: Option<Located<u32>>,
    pub per: Vec<Located<LimitScope>>,
    /// How long a delivery may be paced before it is refused.
    pub wait: Duration,
    /// Bytes a second.
    pub bandwidth: Option<Located<u64>>,
    pub report_only: bool,
}

/// `N/s`, `N/m`, `N/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub count: u32,
    pub period: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LimitScope {
    Client,
    Tenant,
    Route,
    Host,
    Egress,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeniedNetwork {
    pub cidr: IpNet,
    /// What it would refuse is recorded, and let through.
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
