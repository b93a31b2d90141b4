//! Connections to the servers of the store: one server of several, the master that sentinels name, or a cluster.
//! Which server is the store now?

use std::collections::VecDeque;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use redis::aio::MultiplexedConnection;
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, FromRedisValue,
    IntoConnectionInfo, RedisConnectionInfo, RedisResult, ScriptInvocation, TlsCertificates, TlsMode,
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
    Single(Vec<Client>),
    /// A client for each sentinel; the one that has answered last is the first.
    Sentinels(Mutex<VecDeque<SentinelClient>>),
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
        let certificates = fleet.store.uses_tls.then(|| TlsCertificates {
            client_tls: fleet.identity.as_ref().map(|identity| client_tls(identity)),
            root_cert: fleet.ca.as_ref().map(|ca| to_pem(ca)),
        });
        let nodes = fleet.store.nodes.iter().map(|node| address(node, fleet.store.uses_tls));
        let tcp = TcpSettings::default().set_nodelay(true);
        let password = fleet.password.as_ref().map(|password| text(password.expose())).transpose()?;
        let user = fleet.user.as_ref().map(|user| user.value.as_str());
        let mut login = RedisConnectionInfo::default();
        if let Some(user) = user {
            login = login.set_username(user);
        }
        if let Some(password) = password {
            login = login.set_password(password);
        }
        Ok(match &fleet.store.topology {
            StoreTopology::Single(database) => {
                let login = login.set_db(i64::from(*database));
                let clients = nodes.map(|node| {
                    let info: ConnectionInfo = node.into_connection_info()?;
                    let info = info.set_redis_settings(login.clone()).set_tcp_settings(tcp.clone());
                    match &certificates {
                        Some(certificates) => Client::build_with_tls(info, certificates.clone()),
                        None => Client::open(info),
                    }
                });
                Self::Single(clients.collect::<RedisResult<_>>()?)
            }
            StoreTopology::Sentinel(master) => {
                let sentinel = |node| -> Result<SentinelClient, StoreError> {
                    let mut builder = SentinelClientBuilder::new([node], master, SentinelServerType::Master)?
                        .set_client_to_redis_tcp_settings(tcp.clone())
                        .set_client_to_sentinel_tcp_settings(tcp.clone());
                    if let Some(certificates) = &certificates {
                        builder = builder
                            .set_client_to_redis_tls_mode(TlsMode::Secure)
                            .set_client_to_redis_certificates(certificates.clone())
                            .set_client_to_sentinel_certificates(certificates.clone());
                    }
                    if let Some(user) = user {
                        builder = builder.set_client_to_redis_username(user);
                    }
                    if let Some(password) = password {
                        builder = builder.set_client_to_redis_password(password);
                    }
                    if let Some(password) = &fleet.sentinel_password {
                        builder = builder.set_client_to_sentinel_password(text(password.expose())?);
                    }
                    Ok(builder.build()?)
                };
                Self::Sentinels(Mutex::new(nodes.map(sentinel).collect::<Result<_, _>>()?))
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

    /// Connects to the first server that accepts. A response on the connection takes at most `timeout`.
    pub(super) async fn connect(&self, timeout: Duration) -> Result<StoreConnection, StoreError> {
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(timeout)).set_response_timeout(Some(timeout));
        match self {
            Self::Single(clients) => {
                let mut last = StoreError("it has no address".to_owned());
                for client in clients {
                    match connect_to_master(client, &config).await {
                        Ok(connection) => return Ok(StoreConnection::Single(connection)),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
            Self::Sentinels(sentinels) => {
                let connection = connect_through_sentinels(&mut *sentinels.lock().await, &config, timeout).await?;
                Ok(StoreConnection::Single(connection))
            }
            Self::Cluster(client) => Ok(StoreConnection::Cluster(client.get_async_connection().await?)),
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
        Some(role) => {
            Err(StoreError(format!("{:?} is a {role}, and not a master", client.get_connection_info().addr())))
        }
    }
}

/// Connects to the master that the first sentinel which answers names.
///
/// The library asks all its sentinels and then waits for the first one of them. It waits for longer than an attempt may take.
async fn connect_through_sentinels(
    sentinels: &mut VecDeque<SentinelClient>,
    config: &AsyncConnectionConfig,
    timeout: Duration,
) -> Result<MultiplexedConnection, StoreError> {
    let mut last = StoreError("it has no sentinel".to_owned());
    for _ in 0..sentinels.len() {
        // The next attempt begins with the next sentinel, also if the time of this one ends now.
        sentinels.rotate_left(1);
        let Some(sentinel) = sentinels.back_mut() else { break };
        match tokio::time::timeout(timeout * SENTINEL_FACTOR, sentinel.get_async_connection_with_config(config)).await {
            Ok(Ok(connection)) => {
                sentinels.rotate_right(1);
                return Ok(connection);
            }
            Ok(Err(error)) => last = error.into(),
            Err(_) => last = StoreError("a sentinel, or the master that it names, did not answer".to_owned()),
        }
    }
    Err(last)
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

fn client_tls(identity: &ClientIdentity) -> ClientTlsConfig {
    ClientTlsConfig { client_cert: to_pem(&identity.certificate), client_key: identity.key.expose().to_vec() }
}

/// Returns certificates as the library takes them.
fn to_pem(certificates: &PemFile) -> Vec<u8> {
    let pem = |der: &Vec<u8>| {
        let lines = STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
    };
    certificates.parts.iter().map(pem).collect::<String>().into_bytes()
}
