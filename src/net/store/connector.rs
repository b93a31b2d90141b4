//! Connections to the servers of the store: one server of several, the master that sentinels name, or a cluster.
//! Which server is the store now?

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, FromRedisValue, IntoConnectionInfo,
    RedisConnectionInfo, RedisResult, ScriptInvocation, TlsCertificates, TlsMode,
};
use tokio::sync::Mutex;

use super::{CONNECT_FACTOR, StoreError};
use crate::config::{self, ClientIdentity, PemFile, StoreTopology};

/// How often a cluster's call follows a redirection or a slot that moves, within its timeout.
const CLUSTER_RETRIES: u32 = 2;

/// A sentinel and the master that it names may take this many times the time of a response, so that an attempt has the time for
/// two sentinels.
const SENTINEL_FACTOR: u32 = CONNECT_FACTOR / 2;

/// The servers to connect to, with the credentials and the certificates.
pub(super) enum StoreConnector {
    /// The host through which the last connection was made is the first.
    Hosts(Mutex<VecDeque<StoreHost>>),
    Cluster(Box<ClusterClient>),
}

/// A connection on which calls do not wait for each other. A clone is the same connection.
#[derive(Clone)]
pub(super) enum StoreConnection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl StoreConnection {
    pub(super) async fn query<T: FromRedisValue>(mut self, command: &Cmd) -> RedisResult<T> {
        match &mut self {
            Self::Single(connection) => command.query_async(connection).await,
            Self::Cluster(connection) => command.query_async(connection).await,
        }
    }

    /// Gives a script to the server, or to each master.
    pub(super) async fn load(mut self, invocation: &ScriptInvocation<'_>) -> RedisResult<String> {
        match &mut self {
            Self::Single(connection) => invocation.load_async(connection).await,
            Self::Cluster(connection) => invocation.load_async(connection).await,
        }
    }

    /// Runs a script by its hash, and loads it if the server does not have it: after a restart or a failover.
    pub(super) async fn run<T: FromRedisValue>(mut self, invocation: &ScriptInvocation<'_>) -> RedisResult<T> {
        match &mut self {
            Self::Single(connection) => invocation.invoke_async(connection).await,
            Self::Cluster(connection) => invocation.invoke_async(connection).await,
        }
    }
}

impl StoreConnector {
    pub(super) fn new(fleet: &config::Fleet) -> Result<Self, StoreError> {
        // The library takes the provider of the process. Another part may have installed it: it is the same one.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let certificates = certificates(fleet);
        let nodes = fleet.store.nodes.iter().map(|node| address(node, fleet.store.uses_tls));
        let tcp = tcp_settings();
        let mut login = RedisConnectionInfo::default();
        if let Some(user) = &fleet.user {
            login = login.set_username(&user.value);
        }
        if let Some(password) = &fleet.password {
            login = login.set_password(text(password.expose())?);
        }
        Ok(match &fleet.store.topology {
            StoreTopology::Single(database) => {
                let login = login.set_db(i64::from(*database));
                let host = |node: ConnectionAddr| {
                    let info = node.into_connection_info()?;
                    let info = info.set_redis_settings(login.clone()).set_tcp_settings(tcp.clone());
                    let client = match &certificates {
                        Some(certificates) => Client::build_with_tls(info, certificates.clone())?,
                        None => Client::open(info)?,
                    };
                    Ok(StoreHost::Server(Arc::new(client)))
                };
                Self::Hosts(Mutex::new(nodes.map(host).collect::<Result<_, StoreError>>()?))
            }
            StoreTopology::Sentinel(master) => {
                let fleet = Arc::new(fleet.clone());
                let host = |node| {
                    let sentinel = Sentinel { node, master: master.clone(), fleet: Arc::clone(&fleet) };
                    // An error of the configuration ends the start, and not only the first attempt.
                    sentinel.client().map(|_| StoreHost::Sentinel(Arc::new(sentinel)))
                };
                Self::Hosts(Mutex::new(nodes.map(host).collect::<Result<_, _>>()?))
            }
            StoreTopology::Cluster => {
                // The cluster takes the credentials of these nodes for all others.
                let nodes = nodes.map(|node| Ok(node.into_connection_info()?.set_redis_settings(login.clone())));
                let mut builder = ClusterClient::builder(nodes.collect::<RedisResult<Vec<_>>>()?)
                    .retries(CLUSTER_RETRIES)
                    .tcp_settings(tcp)
                    .connection_timeout(fleet.timeout)
                    .response_timeout(fleet.timeout);
                if let Some(certificates) = certificates {
                    builder = builder.certs(certificates);
                }
                Self::Cluster(Box::new(builder.build()?))
            }
        })
    }

    /// Connects to a server that accepts. A response on the connection takes at most `timeout`.
    pub(super) async fn connect(&self, timeout: Duration) -> Result<StoreConnection, StoreError> {
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(timeout)).set_response_timeout(Some(timeout));
        match self {
            Self::Hosts(hosts) => {
                let (mut hosts, mut last) = (hosts.lock().await, StoreError("it has no address".to_owned()));
                for _ in 0..hosts.len() {
                    let host = hosts[0].clone();
                    // If the time of this attempt ends now, the next attempt begins with the next host.
                    hosts.rotate_left(1);
                    match host.connect(&config, timeout).await {
                        Ok(connection) => {
                            hosts.rotate_right(1);
                            return Ok(StoreConnection::Single(connection));
                        }
                        Err(error) => last = StoreError(format!("{}: {error}", host.name())),
                    }
                }
                Err(last)
            }
            Self::Cluster(client) => Ok(StoreConnection::Cluster(client.get_async_connection().await?)),
        }
    }
}

