//! Who is calling, by what proof: a token or the network it calls from.
//! Which client is this?

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ipnet::IpNet;
use subtle::{Choice, ConstantTimeEq};

use crate::config::{At, Config, Listen, Place, Problem};
use crate::names::{ClientName, TenantName};

/// What strangers are called where `allow_anonymous` lets them in.
pub const ANONYMOUS: &str = "anonymous";

/// Longer credentials are not decoded: nobody's token is a kilobyte.
const CREDENTIAL_MAX: usize = 4096;

/// Clients may leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// All who may call.
pub struct Clients {
    by_name: HashMap<ClientName, Arc<Client>>,
    /// A lookup by hash may take the time it likes: whoever learns from it something of the SHA-256 of a token is no
    /// nearer to the token, which is drawn at random.
    by_token: HashMap<[u8; 32], Arc<Client>>,
    /// Of the clients that nothing but their network proves; the longest prefix first.
    by_network: Vec<(IpNet, Arc<Client>)>,
    anonymous: Option<Arc<Client>>,
}

/// One caller, known.
pub struct Client {
    name: ClientName,
    tokens: Vec<[u8; 32]>,
    networks: Vec<IpNet>,
    tenants: Tenants,
}

enum Tenants {
    All,
    Named(Vec<TenantName>),
}

/// What a client's connection shows of who is at its other end.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// `None` behind a unix socket: such a caller has no network.
    pub address: Option<IpAddr>,
    /// The names in the certificate that the caller has proven to hold; empty without one.
    pub certificate: Vec<String>,
}

/// Why a caller is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unidentified {
    /// No credential, and no network that proves a client.
    Missing,
    /// A credential that no client has, or none that can be read.
    Wrong,
    /// The right credential from a network that its client may not call from.
    Network,
}

impl fmt::Display for Unidentified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "no credential",
            Self::Wrong => "wrong credential",
            Self::Network => "client calls from a network it may not call from",
        })
    }
}

impl std::error::Error for Unidentified {}

impl Client {
    pub fn name(&self) -> &ClientName {
        &self.name
    }

    pub fn speaks_for(&self, tenant: &TenantName) -> bool {
        match &self.tenants {
            Tenants::All => true,
            Tenants::Named(names) => names.contains(tenant),
        }
    }

    fn has(&self, token: &[u8; 32]) -> bool {
        // Every token is compared, and in constant time: how long a wrong one takes tells nothing.
        self.tokens.iter().fold(Choice::from(0), |found, own| found | own.ct_eq(token)).into()
    }

    fn may_call_from(&self, peer: Option<IpAddr>) -> bool {
        self.networks.is_empty() || peer.is_some_and(|ip| self.networks.iter().any(|network| network.contains(&ip)))
    }
}

impl Clients {
    /// A credential that is wrong stays wrong, even where the network or nothing at all would have been proof enough:
    /// whoever sends one believes to be somebody else.
    pub fn identify(&self, caller: &Caller, proxy_authorization: Option<&[u8]>) -> Result<&Arc<Client>, Unidentified> {
        // On a dual-stack listener an IPv4 peer looks like ::ffff:192.0.2.1.
        let peer = caller.address.map(|ip| ip.to_canonical());
        let Some(credential) = proxy_authorization else {
            let known = peer.and_then(|ip| self.by_network.iter().find(|(network, _)| network.contains(&ip)));
            return known.map(|(_, client)| client).or(self.anonymous.as_ref()).ok_or(Unidentified::Missing);
        };
        let client = self.by_credential(credential).ok_or(Unidentified::Wrong)?;
        if client.may_call_from(peer) { Ok(client) } else { Err(Unidentified::Network) }
    }

    /// A client by its name, proof aside; `anonymous` where strangers are let in.
    pub fn get(&self, name: &ClientName) -> Option<&Arc<Client>> {
        self.by_name.get(name).or(self.anonymous.as_ref().filter(|anonymous| anonymous.name == *name))
    }

    /// `Basic` (RFC 7617) or `Bearer` (RFC 6750 §2.1): a scheme in any case, one or more spaces (RFC 9110 §11.4).
    fn by_credential(&self, credential: &[u8]) -> Option<&Arc<Client>> {
        if credential.len() > CREDENTIAL_MAX {
            return None;
        }
        let end = credential.iter().position(|&byte| byte == b' ')?;
        let (scheme, proof) = (&credential[..end], credential[end..].trim_ascii());
        if scheme.eq_ignore_ascii_case(b"bearer") {
            self.by_token.get(&sha256(proof))
        } else if scheme.eq_ignore_ascii_case(b"basic") {
            let decoded = BASE64.decode(proof).ok()?;
            // The first colon ends the name; a token may contain more of them (RFC 7617 §2).
            let colon = decoded.iter().position(|&byte| byte == b':')?;
            let token = sha256(&decoded[colon + 1..]);
            let client = self.by_name.get(std::str::from_utf8(&decoded[..colon]).ok()?)?;
            client.has(&token).then_some(client)
        } else {
            None
        }
    }

