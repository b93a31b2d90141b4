//! Syslog servers that get a copy of each audit record.
//! Does each record arrive, over TCP and over TLS, and what happens while a server is away?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::audit::{audit_file, audited, records_in, try_reload, until_recorded};
use support::pki::Pki;
use support::ports::{listen_on, reserved};
use support::{TEST_TIMEOUT, eventually};

/// A message of RFC 5424, with its fields.
#[derive(Debug)]
struct Message {
    priority: u32,
    host: String,
    application: String,
    process: String,
    id: String,
    record: Value,
}

impl Message {
    /// Parses HEADER SP STRUCTURED-DATA SP MSG. No field of outgate's has a space.
    fn parse(text: &str) -> Self {
        let fields: Vec<&str> = text.splitn(8, ' ').collect();
        let [head, time, host, application, process, id, structured, record] = fields[..] else { panic!("{text}") };
        let (priority, version) = head.strip_prefix('<').unwrap().split_once('>').unwrap();
        assert_eq!((version, structured), ("1", "-"), "{text}");
        time.parse::<jiff::Timestamp>().unwrap();
        Self {
            priority: priority.parse().unwrap(),
            host: host.to_owned(),
            application: application.to_owned(),
            process: process.to_owned(),
            id: id.to_owned(),
            record: serde_json::from_str(record).unwrap(),
        }
    }
}

/// Reads the frames of a connection by octet counting (RFC 6587 §3.4.1), until it ends.
fn read_frames(mut stream: impl Read, mut on_message: impl FnMut(Message)) {
    loop {
        let mut length = String::new();
        loop {
            let mut byte = [0];
            if stream.read(&mut byte).unwrap_or(0) == 0 {
                return;
            }
            match byte[0] {
                b' ' => break,
                digit => length.push(char::from(digit)),
            }
        }
        let mut message = vec![0; length.parse().unwrap_or_else(|_| panic!("{length:?} is no length"))];
        if stream.read_exact(&mut message).is_err() {
            return;
        }
        on_message(Message::parse(&String::from_utf8(message).unwrap()));
    }
}

/// A syslog server. It serves one connection at a time.
struct Server {
    port: u16,
    messages: Receiver<Message>,
}

impl Server {
    fn start(listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let (port, (sender, messages)) = (listener.local_addr().unwrap().port(), channel());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), tls.clone(), |message| drop(sender.send(message)));
            }
        });
        Self { port, messages }
    }

    fn tcp() -> Self {
        Self::start(TcpListener::bind("127.0.0.1:0").unwrap(), None)
    }

    fn until(&self, id: &str) -> Message {
        loop {
            let message = self.messages.recv_timeout(TEST_TIMEOUT).unwrap_or_else(|_| panic!("no message {id}"));
            if message.id == id {
                return message;
            }
        }
    }
}

fn serve(stream: TcpStream, tls: Option<Arc<rustls::ServerConfig>>, on_message: impl FnMut(Message)) {
    match tls {
        None => read_frames(stream, on_message),
        Some(tls) => {
            let connection = rustls::ServerConnection::new(tls).unwrap();
            read_frames(rustls::StreamOwned::new(connection, stream), on_message);
        }
    }
}

fn server_config(pki: &Pki, name: &str) -> Arc<rustls::ServerConfig> {
    let identity = pki.leaf(&[name]);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(config.with_no_client_auth().with_single_cert(identity.chain, identity.key).unwrap())
}

#[test]
fn syslog_server_gets_each_record_over_tcp() {
    let (scene, server) = (audited(), Server::tcp());
    let next = scene.outgate.config().add("audit.syslog", [format!("tcp://127.0.0.1:{}", server.port)]);
    assert_eq!(try_reload(&scene, &next).0, 0);
    assert_eq!(try_reload(&scene, &next.and("[limits.l]\nrate = \"1/s\"\n")).0, 0);
    let message = server.until("configuration.updated");
    // Facility 13, severity informational.
    assert_eq!(message.priority, 110);
    assert_eq!((&*message.application, &*message.process), ("outgate", &*scene.outgate.pid().to_string()));
    assert_eq!(message.host, rustix::system::uname().nodename().to_str().unwrap());
    let written = records_in(&audit_file(&scene.outgate));
    assert!(written.contains(&message.record), "{message:?}");
}

