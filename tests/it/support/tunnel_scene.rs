//! A proxy with a route for each outcome of a CONNECT, and its targets.
//! With which configuration do the tests of tunnels start?

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use serde_json::Value;

use super::configuration::Config;
use super::pki::{Identity, Pki};
use super::receiver::{Receiver, ok};
use super::scene::folder;
use super::tunnel::connect;
use super::wiretap::Wiretap;
use super::{Client, Outgate, TEST_TIMEOUT, read_to_end};

/// Returns a configuration with a route for each setting of `connect`. `tunnel` and `plain` have the default and do not
/// sign.
pub fn config(port: u16, more: &str) -> Config {
    let hosts: String = ["tunnel", "plain", "signed", "forced", "refused", "paths"]
        .iter()
        .map(|name| format!("\"{name}.example\" = [\"127.0.0.1\"]\n"))
        .collect();
    let route = |name: &str, hosts: &str, rest: &str| {
        format!(
            "[[routes]]\nname = \"{name}\"\nhosts = [{hosts}]\nports = [{port}]\n\
             timeouts = {{ connect = \"1m\", tls = \"1m\" }}\n{rest}\n"
        )
    };
    let text = [
        "[server]\nlisten = [\"127.0.0.1:0\"]\nallow_anonymous = true\ndrain_timeout = \"5s\"\n\
         [admin]\nlisten = [\"127.0.0.1:0\"]\n[egress.default]\nranges = [\"127.0.7.0/30\"]\nnotice = \"0s\"\nselect = \"spread\"\n\
         [guard]\nallow = [\"127.0.0.0/8\"]\n[trust.public]\nroots = [\"{dir}/ca.pem\"]\n[signers.platform]\n\
         scheme = \"standard-webhooks\"\nkeys = [{ id = \"k1\", secret = \"file:{dir}/key\" }]\n[resolver.hosts]\n",
        &hosts,
        more,
        &route("tunnel", "\"tunnel.example\", \"127.0.0.1\"", ""),
        &route("plain", "\"plain.example\"", "plaintext = \"allow\""),
        &route("signed", "\"signed.example\"", "sign = [\"platform\"]"),
        &route("forced", "\"forced.example\"", "sign = [\"platform\"]\nconnect = \"tunnel\""),
        &route("refused", "\"refused.example\"", "connect = \"refuse\""),
        &route("paths", "\"paths.example\"", "paths = [\"/in\"]"),
    ];
    Config::parse(&text.concat())
}

pub struct Scene {
    pub pki: Pki,
    pub outgate: Outgate,
    pub target: Receiver,
    /// A relay before the target, which records the bytes that outgate sends.
    pub tap: Wiretap,
}

pub fn scene() -> Scene {
    scene_with(|pki| pki.leaf(&["tunnel.example", "plain.example", "forced.example", "127.0.0.1"]), "")
}

pub fn scene_with(identity: impl FnOnce(&Pki) -> Identity, more: &str) -> Scene {
    let pki = Pki::new();
    let target = Receiver::tls(identity(&pki), ok());
    let tap = Wiretap::before(target.address);
    let outgate = Outgate::run(folder(&pki), &config(tap.address.port(), more));
    Scene { pki, outgate, target, tap }
}

impl Scene {
    pub fn port(&self) -> u16 {
        self.tap.address.port()
    }
    pub fn authority(&self) -> String {
        format!("tunnel.example:{}", self.port())
    }
    /// Opens a tunnel. Returns it with its index among the tapped connections, because a verification may precede it.
    pub fn open(&self, authority: &str) -> (Client, usize) {
        let before = self.tap.traffic().len();
        let client = self.outgate.open_tunnel(authority);
        (client, self.tap.wait_for_silent_connection(before))
    }
    pub fn record(&self, count: usize) -> Value {
        self.outgate.records(count)[count - 1].clone()
    }
}

/// A proxy and a listener, with which the test acts as the target of a plaintext route.
pub struct ManualScene {
    pub outgate: Outgate,
    pub listener: TcpListener,
}

pub fn manual_scene(more: &str) -> ManualScene {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = config(listener.local_addr().unwrap().port(), more);
    ManualScene { outgate: Outgate::run(folder(&Pki::new()), &config), listener }
}

impl ManualScene {
    pub fn authority(&self) -> String {
        format!("plain.example:{}", self.listener.local_addr().unwrap().port())
    }

    pub fn accept(&self) -> TcpStream {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TEST_TIMEOUT)).unwrap();
        stream
    }

    /// Opens a tunnel. The first connection tests for TLS and is closed. The second carries the tunnel.
    pub fn open(&self) -> (Client, TcpStream) {
        self.open_and_send("")
    }

    /// Opens a tunnel. `first` are bytes in the tunnel that the client sends with the CONNECT.
    pub fn open_and_send(&self, first: &str) -> (Client, TcpStream) {
        let mut client = self.outgate.connect();
        client.send(connect(&self.authority(), "") + first);
        self.close_on_tls();
        let stream = self.accept();
        let response = client.response_to("CONNECT");
        assert_eq!(response.status, 200, "{response:?}");
        (client, stream)
    }

    /// Closes the connection of the verification without a response, which outgate does not remember. Returns the address
    /// of its source.
    pub fn close_on_tls(&self) -> SocketAddr {
        let mut verification = self.accept();
        assert!(verification.read(&mut [0; 1]).unwrap() == 1, "a ClientHello");
        verification.peer_addr().unwrap()
    }

    /// Responds to the verification in plaintext, and returns the address of its source.
    pub fn reject_tls(&self) -> SocketAddr {
        let mut verification = self.accept();
        assert!(verification.read(&mut [0; 1]).unwrap() == 1, "a ClientHello");
        verification.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        read_to_end(&mut verification);
        verification.peer_addr().unwrap()
    }

    pub fn record(&self, count: usize) -> Value {
        self.outgate.records(count)[count - 1].clone()
    }
}

pub fn read(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}
