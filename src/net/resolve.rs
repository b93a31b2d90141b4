//! Names to addresses: static names, then DNS, remembered for as long as the answer says.
//! Which addresses does this name have, all of them?

mod cache;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use tokio::time::timeout;

use crate::config;
use crate::names::Host;
use cache::{Cache, Found, Look};

/// One question to one server waits for this long before it is asked again, so that a lost datagram does not cost a
/// delivery the whole of its time for DNS.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(1);
const QUESTION_ATTEMPTS: usize = 3;
/// Between the end of a question and the moment when those who wait for it hear of it.
const GRACE: Duration = Duration::from_millis(100);

/// How long an answer is believed, whatever its TTL says: no storm of questions for a TTL of zero, and no mistake in
/// a customer's zone outlives this.
const TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);
/// The same for "there is no such name" (RFC 2308 §5): a customer who adds it should not wait for long.
const NEGATIVE_TTL: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(30);
/// One family's addresses while the other's could not be had: tried again soon.
const PARTIAL_TTL: Duration = Duration::from_secs(10);
/// RFC 9520 §3.2: a failure to resolve is remembered too, for at least this long.
const FAILURE_TTL: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// Without repetitions, IPv6 first, else as the servers ordered them.
    pub addresses: Arc<[IpAddr]>,
    /// Known without asking anybody.
    pub cached: bool,
}

/// Why a name has no addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResolveFault {
    /// No such name, or a name without addresses.
    NotFound,
    Timeout,
    /// The servers' answer, as the IANA registry spells it (`SERVFAIL`), or what kept them from answering.
    Failed(&'static str),
}

impl fmt::Display for ResolveFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("the name has no address"),
            Self::Timeout => f.write_str("no answer from the name servers in time"),
            Self::Failed(reason) => write!(f, "the name servers gave no answer: {reason}"),
        }
    }
}

impl std::error::Error for ResolveFault {}

/// What a resolver is made of: where it is equal, a resolver and what it remembers may be kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Basis {
    servers: Vec<SocketAddr>,
    hosts: BTreeMap<Host, Vec<IpAddr>>,
    /// This host's `/etc/hosts` and `/etc/resolv.conf`, where `resolver.servers` is empty.
    system: Option<(String, String)>,
}

/// What this host says of names.
const SYSTEM: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

impl Basis {
    /// The files that it is read from, beside the configuration.
    pub fn files(config: &config::Resolver) -> &'static [&'static str] {
        if config.servers.is_empty() { &SYSTEM } else { &[] }
    }

    pub fn read(config: &config::Resolver) -> io::Result<Self> {
        let system = match config.servers.is_empty() {
            true => Some((text_of(SYSTEM[0])?, text_of(SYSTEM[1])?)),
            false => None,
        };
        let servers = config.servers.iter().map(|server| server.value).collect();
        Ok(Self { servers, hosts: config.hosts.clone(), system })
    }
}