#[test]
fn syslog_server_gets_alerts_over_tcp() {
    let (scene, server) = (audited(), Server::tcp());
    let next = scene.outgate.config().and("[alerts]\nhold = \"0s\"\n");
    let next = next.add("alerts.syslog", [format!("tcp://127.0.0.1:{}", server.port)]);
    assert_eq!(try_reload(&scene, &next).0, 0);
    assert_eq!(try_reload(&scene, &next.and("[limits.l]\nrat = 1\n")).0, 78);
    let message = server.until("alert.began");
    // Facility 14, severity warning.
    assert_eq!(
        (message.priority, &message.record["data"]["name"]),
        (116, &"OutgateReloadFailed".into()),
        "{message:?}"
    );
    assert_eq!(try_reload(&scene, &next).0, 0);
    let message = server.until("alert.resolved");
    assert_eq!(
        (message.priority, &message.record["data"]["name"]),
        (118, &"OutgateReloadFailed".into()),
        "{message:?}"
    );
}

#[test]
fn syslog_server_over_tls_must_show_the_certificate_that_its_trust_demands() {
    let scene = audited();
    let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
    let good = Server::start(listen(), Some(server_config(&scene.pki, "hook.example")));
    let bad = Server::start(listen(), Some(server_config(&Pki::new(), "hook.example")));
    let url = |server: &Server| format!("tcp+tls://hook.example:{}", server.port);
    let next = scene.outgate.config().and(&format!(
        "[audit]\nsyslog = [{{ url = \"{}\", trust = \"siem\" }}, \"{}\"]\n[trust.siem]\nroots = [\"{{dir}}/ca.pem\"]\n",
        url(&good),
        url(&bad)
    ));
    let (code, _, err) = try_reload(&scene, &next);
    assert_eq!(code, 0, "{err}");
    assert_eq!(try_reload(&scene, &next.and("[limits.l]\nrate = \"1/s\"\n")).0, 0);
    good.until("configuration.updated");
    scene.outgate.log.wait_for_lines(1, &["cannot send audit records to", &url(&bad), "unknown_issuer"]);
    assert!(scene.outgate.admin("/readyz").text().contains(&url(&bad)));
    assert!(bad.messages.try_recv().is_err());
    let (code, _, err) =
        try_reload(&scene, &next.set("trust.siem.roots", ["mozilla"]).and("[limits.m]\nrate = \"1/s\"\n"));
    assert_eq!(code, 0, "{err}");
    let (code, _, err) = try_reload(&scene, &scene.outgate.config().set("audit.syslog", ["tcp://nowhere"]));
    assert!(code == 78 && err.contains("no port"), "{err}");
}

/// The pause before the next connection is half a second, and doubles.
#[test]
fn syslog_server_that_ends_each_connection_is_not_dialled_without_a_pause() {
    let scene = audited();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let next = scene.outgate.config().add("audit.syslog", [format!("tcp://{}", server.local_addr().unwrap())]);
    assert_eq!(try_reload(&scene, &next).0, 0);
    let dialled: Vec<Instant> = (0..4).map(|_| server.accept().map(|_| Instant::now()).unwrap()).collect();
    assert!(dialled[3] - dialled[2] >= Duration::from_millis(1500), "{dialled:?}");
}

#[test]
fn syslog_server_that_comes_back_gets_the_records_that_waited() {
    let scene = audited();
    let (_reserved, address) = reserved();
    let listener = listen_on(address);
    let next = scene.outgate.config().add("audit.syslog", [format!("tcp://{address}")]);
    assert_eq!(try_reload(&scene, &next).0, 0);
    let (first, _) = listener.accept().unwrap();
    assert_eq!(try_reload(&scene, &next.and("[limits.a]\nrate = \"1/s\"\n")).0, 0);
    // The server ends the connection, and accepts no other one for a while.
    drop((first, listener));
    scene.outgate.log.wait_for_lines(1, &["cannot send audit records to", "records wait for it"]);
    scene.outgate.wait_for_metric("outgate_alerts{name=\"OutgateAuditDegraded\"} 1");
    assert_eq!(try_reload(&scene, &next.and("[limits.b]\nrate = \"1/s\"\n")).0, 0);
    let last = until_recorded(&scene.outgate, "configuration.updated", 3).remove(2);
    assert_eq!(scene.outgate.post(&scene.plain_url(), "", "x").status, 200);
    let again = Server::start(listen_on(address), None);
    loop {
        if again.until("configuration.updated").record["seq"] == last["seq"] {
            break;
        }
    }
    scene.outgate.log.wait_for_lines(1, &["audit records are sent to", "again"]);
    eventually("ready without a fault", || !scene.outgate.admin("/readyz").text().contains("audit records"));
}