    pub fn compile(config: &Config, problems: &mut Vec<Problem>) -> Clients {
        // Whom the PROXY protocol tells of is whoever reaches the load balancer.
        let proxied = config.server.proxy_protocol.is_some();
        let open = config.server.listen.iter().find(|listen| proxied || strangers_reach(listen));
        let anonymous = config.server.allow_anonymous.value;
        if config.clients.is_empty() && !anonymous {
            let help =
                "add a [clients.NAME] with tokens or networks; on loopback, server.allow_anonymous = true will do";
            // Not a problem: a package installs so, and lets nothing through until somebody says what.
            problems.push(Problem::warning(None, "no client is configured: nobody can use this").help(help));
        }
        if let (true, Some(listen)) = (anonymous, open) {
            let allow = config.server.allow_anonymous.place;
            let problem = Problem::at(allow, "allow_anonymous on a listener that strangers can reach is an open proxy");
            let help = "listen on loopback or a unix socket only, or leave this out and add a [clients.NAME]";
            problems.push(problem.also(listen.place, "strangers can reach this").help(help));
        }

        let mut clients = Clients {
            by_name: HashMap::new(),
            by_token: HashMap::new(),
            by_network: Vec::new(),
            anonymous: anonymous.then(|| {
                let name = ClientName::new(ANONYMOUS);
                Arc::new(Client { name, tokens: vec![], networks: vec![], tenants: Tenants::Named(vec![]) })
            }),
        };
        let mut tokens = BTreeMap::new();
        let mut networks = BTreeMap::new();
        for (name, written) in &config.clients {
            check(name, written, open, problems);
            let client = Arc::new(Client {
                name: name.clone(),
                tokens: written.tokens.iter().map(|token| token.value).collect(),
                networks: written.networks.iter().map(|network| network.trunc()).collect(),
                tenants: match written.tenants.iter().any(|tenant| tenant.value == "*") {
                    true => Tenants::All,
                    false => Tenants::Named(written.tenants.iter().map(|t| TenantName::new(t.as_str())).collect()),
                },
            });
            for token in &written.tokens {
                first_of(&mut tokens, token.value, (name, token.place), "a token proves one client only", problems);
                clients.by_token.insert(token.value, client.clone());
            }
            if written.tokens.is_empty() {
                for network in &written.networks {
                    let key = network.trunc();
                    let message = "a network alone proves one client only";
                    first_of(&mut networks, key, (name, network.place), message, problems);
                    clients.by_network.push((key, client.clone()));
                }
            }
            clients.by_name.insert(name.clone(), client);
        }
        clients.by_network.sort_by_key(|(network, _)| std::cmp::Reverse(network.prefix_len()));
        clients
    }
}

fn check(
    name: &ClientName,
    client: &At<crate::config::Client>,
    open: Option<&At<Listen>>,
    problems: &mut Vec<Problem>,
) {
    if name.as_str() == ANONYMOUS {
        let help = "choose another name; server.allow_anonymous lets strangers in";
        problems.push(Problem::at(client.place, "the name \"anonymous\" is kept for strangers").help(help));
    }
    if name.as_str().contains(':') && !client.tokens.is_empty() {
        let message = format!("{name} cannot call with Basic credentials: a colon ends the name there (RFC 7617 §2)");
        problems.push(Problem::warning(Some(client.place), message));
    }
    if client.tokens.is_empty() && client.networks.is_empty() {
        let help = "add tokens (`outgate token new` makes one) or networks";
        problems.push(Problem::at(client.place, format!("nothing proves the client {name}")).help(help));
    }
    // Two halves of the Internet are as open as the whole.
    let networks: Vec<IpNet> = client.networks.iter().map(|network| network.value).collect();
    let everyone = IpNet::aggregate(&networks).iter().any(|network| network.prefix_len() == 0);
    if let (true, true, Some(listen)) = (client.tokens.is_empty(), everyone, open) {
        let place = client.networks.first().map_or(client.place, |network| network.place);
        let problem = Problem::at(place, format!("every address alone proves the client {name}: an open proxy"));
        problems.push(problem.also(listen.place, "strangers can reach this").help("add tokens, or narrower networks"));
    }
}

/// Keeps who was first to claim something, and tells whoever else does.
fn first_of<'a, K: Ord>(
    claimed: &mut BTreeMap<K, (&'a ClientName, Place)>,
    key: K,
    (name, place): (&'a ClientName, Place),
    message: &str,
    problems: &mut Vec<Problem>,
) {
    let (first, there) = *claimed.entry(key).or_insert((name, place));
    if first != name {
        problems.push(Problem::at(place, message).also(there, format!("already a proof of {first}")));
    }
}

/// Can anyone but this host's own processes connect? Where systemd's sockets listen is not known here.
fn strangers_reach(listen: &Listen) -> bool {
    match listen {
        Listen::Tcp(address) => !address.ip().to_canonical().is_loopback(),
        Listen::Unix(_) => false,
        Listen::Systemd => true,
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

#[cfg(test)]
mod tests;
