//! The schema of the configuration: its keys, reserved keys, and aliases that operators write.
//! Is this key known, and if not, which key was intended?

mod admin;
mod alerts;
mod audit;
mod captures;
mod credential;
mod egress;
mod fleet;
mod guard;
mod limit;
mod listener;
mod log;
mod publish;
mod redact;
mod rollout;
mod signer;
#[cfg(test)]
pub(super) mod tests;
mod timeouts;
mod traces;
mod trust;
mod upstream;

use super::problem::closest_match;
pub(super) use admin::{ADMIN, ADMIN_LISTEN, ADMIN_USER};
pub(super) use alerts::{ALERTS, NOTICES};
pub(super) use audit::{AUDIT, AUDIT_ROTATE, AUDIT_SYSLOG};
pub(super) use captures::CAPTURE;
pub(super) use credential::CREDENTIAL;
pub(super) use egress::{POOL, RANGE};
pub(super) use fleet::{FLEET, FLEET_OPERATOR};
pub(super) use guard::GUARD;
pub(super) use limit::LIMIT;
pub(super) use listener::{PROXY_PROTOCOL, SERVER_CA, SERVER_LISTEN, SERVER_TLS};
pub(super) use log::{LOG, LOG_ROTATE};
pub(super) use publish::{PUBLISH, PUBLISH_LISTEN};
pub(super) use redact::{REDACT, ROUTE_REDACT};
pub(super) use rollout::{DENIED, SPLIT};
pub(super) use signer::{SIGNER, SIGNING_KEY};
pub(super) use timeouts::{CIRCUIT, ROUTE_TIMEOUTS, TIMEOUTS};
pub(super) use traces::TRACES;
pub(super) use trust::{TRUST, TRUST_IDENTITY};
pub(super) use upstream::RESPONSE_HEAD_MAX;

/// The keys of one kind of table.
pub(super) struct Schema {
    /// The dotted path, with `*` for a name that the operator chooses; empty for the file.
    pub(super) path: &'static str,
    /// The name of the table in messages.
    pub(super) title: &'static str,
    pub(super) keys: &'static [&'static str],
    /// Reserved for a later version.
    reserved: &'static [&'static str],
    /// Names that other proxies or operators use, each with the key of outgate.
    aliases: &'static [(&'static str, &'static str)],
}

pub(super) const ACKNOWLEDGE: &str = "acknowledge";

pub(super) static FILE: Schema = Schema {
    path: "",
    title: "the file",
    keys: &[
        "include",
        ACKNOWLEDGE,
        "server",
        "admin",
        "egress",
        "clients",
        "routes",
        "trust",
        "signers",
        "credentials",
        "limits",
        "guard",
        "resolver",
        "timeouts",
        "circuit",
        "log",
        "redact",
        "audit",
        "captures",
        "traces",
        "alerts",
        "publish",
        "notices",
        "fleet",
    ],
    reserved: &[],
    aliases: &[
        ("ignore", ACKNOWLEDGE),
        ("suppress", ACKNOWLEDGE),
        ("allow_warnings", ACKNOWLEDGE),
        ("pool", "egress"),
        ("pools", "egress"),
        ("outbound", "egress"),
        ("timeout", "timeouts"),
        ("circuit_breaker", "circuit"),
        ("outlier_detection", "circuit"),
        ("health", "circuit"),
        ("sign", "signers"),
        ("signing", "signers"),
        ("auth", "credentials"),
        ("oauth2", "credentials"),
        ("dns", "resolver"),
        ("acl", "guard"),
        ("tls", "trust"),
        ("logging", "log"),
        ("alerting", "alerts"),
        ("notifications", "alerts"),
        ("redaction", "redact"),
        ("privacy", "redact"),
        ("capture", "captures"),
        ("recordings", "captures"),
        ("metrics", "admin"),
        ("listener", "server"),
        ("listeners", "server"),
        ("frontend", "server"),
        ("backend", "routes"),
        ("rate_limit", "limits"),
        ("rate_limits", "limits"),
        ("includes", "include"),
        ("cluster", "fleet"),
        ("redis", "fleet"),
        ("valkey", "fleet"),
    ],
};

pub(super) static SERVER: Schema = Schema {
    path: "server",
    title: "[server]",
    keys: &[
        "name",
        "listen",
        "tls",
        "ca",
        "proxy_protocol",
        "allow_anonymous",
        "max_connections",
        "max_connections_per_ip",
        "max_deliveries",
        "drain_grace",
        "drain_timeout",
        "reuse_port",
        "workers",
        "watch",
        "state",
        "history",
    ],
    reserved: &[],
    aliases: &[
        ("accept_proxy", "proxy_protocol"),
        ("ssl", "tls"),
        ("bind", "listen"),
        ("address", "listen"),
        ("port", "listen"),
        ("maxconn", "max_connections"),
        ("max_requests", "max_deliveries"),
        ("threads", "workers"),
        ("nbthread", "workers"),
        ("shutdown_timeout", "drain_timeout"),
        ("grace", "drain_grace"),
        ("so_reuseport", "reuse_port"),
        ("reuseport", "reuse_port"),
        ("allow_missing_role", "allow_anonymous"),
        ("anonymous", "allow_anonymous"),
        ("pseudonym", "name"),
        ("auto_reload", "watch"),
        ("state_dir", "state"),
        ("data_dir", "state"),
        ("hot_reload", "watch"),
    ],
};

