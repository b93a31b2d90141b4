//! A comparison of `explain` with the proxy over generated configurations and requests.
//! Does a refusal have the same code in both?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::collections::BTreeMap;

use http::Method;
use jiff::Timestamp;
use outgate::delivery::{ExplainRequest, explain};
use outgate::names::{ClientName, TenantName};
use outgate::policy::guard::LocalAddresses;
use support::configuration::{Replace, token_hash};
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::folder;
use support::tenants::{new_key, write_key};
use support::{Outgate, tunnel};

const CONFIGURATIONS: u64 = 6;
const REQUESTS: usize = 120;

/// Codes of the proxy without a refusal in `explain`, because they depend on the target.
const TARGET_CODES: &[&str] =
    &["", "connect_refused", "certificate_untrusted", "tls_failed", "response_malformed", "connection_lost"];

/// Pinned names: two of the receiver, one of a private address, and one of an address family without a source.
const NAMES: &[(&str, &str)] = &[
    ("open.example", "127.0.0.1"),
    ("other.example", "127.0.0.1"),
    ("private.example", "10.0.0.1"),
    ("six.example", "::1"),
];
const HOSTS: &[&str] = &[
    "open.example",
    "OPEN.example.",
    "other.example",
    "private.example",
    "six.example",
    "127.0.0.1",
    "[::1]",
    "10.0.0.1",
];
const PATHS: &[&str] = &["", "/", "/in", "/in/a?b", "/inner", "/x/", "?q"];
/// Unusual values, which one in [`ODD`] cases has.
const ODD_HOSTS: &[&str] = &[
    "unrouted.test",
    "localhost",
    "127.1",
    "[::ffff:127.0.0.1]",
    "169.254.169.254",
    "[fd00:a9fe:a9fe::1]",
    "user@open.example",
    "",
];
const ODD_PORTS: &[&str] = &[":", ":0", ":99999", ":22", ":8443"];
const ODD_PATHS: &[&str] = &["/in/../x", "/%2e%2e/in", "/x//in", "/a#f", "/a%2fb", "/in/<a>", "/x/{a}^", "/a\\b"];
const ODD: usize = 8;

/// A SplitMix64 generator with the same cases in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % sides as u64).unwrap()
    }

    fn pick<'a>(&mut self, values: &[&'a str]) -> &'a str {
        values[self.below(values.len())]
    }

    fn pick_mostly<'a>(&mut self, values: &[&'a str], odd: &[&'a str]) -> &'a str {
        if self.below(ODD) == 0 { self.pick(odd) } else { self.pick(values) }
    }
}

/// A placeholder for the proxy's port, which is unknown before the start.
const PROXY_PORT: u16 = 1;

/// Returns a random configuration with rules of the guard, of routes and of keys.
fn configuration(random: &mut Random, port: u16) -> String {
    let names: String = NAMES.iter().map(|(name, address)| format!("{name:?} = [{address:?}]\n")).collect();
    let mut text = format!(
        r#"
[server]
listen = ["127.0.0.1:0"]
{anonymous}
ca = {{ certificate = "{{dir}}/inspector.pem", key = "file:{{dir}}/inspector.key" }}
[admin]
listen = ["127.0.0.1:0"]
[egress.default]
ranges = ["127.0.7.0/30"]
[egress.later]
ranges = [{{ cidr = "127.0.8.0/30", from = "2999-01-01T00:00:00Z" }}]
[guard]
allow = ["127.0.0.0/8", "::1/128"]
ports = {ports}
[resolver.hosts]
{names}
[trust.public]
roots = ["{{dir}}/ca.pem"]
[clients.billing]
tokens = ["{billing}"]
tenants = ["acme", "unkeyed", "empty"]
[clients.crm]
tokens = ["{crm}"]
tenants = ["*"]
[signers.platform]
scheme = "standard-webhooks"
keys = [{{ id = "k1", secret = "file:{{dir}}/key" }}]
[signers.own]
scheme = "standard-webhooks"
key_dir = "{{dir}}/keys"
[[routes]]
name = "inspected"
hosts = ["inspected.example"]
connect = "inspect"
"#,
        anonymous = random.pick(&["", "allow_anonymous = true"]),
        ports = random.pick(&["[443]", "[443, 8443]", "[8443]"]),
        billing = token_hash("b1ll1ng"),
        crm = token_hash("crm"),
    );
    // Two routes for the same host, path and client would be a problem of the configuration.
    let mut routes = BTreeMap::new();
    let (port, more) = (format!("ports = [{port}]\n"), format!("ports = [{port}, 22, {PROXY_PORT}]\n"));
    let ports = ["", &port, &more];
    for _ in 0..14 {
        let hosts = ["open.example", "other.example", "six.example", "private.example", "127.0.0.1", "*"];
        let host = random.pick(&hosts);
        let paths = random.pick(&["", "", "paths = [\"/in\"]\n", "paths = [\"/in/\", \"/x\"]\n"]);
        let scope = random.pick(&["", "", "", "tenants = [\"acme\"]\n", "clients = [\"crm\"]\n"]);
        let rest = [
            random.pick(&["", "plaintext = \"allow\"\n", "plaintext = \"upgrade\"\n"]),
            random.pick(&["", "", "connect = \"refuse\"\n", "connect = \"tunnel\"\n", "connect = \"inspect\"\n"]),
            random.pick(&["", "sign = [\"platform\"]\n", "sign = [\"own\"]\n"]),
            random.pick(&["", "", "", "egress = \"later\"\n"]),
            random.pick(&ports),
        ];
        routes.insert((host, paths, scope), rest.concat());
    }
    for (number, ((host, paths, scope), rest)) in routes.iter().enumerate() {
        text += &format!("[[routes]]\nname = \"r{number}\"\nhosts = [{host:?}]\n{paths}{scope}{rest}");
    }
    text
}