pub struct Resolver {
    basis: Basis,
    /// Names that DNS is not asked for.
    hosts: HashMap<Arc<str>, Arc<[IpAddr]>>,
    cache: Arc<Cache>,
    dns: TokioResolver,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl Resolver {
    /// With `resolver.servers`, exactly those and `resolver.hosts` answer. Without, this host's `/etc/resolv.conf` and
    /// `/etc/hosts` do as well, as they are now.
    pub fn new(basis: Basis) -> io::Result<Self> {
        let mut hosts = HashMap::new();
        let servers = match &basis.system {
            Some((hosts_text, resolv_conf)) => {
                hosts = hosts_file(hosts_text);
                system_servers(resolv_conf)
            }
            None => basis.servers.iter().copied().map(name_server).collect(),
        };
        for (host, addresses) in &basis.hosts {
            if let Host::Name(name) = host {
                hosts.insert(Arc::clone(name), addresses.as_slice().into());
            }
        }
        let dns = client(servers).map_err(io::Error::other)?;
        Ok(Self { basis, hosts, cache: Arc::new(Cache::new()), dns })
    }

    pub fn basis(&self) -> &Basis {
        &self.basis
    }

    /// Every address of `host`. Within the runtime: a question is a task of its own, which all who ask for the name
    /// meanwhile wait for and which none of them, by going away, takes from the others.
    pub async fn resolve(&self, host: &Host, deadline: Duration) -> Result<Answers, ResolveFault> {
        let name = match host {
            Host::Ip(ip) => return Ok(Answers { addresses: Arc::new([*ip]), cached: true }),
            Host::Name(name) => name,
        };
        if let Some(addresses) = self.hosts.get(name) {
            return Ok(Answers { addresses: Arc::clone(addresses), cached: true });
        }
        let mut answer = match self.cache.look(name, Instant::now()) {
            Look::Known(outcome) => return outcome.map(|addresses| Answers { addresses, cached: true }),
            Look::Asked(answer) => answer,
            Look::Unasked(question, answer) => {
                let (dns, name) = (self.dns.clone(), Arc::clone(name));
                tokio::spawn(async move {
                    let found = ask(&dns, &name, deadline).await;
                    question.answer(found, Instant::now());
                });
                answer
            }
            Look::Full => return Err(ResolveFault::Failed("too many names are being resolved")),
        };
        let outcome = match timeout(deadline + GRACE, answer.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => answer.clone().unwrap_or(Err(ResolveFault::Timeout)),
            Ok(Err(_)) | Err(_) => Err(ResolveFault::Timeout),
        };
        outcome.map(|addresses| Answers { addresses, cached: false })
    }
}

fn client(servers: Vec<NameServerConfig>) -> Result<TokioResolver, NetError> {
    // No search domains: a target's name is absolute.
    let config = ResolverConfig::from_name_servers(servers);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let options: &mut ResolverOpts = builder.options_mut();
    options.timeout = QUESTION_TIMEOUT;
    options.attempts = QUESTION_ATTEMPTS;
    options.use_hosts_file = ResolveHosts::Never;
    // Its cache keeps whole messages, one a family, and copies them at each hit; every delivery hits ours.
    options.cache_size = 0;
    builder.build()
}

/// UDP, and TCP for answers that do not fit.
fn name_server(address: SocketAddr) -> NameServerConfig {
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    for connection in &mut connections {
        connection.port = address.port();
    }
    NameServerConfig::new(address.ip(), true, connections)
}

/// Without a usable `nameserver` line it is this host that is asked: resolv.conf(5).
fn system_servers(resolv_conf: &str) -> Vec<NameServerConfig> {
    match parse_resolv_conf(resolv_conf) {
        Ok((config, _)) => config.name_servers().to_vec(),
        Err(_) => vec![NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into())],
    }
}

/// hosts(5): an address, then names for it; a name may stand on several lines.
fn hosts_file(text: &str) -> HashMap<Arc<str>, Arc<[IpAddr]>> {
    let mut hosts: HashMap<Arc<str>, Vec<IpAddr>> = HashMap::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>) else { continue };
        for name in words {
            let addresses = hosts.entry(name.to_ascii_lowercase().into()).or_default();
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    hosts.into_iter().map(|(name, addresses)| (name, addresses.into())).collect()
}

/// A file that is not there says nothing.
fn text_of(path: &str) -> io::Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// What one question, for one family, came to.
enum Half {
    Addresses { addresses: Vec<IpAddr>, ttl: Duration },
    Nothing { no_such_name: bool, ttl: Duration },
    Fault(ResolveFault),
}

