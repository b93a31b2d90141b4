//! The compilation of clients into lookup tables.
//! Has every client a proof, and does every proof belong to one client?

use std::collections::{BTreeMap, HashMap};
use std::fmt::Display;
use std::sync::Arc;

use ipnet::IpNet;

use super::public_key::{VerifyingKey, VerifyingKeyError};
use super::{ANONYMOUS, AllowedTenants, Client, Clients, certificate};
use crate::config::WarningCode;
use crate::config::{self, AuthMethod, Bind, Config, Listen, Located, Problem, SourceSpan};
use crate::names::{ClientName, TenantName};

impl Clients {
    pub fn compile(config: &Config, problems: &mut Vec<Problem>) -> Clients {
        // The PROXY protocol reports the peers of the load balancer, which may be public.
        let proxied = config.server.proxy_protocol.is_some();
        let public_bind = config.server.listen.iter().find(|bind| proxied || is_publicly_reachable(&bind.address));
        let anonymous = config.server.allow_anonymous.value;
        if config.clients.is_empty() && !anonymous {
            let help =
                "add a [clients.NAME] with tokens or networks; on loopback, server.allow_anonymous = true suffices";
            // This is only a warning: a fresh installation refuses every request until it is configured.
            problems.push(
                Problem::warning(
                    WarningCode::NoClient,
                    None,
                    "no client is configured: outgate would refuse every request",
                )
                .help(help),
            );
        }
        if let (true, Some(listen)) = (anonymous, public_bind) {
            let allow = config.server.allow_anonymous.span;
            let problem =
                Problem::at(allow, "allow_anonymous on a listener that other hosts can reach is an open proxy");
            let help = "listen on loopback or a unix socket only, or remove allow_anonymous and add a [clients.NAME]";
            problems.push(problem.related(listen.span, "other hosts can reach this listener").help(help));
        }

        let mut clients = Clients {
            by_name: HashMap::new(),
            by_token: HashMap::new(),
            by_certificate: HashMap::new(),
            by_network: Vec::new(),
            anonymous: anonymous.then(|| Arc::new(anonymous_client())),
        };
        let mut claims = ClaimedProofs::default();
        for (name, written) in &config.clients {
            check_client(name, written, public_bind, problems);
            clients.add(name, written, &mut claims, problems);
        }
        clients.by_network.sort_by_key(|(network, _)| std::cmp::Reverse(network.prefix_len()));
        clients
    }

    fn add<'w>(
        &mut self,
        name: &'w ClientName,
        written: &'w config::Client,
        claims: &mut ClaimedProofs<'w>,
        problems: &mut Vec<Problem>,
    ) {
        let client = Arc::new(compile_client(name, written, problems));
        for token in &written.tokens {
            let message = "two clients have the same token";
            claim_proof(&mut claims.tokens, token.value, (name, token.span), message, problems);
            self.by_token.insert(token.value, client.clone());
        }
        for written in &written.certificates {
            match certificate::canonical_san(written) {
                Ok(key) => {
                    let message = "two clients have the same certificate name";
                    claim_proof(&mut claims.certificates, key.clone(), (name, written.span), message, problems);
                    self.by_certificate.insert(key, client.clone());
                }
                Err(reason) => problems.push(not_a_san(written.span, reason)),
            }
        }
        if has_only_networks(written) {
            for network in &written.networks {
                let key = network.trunc();
                let message = "two clients have the same network and no other proof";
                claim_proof(&mut claims.networks, key, (name, network.span), message, problems);
                self.by_network.push((key, client.clone()));
            }
        }
        self.by_name.insert(name.clone(), client);
    }
}

pub(super) fn not_a_san(place: SourceSpan, reason: &'static str) -> Problem {
    let help = "write a subject alternative name: \"billing.internal\", \"spiffe://acme.example/billing\"";
    Problem::at(place, "not a subject alternative name").label(reason).help(help)
}