/// Aliases in tables with a validity period: ranges and signing keys.
const PERIOD_ALIASES: &[(&str, &str)] = &[
    ("range", "cidr"),
    ("nat", "seen_as"),
    ("public", "seen_as"),
    ("external", "seen_as"),
    ("outside", "seen_as"),
    ("elastic_ips", "seen_as"),
    ("start", "from"),
    ("since", "from"),
    ("not_before", "from"),
    ("to", "until"),
    ("end", "until"),
    ("expires", "until"),
    ("not_after", "until"),
    ("name", "id"),
    ("kid", "id"),
    ("key", "secret"),
    ("value", "secret"),
    ("file", "secret"),
    ("path", "secret"),
];

pub(super) static CLIENT: Schema = Schema {
    path: "clients.*",
    title: "[clients.NAME]",
    keys: &["tokens", "certificates", "public_keys", "networks", "require", "tenants"],
    reserved: &[],
    aliases: &[
        ("password", "tokens"),
        ("secret", "tokens"),
        ("hashes", "tokens"),
        ("cidrs", "networks"),
        ("ranges", "networks"),
        ("addresses", "networks"),
        ("allow", "networks"),
        ("accounts", "tenants"),
        ("san", "certificates"),
        ("sans", "certificates"),
        ("subject_alt_names", "certificates"),
        ("spiffe", "certificates"),
        ("keys", "public_keys"),
        ("jwks", "public_keys"),
        ("proofs", "require"),
        ("satisfy", "require"),
    ],
};

pub(super) static ROUTE: Schema = Schema {
    path: "routes",
    title: "[[routes]]",
    keys: &[
        "name",
        "hosts",
        "paths",
        "ports",
        "tenants",
        "clients",
        "egress",
        "trust",
        "sign",
        "credential",
        "limits",
        "plaintext",
        "connect",
        "interim",
        "body_max",
        "response_max",
        "response_head_max",
        "client_connections",
        "metrics",
        "timeouts",
        "redact",
        "split",
        "report_only",
    ],
    reserved: &[],
    aliases: &[
        ("redaction", "redact"),
        ("canary", "split"),
        ("weight", "split"),
        ("shadow", "report_only"),
        ("dry_run", "report_only"),
        ("domains", "hosts"),
        ("allowed_domains", "hosts"),
        ("prefix", "paths"),
        ("pool", "egress"),
        ("signers", "sign"),
        ("auth", "credential"),
        ("authorization", "credential"),
        ("basic_auth", "credential"),
        ("oauth2", "credential"),
        ("timeout", "timeouts"),
        ("max_body", "body_max"),
        ("body_limit", "body_max"),
        ("max_response", "response_max"),
        ("response_headers_max", "response_head_max"),
        ("tunnel", "connect"),
        ("mitm_domains", "connect"),
        ("tls", "trust"),
        ("rate_limits", "limits"),
    ],
};

pub(super) static RESOLVER: Schema = Schema {
    path: "resolver",
    title: "[resolver]",
    keys: &["servers", "hosts"],
    reserved: &[],
    aliases: &[
        ("nameservers", "servers"),
        ("nameserver", "servers"),
        ("resolver_addresses", "servers"),
        ("static", "hosts"),
    ],
};

pub(super) static SCHEMAS: [&Schema; 42] = [
    &FILE,
    &SERVER,
    &SERVER_TLS,
    &SERVER_LISTEN,
    &ADMIN_LISTEN,
    &SERVER_CA,
    &PROXY_PROTOCOL,
    &ADMIN,
    &ADMIN_USER,
    &POOL,
    &RANGE,
    &CLIENT,
    &ROUTE,
    &ROUTE_TIMEOUTS,
    &ROUTE_REDACT,
    &SPLIT,
    &RESPONSE_HEAD_MAX,
    &DENIED,
    &TRUST,
    &TRUST_IDENTITY,
    &SIGNER,
    &SIGNING_KEY,
    &CREDENTIAL,
    &LIMIT,
    &GUARD,
    &RESOLVER,
    &TIMEOUTS,
    &CIRCUIT,
    &LOG,
    &LOG_ROTATE,
    &REDACT,
    &AUDIT,
    &AUDIT_ROTATE,
    &AUDIT_SYSLOG,
    &CAPTURE,
    &TRACES,
    &ALERTS,
    &PUBLISH,
    &PUBLISH_LISTEN,
    &NOTICES,
    &FLEET,
    &FLEET_OPERATOR,
];

/// The classification of a key that its table does not have.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum UnknownKey {
    Reserved,
    Alias(&'static str),
    /// A likely misspelling of this key.
    Similar(&'static str),
    /// A key of the table with this title.
    OtherTable(&'static str),
    Unrecognized,
}

impl Schema {
    pub(super) fn contains(&self, key: &str) -> bool {
        self.keys.contains(&key)
    }

    pub(super) fn classify(&self, key: &str) -> UnknownKey {
        // People write `drain-timeout` and `drainTimeout` too.
        let normalized = key.replace('-', "_").to_ascii_lowercase();
        if self.reserved.contains(&key) {
            return UnknownKey::Reserved;
        }
        // An alias applies only in a table that has the key.
        if let Some((_, name)) = self.aliases.iter().find(|(old, name)| *old == normalized && self.contains(name)) {
            return UnknownKey::Alias(name);
        }
        if let Some(similar) = closest_match(&normalized, self.keys.iter().copied()) {
            return UnknownKey::Similar(similar);
        }
        match SCHEMAS.iter().find(|schema| schema.contains(key)) {
            Some(schema) => UnknownKey::OtherTable(schema.title),
            None => UnknownKey::Unrecognized,
        }
    }
}

/// Returns every key as a dotted path, `*` for a name: `server.listen`, `egress.*.ranges`.
pub fn known() -> impl Iterator<Item = String> {
    SCHEMAS.iter().flat_map(|schema| {
        schema
            .keys
            .iter()
            .map(|key| if schema.path.is_empty() { (*key).into() } else { format!("{}.{key}", schema.path) })
    })
}