/// Both families are always asked and waited for: one prohibited address condemns the name, so every answer counts.
async fn ask(dns: &TokioResolver, name: &str, deadline: Duration) -> Found {
    // The last dot makes it absolute.
    let Ok(name) = Name::from_ascii(format!("{name}.")) else {
        return Found { outcome: Err(ResolveFault::NotFound), ttl: *NEGATIVE_TTL.end() };
    };
    let question = async |kind| match timeout(deadline, dns.lookup(name.clone(), kind)).await {
        Ok(Ok(lookup)) => addresses(&lookup),
        Ok(Err(error)) => nothing(&error),
        Err(_) => Half::Fault(ResolveFault::Timeout),
    };
    let (v6, v4) = tokio::join!(question(RecordType::AAAA), question(RecordType::A));
    whole(v6, v4)
}

fn addresses(lookup: &Lookup) -> Half {
    // A chain of aliases is as short-lived as its shortest-lived link.
    let ttl = lookup.answers().iter().map(|record| record.ttl).min().unwrap_or(0);
    let ttl = Duration::from_secs(ttl.into());
    let addresses: Vec<IpAddr> = lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect();
    if addresses.is_empty() { Half::Nothing { no_such_name: false, ttl } } else { Half::Addresses { addresses, ttl } }
}

fn nothing(error: &NetError) -> Half {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(NoRecords { negative_ttl, response_code, .. })) => Half::Nothing {
            no_such_name: *response_code == ResponseCode::NXDomain,
            ttl: Duration::from_secs(negative_ttl.unwrap_or(0).into()),
        },
        NetError::Dns(DnsError::ResponseCode(code)) => Half::Fault(ResolveFault::Failed(mnemonic(*code))),
        NetError::Timeout => Half::Fault(ResolveFault::Timeout),
        NetError::Io(_) | NetError::NoConnections => Half::Fault(ResolveFault::Failed("no server can be reached")),
        _ => Half::Fault(ResolveFault::Failed("malformed answer")),
    }
}

fn whole(v6: Half, v4: Half) -> Found {
    use Half::{Addresses, Fault, Nothing};
    let negative = |ttl: Duration| Found {
        outcome: Err(ResolveFault::NotFound),
        ttl: ttl.clamp(*NEGATIVE_TTL.start(), *NEGATIVE_TTL.end()),
    };
    match (v6, v4) {
        (Addresses { addresses: v6, ttl: one }, Addresses { addresses: v4, ttl: other }) => {
            found(v6.into_iter().chain(v4), one.min(other))
        }
        (Addresses { addresses, ttl }, Nothing { .. }) | (Nothing { .. }, Addresses { addresses, ttl }) => {
            found(addresses, ttl)
        }
        // What one family answered is used, and the other asked again soon.
        (Addresses { addresses, ttl }, Fault(_)) | (Fault(_), Addresses { addresses, ttl }) => {
            found(addresses, ttl.min(PARTIAL_TTL))
        }
        (Nothing { ttl: one, .. }, Nothing { ttl: other, .. }) => negative(one.min(other)),
        // RFC 8020 §2: a name that does not exist does not exist for the other type either.
        (Nothing { no_such_name: true, ttl }, Fault(_)) | (Fault(_), Nothing { no_such_name: true, ttl }) => {
            negative(ttl)
        }
        // A server that said no says more than one that said nothing.
        (Fault(ResolveFault::Timeout), Fault(fault)) | (Fault(fault), _) | (Nothing { .. }, Fault(fault)) => {
            Found { outcome: Err(fault), ttl: FAILURE_TTL }
        }
    }
}

fn found(addresses: impl IntoIterator<Item = IpAddr>, ttl: Duration) -> Found {
    let mut once = Vec::new();
    for address in addresses {
        if !once.contains(&address) {
            once.push(address);
        }
    }
    Found { outcome: Ok(once.into()), ttl: ttl.clamp(*TTL.start(), *TTL.end()) }
}

fn mnemonic(code: ResponseCode) -> &'static str {
    match code {
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        ResponseCode::NotAuth => "NOTAUTH",
        ResponseCode::BADVERS | ResponseCode::BADSIG => "BADVERS",
        _ => "an unusual response code",
    }
}

#[cfg(test)]
mod tests;