/// The first client with each proof, and its place. Public keys are not included, since each signature names its
/// client.
#[derive(Default)]
struct ClaimedProofs<'w> {
    tokens: BTreeMap<[u8; 32], (&'w ClientName, SourceSpan)>,
    certificates: BTreeMap<String, (&'w ClientName, SourceSpan)>,
    networks: BTreeMap<IpNet, (&'w ClientName, SourceSpan)>,
}

fn compile_client(name: &ClientName, written: &config::Client, problems: &mut Vec<Problem>) -> Client {
    Client {
        name: name.clone(),
        tokens: written.tokens.iter().map(|token| token.value).collect(),
        public_keys: written.public_keys.iter().filter_map(|key| compile_public_key(key, problems)).collect(),
        networks: written.networks.iter().map(|network| network.trunc()).collect(),
        require: written.require.iter().map(|proof| proof.value).collect(),
        proofs: available_proofs(written),
        tenants: match written.tenants.iter().any(|tenant| tenant.value == "*") {
            true => AllowedTenants::All,
            false => AllowedTenants::Only(written.tenants.iter().map(|t| TenantName::new(t.as_str())).collect()),
        },
    }
}

fn anonymous_client() -> Client {
    Client {
        name: ClientName::new(ANONYMOUS),
        tokens: vec![],
        public_keys: vec![],
        networks: vec![],
        require: vec![],
        proofs: vec![],
        tenants: AllowedTenants::Only(vec![]),
    }
}

fn compile_public_key(written: &Located<config::PublicKey>, problems: &mut Vec<Problem>) -> Option<VerifyingKey> {
    let unusable = match VerifyingKey::parse(&written.der) {
        Ok(key) => return Some(key),
        Err(unusable) => unusable,
    };
    let help = match unusable {
        VerifyingKeyError::RsaBits(_) => "use an RSA key of 2048 to 8192 bits",
        VerifyingKeyError::Malformed | VerifyingKeyError::UnsupportedKind => {
            "use an Ed25519, P-256 or RSA key; `openssl pkey -in PRIVATE -pubout` writes the public half"
        }
    };
    let message = format!("the public key in {} {unusable}", written.path.display());
    problems.push(Problem::at(written.span, message).help(help));
    None
}

/// Returns the proofs that the client is configured for, the weakest first.
fn available_proofs(client: &config::Client) -> Vec<AuthMethod> {
    let all = [
        (AuthMethod::Network, client.networks.is_empty()),
        (AuthMethod::Token, client.tokens.is_empty()),
        (AuthMethod::Certificate, client.certificates.is_empty()),
        (AuthMethod::Signature, client.public_keys.is_empty()),
    ];
    all.into_iter().filter(|(_, none)| !none).map(|(proof, _)| proof).collect()
}

/// Returns whether the client authenticates by network only.
fn has_only_networks(client: &config::Client) -> bool {
    client.tokens.is_empty() && client.certificates.is_empty() && client.public_keys.is_empty()
}

fn check_client(
    name: &ClientName,
    client: &Located<config::Client>,
    open: Option<&Located<Bind>>,
    problems: &mut Vec<Problem>,
) {
    if name.as_str() == ANONYMOUS {
        let help = "choose another name; server.allow_anonymous admits unauthenticated clients";
        problems.push(
            Problem::at(client.span, "the name \"anonymous\" is reserved for unauthenticated clients").help(help),
        );
    }
    if name.as_str().contains(':') && !client.tokens.is_empty() {
        let message =
            format!("the client {name} cannot use Basic credentials: a colon ends the user name there (RFC 7617 §2)");
        problems.push(Problem::warning(WarningCode::ColonInName, Some(client.span), message));
    }
    if has_only_networks(client) && client.networks.is_empty() {
        let help = "add tokens (`outgate token new` makes one), certificates, public_keys or networks";
        problems.push(Problem::at(client.span, format!("the client {name} has no means of authentication")).help(help));
    }
    for proof in &client.require {
        if !available_proofs(client).contains(&proof.value) {
            let key = proof.config_key();
            let message = format!("the client {name} requires {}, and has no {key}", proof.as_str());
            problems.push(Problem::at(proof.span, message).help(format!("add {key}, or remove the entry")));
        }
    }
    // Two halves of the address space are as open as the whole.
    let networks: Vec<IpNet> = client.networks.iter().map(|network| network.value).collect();
    let everyone = IpNet::aggregate(&networks).iter().any(|network| network.prefix_len() == 0);
    if let (true, true, Some(listen)) = (has_only_networks(client), everyone, open) {
        let place = client.networks.first().map_or(client.span, |network| network.span);
        let problem = Problem::at(place, format!("every address authenticates as the client {name}: an open proxy"));
        let help = "add tokens, certificates or public_keys, or narrower networks";
        problems.push(problem.related(listen.span, "other hosts can reach this listener").help(help));
    }
}

/// Records the first owner of a proof, and reports every other one.
pub(super) fn claim_proof<'a, K: Ord, N: PartialEq + Display>(
    claimed: &mut BTreeMap<K, (&'a N, SourceSpan)>,
    key: K,
    (name, place): (&'a N, SourceSpan),
    message: &str,
    problems: &mut Vec<Problem>,
) {
    let (first, first_place) = *claimed.entry(key).or_insert((name, place));
    if first != name {
        problems.push(Problem::at(place, message).related(first_place, format!("first used by {first}")));
    }
}

/// Returns whether other hosts can connect to a listener. The addresses of systemd's sockets are not known here.
fn is_publicly_reachable(listen: &Listen) -> bool {
    match listen {
        Listen::Tcp(address) => !address.ip().to_canonical().is_loopback(),
        Listen::Unix(_) => false,
        Listen::Systemd => true,
    }
}
