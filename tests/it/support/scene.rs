//! The usual scene: one outgate whose loopback pool reaches loopback receivers.
//! With which configuration do most tests start?

use super::configuration::{Config, token_hash};
use super::frames::{FrameTarget, Script};
use super::pki::{Identity, Pki, self_signed};
use super::receiver::{Reaction, Receiver, ok};
use super::{Folder, Outgate};

pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

pub struct Scene {
    pub pki: Pki,
    pub outgate: Outgate,
    pub good: Receiver,
    pub plain: Receiver,
}

/// Starts the usual scene. `hook.example` has a valid certificate. `plain.example` is on a route that allows plaintext and
/// does not sign. The pool has 127.0.7.0/30.
pub fn scene() -> Scene {
    scene_with(ok(), "")
}

pub fn scene_with(reaction: Reaction, more: &str) -> Scene {
    let pki = Pki::new();
    let good = Receiver::tls(pki.leaf(&["hook.example"]), reaction.clone());
    let plain = Receiver::plain(reaction);
    let config = config(&good, &plain, more);
    let outgate = Outgate::run(folder(&pki), &config);
    Scene { pki, outgate, good, plain }
}

/// Starts the usual scene with a changed configuration.
pub fn scene_of(change: &dyn Fn(&Config) -> Config) -> Scene {
    let pki = Pki::new();
    let good = Receiver::tls(pki.leaf(&["hook.example"]), ok());
    let plain = Receiver::plain(ok());
    let outgate = Outgate::run(folder(&pki), &change(&config(&good, &plain, "")));
    Scene { pki, outgate, good, plain }
}

/// Starts an HTTP/2 target, and a proxy with one source address, so that all deliveries may share a connection.
pub fn one_source_scene(script: Script, more: &str) -> (FrameTarget, Outgate) {
    let pki = Pki::new();
    let target = FrameTarget::start(&pki, &[], script);
    let other = Receiver::plain(ok());
    let text = config(&other, &other, more)
        .set("egress.default.ranges", ["127.0.7.1/32"])
        .push("routes.*.ports", target.address.port());
    (target, Outgate::run(folder(&pki), &text))
}

/// Returns the section of the client `billing`, which has a token and may send for the tenant `acme`.
pub fn billing(token: &str) -> String {
    format!("[clients.billing]\ntokens = [\"{}\"]\ntenants = [\"acme\"]\n", token_hash(token))
}

pub fn folder(pki: &Pki) -> Folder {
    let folder = Folder::new();
    folder.write("ca.pem", &pki.pem);
    folder.write("key", SECRET);
    std::fs::set_permissions(folder.path("key"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    folder
}

/// `more` has further sections. Its routes come before the usual ones. The timeouts are longer than any wait of a test: a
/// test whose subject is a timeout sets a short one.
pub fn config(good: &Receiver, plain: &Receiver, more: &str) -> Config {
    Config::parse(&format!(
        r#"
[server]
listen = ["127.0.0.1:0"]
allow_anonymous = true
drain_timeout = "5s"
[admin]
listen = ["127.0.0.1:0"]
[egress.default]
ranges = ["127.0.7.0/30"]
notice = "0s"
[guard]
allow = ["127.0.0.0/8"]
[resolver.hosts]
"hook.example" = ["127.0.0.1"]
"plain.example" = ["127.0.0.1"]
"other.example" = ["127.0.0.1"]
[trust.public]
roots = ["{{dir}}/ca.pem"]
[signers.platform]
scheme = "standard-webhooks"
keys = [{{ id = "k1", secret = "file:{{dir}}/key" }}]
{more}
[[routes]]
name = "signed"
hosts = ["hook.example", "other.example", "127.0.0.1"]
ports = [{good}, {plain}]
sign = ["platform"]
body_max = "64 KiB"
timeouts = {{ response = "1m", connect = "1m", tls = "1m", body = "1m" }}
[[routes]]
name = "plain"
hosts = ["plain.example"]
ports = [{good}, {plain}]
plaintext = "allow"
body_max = "1 MiB"
timeouts = {{ response = "1m", connect = "1m", body = "1m" }}
"#,
        good = good.port(),
        plain = plain.port(),
    ))
}

pub fn bad_receiver(names: &[&str]) -> Receiver {
    let identity: Identity = self_signed(names);
    Receiver::tls(identity, ok())
}

impl Scene {
    pub fn good_url(&self) -> String {
        format!("https://hook.example:{}/in", self.good.port())
    }
    pub fn plain_url(&self) -> String {
        format!("http://plain.example:{}/in", self.plain.port())
    }
}