/// A host of `store` through which outgate finds the server that accepts writes.
#[derive(Clone)]
pub(super) enum StoreHost {
    Server(Arc<Client>),
    Sentinel(Arc<Sentinel>),
}

impl StoreHost {
    /// Returns how an operator recognises the host.
    fn name(&self) -> String {
        match self {
            Self::Server(client) => client.get_connection_info().addr().to_string(),
            Self::Sentinel(sentinel) => format!("the sentinel {}", sentinel.node),
        }
    }

    async fn connect(
        &self,
        config: &AsyncConnectionConfig,
        timeout: Duration,
    ) -> Result<MultiplexedConnection, StoreError> {
        match self {
            Self::Server(client) => connect_to_master(client, config).await,
            Self::Sentinel(sentinel) => sentinel.connect(config, timeout).await,
        }
    }
}

/// Connects to a server that accepts writes. A replica refuses them, and the next address may be that of its master.
async fn connect_to_master(
    client: &Client,
    config: &AsyncConnectionConfig,
) -> Result<MultiplexedConnection, StoreError> {
    let mut connection = client.get_multiplexed_async_connection_with_config(config).await?;
    // An ACL may forbid the command: then the first write tells.
    let role: RedisResult<Vec<redis::Value>> = redis::cmd("ROLE").query_async(&mut connection).await;
    let role = role.ok().and_then(|role| redis::from_redis_value::<String>(role.into_iter().next()?).ok());
    match role.as_deref() {
        None | Some("master") => Ok(connection),
        Some(role) => Err(StoreError(format!("it is a {role}, and not a master"))),
    }
}

/// A sentinel, which names the server of the master.
pub(super) struct Sentinel {
    node: ConnectionAddr,
    master: String,
    fleet: Arc<config::Fleet>,
}

impl Sentinel {
    fn client(&self) -> Result<SentinelClient, StoreError> {
        let mut builder = SentinelClientBuilder::new([self.node.clone()], &self.master, SentinelServerType::Master)?
            .set_client_to_redis_tcp_settings(tcp_settings())
            .set_client_to_sentinel_tcp_settings(tcp_settings());
        if let Some(certificates) = certificates(&self.fleet) {
            builder = builder
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates);
        }
        if let Some(user) = &self.fleet.user {
            builder = builder.set_client_to_redis_username(&user.value);
        }
        if let Some(password) = &self.fleet.password {
            builder = builder.set_client_to_redis_password(text(password.expose())?);
        }
        if let Some(password) = &self.fleet.sentinel_password {
            builder = builder.set_client_to_sentinel_password(text(password.expose())?);
        }
        Ok(builder.build()?)
    }

    /// Connects to the master that this sentinel names.
    ///
    /// The library waits for longer than an attempt may take. It also keeps its connection to a sentinel, which may have died
    /// without a sign: hence a new client for each attempt.
    async fn connect(
        &self,
        config: &AsyncConnectionConfig,
        timeout: Duration,
    ) -> Result<MultiplexedConnection, StoreError> {
        let mut client = self.client()?;
        let attempt = client.get_async_connection_with_config(config);
        match tokio::time::timeout(timeout * SENTINEL_FACTOR, attempt).await {
            Ok(connected) => Ok(connected?),
            Err(_) => Err(StoreError("it, or the master that it names, did not answer".to_owned())),
        }
    }
}

fn tcp_settings() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}

fn address((host, port): &(String, u16), uses_tls: bool) -> ConnectionAddr {
    match uses_tls {
        true => ConnectionAddr::TcpTls { host: host.clone(), port: *port, insecure: false, tls_params: None },
        false => ConnectionAddr::Tcp(host.clone(), *port),
    }
}

fn text(secret: &[u8]) -> Result<&str, StoreError> {
    std::str::from_utf8(secret).map_err(|_| StoreError("its password is not UTF-8".to_owned()))
}

/// Returns the certificates of the connections. `None`: they do not use TLS.
fn certificates(fleet: &config::Fleet) -> Option<TlsCertificates> {
    let client_tls = |identity: &ClientIdentity| ClientTlsConfig {
        client_cert: to_pem(&identity.certificate),
        client_key: identity.key.expose().to_vec(),
    };
    fleet.store.uses_tls.then(|| TlsCertificates {
        client_tls: fleet.identity.as_ref().map(|identity| client_tls(identity)),
        root_cert: fleet.ca.as_ref().map(|ca| to_pem(ca)),
    })
}

/// Returns certificates as the library takes them.
fn to_pem(certificates: &PemFile) -> Vec<u8> {
    let pem = |der: &Vec<u8>| {
        let lines = STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
    };
    certificates.parts.iter().map(pem).collect::<String>().into_bytes()
}