struct Case {
    /// The request to the proxy, and whether it is a CONNECT.
    request: String,
    method: &'static str,
    /// The arguments of `explain`.
    url: String,
    client: &'static str,
    tenant: Option<&'static str>,
}

fn case(random: &mut Random, ports: &[&str]) -> Case {
    let (host, port) = (random.pick_mostly(HOSTS, ODD_HOSTS), random.pick_mostly(ports, ODD_PORTS));
    // The last token and its client name identify no client.
    let (client, token) =
        [("anonymous", ""), ("billing", "b1ll1ng"), ("billing", "b1ll1ng"), ("crm", "crm"), ("", "no")]
            [random.below(5)];
    let tenant =
        [None, None, None, Some("acme"), Some("empty"), Some("unkeyed"), Some("other"), Some("")][random.below(8)];
    let mut fields = String::new();
    if !token.is_empty() {
        fields += &format!("Proxy-Authorization: Bearer {token}\r\n");
    }
    fields += &tenant.map(|tenant| format!("Outgate-Tenant: {tenant}\r\n")).unwrap_or_default();
    let case = |request, method, url| Case { request, method, url, client, tenant };
    if random.below(3) == 0 {
        let authority = format!("{host}{port}");
        return case(tunnel::connect(&authority, &fields), "CONNECT", authority);
    }
    let scheme = random.pick_mostly(&["https", "http"], &["HTTP", "ftp"]);
    let (path, method) = (
        random.pick_mostly(PATHS, ODD_PATHS),
        ["POST", "GET", "PUT", "OPTIONS", "POST", "GET", "PUT", "TRACE"][random.below(8)],
    );
    let url = format!("{scheme}://{host}{port}{path}");
    let line = |target: &str, more: &str| format!("{method} {target} HTTP/1.1\r\nHost: h\r\n{fields}{more}\r\n");
    match random.below(3) {
        0 => case(line("/anything", &format!("Outgate-Target: {url}\r\n")), method, url),
        // The upgraded URL has https and the same authority, without the port 80.
        1 if scheme == "http" => {
            let upgraded = format!("https://{host}{}{path}", if port == ":80" { "" } else { port });
            case(line(&url, "Outgate-TLS: 1\r\n"), method, upgraded)
        }
        _ => case(line(&url, ""), method, url),
    }
}

#[test]
fn explain_gives_the_code_that_the_proxy_gives() {
    let (pki, inspector) = (Pki::new(), Pki::new());
    let target = Receiver::tls(pki.leaf(&["open.example", "other.example", "127.0.0.1"]), ok());
    let mut code_counts = BTreeMap::<String, usize>::new();
    for seed in 0..CONFIGURATIONS {
        let mut random = Random(seed);
        let text = configuration(&mut random, target.port());
        let folder = folder(&pki);
        folder.write("inspector.pem", &inspector.pem);
        write_key(&folder, "inspector.key", &inspector.key_pem());
        write_key(&folder, "keys/acme/k1.key", &new_key("standard-webhooks"));
        write_key(&folder, "keys/empty/k1.until-2026-01-01.key", &new_key("standard-webhooks"));
        let outgate = Outgate::run(folder, &text);
        let text = text.replace_all(&format!(", {PROXY_PORT}]"), &format!(", {}]", outgate.proxy.port()));
        outgate.reconfigure(&text);
        let loaded = outgate::config::load(&outgate.folder.path("config.toml")).ok().unwrap();
        let now = Timestamp::now();
        let (plan, _) = outgate::policy::compile(&loaded.config, now).ok().unwrap();
        let local_addresses =
            LocalAddresses { prefixes: vec!["127.0.0.0/8".parse().unwrap()], listeners: vec![outgate.proxy] };
        let (receiver, proxy) = (format!(":{}", target.port()), format!(":{}", outgate.proxy.port()));
        let ports = ["", ":443", ":80", &receiver, &receiver, &receiver, &proxy];
        for number in 0..REQUESTS {
            let Case { request, method, url, client, tenant } = case(&mut random, &ports);
            let mut connection = outgate.connect();
            connection.send(&request);
            let response = connection.response_to(method);
            let (method, client) = (method.parse::<Method>().unwrap(), ClientName::new(client));
            let tenant = tenant.map(TenantName::new);
            let explain_request =
                ExplainRequest { method: &method, url: &url, client: &client, tenant: tenant.as_ref(), now };
            let explained = explain(&plan, &explain_request, &local_addresses);
            let explained = explained.refusal.map_or("", |code| code.name());
            let context = || format!("seed {seed}, request {number}: {request}{response:?}\n{text}");
            match explained {
                "" => assert!(TARGET_CODES.contains(&response.code()), "{}: {}", response.code(), context()),
                explained => assert_eq!(response.code(), explained, "{}", context()),
            }
            *code_counts.entry(explained.to_owned()).or_default() += 1;
        }
    }
    // The random cases must cover every code.
    for code in [
        "",
        "request_malformed",
        "client_unauthenticated",
        "client_forbidden",
        "no_route",
        "plaintext_forbidden",
        "tunnel_forbidden",
        "target_port_forbidden",
        "target_forbidden",
        "target_loops_back",
        "connect_unreachable",
        "no_egress",
        "internal",
    ] {
        assert!(code_counts.contains_key(code), "no case of {code:?}: {code_counts:?}");
    }
}
